# SPDX-License-Identifier: MIT
"""The D-Bus library, made safe: which of the two it is, and making and reading one message. Only this file imports it.

`dbus-fast` where it is installed, else `dbus-next`; the environment variable `DOMSNAPD_DBUS_LIBRARY` names one. They have
the same API; `wire` re-exports what the rest needs.

- A struct is read as a tuple, and may be given as a tuple or a list.
- What others send does not grow the libraries' caches without bound.
- Making and reading a message is loop time: 10,000 rows of `a{sv}` take 90 (dbus-fast) to 220 ms (dbus-next).
"""

import importlib.util
import io
import os
from typing import TYPE_CHECKING, Any, cast

__all__ = ["LIBRARY", "Message", "MessageFlag", "MessageType", "Variant", "decode", "encode", "unwrap"]

MAX_SIGNATURES = 256

LIBRARY = os.environ.get("DOMSNAPD_DBUS_LIBRARY") or ("dbus-fast" if importlib.util.find_spec("dbus_fast") else "dbus-next")

if TYPE_CHECKING or LIBRARY == "dbus-fast":
    from dbus_fast import Message, MessageFlag, MessageType, Variant
    from dbus_fast._private.unmarshaller import Unmarshaller
    from dbus_fast.signature import SignatureType, get_signature_tree
elif LIBRARY == "dbus-next":
    from dbus_next import Message, MessageFlag, MessageType, Variant
    from dbus_next._private.unmarshaller import Unmarshaller
    from dbus_next.signature import SignatureTree, SignatureType

    class _SignatureCache(dict):
        """Bounded, because one hostile message can hold 30,000 signatures, each of which costs 44 kB."""

        def __setitem__(self, signature, tree):
            if len(self) >= MAX_SIGNATURES:
                self.clear()
            super().__setitem__(signature, tree)

    SignatureTree._cache = _SignatureCache()
    _verify_struct, _verify_string = SignatureType._verify_struct, SignatureType._verify_string

    def _verify_any_struct(self, body):  # dbus-next takes lists only
        _verify_struct(self, list(body) if isinstance(body, tuple) else body)

    def _verify_sendable_string(self, body):  # the bus ends the connection of who sends a NUL
        _verify_string(self, body)
        if "\0" in body:
            raise ValueError("a string with a NUL in it cannot be sent")

    SignatureType._verify_struct, SignatureType._verify_string = _verify_any_struct, _verify_sendable_string
else:
    raise ImportError(f"DOMSNAPD_DBUS_LIBRARY is {LIBRARY!r}; it can be 'dbus-fast' or 'dbus-next'")


def encode(message: Message) -> bytearray:
    """Return the message as it leaves; its serial must be set.

    Raises: what the library says of a body that does not fit the signature.
    """
    return message._marshall(False)


def decode(frame: bytes) -> Message:
    """Return the message in one whole frame.

    Raises: anything; the libraries' parsers do.
    """
    message = Unmarshaller(cast("io.BufferedRWPair", io.BytesIO(frame))).unmarshall()
    if message is None:
        raise ValueError("it is shorter than it says")
    if LIBRARY == "dbus-fast" and get_signature_tree.cache_info().currsize > MAX_SIGNATURES:
        get_signature_tree.cache_clear()  # unbounded before dbus-fast 5, 200 MB at its fullest since
    if message.body:
        message.body = [_tupled(kind, value) for kind, value in zip(message.signature_tree.types, message.body, strict=True)]
    return message


def unwrap(value: Any) -> Any:
    """Return the value with every variant in it replaced by what it holds."""
    if isinstance(value, Variant):
        return unwrap(value.value)
    if isinstance(value, dict):
        return {key: unwrap(each) for key, each in value.items()}
    return type(value)(map(unwrap, value)) if isinstance(value, list | tuple) else value


def _tupled(kind: SignatureType, value: Any) -> Any:
    """Return the value with its structs as tuples; dbus-next, and dbus-fast before 3, make lists of them."""
    if "(" not in kind.signature and "v" not in kind.signature:
        return value
    child = kind.children[0] if kind.children else kind
    match kind.signature[0]:
        case "v":
            value.value = _tupled(value.type, value.value)
            return value
        case "(":
            return tuple(_tupled(each, part) for each, part in zip(kind.children, value, strict=True))
        case _ if child.signature[0] == "{":
            return {key: _tupled(child.children[1], each) for key, each in value.items()}
        case _:
            return [_tupled(child, each) for each in value]
