# SPDX-License-Identifier: MIT
"""What the engine needs of the world, and nothing about how it is done.

``qmp`` implements ``Qemu``, ``images`` implements ``Images``, ``state`` implements ``Store``; ``daemon`` brings them together.
Every method that changes something raises only what ``errors`` defines, and after an error from anything but ``MonitorLost``
the thing it was to change is as before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from snapd.model.domain import Disk, Inspection
from snapd.model.images import ImageFacts, Merge
from snapd.model.plan import Opening, Overlay, Parking, Plan, Tag
from snapd.model.record import DomainRecord

Report = Callable[[str, int, int], None]
"""Told how far a step is: its name, the bytes done, and the bytes in all (0: not known)."""


class Agent(Protocol):
    """The agent inside a guest."""

    async def freeze(self) -> int:
        """Freeze the guest's file systems. Returns: how many.

        Raises: QuiesceFailed; none is frozen by us then, as far as that can be made sure.
        """

    async def thaw(self) -> None:
        """Thaw what ``freeze`` has frozen, trying again until that is seen to be done. Raises: QuiesceFailed."""

    async def set_clock(self) -> None:
        """Set the guest's clock to the host's; an agent that cannot is passed over."""


class MemoryFile(Protocol):
    """An empty memory file, allocated, open for writing; ``descriptor`` is at the place where the stream begins."""

    @property
    def descriptor(self) -> int: ...

    async def finish(self) -> int:
        """Make a container of the stream that was written, durable. Returns: the bytes of the stream."""

    async def discard(self) -> None:
        """Close and remove it."""


class Qemu(Protocol):
    """One running QEMU, through its monitor; or, of a domain that is shut off, what stands for it (``engine.offline``)."""

    async def inspect(self, *, for_saving: bool = False) -> Inspection:
        """Look at everything; with ``for_saving`` also whether memory can be saved live, which takes longer."""

    def rename(self, names: Mapping[str, str]) -> None:
        """Call images by other names than QEMU does, by its own: those that it opened through links."""

    async def disks(self) -> Sequence[Disk]: ...

    async def open_images(self) -> Mapping[str, str]:
        """Return the node of each image that QEMU has open, by path."""

    async def open_overlay(self, overlay: Overlay, backing_node: str) -> None:
        """Open a new overlay as a node of its own, on ``backing_node`` or, where that is empty, on nothing yet."""

    async def open_image(self, opening: Opening) -> None: ...

    async def close_nodes(self, nodes: Sequence[str]) -> None:
        """Close nodes that nothing uses, top first. Effects: a name that is not there is passed over."""

    async def close_unused(self, images: Sequence[str]) -> None:
        """Close every node on one of ``images`` that no disk has in its chain."""

    async def stop(self) -> None: ...

    async def resume(self) -> None: ...

    async def has_run(self) -> bool:
        """Whether the guest ran since the last ``stop``."""

    async def take(self, overlays: Sequence[Overlay], tags: Sequence[Tag]) -> None:
        """Put each opened overlay on top of its disk and make each internal snapshot, all at one instant or none."""

    async def drop_tag(self, image: str, tag: str) -> None:
        """Delete an internal snapshot in an image that QEMU has open for writing; one that is not there is passed over."""

    async def park(self, parking: Parking) -> None:
        """Take the disk's image away from the stopped guest and close it, so that another program may change it.

        The guest has an empty disk of the same size meanwhile. Undone by ``unpark``.
        """

    async def unpark(self, parking: Parking) -> None:
        """Open its image, and what it backs on, for the disk again and put the disk on it, as its ``node``.

        Effects: does nothing where the disk is on it.
        """

    async def hold(self, disk: Disk, node: str) -> bool:
        """Keep the disk's node open while another takes its place, by a node of its own on it. Undone by ``close_nodes``.

        Returns: whether there was need to, because the node belongs to its device alone.
        """

    async def swap(self, overlay: Overlay) -> None:
        """Put the overlay's disk on it. Effects: the guest sees other content at once. Undone by ``swap_back``."""

    async def swap_back(self, disk: Disk) -> None:
        """Put ``disk`` on the node that it had, unless it is on that."""

    async def arm_live_save(self, descriptor: int) -> None:
        """Hand over the memory file and make the next save a live one. Undone by ``disarm_live_save``."""

    async def save_live(self, report: Report) -> None:
        """Save the memory of the stopped guest while letting it run on; returns when all of it is saved."""

    async def disarm_live_save(self) -> None:
        """Put the migration settings back to what the user had; does nothing where they are."""

    async def attach_memory(self, read_write: int, read_only: int) -> None:
        """Open a memory-state container, handed over by descriptors, as a node of its own."""

    async def save_paused(self, tag: str, expected_bytes: int) -> None:
        """Save the memory of the stopped guest into the attached container."""

    async def make_loadable(self) -> None:
        """Make sure that memory can be loaded into a paused guest, on the disks it has.

        Effects: one with a flash, into which memory was loaded before, may run for a moment.
        """

    async def load(self, tag: str, expected_bytes: int) -> None:
        """Load memory and devices of the stopped guest from the attached container.

        Raises: QemuFailed: the guest's memory may have been touched.
        """

    async def detach_memory(self) -> None: ...

    async def reset(self) -> None:
        """Reset the guest; when this returns it has been done."""

    async def pause_usec(self) -> int:
        """Return how long the guest stood still between its last STOP and RESUME, by QEMU's clock."""

    async def merge(self, merge: Merge, report: Report) -> None:
        """Merge two images of a disk's chain while the guest runs."""


