# SPDX-License-Identifier: MIT
"""A snapshot as a file of libxl: the model's value to bytes and back.

Not here: the type that libxl defines (``libxl_snapshot``), where the file lies (``directory``), and that parent and pins are
copies for whoever reads this file alone: ``domain_document`` decides both.

- What is written reads back as the same value, or is refused before it is written.
- Keys that are not known, and what libxl says that the model has no word for, come back in ``Snapshot.foreign`` and are
  written again. There, ``disks`` holds them by target and our own key those beside our own.
- The flags of libxl say what the domain was doing. Memory without a flag is of one that was paused; without both, it was
  shut off.
- A file that libxl alone wrote is as good as one of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from snapd.errors import StateDamaged
from snapd.model.domain import DomainState, Machine
from snapd.model.images import Pin
from snapd.model.snapshot import MemoryState, SaveMethod, Snapshot, SnapshotDisk, SnapshotType
from snapd.state.extension import VERSION, MachineEntry, MemoryEntry, PinEntry, SnapshotExtension, read_extension
from snapd.state.libxl_json import EXTENSION_KEY, JsonValue, parse
from snapd.state.libxl_snapshot import (
    LibxlDiskFormat,
    LibxlDiskSnapshot,
    LibxlSnapshot,
    LibxlSnapshotType,
    encode_snapshot,
    snapshot_of,
)

USEC_PER_S = 1_000_000
_DISKS = "disks"
_FLAGS = ("blocked", "paused", "shutdown", "dying")
_KNOWN = {"name", "description", "creation_time", "memory", "type", "running", _DISKS, EXTENSION_KEY, *_FLAGS}
_DISK_WORDS = ("name", "path", "type")
_KNOWN_TO_LIBXL = {str(each) for each in LibxlDiskFormat} - {LibxlDiskFormat.UNKNOWN}


@dataclass(frozen=True)
class SnapshotDocument:
    """What one file says."""

    snapshot: Snapshot
    pins: Mapping[str, Pin] = field(default_factory=dict)

    @property
    def own(self) -> Snapshot:
        """What this file alone decides: the snapshot without its parent."""
        return replace(self.snapshot, parent="")


def write_snapshot(document: SnapshotDocument, path: str) -> bytes:
    """Return the text of the file.

    Args: ``path`` is for the error only.
    Raises: StateDamaged for what no such file can hold.
    """
    try:
        data = encode_snapshot(_to_libxl(document))
        read = read_snapshot(data, path)
    except (ValueError, TypeError, StateDamaged) as cause:
        raise StateDamaged(path, 0, f"snapshot {document.snapshot.name!r} cannot be written down: {cause}") from cause
    if replace(read.snapshot, foreign=document.snapshot.foreign) != document.snapshot:
        raise StateDamaged(path, 0, f"snapshot {document.snapshot.name!r} would not read back as it is")
    return data


def read_snapshot(data: bytes, path: str) -> SnapshotDocument:
    """Read a file of ours or of any generation of libxl.

    Args: ``path`` is for the error only.
    Raises: StateDamaged, with the line of what is wrong.
    """
    document = parse(data, path)
    libxl = snapshot_of(document)
    targets = [disk.device or "" for disk in libxl.disks]
    for number, target in enumerate(targets):
        if target in targets[:number]:
            raise document.damaged(f"disk {target!r} stands there twice", _DISKS, number)
    ours, unknown = read_extension(document, SnapshotExtension)
    snapshot = _from_libxl(libxl, ours or SnapshotExtension(VERSION))
    if ours and ours.version != VERSION:
        unknown = {"version": ours.version, **unknown}
    pins = {target: Pin(each.image, each.tag) for target, each in ours.pins.items()} if ours else {}
    return SnapshotDocument(replace(snapshot, foreign=_foreign(libxl, snapshot, unknown)), pins)


# Reading


def _from_libxl(libxl: LibxlSnapshot, ours: SnapshotExtension) -> Snapshot:
    memory = None
    if libxl.memory:
        entry = ours.memory or MemoryEntry(0, SaveMethod.PAUSED)
        memory = MemoryState(libxl.memory, entry.size_bytes, entry.method, entry.method_reason)
    machine = ours.machine
    return Snapshot(
        name=libxl.name or "",
        created_usec=_created_usec(libxl, ours),
        type=SnapshotType(libxl.type.value),
        state=_state(libxl),
        disks=tuple(_disk_from_libxl(disk, ours) for disk in libxl.disks),
        machine=Machine(machine.type, machine.memory_bytes, machine.cpus, machine.devices) if machine else None,
        memory=memory,
        description=libxl.description or "",
        pause_usec=ours.pause_usec,
        consistency=("full" if memory else "crash-consistent") if ours.consistency is None else ours.consistency,
        parent=ours.parent,
        left_out=ours.left_out,
        undo=ours.undo,
        protected=ours.protected,
    )


def _state(libxl: LibxlSnapshot) -> DomainState:
    if libxl.running:
        return DomainState.RUNNING
    return DomainState.PAUSED if libxl.paused or libxl.memory else DomainState.SHUTOFF


def _created_usec(libxl: LibxlSnapshot, ours: SnapshotExtension) -> int:
    """Return the finer time where the two agree: an edit is of the one that libxl reads."""
    if ours.created_usec is not None and ours.created_usec // USEC_PER_S == libxl.creation_time:
        return ours.created_usec
    return libxl.creation_time * USEC_PER_S


def _disk_from_libxl(disk: LibxlDiskSnapshot, ours: SnapshotExtension) -> SnapshotDisk:
    target = disk.device or ""
    unnamed = disk.format is LibxlDiskFormat.UNKNOWN
    return SnapshotDisk(
        target=target,
        overlay=disk.file or "",
        overlay_format=ours.formats.get(target, "") if unnamed else disk.format.value,
        virtual_size_bytes=ours.virtual_sizes.get(target, 0),
    )


def _foreign(libxl: LibxlSnapshot, snapshot: Snapshot, unknown: Mapping[str, JsonValue]) -> dict[str, object]:
    plain = _plain_libxl(snapshot)
    found: dict[str, object] = {key: each for key, each in libxl.extra.items() if key != EXTENSION_KEY}
    found |= {flag: getattr(libxl, flag) for flag in _FLAGS if getattr(libxl, flag) != getattr(plain, flag)}
    by_target = {}
    for disk, ours in zip(libxl.disks, plain.disks, strict=True):
        words = {word: getattr(disk, word) for word in _DISK_WORDS if getattr(disk, word) not in (None, getattr(ours, word))}
        if words or disk.extra:
            by_target[ours.device] = {**words, **disk.extra}
    if by_target:
        found[_DISKS] = by_target
    if unknown:
        found[EXTENSION_KEY] = unknown
    return found


# Writing


def _to_libxl(document: SnapshotDocument) -> LibxlSnapshot:
    snapshot, foreign = document.snapshot, cast("Mapping[str, Any]", document.snapshot.foreign)
    plain = _plain_libxl(snapshot)
    by_target = foreign.get(_DISKS, {})
    unknown = {key: each for key, each in foreign.items() if key not in _KNOWN}
    return replace(
        plain,
        **{flag: foreign[flag] for flag in _FLAGS if flag in foreign},
        disks=tuple(_with_words(disk, by_target.get(disk.device, {})) for disk in plain.disks),
        extra={**unknown, EXTENSION_KEY: _extension(document) | dict(foreign.get(EXTENSION_KEY, {}))},
    )


def _with_words(disk: LibxlDiskSnapshot, foreign: Mapping[str, Any]) -> LibxlDiskSnapshot:
    words = {word: foreign[word] for word in _DISK_WORDS if word in foreign}
    if "type" in words:
        words["type"] = LibxlSnapshotType(words["type"])
    return replace(disk, **words, extra={key: each for key, each in foreign.items() if key not in words})


def _plain_libxl(snapshot: Snapshot) -> LibxlSnapshot:
    """Return what libxl would say of ``snapshot`` by itself."""
    return LibxlSnapshot(
        name=snapshot.name,
        description=snapshot.description,
        creation_time=snapshot.created_usec // USEC_PER_S,
        memory=snapshot.memory.path if snapshot.memory else "",
        type=LibxlSnapshotType(snapshot.type.value),
        running=snapshot.running,
        paused=snapshot.state is DomainState.PAUSED,
        disks=tuple(
            LibxlDiskSnapshot(
                device=disk.target,
                name=snapshot.name,
                file=disk.overlay,
                format=LibxlDiskFormat(disk.overlay_format if disk.overlay_format in _KNOWN_TO_LIBXL else "unknown"),
                path="",
                type=LibxlSnapshotType.EXTERNAL if disk.overlay else LibxlSnapshotType.INTERNAL,
            )
            for disk in snapshot.disks
        ),
    )


def _extension(document: SnapshotDocument) -> dict[str, Any]:
    snapshot = document.snapshot
    machine, memory = snapshot.machine, snapshot.memory
    unnamed = {disk.target: disk.overlay_format for disk in snapshot.disks if disk.overlay_format not in _KNOWN_TO_LIBXL}
    extension = SnapshotExtension(
        version=VERSION,
        created_usec=snapshot.created_usec,
        parent=snapshot.parent,
        pause_usec=snapshot.pause_usec,
        consistency=snapshot.consistency,
        machine=MachineEntry(machine.type, machine.memory_bytes, machine.cpus, machine.devices) if machine else None,
        memory=MemoryEntry(memory.size_bytes, memory.method, memory.method_reason) if memory else None,
        pins={target: PinEntry(pin.image, pin.tag) for target, pin in document.pins.items()},
        virtual_sizes={disk.target: disk.virtual_size_bytes for disk in snapshot.disks},
        formats={target: each for target, each in unnamed.items() if each},
        left_out=dict(snapshot.left_out),
        undo=snapshot.undo,
        protected=snapshot.protected,
    )
    return cast("dict[str, Any]", msgspec.to_builtins(extension))
