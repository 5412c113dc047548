# SPDX-License-Identifier: MIT
"""What was asked for and what will be done, as values: requests and plans.

Not here: the way from one to the other (``planner``), and how a plan is walked (``engine``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from snapd.model.domain import Disk, Machine
from snapd.model.images import Collection, Image, ImageGraph, Pin
from snapd.model.snapshot import SaveMethod, SnapshotType
from snapd.model.tree import Scope

CHAIN_LIMIT = 64
OVERLAY_FORMAT = "qcow2"
EMPTY_OVERLAY_BYTES = 1 << 20
"""More than a fresh overlay occupies: header, tables and a cluster or two."""


class Live(StrEnum):
    AUTO = "auto"
    REQUIRE = "require"
    NO = "no"


class RevertState(StrEnum):
    AS_TAKEN = "as-taken"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True)
class CreateRequest:
    name: str
    description: str = ""
    type: SnapshotType = SnapshotType.ANY
    memory: bool = True
    disks: Mapping[str, str] = field(default_factory=dict)
    live: Live = Live.AUTO


@dataclass(frozen=True)
class RevertRequest:
    name: str
    state: RevertState = RevertState.AS_TAKEN


@dataclass(frozen=True)
class DeleteRequest:
    name: str
    scope: Scope = Scope.ONE


@dataclass(frozen=True)
class Overlay:
    """A new image to make and the disk that it becomes the active image of; ``node`` is what QEMU will call it."""

    disk: Disk
    node: str
    image: Image
    backing_format: str

    @property
    def held(self) -> str:
        """What QEMU calls the node that keeps the disk's old one open."""
        return f"{self.node}-held"


@dataclass(frozen=True)
class Opening:
    """An image to open in QEMU under ``node``, on ``backing_node`` or nothing."""

    node: str
    image: Image
    backing_node: str


@dataclass(frozen=True)
class CreatePlan:
    """``largest_stream_bytes`` bounds what QEMU will write into ``memory_path``."""

    name: str
    description: str
    overlays: tuple[Overlay, ...]
    memory_path: str
    largest_stream_bytes: int
    method: SaveMethod
    method_reason: str
    running: bool
    machine: Machine

    def graph(self, before: ImageGraph) -> ImageGraph:
        """Return the graph with the overlays on top and the images they cover pinned."""
        graph = before
        for overlay in self.overlays:
            graph = graph.cover(overlay.disk.target, overlay.image)
        return graph.pin(self.name, {overlay.disk.target: Pin(overlay.disk.image) for overlay in self.overlays})


@dataclass(frozen=True)
class RevertPlan:
    """``openings`` come before the overlays, bottom first; ``backing_nodes`` gives each overlay's backing node by target."""

    name: str
    overlays: tuple[Overlay, ...]
    openings: tuple[Opening, ...]
    backing_nodes: Mapping[str, str]
    memory_path: str
    was_running: bool
    resume: bool
    after: tuple[Collection, ...]

    def graph(self, before: ImageGraph) -> ImageGraph:
        """Return the graph with the new overlays active; those they replace are left to be collected."""
        graph = before
        for overlay in self.overlays:
            graph = graph.cover(overlay.disk.target, overlay.image)
        return graph


@dataclass(frozen=True)
class DeletePlan:
    """``after`` collects what the deleted snapshots alone had needed."""

    names: tuple[str, ...]
    memory_paths: tuple[str, ...]
    after: tuple[Collection, ...]


Plan = CreatePlan | RevertPlan | DeletePlan
