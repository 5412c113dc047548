# SPDX-License-Identifier: MIT
"""A snapshot as a value.

Not here: its place in the tree (``tree``), what it pins (``images``), and how it is written down (``state``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from snapd.model.domain import DomainState, Machine


class SnapshotType(StrEnum):
    """Of a snapshot that was taken, ``ANY`` stands for disks of both kinds."""

    ANY = "any"
    INTERNAL = "internal"
    EXTERNAL = "external"


class Consistency(StrEnum):
    """``FULL`` has memory, ``QUIESCED`` file systems that were frozen, and of ``OFFLINE`` the guest was shut off."""

    FULL = "full"
    QUIESCED = "quiesced"
    CRASH_CONSISTENT = "crash-consistent"
    OFFLINE = "offline"


class RevertState(StrEnum):
    """What a domain does after a revert."""

    AS_TAKEN = "as-taken"
    RUNNING = "running"
    PAUSED = "paused"


class SaveMethod(StrEnum):
    """How memory was saved: while the guest ran, or while it stood still."""

    LIVE = "live"
    PAUSED = "paused"


@dataclass(frozen=True)
class SnapshotDisk:
    """One disk of a snapshot; ``overlay`` is the image that covered the disk's image when the snapshot was taken.

    Of an internal one, ``overlay`` and its format are empty.
    """

    target: str
    overlay: str
    overlay_format: str
    virtual_size_bytes: int


@dataclass(frozen=True)
class MemoryState:
    """A saved memory: the container file, the bytes of its stream, how it was saved and, if not live, why not."""

    path: str
    size_bytes: int
    method: SaveMethod
    method_reason: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, as taken. ``state`` is that of its domain then; times are microseconds, ``created`` since the epoch.

    ``left_out`` says of each disk that has no part in it why not, by target. One with ``undo`` was made by a revert, of what
    the revert discarded, and goes with the next revert unless it is ``protected``. ``foreign`` holds what a file of this
    snapshot says that we have no word for; it is kept and written back.
    """

    name: str
    created_usec: int
    type: SnapshotType
    state: DomainState
    disks: tuple[SnapshotDisk, ...]
    machine: Machine | None = None
    memory: MemoryState | None = None
    description: str = ""
    pause_usec: int = 0
    consistency: str = "full"
    parent: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    undo: bool = False
    protected: bool = False
    foreign: Mapping[str, object] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.state is DomainState.RUNNING
