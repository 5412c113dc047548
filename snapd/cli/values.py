# SPDX-License-Identifier: MIT
"""Owns what the tool knows of the service's objects, made of their D-Bus properties.

It neither fetches nor shows anything.

- The fields, under their names here, are what ``--json`` prints: a field may be added, and none renamed or removed.
- Objects are named by name, never by object path; an empty name means none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from snapd.bus.names import SnapshotPath, parse_path

Properties = Mapping[str, Any]
"""D-Bus properties or a dictionary of type a{sv}, with plain values."""

UNDO = "undo"
PROTECTED = "protected"
FLAGS = {2: PROTECTED, 4: "adopted", 8: "damaged", 16: UNDO}
"""The bits of a row of ListSnapshots; 1 is left out because ``memory`` says the same."""


@dataclass(frozen=True, slots=True)
class DomainRow:
    """A domain in the list of all of them."""

    name: str
    uuid: str
    state: str


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk as it is now; ``reason`` says why it cannot have an internal or an external snapshot."""

    target: str
    device: str
    image: str
    format: str
    virtual_size_bytes: int
    eligible: bool
    can_internal: bool
    can_external: bool
    reason: str

    @classmethod
    def from_properties(cls, values: Properties) -> Self:
        return cls(
            values["Target"],
            values["Device"],
            values["Image"],
            values["Format"],
            values["VirtualSize"],
            values["Eligible"],
            values["CanInternal"],
            values["CanExternal"],
            values["Reason"],
        )


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain; each blocker says why something cannot be done and is empty when it can.

    ``pending_revert`` is the snapshot whose memory is loaded when the domain runs next.
    """

    name: str
    uuid: str
    state: str
    state_reason: str
    interrupted: str
    source: str
    monitor: str
    current_snapshot: str
    snapshot_count: int
    pending_revert: str
    pending_problem: str
    memory_blocker: str
    live_blocker: str
    disks: tuple[DomainDisk, ...]

    @classmethod
    def from_properties(cls, values: Properties) -> Self:
        return cls(
            name=values["Name"],
            uuid=values["UUID"],
            state=values["State"],
            state_reason=values["StateReason"],
            interrupted=values["Interrupted"],
            source=values["Source"],
            monitor=values["Monitor"],
            current_snapshot=snapshot_name(values["CurrentSnapshot"]),
            snapshot_count=values["SnapshotCount"],
            pending_revert=values["PendingRevert"],
            pending_problem=values["PendingProblem"],
            memory_blocker=values["Capabilities"].get("MemoryBlocker", ""),
            live_blocker=values["Capabilities"].get("LiveBlocker", ""),
            disks=tuple(DomainDisk.from_properties(each) for each in values["Disks"]),
        )


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """A disk as a snapshot keeps it; ``tag`` is empty when the whole image is kept."""

    target: str
    device: str
    image: str
    format: str
    tag: str
    virtual_size_bytes: int

    @classmethod
    def from_properties(cls, values: Properties) -> Self:
        return cls(
            values["Target"],
            values["Device"],
            values["Image"],
            values["Format"],
            values["Tag"],
            values["VirtualSize"],
        )


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot in the list of all of a domain's."""

    path: str
    name: str
    parent: str
    flags: tuple[str, ...]

    @classmethod
    def from_row(cls, row: tuple[str, str, int, str, str, int, bool]) -> Self:
        path, name, _creation_usec, _type, parent, flags, _current = row
        return cls(path, name, parent, tuple(word for bit, word in FLAGS.items() if flags & bit))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot; ``method`` is empty without memory and ``method_reason`` when there is nothing to say.

    ``left_out`` says of each disk that has no part in it why, by target.
    """

    name: str
    domain: str
    description: str
    creation_usec: int
    type: str
    memory: bool
    memory_bytes: int
    pause_usec: int
    method: str
    method_reason: str
    consistency: str
    domain_state: str
    parent: str
    children: tuple[str, ...]
    current: bool
    protected: bool
    undo: bool
    bytes: int
    flags: tuple[str, ...]
    disks: tuple[SnapshotDisk, ...]
    left_out: Mapping[str, str]

    @classmethod
    def from_properties(cls, domain: str, values: Properties, flags: tuple[str, ...]) -> Self:
        return cls(
            name=values["Name"],
            domain=domain,
            description=values["Description"],
            creation_usec=values["CreationUSec"],
            type=values["Type"],
            memory=values["Memory"],
            memory_bytes=values["MemoryBytes"],
            pause_usec=values["PauseUSec"],
            method=values["Method"],
            method_reason=values["MethodReason"],
            consistency=values["Consistency"],
            domain_state=values["DomainState"],
            parent=snapshot_name(values["Parent"]),
            children=tuple(snapshot_name(each) for each in values["Children"]),
            current=values["Current"],
            protected=values["Protected"],
            undo=values["Undo"],
            bytes=values["Bytes"],
            flags=flags,
            disks=tuple(SnapshotDisk.from_properties(each) for each in values["Disks"]),
            left_out=dict(values["LeftOut"]),
        )


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job that was done ended.

    ``snapshot`` is the one it was about, where that exists now. ``notes`` are sentences for whoever began the job.
    """

    snapshot: str
    notes: tuple[str, ...]
    took_s: float


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is; ``fraction`` is None while nothing is known about that."""

    step: str
    fraction: float | None
    bytes: int

    @classmethod
    def from_properties(cls, values: Properties) -> Self:
        return cls(
            values.get("Step", ""), values.get("Progress") if values.get("ProgressValid") else None, values.get("Bytes", 0)
        )


def snapshot_name(path: str) -> str:
    """Return the name of the snapshot at an object path, or the empty text where it names none."""
    parsed = parse_path(path)
    return parsed.snapshot if isinstance(parsed, SnapshotPath) else ""


def below(rows: list[SnapshotRow], name: str) -> list[str]:
    """Return the names of all snapshots below one in the tree, parents before their children."""
    children: dict[str, list[str]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row.name)
    found: list[str] = []
    waiting = [name]
    while waiting:
        of_this = children.pop(waiting.pop(0), [])
        found += of_this
        waiting += of_this
    return found


def undo_points(rows: Iterable[SnapshotRow]) -> list[str]:
    """Return the names of the undo points among rows, in their order."""
    return [row.name for row in rows if UNDO in row.flags]
