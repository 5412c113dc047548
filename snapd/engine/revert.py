# SPDX-License-Identifier: MIT
"""Revert: bring a domain's disks, and its memory, back to a snapshot; a QEMU that runs goes on.

Not here: what is refused and which way each disk goes (``model.revert_planner``). Everything is made, copied and opened before
the guest stops; until its memory is touched, all can be undone without the guest noticing.
"""

import contextlib
import logging
from functools import partial

from snapd.engine.create import MEMORY_TAG, attach_container
from snapd.engine.look import look, refuse_foreign_files, refuse_without_space
from snapd.engine.merge import commit_and_collect
from snapd.engine.ports import Ports, Report
from snapd.engine.undo import UndoStack, all_done, as_failure, connected
from snapd.errors import MonitorLost, QemuFailed
from snapd.model.domain import Disk, DomainDefinition, DomainState
from snapd.model.outcome import record_after_revert
from snapd.model.plan import EMPTY_OVERLAY_BYTES, Application, Overlay, RevertPlan, RevertRequest, UndoPoint
from snapd.model.planner import find_snapshot
from snapd.model.record import DomainRecord
from snapd.model.revert_planner import find_target, plan_revert
from snapd.model.snapshot import MemoryState

log = logging.getLogger(__name__)


async def prepare(
    ports: Ports,
    definition: DomainDefinition,
    request: RevertRequest,
    memory_directory: str,
    stamp: str,
    token: str,
    reserve_bytes: int,
) -> tuple[RevertPlan, DomainRecord]:
    """Return the plan, and the record that it starts from; nothing is touched.

    Raises: every refusal of ``plan_revert``; DomainDrifted, DomainUnreachable, ImageInUse, NoSpace, StateDamaged.
    """
    find_target(ports.store.committed, request.name)
    seen, record = await look(ports, definition)
    allocated = await ports.images.allocated_bytes(list(record.graph.images))
    plan = plan_revert(record, seen, request, allocated, memory_directory, stamp, token)
    needed = {overlay.image.path: _overlay_bytes(record, overlay, allocated) for overlay in plan.overlays}
    new = list(needed)
    needed |= dict.fromkeys((each.image.path for each in plan.applications), EMPTY_OVERLAY_BYTES)
    if plan.undo and plan.undo.memory:
        new.append(plan.undo.memory.path)
        needed[plan.undo.memory.path] = plan.undo.memory.largest_stream_bytes
    await refuse_foreign_files(ports.images, new)
    await refuse_without_space(ports.images, needed, reserve_bytes)
    if plan.memory_path:
        # A container that is gone or cut off is found here and not with the guest stopped.
        await ports.images.check_container(plan.memory_path)
    return plan, record


def _overlay_bytes(record: DomainRecord, overlay: Overlay, allocated_bytes: dict[str, int]) -> int:
    """Return what a new overlay may occupy; a copy has no more than all that it is copied from."""
    if overlay.copy_of is None:
        return EMPTY_OVERLAY_BYTES
    chain = record.graph.chain(overlay.copy_of.image)
    return EMPTY_OVERLAY_BYTES + sum(allocated_bytes.get(image.path, 0) for image in chain)


async def carry_out(ports: Ports, record: DomainRecord, plan: RevertPlan, created_usec: int, report: Report) -> tuple[str, ...]:
    """Bring the domain back; when this returns the new state is durable and what nothing needs any more is gone.

    Effects: intent written; overlays made, copied and opened; guest stopped, disks swapped and internal snapshots applied,
    memory loaded or the guest reset, guest resumed if the plan says so; state committed; old overlays collected; intent
    removed.
    Returns: sentences for whoever asked.
    Raises: any Failed or ImageInUse; disks are as before and the guest goes on, unless QEMU had begun to load its memory: then
    that is loaded back from the undo point, or the guest has been reset. MonitorLost in the pause leaves the intent.
    """
    await _Reversion(ports, record, plan, report).run(created_usec)
    return plan.notes


