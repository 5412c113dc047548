# SPDX-License-Identifier: MIT
"""Create: a snapshot of a domain's disks, internal and external ones in one instant, with or without its memory.

Not here: what is refused (``model.planner``). The order is the point: all files exist, all are allocated and all settings are
made before the guest stops or freezes; between stop and resume nothing waits for a disk of ours.
"""

import logging
from dataclasses import replace
from functools import partial

from snapd.engine.look import look, refuse_foreign_files, refuse_without_space
from snapd.engine.ports import MemoryFile, Ports, Report
from snapd.engine.quiesce import FREEZE_STEP, THAWED_STEP, Freeze
from snapd.engine.undo import UndoStack, all_done, as_failure, connected
from snapd.errors import MonitorLost, QuiesceFailed, SnapdError
from snapd.model.domain import DomainDefinition, DomainState
from snapd.model.images import Direction, Merge
from snapd.model.outcome import type_of
from snapd.model.plan import EMPTY_OVERLAY_BYTES, OVERLAY_FORMAT, CreatePlan, CreateRequest, MemoryPlan, Overlay, Quiesce
from snapd.model.planner import plan_create
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Consistency, MemoryState, SaveMethod, Snapshot, SnapshotDisk

MEMORY_TAG = "memory"

log = logging.getLogger(__name__)


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
    seen, record = await look(ports, definition, for_saving=request.memory is not False)
    plan = plan_create(definition, record, seen, request, memory_directory, token, chain_limit)
    overlays = [overlay.image.path for overlay in plan.overlays]
    needed = dict.fromkeys([*overlays, *(tag.disk.image for tag in plan.tags)], EMPTY_OVERLAY_BYTES)
    if plan.memory:
        needed[plan.memory.path] = plan.memory.largest_stream_bytes
    await refuse_foreign_files(ports.images, [*overlays, *([plan.memory.path] if plan.memory else [])])
    await refuse_without_space(ports.images, needed, reserve_bytes)
    return plan, record


async def carry_out(ports: Ports, record: DomainRecord, plan: CreatePlan, created_usec: int, report: Report) -> tuple[str, ...]:
    """Take the snapshot; when this returns it is durable.

    Effects: intent written; files made; guest stopped or frozen where the plan says so, disks covered and tagged, memory saved,
    guest thawed and resumed; state committed; intent removed.
    Returns: sentences for whoever asked.
    Raises: any Failed or ImageInUse or NoSpace; the guest runs on, and files and tree are as before, except after a
    MonitorLost in the pause, which leaves the intent: QEMU may be running on the overlays by then.
    """
    return await _Creation(ports, record, plan, report).run(created_usec)


