# SPDX-License-Identifier: MIT
"""What was asked for and what will be done, as values: requests and plans.

Not here: the way from one to the other (``planner``), and how a plan is walked (``engine``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from snapd.model.domain import Disk, DomainState, Machine
from snapd.model.images import Collection, Image, ImageGraph, Pin
from snapd.model.snapshot import RevertState, SaveMethod, SnapshotType
from snapd.model.tree import Scope

CHAIN_LIMIT = 64
OVERLAY_FORMAT = "qcow2"
EMPTY_OVERLAY_BYTES = 1 << 20
"""More than a fresh overlay occupies: header, tables and a cluster or two."""


class Live(StrEnum):
    AUTO = "auto"
    REQUIRE = "require"
    NO = "no"


class Quiesce(StrEnum):
    """Whether file systems are frozen for a disk-only snapshot: where an agent answers, always, or never."""

    AUTO = "auto"
    REQUIRE = "require"
    NO = "no"


@dataclass(frozen=True)
class CreateRequest:
    """``memory`` of None means: where there is a guest whose memory could be saved."""

    name: str
    description: str = ""
    type: SnapshotType = SnapshotType.ANY
    memory: bool | None = None
    disks: Mapping[str, str] = field(default_factory=dict)
    live: Live = Live.AUTO
    quiesce: Quiesce = Quiesce.AUTO


@dataclass(frozen=True)
class RevertRequest:
    """``undo`` keeps what the revert discards as an undo point, with ``undo_memory`` the guest's memory too.

    With ``keeps_undo_points`` those of earlier reverts do not end with this one: it only goes on with one of them.
    """

    name: str
    state: RevertState = RevertState.AS_TAKEN
    undo: bool = True
    undo_memory: bool = False
    force: bool = False
    keeps_undo_points: bool = False


@dataclass(frozen=True)
class DeleteRequest:
    name: str
    scope: Scope = Scope.ONE


@dataclass(frozen=True)
class Overlay:
    """A new image to make and the disk that it becomes the active image of; ``node`` is what QEMU will call it.

    With ``copy_of`` it is not empty but holds the content of that internal snapshot.
    """

    disk: Disk
    node: str
    image: Image
    backing_format: str
    copy_of: Pin | None = None

    @property
    def held(self) -> str:
        """What QEMU calls the node that keeps the disk's old one open."""
        return f"{self.node}-held"


@dataclass(frozen=True)
class Tag:
    """An internal snapshot called ``name`` to make in the active image of ``disk``."""

    disk: Disk
    name: str


@dataclass(frozen=True)
class Opening:
    """An image to open in QEMU under ``node``, on ``backing_node`` or nothing."""

    node: str
    image: Image
    backing_node: str


@dataclass(frozen=True)
class Parking:
    """An image to close and to open again, as the active image of ``disk`` and as ``node``; the disk is parked meanwhile."""

    disk: Disk
    node: str
    image: Image

    @property
    def held(self) -> str:
        """What QEMU calls the node that keeps the disk's old one open."""
        return f"{self.node}-held"

    @property
    def is_active(self) -> bool:
        """Whether the disk runs on that image already."""
        return self.disk.image == self.image.path


@dataclass(frozen=True)
class Application(Parking):
    """An internal snapshot to apply to the image that holds it, while the disk is parked.

    ``keep`` is the internal snapshot that keeps the present content of the image first; it is empty where nothing needs that.
    """

    tag: str
    keep: str
    virtual_size_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """A memory file to make; ``largest_stream_bytes`` bounds what QEMU will write into it."""

    path: str
    largest_stream_bytes: int
    method: SaveMethod
    method_reason: str = ""


@dataclass(frozen=True)
class CreatePlan:
    """``left_out`` says of each disk that takes no part why not; ``notes`` are sentences for whoever asked.

    ``linked`` are disks whose images QEMU has opened through links that are about to move. QEMU opens an image that is covered
    by its name again, for reading only and later for writing, so it must not be a name that stands for another image by then.
    """

    name: str
    description: str
    state: DomainState
    linked: tuple[Parking, ...]
    overlays: tuple[Overlay, ...]
    tags: tuple[Tag, ...]
    left_out: Mapping[str, str]
    memory: MemoryPlan | None
    quiesce: Quiesce
    machine: Machine | None
    follows_active: bool = False
    notes: tuple[str, ...] = ()

    @property
    def pauses(self) -> bool:
        """Whether the guest has to be stopped for a moment."""
        return self.memory is not None and self.state is DomainState.RUNNING

    def graph(self, before: ImageGraph) -> ImageGraph:
        """Return the graph with the overlays on top, and pinned what they cover and what was tagged."""
        graph = before
        for overlay in self.overlays:
            graph = graph.cover(overlay.disk.target, overlay.image)
        pins = {overlay.disk.target: Pin(overlay.disk.image) for overlay in self.overlays}
        return graph.pin(self.name, pins | {tag.disk.target: Pin(tag.disk.image, tag.name) for tag in self.tags})


@dataclass(frozen=True)
class UndoPoint:
    """What a revert keeps of the present: of each disk its pin, by target, and its size; memory where that was asked for.

    ``left_out`` says of each disk that the revert leaves as it is why it has no part in this.
    """

    name: str
    pins: Mapping[str, Pin]
    virtual_sizes: Mapping[str, int]
    left_out: Mapping[str, str]
    memory: MemoryPlan | None


@dataclass(frozen=True)
class RevertPlan:
    """``openings`` come before the overlays, bottom first; ``backing_nodes`` gives each overlay's backing node by target.

    With ``memory_path`` that is loaded; else a guest there is, is reset. ``later`` is what the domain does once its memory can
    be loaded, which waits until it runs. ``dropped`` names the undo points of earlier reverts, which end with this one.
    """

    name: str
    state: DomainState
    overlays: tuple[Overlay, ...]
    openings: tuple[Opening, ...]
    backing_nodes: Mapping[str, str]
    applications: tuple[Application, ...]
    memory_path: str
    resume: bool
    later: RevertState | None
    machine: Machine | None
    undo: UndoPoint | None
    dropped: tuple[str, ...]
    after: tuple[Collection, ...]
    notes: tuple[str, ...] = ()

    def graph(self, before: ImageGraph) -> ImageGraph:
        """Return the graph with the disks on the snapshot and the present pinned by the undo point, if there is one.

        What the disks leave and nothing needs is left to be collected.
        """
        graph = before
        if self.undo:
            graph = graph.pin(self.undo.name, self.undo.pins)
        for overlay in self.overlays:
            graph = graph.cover(overlay.disk.target, overlay.image)
        for each in self.applications:
            graph = graph.go_to(each.disk.target, each.image.path, each.virtual_size_bytes)
            if each.keep and not self.undo:
                graph = graph.doom(each.image.path, each.keep)
        return graph.unpin(*self.dropped)


@dataclass(frozen=True)
class DeletePlan:
    """``after`` collects what the deleted snapshots alone had needed."""

    names: tuple[str, ...]
    memory_paths: tuple[str, ...]
    after: tuple[Collection, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TidyPlan:
    """What earlier operations had to leave, to be collected now."""

    after: tuple[Collection, ...]
    notes: tuple[str, ...] = ()


Plan = CreatePlan | RevertPlan | DeletePlan | TidyPlan
