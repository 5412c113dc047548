# SPDX-License-Identifier: MIT
"""Create: a full snapshot of a running or paused domain, its disks covered and its memory saved at one instant.

Not here: what is refused (``model.plan``). The order is the point: all files exist, all are allocated and all settings are made
before the guest stops; between stop and resume nothing waits for a disk of ours.
"""

from dataclasses import replace
from functools import partial

from snapd.engine.look import look, refuse_foreign_files, refuse_without_space
from snapd.engine.ports import MemoryFile, Ports, Report
from snapd.engine.undo import UndoStack, all_done, as_failure, connected
from snapd.errors import MonitorLost, SnapdError
from snapd.model.domain import DomainDefinition
from snapd.model.images import Direction, Merge
from snapd.model.plan import EMPTY_OVERLAY_BYTES, OVERLAY_FORMAT, CreatePlan, CreateRequest, Overlay
from snapd.model.planner import plan_create
from snapd.model.record import DomainRecord
from snapd.model.snapshot import MemoryState, SaveMethod, Snapshot, SnapshotDisk, SnapshotType

MEMORY_TAG = "memory"


async def prepare(
    ports: Ports,
    definition: DomainDefinition,
    request: CreateRequest,
    memory_directory: str,
    token: str,
    reserve_bytes: int,
    chain_limit: int,
) -> tuple[CreatePlan, DomainRecord]:
    """Return the plan, and the record that it starts from; nothing is touched.

    Raises: every refusal of ``plan_create``; DomainDrifted, DomainUnreachable, ImageInUse, NoSpace.
    """
    seen, record = await look(ports, definition, for_saving=True)
    plan = plan_create(definition, record, seen, request, memory_directory, token, chain_limit)
    overlays = [overlay.image.path for overlay in plan.overlays]
    await refuse_foreign_files(ports.images, [*overlays, plan.memory_path])
    needed = dict.fromkeys(overlays, EMPTY_OVERLAY_BYTES) | {plan.memory_path: plan.largest_stream_bytes}
    await refuse_without_space(ports.images, needed, reserve_bytes)
    return plan, record


async def carry_out(ports: Ports, record: DomainRecord, plan: CreatePlan, created_usec: int, report: Report) -> None:
    """Take the snapshot; when this returns it is durable.

    Effects: intent written; files made; guest stopped, disks covered, memory saved, guest resumed; state committed; intent
    removed.
    Raises: any Failed or ImageInUse or NoSpace; the guest runs on, and files and tree are as before, except after a
    MonitorLost in the pause, which leaves the intent: QEMU may be running on the overlays by then.
    """
    await _Creation(ports, record, plan, report).run(created_usec)