class _Creation:
    def __init__(self, ports: Ports, record: DomainRecord, plan: CreatePlan, report: Report) -> None:
        self._qemu, self._images, self._store = ports.qemu, ports.images, ports.store
        self._ports, self._record, self._plan, self._report = ports, record, plan, report
        self._undo = UndoStack(record.name)
        self._freeze = Freeze(record.name, ports.agent)
        self._consistency = Consistency.FULL if plan.memory else Consistency.CRASH_CONSISTENT
        self._memory: MemoryFile | None = None
        self._paused = False

    async def run(self, created_usec: int) -> tuple[str, ...]:
        await self._store.begin("create", self._plan.name, self._plan)
        self._undo.push("writing the intent", self._store.end)
        try:
            with connected(self._record.name, "create"):
                await self._make_ready()
                await self._begin_freeze()
                await self._store.step("pause")
                self._paused = True
                await self._take()
                memory = await self._save_memory(self._plan.memory) if self._plan.memory else None
                await self._store.commit(await self._record_with(created_usec, memory))
        except Exception as error:
            await self._go_back(as_failure(error))
            raise
        await self._store.end()
        if self._freeze.reason:
            return (*self._plan.notes, f"The file systems were not frozen: {self._freeze.reason}.")
        return self._plan.notes

    async def _make_ready(self) -> None:
        """Do all that needs no stopped guest: files made, opened and handed over, the migration set up."""
        self._report("making files", 0, 0)
        if self._plan.linked:
            await self._open_by_name()
        memory = [self._make_memory(self._plan.memory)] if self._plan.memory else []
        await all_done(*(self._make_overlay(overlay) for overlay in self._plan.overlays), *memory)

    async def _open_by_name(self) -> None:
        """Have QEMU open images by their own names that it has open through our links; there is no need to undo that."""
        is_running = self._plan.state is DomainState.RUNNING
        if is_running:
            await self._qemu.stop()
        try:
            for each in self._plan.linked:
                await self._qemu.park(each)
                await self._qemu.unpark(each)
        finally:
            if is_running:
                await self._qemu.resume()

    async def _make_overlay(self, overlay: Overlay) -> None:
        path = overlay.image.path
        await self._images.create_overlay(overlay, self._report)
        self._undo.push(f"making {path}", partial(self._images.unlink, path))
        await self._qemu.open_overlay(overlay, "")
        self._undo.push(f"opening {path}", partial(self._qemu.close_nodes, [overlay.node]), in_qemu=True)

    async def _make_memory(self, plan: MemoryPlan) -> None:
        if plan.method is SaveMethod.LIVE:
            self._memory = memory = await self._images.create_memory(plan.path, plan.largest_stream_bytes)
            self._undo.push(f"making {plan.path}", memory.discard)
            self._undo.push("setting up the migration", self._qemu.disarm_live_save, in_qemu=True)
            await self._qemu.arm_live_save(memory.descriptor)
        else:
            await self._images.create_container(plan.path)
            self._undo.push(f"making {plan.path}", partial(self._images.unlink, plan.path))
            await attach_container(self._ports, plan.path)
            self._undo.push("attaching the memory file", self._qemu.detach_memory, in_qemu=True)

    async def _begin_freeze(self) -> None:
        if self._plan.quiesce is Quiesce.NO:
            return
        self._report("freezing file systems", 0, 0)
        # What may leave the guest frozen is written down first: it is thawed then whatever becomes of us.
        await self._store.step(FREEZE_STEP)
        self._undo.push("freezing file systems", self._freeze.end)
        if await self._freeze.begin(self._plan.quiesce):
            self._consistency = Consistency.QUIESCED

    async def _take(self) -> None:
        """Cover and tag the disks at one instant, the guest stopped or frozen for it if need be."""
        plan = self._plan
        if plan.pauses:
            self._report("saving memory", 0, plan.machine.memory_bytes if plan.machine else 0)
            self._undo.push("stopping the guest", self._resume, in_qemu=True)
            await self._qemu.stop()
        await self._qemu.take(plan.overlays, plan.tags)
        for overlay in plan.overlays:
            self._undo.push(f"covering disk {overlay.disk.target}", partial(self._uncover, overlay), in_qemu=True)
        for tag in plan.tags:
            drop = partial(self._qemu.drop_tag, tag.disk.image, tag.name)
            self._undo.push(f"tagging disk {tag.disk.target}", drop, in_qemu=True)
        if plan.quiesce is not Quiesce.NO:
            await self._freeze.end()
            await self._store.step(THAWED_STEP)

    async def _save_memory(self, plan: MemoryPlan) -> MemoryState:
        """Save the memory of the stopped guest and let the guest go on, at once or afterwards."""
        size_bytes = 0
        if self._memory:
            await self._qemu.save_live(self._report)
            self._report("making it durable", 0, 0)

            async def finish(memory: MemoryFile) -> None:
                nonlocal size_bytes
                size_bytes = await memory.finish()

            await all_done(finish(self._memory), self._qemu.disarm_live_save())
        else:
            await self._qemu.save_paused(MEMORY_TAG, self._plan.machine.memory_bytes if self._plan.machine else 0)
            if self._plan.pauses:
                await self._qemu.resume()
            self._report("making it durable", 0, 0)
            await self._qemu.detach_memory()
            size_bytes = await self._images.sync_container(plan.path)
        return MemoryState(plan.path, size_bytes, plan.method, plan.method_reason)

    async def _record_with(self, created_usec: int, memory: MemoryState | None) -> DomainRecord:
        plan = self._plan
        covered = [
            SnapshotDisk(each.disk.target, each.image.path, OVERLAY_FORMAT, each.disk.virtual_size_bytes)
            for each in plan.overlays
        ]
        tagged = [SnapshotDisk(each.disk.target, "", "", each.disk.virtual_size_bytes) for each in plan.tags]
        snapshot = Snapshot(
            name=plan.name,
            created_usec=created_usec,
            type=type_of(bool(covered), bool(tagged)),
            state=plan.state,
            disks=(*covered, *tagged),
            machine=plan.machine,
            memory=memory,
            description=plan.description,
            pause_usec=await self._qemu.pause_usec() if plan.pauses else 0,
            consistency=Consistency.OFFLINE if plan.state is DomainState.SHUTOFF else self._consistency,
            left_out=plan.left_out,
        )
        return replace(self._record, graph=plan.graph(self._record.graph), tree=self._record.tree.add(snapshot))

    async def _go_back(self, cause: SnapdError) -> None:
        """Leave guest, files and tree as they were; the guest is thawed first, as the rest may take longer."""
        try:
            await self._freeze.end()
        except QuiesceFailed as error:
            log.warning("%s", error)  # tried again by what undoes the freeze
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
