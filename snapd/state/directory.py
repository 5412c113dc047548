# SPDX-License-Identifier: MIT
"""The directory of one domain as it is found: which files make its state, and what becomes of those that cannot be read.

Not here: changing the state (``store``). Invariants:

- A snapshot that the domain's own file does not list does not exist; a file of that kind is left alone.
- One that is listed exists whatever its file is like: what it pins stays pinned.
- Only a file that was read and is wrong is set aside. One that the system would not let us read stays where it is, and so
  does the domain's own file always.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from snapd.errors import SnapdError, StateDamaged
from snapd.model.domain import DomainState
from snapd.model.names import escape_for_file
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.model.tree import SnapshotTree
from snapd.state.atomic import read_bounded, sweep, write_atomically
from snapd.state.domain_document import DomainDocument, read_domain
from snapd.state.libxl_json import SIZE_LIMIT_BYTES
from snapd.state.snapshot_document import SnapshotDocument, read_snapshot

DOMAIN_FILE = "domain.libxl-json"
QUARANTINE = "quarantine"
REASON_SUFFIX = ".reason"
_LARGEST_REASON_BYTES = 1 << 16

log = logging.getLogger(__name__)

Identity = tuple[int, int, int, int] | None
"""What tells a file from the one that had its name before; None where there is none."""


@dataclass(frozen=True)
class Found:
    """What a directory holds.

    ``written`` has, by name, what the snapshot's file says, for those that have one under our name; ``prototypes`` names those
    that have one under the prototype's. ``document`` and ``identity`` are the domain's own file.
    """

    record: DomainRecord
    document: DomainDocument
    identity: Identity
    damaged: Mapping[str, str] = field(default_factory=dict)
    written: Mapping[str, SnapshotDocument] = field(default_factory=dict)
    prototypes: frozenset[str] = frozenset()


def snapshot_path(directory: Path, name: str) -> Path:
    return directory / f"snapshotdata-{escape_for_file(name)}.libxl-json"


def prototype_path(directory: Path, name: str) -> Path:
    """Return where the prototype of 2014 kept the snapshot ``name``, whose bytes it did not escape."""
    return directory / f"snapshotdata-d.{name}.libxl-json"


def placeholder(name: str, parent: str) -> Snapshot:
    """Return what is left of a snapshot without its file: its place in the tree."""
    return Snapshot(
        name, created_usec=0, type=SnapshotType.ANY, state=DomainState.SHUTOFF, disks=(), consistency="", parent=parent
    )


def identity_of(path: Path) -> Identity:
    """Raises: StateDamaged when the file resists."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise StateDamaged(str(path), 0, f"it cannot be looked at: {cause.strerror}") from cause
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def find(directory: Path, name: str, uuid: str) -> Found:
    """Read the directory, making it where there is none.

    Effects: what killed writers left is removed; snapshot files that are wrong are moved to ``quarantine/``.
    Raises: StateDamaged when there can be no directory, or the domain's own file cannot be read or is another domain's.
    """
    _make(directory)
    _sweep(directory)
    path = directory / DOMAIN_FILE
    identity = identity_of(path)
    try:
        document = read_domain(read_bounded(path, SIZE_LIMIT_BYTES), str(path))
    except FileNotFoundError:
        return Found(DomainRecord(name, uuid), DomainDocument(name, uuid), None)
    _check_owner(path, document, name, uuid)
    snapshots: dict[str, Snapshot] = {}
    damaged: dict[str, str] = {}
    written: dict[str, SnapshotDocument] = {}
    prototypes: set[str] = set()
    for listed, parent in document.parents.items():
        try:
            read, at = _read_listed(directory, listed, document)
        except StateDamaged as error:
            log.warning("snapshot %s of domain %s: %s", listed, name, error)
            damaged[listed] = str(error)
            snapshots[listed] = placeholder(listed, parent)
        else:
            snapshots[listed] = replace(read.snapshot, parent=parent)
            if at == snapshot_path(directory, listed):
                written[listed] = read
            elif at:
                prototypes.add(listed)
    record = DomainRecord(
        name=name,
        uuid=uuid,
        graph=document.graph,
        tree=SnapshotTree(snapshots, document.current),
        pending=document.pending,
        follows_active=document.follows_active,
    )
    return Found(record, document, identity, damaged, written, frozenset(prototypes))