class Images(Protocol):
    """Image files and memory files."""

    async def create_overlay(self, overlay: Overlay, report: Report) -> None:
        """Make the overlay's file, with the content of what it is a copy of. Raises: ImageInUse when there is one."""

    async def look(self, path: str, image_format: str) -> ImageFacts:
        """Look into an image that no QEMU has open. Raises: ImageInUse when one has; ImageToolFailed."""

    async def make_tag(self, path: str, tag: str) -> None:
        """Make an internal snapshot in an image that no QEMU has open."""

    async def apply_tag(self, path: str, tag: str) -> None:
        """Make the image's content that of an internal snapshot in it."""

    async def drop_tag(self, path: str, tag: str) -> None:
        """Delete an internal snapshot; one that is not there is passed over."""

    async def link_targets(self, paths: Sequence[str]) -> dict[str, str]:
        """Return where each of ``paths`` that is a symbolic link leads to."""

    async def unlink(self, path: str) -> None:
        """Remove a file of ours; one that is not there is passed over."""

    async def exists(self, path: str) -> bool: ...

    async def allocated_bytes(self, paths: Sequence[str]) -> dict[str, int]: ...

    async def free_bytes(self, directory: str) -> tuple[int, int]:
        """Return which file system ``directory`` is on, as a number, and how many bytes are free on it."""

    async def merge(self, merge: Merge, below_format: str) -> None:
        """Merge two images that no QEMU has open."""

    async def repoint(self, path: str, backing: str, backing_format: str) -> None:
        """Write another backing image into the header of ``path``, whose content as seen through it is the same."""

    async def create_memory(self, path: str, largest_stream_bytes: int) -> MemoryFile: ...

    async def create_container(self, path: str) -> None:
        """Make an empty container for a save with the guest paused."""

    async def sync_container(self, path: str) -> int:
        """Make a container that QEMU has filled durable. Returns: the bytes of the memory state."""

    async def check_container(self, path: str) -> None:
        """Make sure that there is a whole memory state in a container. Raises: StateDamaged, ImageToolFailed."""

    async def open_container(self, path: str) -> tuple[int, int]:
        """Return a descriptor for reading and writing and one for reading; the caller closes both."""

    def close_descriptors(self, *descriptors: int) -> None: ...


class Store(Protocol):
    """The committed state and the intent of one domain."""

    @property
    def committed(self) -> DomainRecord:
        """What is durable now."""

    @property
    def links_directory(self) -> str:
        """Where the links to the active images lie."""

    async def begin(self, operation: str, subject: str, plan: Plan) -> None:
        """Make the intent durable."""

    async def step(self, name: str) -> None:
        """Make durable that a step of the intent begins."""

    async def commit(self, after: DomainRecord) -> None:
        """Make ``after`` the committed state: first the snapshots that are new or changed, then the domain's own file."""

    async def end(self) -> None:
        """Remove the intent."""


@dataclass(frozen=True)
class Ports:
    """``agent`` is None where the domain has none."""

    qemu: Qemu
    images: Images
    store: Store
    agent: Agent | None = None
