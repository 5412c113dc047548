# SPDX-License-Identifier: MIT
"""The table from errors to D-Bus names."""

import inspect
import logging
from typing import Any

import pytest

from snapd import errors
from snapd.bus import errors as bus_errors

# Written out, because a client compares these: changing one is a new version of the interface.
NAMES = {
    "AccessDenied": "org.freedesktop.DBus.Error.AccessDenied",
    "Canceled": "org.domsnap1.Error.Canceled",
    "DomainBusy": "org.domsnap1.Error.DomainBusy",
    "DomainDrifted": "org.domsnap1.Error.DomainDrifted",
    "DomainUnreachable": "org.domsnap1.Error.DomainUnreachable",
    "ImageInUse": "org.domsnap1.Error.ImageInUse",
    "ImageToolFailed": "org.domsnap1.Error.ImageToolFailed",
    "Internal": "org.domsnap1.Error.Internal",
    "Interrupted": "org.domsnap1.Error.Interrupted",
    "InvalidName": "org.domsnap1.Error.InvalidName",
    "InvalidOption": "org.domsnap1.Error.InvalidOption",
    "LimitReached": "org.freedesktop.DBus.Error.LimitsExceeded",
    "MonitorLost": "org.domsnap1.Error.MonitorLost",
    "NoSpace": "org.domsnap1.Error.NoSpace",
    "NoSuchDomain": "org.domsnap1.Error.NoSuchDomain",
    "NoSuchJob": "org.domsnap1.Error.NoSuchJob",
    "NoSuchSnapshot": "org.domsnap1.Error.NoSuchSnapshot",
    "NotSupported": "org.domsnap1.Error.NotSupported",
    "Protected": "org.domsnap1.Error.Protected",
    "QemuFailed": "org.domsnap1.Error.QemuFailed",
    "QuiesceFailed": "org.domsnap1.Error.QuiesceFailed",
    "SnapshotExists": "org.domsnap1.Error.SnapshotExists",
    "StateDamaged": "org.domsnap1.Error.StateDamaged",
    "UndoFailed": "org.domsnap1.Error.UndoFailed",
}


def made(error_class: type[errors.SnapdError]) -> errors.SnapdError:
    values: dict[Any, Any] = {str: "x", str | None: "x", int: 7, bool: True, list[str]: ["x"]}
    wanted = inspect.signature(error_class).parameters
    return error_class(**{name: values[each.annotation] for name, each in wanted.items()})


def test_the_table_is_what_clients_know() -> None:
    assert bus_errors.NAME_OF_CODE == NAMES


def test_no_two_codes_share_a_name() -> None:
    assert len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize("error_class", errors.concrete_errors(), ids=lambda each: each.code)
def test_each_error_keeps_its_name_and_its_sentence(error_class: type[errors.SnapdError]) -> None:
    error = made(error_class)
    assert bus_errors.to_bus(error) == (NAMES[error_class.code], error.sentence)


def test_an_unexpected_exception_is_logged_under_an_id_and_says_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def answers() -> bus_errors.ErrorReply:
        nothing: dict[str, bus_errors.ErrorReply] = {}
        try:
            return nothing["a secret"]
        except KeyError as error:
            return bus_errors.to_bus(error)

    with caplog.at_level(logging.ERROR):
        first, second = answers(), answers()
    assert first.name == NAMES["Internal"]
    assert "secret" not in first.message
    assert first.message != second.message
    reference = first.message.rstrip(".").rsplit(" ", 1)[-1]
    record = caplog.records[0]
    assert reference in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)
    assert record.exc_info[2] is not None


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (bus_errors.unknown_object("/x"), "UnknownObject"),
        (bus_errors.unknown_interface("/x", "a.b"), "UnknownInterface"),
        (bus_errors.unknown_method("a.b", "M"), "UnknownMethod"),
        (bus_errors.unknown_method("", "M"), "UnknownMethod"),
        (bus_errors.unknown_property("a.b", "P"), "UnknownProperty"),
        (bus_errors.property_read_only("a.b", "P"), "PropertyReadOnly"),
        (bus_errors.invalid_args("a.b", "M", "s", "u"), "InvalidArgs"),
    ],
)
def test_the_errors_of_the_protocol_keep_the_buss_own_names(error: bus_errors.BusError, name: str) -> None:
    assert bus_errors.to_bus(error) == (f"org.freedesktop.DBus.Error.{name}", str(error))


def test_a_message_can_always_be_sent() -> None:
    error = errors.StateDamaged("/srv/\udcff\0.raw", 0, "is not ours")
    message = bus_errors.to_bus(error).message
    assert "\0" not in message
    assert message.encode()