def _make(directory: Path) -> None:
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(directory.parent)
    except OSError as cause:
        raise StateDamaged(str(directory), 0, f"the directory cannot be made: {cause.strerror}") from cause


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Tidy up where that is possible: a state that can only be read is still to be shown."""
    for each in (directory, directory / "disks", directory / QUARANTINE):
        if each.is_dir():
            try:
                sweep(each)
            except SnapdError as error:
                log.warning("%s", error)


def _check_owner(path: Path, document: DomainDocument, name: str, uuid: str) -> None:
    if document.uuid and document.uuid.lower() != uuid.lower():
        raise StateDamaged(str(path), 0, f"it is the state of the domain with the uuid {document.uuid}, and not of {uuid}")
    if document.name and document.name != name:
        raise StateDamaged(
            str(path),
            0,
            f"it is the state of domain {document.name!r}, and {name!r} cannot have the same uuid; "
            f"if {document.name!r} has become {name!r}, write the new name into this file",
        )


def _read_listed(directory: Path, name: str, document: DomainDocument) -> tuple[SnapshotDocument, Path | None]:
    """Return what is known of a listed snapshot and which file says it. Raises: StateDamaged, the file being set aside."""
    if text := document.revised.get(name):
        place = f"{directory / DOMAIN_FILE}, what is to be snapshot {name!r}"
        return _called(name, read_snapshot(text.encode(), place), place), None
    for path in (snapshot_path(directory, name), prototype_path(directory, name)):
        try:
            read = read_snapshot(read_bounded(path, SIZE_LIMIT_BYTES), str(path))
            # The prototype's name for one snapshot can be our name for another: "x" and "d.x".
            if _has_owner(directory, path, read.snapshot.name, document) and read.snapshot.name != name:
                continue
            return _called(name, read, str(path)), path
        except FileNotFoundError:
            continue
        except StateDamaged as error:
            if not isinstance(error.__cause__, OSError):
                _set_aside(path, str(error))
            raise
    raise StateDamaged(str(snapshot_path(directory, name)), 0, _why_missing(directory, name))


def _has_owner(directory: Path, path: Path, name: str, document: DomainDocument) -> bool:
    """Whether ``path`` is where the listed snapshot ``name`` may be kept."""
    return name in document.parents and path in (snapshot_path(directory, name), prototype_path(directory, name))


def _called(name: str, read: SnapshotDocument, place: str) -> SnapshotDocument:
    if read.snapshot.name != name:
        raise StateDamaged(place, 0, f"it holds a snapshot called {read.snapshot.name!r}, not {name!r}")
    return read


def _why_missing(directory: Path, name: str) -> str:
    reason = directory / QUARANTINE / (snapshot_path(directory, name).name + REASON_SUFFIX)
    try:
        text = read_bounded(reason, _LARGEST_REASON_BYTES).decode("utf-8", "replace").strip()
    except (FileNotFoundError, StateDamaged):
        return "it is missing"
    return f"it was set aside in {reason.parent}: {text.rstrip('.')}"


def _set_aside(path: Path, reason: str) -> None:
    """Move a file to the quarantine, the reason first: what lies there always says why."""
    quarantine = path.parent / QUARANTINE
    number = 1
    name = path.name
    while os.path.lexists(quarantine / name) or os.path.lexists(quarantine / (name + REASON_SUFFIX)):
        number += 1
        name = f"{path.name}.{number}"
    try:
        quarantine.mkdir(mode=0o700, exist_ok=True)
        write_atomically(quarantine / (name + REASON_SUFFIX), f"{reason}\n".encode("utf-8", "replace"))
        path.rename(quarantine / name)
    except OSError as error:
        log.warning("%s stays where it is: %s", path, error.strerror)
    except SnapdError as error:
        log.warning("%s stays where it is: %s", path, error)
