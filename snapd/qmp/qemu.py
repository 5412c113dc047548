# SPDX-License-Identifier: MIT
"""One running QEMU as the engine wants it: the port ``Qemu``, put together from the modules beside this one."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from snapd.model.domain import Disk, Inspection
from snapd.model.images import Merge
from snapd.model.plan import Opening, Overlay
from snapd.qmp import blocks, commands, memory, merges
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
        return Inspection(
            running=status.running,
            uuid=uuid,
            machine=machine,
            disks=view.disks,
            open_images={path: node for path, (node, _) in view.opened.items()},
            formats=view.formats,
            qemu_version=self._version,
            live_blocker="" if blocked or not for_saving else await memory.live_blocker(link),
            memory_blocker=blocked,
        )

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

    async def cover(self, overlays: Sequence[Overlay]) -> None:
        await blocks.cover(self._link, overlays)

    async def hold(self, disk: Disk, node: str) -> bool:
        return await blocks.hold(self._link, disk, node)

    async def swap(self, disk: Disk, node: str) -> None:
        await blocks.swap(self._link, disk, node)

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
            await memory.detach(self._link)
            self._attached = False

    async def save_paused(self, tag: str, expected_bytes: int) -> None:
        await memory.save_paused(self._link, self._job(), tag, expected_bytes)

    async def load(self, tag: str, expected_bytes: int) -> None:
        await memory.load(self._link, self._job(), tag, expected_bytes)

    async def reset(self) -> None:
        await self._link.execute("system_reset")

    async def merge(self, merge: Merge, report: Report) -> None:
        job = self._job()
        await merges.merge(self._link, merge, job, lambda done, total: report(f"merging {merge.removed}", done, total))
