# SPDX-License-Identifier: MIT
"""Revert: bring disks and memory back to a snapshot while QEMU goes on.

Not here: what is refused (``model.plan``). Everything is opened before the guest stops; until its memory is touched, all can
be undone without the guest noticing.
"""

from dataclasses import replace
from functools import partial

from snapd.engine.create import MEMORY_TAG, attach_container
from snapd.engine.look import look, refuse_foreign_files, refuse_without_space
from snapd.engine.merge import commit_and_collect
from snapd.engine.ports import Ports, Report
from snapd.engine.undo import UndoStack, all_done, as_failure, connected
from snapd.errors import MonitorLost, QemuFailed
from snapd.model.domain import DomainDefinition
from snapd.model.plan import EMPTY_OVERLAY_BYTES, Overlay, RevertPlan, RevertRequest
from snapd.model.planner import find_snapshot, plan_revert
from snapd.model.record import DomainRecord


async def prepare(
    ports: Ports, definition: DomainDefinition, request: RevertRequest, token: str, reserve_bytes: int
) -> tuple[RevertPlan, DomainRecord]:
    """Return the plan, and the record that it starts from; nothing is touched.

    Raises: every refusal of ``plan_revert``; DomainDrifted, DomainUnreachable, ImageInUse, NoSpace, StateDamaged.
    """
    find_snapshot(ports.store.committed, request.name)
    seen, record = await look(ports, definition)
    allocated = await ports.images.allocated_bytes(list(record.graph.images))
    plan = plan_revert(record, seen, request, allocated, token)
    overlays = [overlay.image.path for overlay in plan.overlays]
    await refuse_foreign_files(ports.images, overlays)
    await refuse_without_space(ports.images, dict.fromkeys(overlays, EMPTY_OVERLAY_BYTES), reserve_bytes)
    # A container that is gone or cut off is found here and not with the guest stopped.
    await ports.images.check_container(plan.memory_path)
    return plan, record


async def carry_out(ports: Ports, record: DomainRecord, plan: RevertPlan, report: Report) -> None:
    """Bring the domain back; when this returns the new state is durable and what nothing needs any more is gone.

    Effects: intent written; overlays made and opened; guest stopped, disks swapped, memory loaded, guest resumed if the
    snapshot says so; state committed; old overlays collected; intent removed.
    Raises: any Failed or ImageInUse; disks are as before and the guest goes on, unless QEMU had begun to load its memory:
    then it has been reset. MonitorLost in the pause leaves the intent.
    """
    await _Reversion(ports, record, plan, report).run()


class _Reversion:
    def __init__(self, ports: Ports, record: DomainRecord, plan: RevertPlan, report: Report) -> None:
        self._qemu, self._images, self._store = ports.qemu, ports.images, ports.store
        self._ports, self._record, self._plan, self._report = ports, record, plan, report
        self._undo = UndoStack(record.name)
        self._paused = False
        self._held: list[str] = []

    async def run(self) -> None:
        await self._store.begin("revert", self._plan.name, self._plan)
        self._undo.push("writing the intent", self._store.end)
        try:
            with connected(self._record.name, "revert"):
                await self._open()
                await self._store.step("pause")
                self._paused = True
                await self._swap_and_load()
        except Exception as error:
            cause = as_failure(error)
            if not (self._paused and isinstance(cause, MonitorLost)):
                await self._undo.undo(cause)
            raise
        if self._plan.resume:
            await self._qemu.resume()
        await self._qemu.close_nodes(self._held)
        tree = self._record.tree.revert_to(self._plan.name)
        reverted = replace(self._record, graph=self._plan.graph(self._record.graph), tree=tree)
        await all_done(commit_and_collect(self._ports, reverted, self._report), self._qemu.detach_memory())
        await self._store.end()

    async def _open(self) -> None:
        """Open all that is to be swapped in or loaded; nothing of it is in use yet."""
        self._report("opening images", 0, 0)
        for opening in self._plan.openings:
            await self._qemu.open_image(opening)
            self._undo.push(f"opening {opening.image.path}", partial(self._qemu.close_nodes, [opening.node]), in_qemu=True)
        await all_done(*(self._make_overlay(overlay) for overlay in self._plan.overlays), self._attach_memory())

    async def _make_overlay(self, overlay: Overlay) -> None:
        path = overlay.image.path
        await self._images.create_overlay(overlay)
        self._undo.push(f"making {path}", partial(self._images.unlink, path))
        await self._qemu.open_overlay(overlay, self._plan.backing_nodes[overlay.disk.target])
        self._undo.push(f"opening {path}", partial(self._qemu.close_nodes, [overlay.node]), in_qemu=True)

    async def _attach_memory(self) -> None:
        await attach_container(self._ports, self._plan.memory_path)
        self._undo.push("attaching the memory file", self._qemu.detach_memory, in_qemu=True)

    async def _swap_and_load(self) -> None:
        plan = self._plan
        if plan.was_running:
            self._undo.push("stopping the guest", self._qemu.resume, in_qemu=True)
            await self._qemu.stop()
        for overlay in plan.overlays:
            # Only now: QEMU 7.2 may abort when a node is added on one that an iothread is using.
            if await self._qemu.hold(overlay.disk, overlay.held):
                self._held.append(overlay.held)
                release = partial(self._qemu.close_nodes, [overlay.held])
                self._undo.push(f"holding disk {overlay.disk.target}", release, in_qemu=True)
        for overlay in plan.overlays:
            self._undo.push(
                f"swapping disk {overlay.disk.target}", partial(self._qemu.swap, overlay.disk, overlay.disk.node), in_qemu=True
            )
            await self._qemu.swap(overlay.disk, overlay.node)
        self._report("loading memory", 0, 0)
        self._undo.push("touching memory", self._qemu.reset, in_qemu=True)
        memory = find_snapshot(self._record, plan.name).memory
        try:
            await self._qemu.load(MEMORY_TAG, memory.size_bytes if memory else 0)
        except QemuFailed as error:
            lost = "its memory may have been lost by then, so the guest was reset, with its disks as they were"
            raise QemuFailed(error.domain, error.command, f"{error.text.rstrip('.')}; {lost}") from error
