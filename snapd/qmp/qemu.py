# SPDX-License-Identifier: MIT
"""One running QEMU as the engine wants it: the port ``Qemu``, put together from the modules beside this one."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from snapd.model.domain import Disk, Inspection
from snapd.model.images import Merge
from snapd.model.plan import Opening, Overlay, Parking, Tag
from snapd.qmp import blocks, commands, internal, memory, merges, process
from snapd.qmp.link import EventLog, Link

NODE_PREFIX = blocks.NODE_PREFIX

Report = Callable[[str, int, int], None]


class Qemu:
    """See ``engine.ports.Qemu`` for what each method promises. One operation at a time uses it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._jobs = count(1)
        self._settings: memory.MigrationSettings | None = None
        self._events: EventLog | None = None
        self._watching = contextlib.ExitStack()
        self._version: tuple[int, int, int] = (0, 0, 0)
        self._attached = False
        self._has_descriptors = False
        self._was_loaded = True
        """Whether memory may have been loaded since the guest last ran; of a QEMU that was there before us it may."""

    def _job(self) -> str:
        return f"{NODE_PREFIX}job-{next(self._jobs)}"

    async def inspect(self, *, for_saving: bool = False) -> Inspection:
        link = self._link
        (status, uuid), machine, self._version, view, blocked = await asyncio.gather(
            commands.query_status_and_uuid(link),
            commands.query_machine(link),
            commands.query_version(link),
            blocks.query_blocks(link),
            memory.memory_blocker(link),
        )
        self._was_loaded = self._was_loaded and not status.running
        return Inspection(
            state=status.state,
            uuid=uuid,
            machine=machine,
            disks=view.disks,
            open_images={path: node for path, (node, _) in view.opened.items()},
            formats=view.formats,
            qemu_version=self._version,
            live_blocker="" if blocked or not for_saving else await memory.live_blocker(link),
            memory_blocker=blocked,
            open_files=view.process.open_files,
            follows_active=await process.follows_active(view.process, view.opened),
        )

    def rename(self, names: Mapping[str, str]) -> None:
        self._link.names = names

    async def disks(self) -> Sequence[Disk]:
        return await blocks.query_disks(self._link)

    async def open_images(self) -> Mapping[str, str]:
        return {path: node for path, (node, _) in (await blocks.query_open(self._link)).items()}

    async def open_overlay(self, overlay: Overlay, backing_node: str) -> None:
        await blocks.open_overlay(self._link, overlay, backing_node)

    async def open_image(self, opening: Opening) -> None:
        await blocks.open_image(self._link, opening)

    async def close_nodes(self, nodes: Sequence[str]) -> None:
        await blocks.close_nodes(self._link, nodes)

    async def close_unused(self, images: Sequence[str]) -> None:
        await blocks.close_unused(self._link, images, NODE_PREFIX)

    async def stop(self) -> None:
        self._watching.close()
        self._events = self._watching.enter_context(self._link.watch())
        await self._link.execute("stop")

    async def resume(self) -> None:
        await self._link.execute("cont")

    async def has_run(self) -> bool:
        if self._events and memory.resumed(self._events):
            return True
        return (await commands.query_status(self._link)).running

    async def pause_usec(self) -> int:
        """Return how long the guest stood still between its last STOP and RESUME, by QEMU's clock."""
        if self._events is None:
            return 0
        await self._events.until(lambda: self._events is not None and memory.resumed(self._events), memory.RESUME_TIMEOUT_S)
        stopped, resumed = self._events.last("STOP"), self._events.last("RESUME")
        self._watching.close()
        if stopped is None or resumed is None:
            return 0
        return memory.timestamp_usec(resumed) - memory.timestamp_usec(stopped)

    async def take(self, overlays: Sequence[Overlay], tags: Sequence[Tag]) -> None:
        await blocks.take(self._link, overlays, tags)

    async def drop_tag(self, image: str, tag: str) -> None:
        await internal.drop_tag(self._link, image, tag)

    async def park(self, parking: Parking) -> None:
        await internal.park(self._link, parking)

    async def unpark(self, parking: Parking) -> None:
        await internal.unpark(self._link, parking)

    async def hold(self, disk: Disk, node: str) -> bool:
        return await blocks.hold(self._link, disk, node)

    async def swap(self, overlay: Overlay) -> None:
        await blocks.swap_to_new(self._link, overlay.disk, overlay.node, overlay.image.virtual_size_bytes)

    async def swap_back(self, disk: Disk) -> None:
        await blocks.swap(self._link, disk, disk.node)

    async def arm_live_save(self, descriptor: int) -> None:
        self._settings = await memory.arm(self._link, descriptor)

    async def save_live(self, report: Report) -> None:
        if self._events is None:
            raise RuntimeError("a live save begins with stop()")
        await memory.save_live(self._link, self._version, self._events, report)

    async def disarm_live_save(self) -> None:
        if self._settings:
            await memory.disarm(self._link, self._settings)
            self._settings = None

    async def attach_memory(self, read_write: int, read_only: int) -> None:
        await memory.attach(self._link, read_write, read_only)
        self._attached = True

    async def detach_memory(self) -> None:
        if self._attached:
            self._has_descriptors = not await memory.detach(self._link)
            self._attached = False
        elif self._has_descriptors:
            self._has_descriptors = not await memory.drop_descriptors(self._link)

    async def save_paused(self, tag: str, expected_bytes: int) -> None:
        await memory.save_paused(self._link, self._job(), tag, expected_bytes)

    async def make_loadable(self) -> None:
        # A flash waits for the guest to run before it writes what was loaded to its image. When memory is loaded again before
        # that, it waits twice, and QEMU 7.2 ends with a segmentation fault at the next cont.
        if self._was_loaded and any(disk.is_flash and disk.writable for disk in await self.disks()):
            await self._link.execute("cont")
            await self._link.execute("stop")
            self._was_loaded = False

    async def load(self, tag: str, expected_bytes: int) -> None:
        self._was_loaded = True
        await memory.load(self._link, self._job(), tag, expected_bytes)

    async def reset(self) -> None:
        started = await process.look(self._link)
        if not started.command_line.ends_on_reset:
            await commands.reset(self._link)
            return
        # With -no-reboot it would end; QMP does not show that, and takes no other word for a reset.
        await self._link.execute("set-action", reboot="reset")
        try:
            await commands.reset(self._link)
        finally:
            await self._link.execute("set-action", reboot="shutdown")

    async def merge(self, merge: Merge, report: Report) -> None:
        job = self._job()
        await merges.merge(self._link, merge, job, lambda done, total: report(f"merging {merge.removed}", done, total))
