# SPDX-License-Identifier: MIT
"""Owns the one table from errors to D-Bus error names, and the errors of the bus protocol itself.

It does not make the sentences of the service's own errors: those are in ``snapd.errors``.

- Each code has exactly one bus name.
- Nothing about an unexpected exception leaves the process but an id, under which the log holds its traceback.
- A message can always be sent: it is valid UTF-8 without NUL.
"""

import logging
import secrets
from typing import NamedTuple

from snapd.bus.names import ERROR_PREFIX
from snapd.errors import Internal, SnapdError, concrete_errors

_STANDARD = "org.freedesktop.DBus.Error."

UNKNOWN_OBJECT = _STANDARD + "UnknownObject"
UNKNOWN_INTERFACE = _STANDARD + "UnknownInterface"
UNKNOWN_METHOD = _STANDARD + "UnknownMethod"
UNKNOWN_PROPERTY = _STANDARD + "UnknownProperty"
PROPERTY_READ_ONLY = _STANDARD + "PropertyReadOnly"
INVALID_ARGS = _STANDARD + "InvalidArgs"
ACCESS_DENIED = _STANDARD + "AccessDenied"
LIMITS_EXCEEDED = _STANDARD + "LimitsExceeded"

# Clients know these two from every other service, so they keep the bus's own names.
NAME_OF_CODE: dict[str, str] = {each.code: ERROR_PREFIX + each.code for each in concrete_errors()} | {
    "AccessDenied": ACCESS_DENIED,
    "LimitReached": LIMITS_EXCEEDED,
}

_log = logging.getLogger(__name__)


class ErrorReply(NamedTuple):
    """What goes on the wire for a failed call."""

    name: str
    message: str


class BusError(Exception):
    """A call that the protocol itself refuses: no such object, member or signature."""

    def __init__(self, name: str, message: str) -> None:
        self.name, self.message = name, message
        super().__init__(message)


def unknown_object(path: str) -> BusError:
    """Make the error for a path at which nothing lives."""
    return BusError(UNKNOWN_OBJECT, f"There is no object at {path}.")


def unknown_interface(path: str, interface: str) -> BusError:
    """Make the error for an interface that the object does not have."""
    return BusError(UNKNOWN_INTERFACE, f"The object at {path} has no interface {interface!r}.")


def unknown_method(interface: str, member: str) -> BusError:
    """Make the error for a method that the interface does not have; ``interface`` may be empty, as in a message."""
    where = f"Interface {interface}" if interface else "No interface of this object"
    return BusError(UNKNOWN_METHOD, f"{where} has {'no' if interface else 'a'} method {member!r}.")


def unknown_property(interface: str, name: str) -> BusError:
    """Make the error for a property that the interface does not have."""
    return BusError(UNKNOWN_PROPERTY, f"Interface {interface} has no property {name!r}.")


def property_read_only(interface: str, name: str) -> BusError:
    """Make the error for an attempt to set a property."""
    return BusError(PROPERTY_READ_ONLY, f"Property {name!r} of {interface} cannot be set.")


def invalid_args(interface: str, member: str, expected: str, received: str) -> BusError:
    """Make the error for arguments of the wrong types; both signatures are shown."""
    return BusError(INVALID_ARGS, f"{interface}.{member} takes arguments of type '{expected}', not '{received}'.")


def to_bus(error: BaseException) -> ErrorReply:
    """Return the name and message that answer a call which ended with ``error``.

    Effects: an exception that is neither ours nor the protocol's is logged with its traceback under a fresh id.
    """
    match error:
        case BusError():
            return ErrorReply(error.name, _sendable(error.message))
        case SnapdError() if error.code in NAME_OF_CODE:
            return ErrorReply(NAME_OF_CODE[error.code], _sendable(error.sentence))
        case _:
            internal = Internal(reference=secrets.token_hex(4))
            _log.error("unexpected error %s", internal.reference, exc_info=error)
            return ErrorReply(NAME_OF_CODE[internal.code], internal.sentence)


def _sendable(message: str) -> str:
    # A file name that is not UTF-8 carries lone surrogates; D-Bus disconnects whoever sends those, or a NUL.
    return message.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