class _Creation:
    def __init__(self, ports: Ports, record: DomainRecord, plan: CreatePlan, report: Report) -> None:
        self._qemu, self._images, self._store = ports.qemu, ports.images, ports.store
        self._ports, self._record, self._plan, self._report = ports, record, plan, report
        self._undo = UndoStack(record.name)
        self._memory: MemoryFile | None = None
        self._paused = False

    async def run(self, created_usec: int) -> None:
        await self._store.begin("create", self._plan.name, self._plan)
        self._undo.push("writing the intent", self._store.end)
        try:
            with connected(self._record.name, "create"):
                await self._make_ready()
                await self._store.step("pause")
                self._paused = True
                await self._checkpoint()
                size_bytes = await self._finish_memory()
                await self._store.commit(await self._record_with(created_usec, size_bytes))
        except Exception as error:
            await self._go_back(as_failure(error))
            raise
        await self._store.end()

    async def _make_ready(self) -> None:
        """Do all that needs no stopped guest: files made, opened and handed over, the migration set up."""
        self._report("making files", 0, 0)
        await all_done(*(self._make_overlay(overlay) for overlay in self._plan.overlays), self._make_memory())

    async def _make_overlay(self, overlay: Overlay) -> None:
        path = overlay.image.path
        await self._images.create_overlay(overlay)
        self._undo.push(f"making {path}", partial(self._images.unlink, path))
        await self._qemu.open_overlay(overlay, "")
        self._undo.push(f"opening {path}", partial(self._qemu.close_nodes, [overlay.node]), in_qemu=True)

    async def _make_memory(self) -> None:
        path = self._plan.memory_path
        if self._plan.method is SaveMethod.LIVE:
            self._memory = memory = await self._images.create_memory(path, self._plan.largest_stream_bytes)
            self._undo.push(f"making {path}", memory.discard)
            self._undo.push("setting up the migration", self._qemu.disarm_live_save, in_qemu=True)
            await self._qemu.arm_live_save(memory.descriptor)
        else:
            await self._images.create_container(path)
            self._undo.push(f"making {path}", partial(self._images.unlink, path))
            await attach_container(self._ports, path)
            self._undo.push("attaching the memory file", self._qemu.detach_memory, in_qemu=True)

    async def _checkpoint(self) -> None:
        """Stop, cover, save, resume: memory and disks at one instant."""
        self._report("saving memory", 0, self._plan.machine.memory_bytes)
        if self._plan.running:
            self._undo.push("stopping the guest", self._resume, in_qemu=True)
            await self._qemu.stop()
        await self._qemu.cover(self._plan.overlays)
        for overlay in self._plan.overlays:
            self._undo.push(f"covering disk {overlay.disk.target}", partial(self._uncover, overlay), in_qemu=True)
        if self._memory:
            await self._qemu.save_live(self._report)
            return
        await self._qemu.save_paused(MEMORY_TAG, self._plan.machine.memory_bytes)
        if self._plan.running:
            await self._qemu.resume()

    async def _finish_memory(self) -> int:
        self._report("making it durable", 0, 0)
        if self._memory:
            size_bytes = 0

            async def finish(memory: MemoryFile) -> None:
                nonlocal size_bytes
                size_bytes = await memory.finish()

            await all_done(finish(self._memory), self._qemu.disarm_live_save())
            return size_bytes
        await self._qemu.detach_memory()
        return await self._images.sync_container(self._plan.memory_path)

    async def _record_with(self, created_usec: int, size_bytes: int) -> DomainRecord:
        plan = self._plan
        snapshot = Snapshot(
            name=plan.name,
            created_usec=created_usec,
            type=SnapshotType.EXTERNAL,
            running=plan.running,
            disks=tuple(
                SnapshotDisk(overlay.disk.target, overlay.image.path, OVERLAY_FORMAT, overlay.disk.virtual_size_bytes)
                for overlay in plan.overlays
            ),
            machine=plan.machine,
            memory=MemoryState(plan.memory_path, size_bytes, plan.method, plan.method_reason),
            description=plan.description,
            pause_usec=await self._qemu.pause_usec() if plan.running else 0,
        )
        return replace(self._record, graph=plan.graph(self._record.graph), tree=self._record.tree.add(snapshot))

    async def _go_back(self, cause: SnapdError) -> None:
        """Leave guest, files and tree as they were."""
        if not (self._paused and isinstance(cause, MonitorLost)):
            await self._undo.undo(cause)

    async def _resume(self) -> None:
        if not await self._qemu.has_run():
            await self._qemu.resume()

    async def _uncover(self, overlay: Overlay) -> None:
        """Take an overlay down again: the guest may have written to it, and QEMU has what it covers open for reading only."""
        image = overlay.image
        await self._qemu.merge(Merge(Direction.COMMIT, image.path, overlay.disk.image, None, active=True), self._report)


async def attach_container(ports: Ports, path: str) -> None:
    """Hand the container at ``path`` over to QEMU by descriptors, so that it needs no right to the file."""
    read_write, read_only = await ports.images.open_container(path)
    try:
        await ports.qemu.attach_memory(read_write, read_only)
    finally:
        ports.images.close_descriptors(read_write, read_only)
