# SPDX-License-Identifier: MIT
"""A snapshot as a value.

Not here: its place in the tree (``tree``), what it pins (``images``), and how it is written down (``state``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from snapd.model.domain import Machine


class SnapshotType(StrEnum):
    ANY = "any"
    INTERNAL = "internal"
    EXTERNAL = "external"


class SaveMethod(StrEnum):
    """How memory was saved: while the guest ran, or while it stood still."""

    LIVE = "live"
    PAUSED = "paused"


@dataclass(frozen=True)
class SnapshotDisk:
    """One disk of a snapshot; ``overlay`` is the image that covered the disk's image when the snapshot was taken."""

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
    """A snapshot, as taken. ``running`` tells whether the guest ran then; times are microseconds, ``created`` since the epoch.

    ``foreign`` holds what a file of this snapshot says that we have no word for; it is kept and written back.
    """

    name: str
    created_usec: int
    type: SnapshotType
    running: bool
    disks: tuple[SnapshotDisk, ...]
    machine: Machine | None = None
    memory: MemoryState | None = None
    description: str = ""
    pause_usec: int = 0
    consistency: str = "full"
    parent: str = ""
    foreign: Mapping[str, object] = field(default_factory=dict)