class _Reversion:
    def __init__(self, ports: Ports, record: DomainRecord, plan: RevertPlan, report: Report) -> None:
        self._qemu, self._images, self._store = ports.qemu, ports.images, ports.store
        self._ports, self._record, self._plan, self._report = ports, record, plan, report
        self._undo = UndoStack(record.name)
        self._paused = False
        self._held: list[str] = []
        self._left: list[str] = []
        self._undo_memory: MemoryState | None = None

    async def run(self, created_usec: int) -> None:
        await self._store.begin("revert", self._plan.name, self._plan)
        self._undo.push("writing the intent", self._store.end)
        try:
            with connected(self._record.name, "revert"):
                await self._open()
                await self._store.step("pause")
                self._paused = True
                await self._switch()
        except Exception as error:
            cause = as_failure(error)
            if not (self._paused and isinstance(cause, MonitorLost)):
                await self._undo.undo(cause)
            raise
        failure = await self._go_on()
        unneeded = [
            memory.path for name in self._plan.dropped if (memory := self._record.tree.snapshots[name].memory) is not None
        ]
        await all_done(
            commit_and_collect(
                self._ports,
                record_after_revert(self._record, self._plan, self._undo_memory, created_usec),
                self._report,
                unneeded,
            ),
            self._qemu.detach_memory(),
            *([self._ports.agent.set_clock()] if self._ports.agent and self._loads and self._plan.resume else []),
        )
        await self._store.end()
        if failure:
            lost = "the domain is at the snapshot, and stays paused"
            raise QemuFailed(failure.domain, failure.command, f"{failure.text.rstrip('.')}; {lost}") from failure

    async def _go_on(self) -> QemuFailed | None:
        """Let the guest go on and close what it has left. Returns: why it could not be resumed, if it could not.

        The disks are on the snapshot by now, so nothing of this must keep that from being committed.
        """
        failure = None
        try:
            if self._plan.resume:
                await self._qemu.resume()
        except QemuFailed as error:
            failure = error
        try:
            await self._qemu.close_nodes(self._held)
            if self._left:
                await self._qemu.close_unused(self._left)
        except QemuFailed as error:
            log.warning("domain %s: what the revert has left stays open until the next change: %s", self._record.name, error)
        return failure

    @property
    def _loads(self) -> bool:
        return bool(self._plan.memory_path) and self._plan.later is None

    @property
    def _has_flash(self) -> bool:
        """Whether memory must not be loaded twice without the guest running in between (``Qemu.make_loadable``)."""
        disks = [each.disk for each in self._plan.overlays] + [each.disk for each in self._plan.applications]
        return any(disk.is_flash for disk in disks)

    # Before the guest stops

    async def _open(self) -> None:
        """Make, copy and open all that is to be swapped in or loaded; nothing of it is in use yet."""
        self._report("opening images", 0, 0)
        for each in self._plan.applications:
            if not each.is_active:
                # Nothing needs what this image holds now. What is not used is closed before anything of ours is opened.
                await self._qemu.close_unused([each.image.path])
                await self._images.apply_tag(each.image.path, each.tag)
        for opening in self._plan.openings:
            await self._qemu.open_image(opening)
            self._undo.push(f"opening {opening.image.path}", partial(self._qemu.close_nodes, [opening.node]), in_qemu=True)
        undo_memory = self._plan.undo.memory if self._plan.undo else None
        if undo_memory:
            await self._images.create_container(undo_memory.path)
            self._undo.push(f"making {undo_memory.path}", partial(self._images.unlink, undo_memory.path))
        await all_done(*(self._make_overlay(overlay) for overlay in self._plan.overlays))
        if self._loads and not undo_memory:
            await self._attach(self._plan.memory_path)

    async def _make_overlay(self, overlay: Overlay) -> None:
        path = overlay.image.path
        await self._images.create_overlay(overlay, self._report)
        self._undo.push(f"making {path}", partial(self._images.unlink, path))
        await self._qemu.open_overlay(overlay, self._plan.backing_nodes[overlay.disk.target])
        self._undo.push(f"opening {path}", partial(self._qemu.close_nodes, [overlay.node]), in_qemu=True)

    async def _attach(self, path: str) -> None:
        await attach_container(self._ports, path)
        self._undo.push("attaching the memory file", self._qemu.detach_memory, in_qemu=True)

    # With the guest stopped

    async def _switch(self) -> None:
        plan = self._plan
        if plan.state is DomainState.RUNNING:
            self._undo.push("stopping the guest", self._qemu.resume, in_qemu=True)
            await self._qemu.stop()
        elif self._loads:
            await self._qemu.make_loadable()
        if plan.undo and plan.undo.memory:
            await self._save_undo_memory(plan.undo)
        elsewhere = [each for each in plan.applications if not each.is_active]
        leaving = [(overlay.disk, overlay.held) for overlay in plan.overlays]
        leaving += [(each.disk, each.held) for each in elsewhere]
        for disk, held in leaving:
            # Only now: QEMU 7.2 may abort when a node is added on one that an iothread is using.
            if await self._qemu.hold(disk, held):
                self._held.append(held)
                release = partial(self._qemu.close_nodes, [held])
                self._undo.push(f"holding disk {disk.target}", release, in_qemu=True)
            else:
                self._left.append(disk.image)
        for overlay in plan.overlays:
            self._push_swap_back(overlay.disk)
            await self._qemu.swap(overlay)
        for each in elsewhere:
            self._undo.push(f"opening {each.image.path}", partial(self._qemu.close_nodes, [each.node]), in_qemu=True)
            self._push_swap_back(each.disk)
            await self._qemu.unpark(each)
        for each in plan.applications:
            if each.is_active:
                await self._apply(each)
        if self._loads:
            await self._load()
        elif plan.state is not DomainState.SHUTOFF:
            self._report("resetting the guest", 0, 0)
            await self._qemu.reset()

    def _push_swap_back(self, disk: Disk) -> None:
        self._undo.push(f"swapping disk {disk.target}", partial(self._qemu.swap_back, disk), in_qemu=True)

    async def _apply(self, each: Application) -> None:
        """Apply an internal snapshot where it is, over content that is kept in another one."""
        self._report(f"applying internal snapshot {each.tag}", 0, 0)
        path = each.image.path
        self._undo.push(f"parking disk {each.disk.target}", partial(self._qemu.unpark, each), in_qemu=True)
        await self._qemu.park(each)
        await self._images.make_tag(path, each.keep)
        self._undo.push(f"tagging {path}", partial(self._images.drop_tag, path, each.keep), in_qemu=True)
        self._undo.push(f"applying to {path}", partial(self._put_back, each), in_qemu=True)
        await self._images.apply_tag(path, each.tag)
        await self._qemu.unpark(each)

    async def _put_back(self, each: Application) -> None:
        await self._qemu.park(each)
        await self._images.apply_tag(each.image.path, each.keep)

    async def _save_undo_memory(self, undo: UndoPoint) -> None:
        if undo.memory is None or self._plan.machine is None:
            return
        self._report("saving memory", 0, 0)
        await attach_container(self._ports, undo.memory.path)
        try:
            await self._qemu.save_paused(MEMORY_TAG, self._plan.machine.memory_bytes)
        finally:
            with contextlib.suppress(MonitorLost):
                await self._qemu.detach_memory()
        size_bytes = await self._images.sync_container(undo.memory.path)
        self._undo_memory = MemoryState(undo.memory.path, size_bytes, undo.memory.method, undo.memory.method_reason)
        if self._loads:
            await self._attach(self._plan.memory_path)

    async def _load(self) -> None:
        self._report("loading memory", 0, 0)
        memory = find_snapshot(self._record, self._plan.name).memory
        self._undo.push("touching memory", self._restore_memory, in_qemu=True)
        try:
            await self._qemu.load(MEMORY_TAG, memory.size_bytes if memory else 0)
        except QemuFailed as error:
            if self._undo_memory and not self._has_flash:
                lost = "the guest's memory was loaded back from the undo point"
            else:
                lost = "its memory may have been lost by then, so the guest was reset, with its disks as they were"
            raise QemuFailed(error.domain, error.command, f"{error.text.rstrip('.')}; {lost}") from error

    async def _restore_memory(self) -> None:
        """Give the guest back what memory it had, or else a fresh start."""
        if self._undo_memory is None or self._has_flash:
            await self._qemu.reset()
            return
        await self._qemu.detach_memory()
        await attach_container(self._ports, self._undo_memory.path)
        await self._qemu.load(MEMORY_TAG, self._undo_memory.size_bytes)
