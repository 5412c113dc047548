# SPDX-License-Identifier: MIT
"""The type ``domain_snapshot`` of libxl, with its ``disk_snapshot``, as values and as libxl-json.

It does not know what stands under our own key, nor where the files lie (both: ``store``).

- The order of the fields here is the order in libxl's IDL, and so the order in the file.
- A field at its initial value is left out. The initial value of a string is None; ``""`` is another value and is written.
- Unknown keys are kept in their order after the known ones; our own key goes last.
- What is written reads back as the same value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from snapd.errors import StateDamaged
from snapd.state.libxl_json import Document, JsonValue, Keys, dumps, parse

UINT64_MAX = 2**64 - 1


class LibxlSnapshotType(StrEnum):
    ANY = "any"
    INTERNAL = "internal"
    EXTERNAL = "external"


class LibxlDiskFormat(StrEnum):
    UNKNOWN = "unknown"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    RAW = "raw"
    EMPTY = "empty"
    QED = "qed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LibxlDiskSnapshot:
    """One disk of a snapshot: ``device`` is its target, ``file`` the overlay ("" when internal), ``path`` is always ""."""

    device: str | None = None
    name: str | None = None
    file: str | None = None
    format: LibxlDiskFormat = LibxlDiskFormat.UNKNOWN
    path: str | None = None
    type: LibxlSnapshotType = LibxlSnapshotType.ANY
    extra: Mapping[str, JsonValue] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibxlSnapshot:
    """One snapshot: ``creation_time`` in seconds, ``memory`` the path of the memory state ("" when disk-only).

    The reader of 2014 needs ``name``, ``description`` and ``memory``, and each disk's ``device``, ``name``, ``file`` and
    ``path``: whoever makes a new value gives all of them, None is for what was read without them.
    """

    name: str | None = None
    description: str | None = None
    creation_time: int = 0
    memory: str | None = None
    type: LibxlSnapshotType = LibxlSnapshotType.ANY
    running: bool = False
    blocked: bool = False
    paused: bool = False
    shutdown: bool = False
    dying: bool = False
    disks: tuple[LibxlDiskSnapshot, ...] = ()
    extra: Mapping[str, JsonValue] = field(default_factory=dict, hash=False)


def encode_snapshot(snapshot: LibxlSnapshot) -> bytes:
    """Write a snapshot in the canonical form.

    Raises: ValueError or TypeError for what ``decode_snapshot`` would refuse, and for a known key among the unknown ones.
    """
    data = dumps(_plain(snapshot))
    try:
        decode_snapshot(data, "a snapshot about to be written")
    except StateDamaged as cause:
        raise ValueError(str(cause)) from cause
    return data


def decode_snapshot(data: bytes, path: str) -> LibxlSnapshot:
    """Read a snapshot of any generation of libxl.

    Args: ``path`` is for the error only.
    Raises: StateDamaged, with the line of what is wrong.
    """
    return snapshot_of(parse(data, path))


def snapshot_of(document: Document) -> LibxlSnapshot:
    """Take the snapshot out of a text that was read; for callers who want the lines of what is under our own key too.

    Raises: StateDamaged, with the line of what is wrong.
    """
    document.extension()
    return LibxlSnapshot(**_typed(document, (), document.value, _SNAPSHOT_READERS))


# Writing


def _plain(value: LibxlSnapshot | LibxlDiskSnapshot) -> dict[str, JsonValue]:
    known = {each.name: each.default for each in fields(value) if each.name != "extra"}
    if clash := known.keys() & value.extra.keys():
        raise ValueError(f"{', '.join(sorted(clash))} cannot be among the unknown keys")
    written: dict[str, JsonValue] = {
        name: getattr(value, name) for name, initial in known.items() if getattr(value, name) != initial
    }
    if isinstance(value, LibxlSnapshot) and value.disks:
        written["disks"] = [_plain(disk) for disk in value.disks]
    return written | dict(value.extra)


# Reading: a reader takes the document, the keys that lead to a value, and the value

_Reader: TypeAlias = Callable[[Document, Keys, JsonValue], object]
_Choice = TypeVar("_Choice", bound=StrEnum)


def _typed(document: Document, keys: Keys, value: JsonValue, readers: Mapping[str, _Reader]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise document.damaged(f"{_shown(keys)} must be an object", *keys)
    known: dict[str, Any] = {key: readers[key](document, (*keys, key), each) for key, each in value.items() if key in readers}
    return known | {"extra": {key: each for key, each in value.items() if key not in readers}}


def _string(document: Document, keys: Keys, value: JsonValue) -> str | None:
    # libxl writes null for a null string where it does not leave it out.
    if value is not None and not isinstance(value, str):
        raise document.damaged(f"{_shown(keys)} must be a string", *keys)
    if value is not None and "\0" in value:
        raise document.damaged(f"{_shown(keys)} has a NUL character, which ends a string of libxl", *keys)
    return value


def _boolean(document: Document, keys: Keys, value: JsonValue) -> bool:
    if not isinstance(value, bool):
        raise document.damaged(f"{_shown(keys)} must be true or false", *keys)
    return value


def _uint64(document: Document, keys: Keys, value: JsonValue) -> int:
    if type(value) is not int:
        raise document.damaged(f"{_shown(keys)} must be an integer", *keys)
    if not 0 <= value <= UINT64_MAX:
        raise document.damaged(f"{_shown(keys)} is out of range, it must be from 0 to {UINT64_MAX}", *keys)
    return value


def _one_of(choices: type[_Choice]) -> Callable[[Document, Keys, JsonValue], _Choice]:
    by_name = {str(choice): choice for choice in choices}

    def read(document: Document, keys: Keys, value: JsonValue) -> _Choice:
        if not isinstance(value, str):
            raise document.damaged(f"{_shown(keys)} must be a string", *keys)
        if (choice := by_name.get(value.lower())) is None:
            raise document.damaged(f"{_shown(keys)} is {value[:80]!r}, which is none of {', '.join(by_name)}", *keys)
        return choice

    return read


def _disks(document: Document, keys: Keys, value: JsonValue) -> tuple[LibxlDiskSnapshot, ...]:
    if not isinstance(value, list):
        raise document.damaged(f"{_shown(keys)} must be an array", *keys)
    return tuple(
        LibxlDiskSnapshot(**_typed(document, (*keys, number), each, _DISK_READERS)) for number, each in enumerate(value)
    )


def _shown(keys: Keys) -> str:
    """Write keys as in ``disks[0].format``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


_DISK_READERS: dict[str, _Reader] = {
    "device": _string,
    "name": _string,
    "file": _string,
    "format": _one_of(LibxlDiskFormat),
    "path": _string,
    "type": _one_of(LibxlSnapshotType),
}
_SNAPSHOT_READERS: dict[str, _Reader] = {
    "name": _string,
    "description": _string,
    "creation_time": _uint64,
    "memory": _string,
    "type": _one_of(LibxlSnapshotType),
    "running": _boolean,
    "blocked": _boolean,
    "paused": _boolean,
    "shutdown": _boolean,
    "dying": _boolean,
    "disks": _disks,
}
