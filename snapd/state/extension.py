# SPDX-License-Identifier: MIT
"""What stands under our own key in a file of libxl: its shape, and the strict way in.

Not here: what it means (``snapshot_document``, ``domain_document``).

- A value of another shape is damage with a line; a key that is not known here is none, and is kept by whoever reads.
- A value at its initial one is left out, as libxl does.
- A version above ours is read as ours: a later version only adds keys, or it names its own key otherwise.
"""

import re
from typing import Annotated, TypeVar

import msgspec

from snapd.errors import StateDamaged
from snapd.model.images import Origin
from snapd.model.snapshot import RevertState, SaveMethod
from snapd.state.libxl_json import EXTENSION_KEY, Document, JsonValue

VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0)]
# The system's calls refuse a path with a NUL in a way that is no error of ours.
FilePath = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]+\Z")]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class PinEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    image: FilePath
    tag: str = ""


class MachineEntry(msgspec.Struct, frozen=True):
    type: str
    memory_bytes: Count
    cpus: Count
    devices: tuple[str, ...]


class MemoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    size_bytes: Count
    method: SaveMethod
    method_reason: str = ""


class SnapshotExtension(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of a snapshot file; ``formats`` has only those that libxl has no word for.

    What the domain was doing is not here: libxl has flags for it.
    """

    version: int
    created_usec: Count | None = None
    parent: str = ""
    pause_usec: Count = 0
    consistency: str | None = None
    machine: MachineEntry | None = None
    memory: MemoryEntry | None = None
    pins: dict[str, PinEntry] = {}
    virtual_sizes: dict[str, Count] = {}
    formats: dict[str, str] = {}
    left_out: dict[str, str] = {}
    undo: bool = False
    protected: bool = False


class ImageEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    path: FilePath
    format: str
    origin: Origin
    backing: FilePath | None = None
    virtual_size: Count = 0
    doomed: tuple[Name, ...] = ()
    foreign_tags: tuple[str, ...] = ()


class ListedSnapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One snapshot of a domain; ``revised`` is what its own file is about to say, until it does."""

    name: Name
    parent: str = ""
    pins: dict[str, PinEntry] | None = None
    revised: str = ""


class PendingEntry(msgspec.Struct, frozen=True):
    name: Name
    state: RevertState


class DomainExtension(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    current: str = ""
    pending: PendingEntry | None = None
    follows_active: bool = False
    images: tuple[ImageEntry, ...] = ()
    active: dict[str, FilePath] = {}
    snapshots: tuple[ListedSnapshot, ...] = ()


_Extension = TypeVar("_Extension", SnapshotExtension, DomainExtension)
_PLACE = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")


def read_extension(document: Document, kind: type[_Extension]) -> tuple[_Extension | None, dict[str, JsonValue]]:
    """Return what stands under our key, if anything does, and the keys in it that are not known.

    Raises: StateDamaged with the line.
    """
    raw = document.extension()
    if raw is None:
        return None, {}
    try:
        read = msgspec.convert(raw, kind)
    except msgspec.ValidationError as cause:
        raise _damaged(document, str(cause)) from cause
    return read, {key: each for key, each in raw.items() if key not in kind.__struct_fields__}


def _damaged(document: Document, complaint: str) -> StateDamaged:
    """Make the error out of a complaint such as ``Expected `int`, got `str` - at `$.images[0].path```."""
    what, _, place = complaint.partition(" - at ")
    keys: list[str | int] = [EXTENSION_KEY]
    for match in _PLACE.finditer(place):
        if match[0] == "[...]":
            break  # some key of an object that may have any: which one is not said
        keys.append(match[1] or int(match[2]))
    shown = EXTENSION_KEY + place.strip("`").removeprefix("$")
    return document.damaged(f"{shown}: {what[:1].lower()}{what[1:]}", *keys)
