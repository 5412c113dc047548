# SPDX-License-Identifier: MIT
"""One domain that is looked after: its state as events tell it, and what may be done with it in that state.

Not here: how a mutation runs (``mutations``) and how a verb is carried out (``engine``). Invariants:

- a domain with an intent that nobody has settled is never changed;
- what had to wait for another state is done when that state comes (``arrears``).
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from snapd.engine.look import see
from snapd.engine.offline import Offline
from snapd.engine.ports import Ports
from snapd.engine.quiesce import thaw_after_crash
from snapd.errors import DomainDrifted, DomainUnreachable, Interrupted, NotSupported, SnapdError, StateDamaged
from snapd.model.domain import Disk, DomainDefinition, DomainState, Inspection
from snapd.model.events import DomainChanged
from snapd.model.plan import CreateRequest, DeleteRequest, RevertRequest
from snapd.model.planner import find_snapshot
from snapd.model.record import DomainRecord
from snapd.service.adapters import Ledger
from snapd.service.arrears import Arrears
from snapd.service.changes import changes
from snapd.service.jobs import Job
from snapd.service.mutations import Mutations, Surroundings
from snapd.service.verbs import Prepare, Verbs

SETTLE_S = 0.05
"""A pause of milliseconds is announced by the snapshot and not as a state that is over when anyone looks."""

RESTART_S = 5.0

NO_UUID = "00000000-0000-0000-0000-000000000000"

log = logging.getLogger(__name__)

Request = CreateRequest | RevertRequest | DeleteRequest


class ManagedDomain:
    def __init__(self, definition: DomainDefinition, around: Surroundings) -> None:
        self.definition = definition
        self._around = around
        self._link, self._qemu = around.adapters.connect(definition, self._up, self._down, self._heard)
        self._agent = around.adapters.agent(definition)
        self._store: Ledger | None = None
        self._blank = DomainRecord(definition.name, definition.uuid)
        self._verbs = Verbs(definition, around.policy, lambda: around.adapters.memory_directory(self.record.uuid))
        self._mutations = Mutations(definition.name, around, self._ready, lambda: self.record, self._mutated)
        self.seen: Inspection | None = None
        self.state = DomainState.UNREACHABLE
        self.reason = "its monitor has not been tried yet"
        self._arrears = Arrears(definition.name, lambda: self.record, lambda: self.state, self._mutations, self._verbs)
        self._came_up_meanwhile = False
        self._settling: asyncio.TimerHandle | None = None
        self._shown: tuple[str, str] = ("", "")

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def record(self) -> DomainRecord:
        return self._store.committed if self._store else self._blank

    @property
    def damaged(self) -> Mapping[str, str]:
        return self._store.damaged if self._store else {}

    @property
    def pending_problem(self) -> str:
        """Why a memory that is to be loaded was not when the domain last ran."""
        return self._arrears.problem if self.record.pending else ""

    @property
    def doing(self) -> str:
        return self._mutations.doing

    @property
    def idle(self) -> asyncio.Event:
        return self._mutations.idle

    @property
    def job(self) -> Job | None:
        return self._mutations.job

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The disks as QEMU shows them, or as they are remembered."""
        return self.seen.disks if self.seen else self.record.remembered_disks()

    @property
    def interrupted(self) -> str:
        """The sentence about an operation that was interrupted, or nothing."""
        if self._store is None or self._store.interrupted is None or self.doing:
            return ""
        return str(Interrupted(self.name, *self._store.interrupted))

    async def keep(self) -> None:
        """Look after the domain until cancelled."""
        if self.definition.uuid:
            await self._open_store(self.definition.uuid)
            self._around.publisher.publish(DomainChanged(self.name))
        while True:
            try:
                await self._link.keep()
            except Exception:
                log.exception("looking after domain %s failed; it is begun again in %s s", self.name, RESTART_S)
                await asyncio.sleep(RESTART_S)

    # What the link tells

    async def _up(self) -> None:
        if self.state is DomainState.SHUTOFF and self.doing:
            # What is being done offline ends first; then it is seen on which images QEMU was started.
            self._came_up_meanwhile = True
            self._become(DomainState.UNREACHABLE, f"it was started in the middle of {self.doing}")
            return
        self._came_up_meanwhile = False
        # Another QEMU may have opened other images under the same names.
        self._qemu.rename({})
        if self._store is None:
            await self._agree_on_uuid((await self._qemu.inspect()).uuid)
        self.seen = seen = await self._look()
        problem = await self._agree_on_uuid(seen.uuid)
        if problem:
            self._become(DomainState.UNREACHABLE, problem)
        elif self._store is None:
            self._become(DomainState.UNREACHABLE, self.reason)
        # The images of an operation that was interrupted are for that to explain.
        elif self._store.interrupted is None and (drift := self.record.drift(self.definition, seen.disks)):
            self._become(DomainState.DRIFTED, drift)
        else:
            await self._learn(self._store, seen)
            self._become(seen.state, "")
            self._around.spawn(self._catch_up())
        self._around.publisher.publish(DomainChanged(self.name))

    async def _look(self) -> Inspection:
        if self._store is None:
            return await self._qemu.inspect(for_saving=True)
        return await see(Ports(self._qemu, self._around.adapters.images, self._store), for_saving=True)

    async def _learn(self, store: Ledger, seen: Inspection) -> None:
        """Commit disks that are new, so that ``disks.env`` tells of them before there is any snapshot."""
        learned = store.committed.learn(seen.disks, seen.formats, follows_active=seen.follows_active)
        if learned == store.committed or learned.graph.violations() or store.interrupted or self.doing:
            return
        try:
            await store.commit(learned)
        except SnapdError as error:
            log.warning("domain %s: its disks could not be written down: %s", self.name, error)

    async def _agree_on_uuid(self, uuid: str) -> str:
        """Open the state under the domain's UUID. Returns: why there is none that could be used."""
        known = self.definition.uuid or self.record.uuid
        if known and uuid not in (known, NO_UUID):
            return f"its definition has the uuid {known} and its QEMU {uuid}; correct one of them"
        if not known and uuid == NO_UUID:
            return "neither its definition nor its QEMU has a uuid; give it one in the definition"
        if self._store is None:
            await self._open_store(known or uuid)
        return ""

    async def _open_store(self, uuid: str) -> None:
        try:
            self._store = await self._around.adapters.open_store(self.name, uuid)
        except SnapdError as error:
            log.warning("domain %s: %s", self.name, error)
            self._become(DomainState.UNREACHABLE, f"its state cannot be used: {error}")
            return
        if self._store.interrupted is not None:
            self._around.spawn(thaw_after_crash(self.name, self._agent, self._store.begun))

    async def _down(self, there: bool, reason: str) -> None:
        self._become(DomainState.UNREACHABLE if there else DomainState.SHUTOFF, reason)
        if not there:
            self.seen = None
            self._around.spawn(self._catch_up())

    def _heard(self, event: Mapping[str, Any]) -> None:
        name = event["event"]
        if name in ("STOP", "RESUME") and self.state in (DomainState.RUNNING, DomainState.PAUSED):
            state = DomainState.PAUSED if name == "STOP" else DomainState.RUNNING
            self._become(state, "")

    def _become(self, state: DomainState, reason: str) -> None:
        self.state, self.reason = state, reason
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settle)

    def _settle(self) -> None:
        self._settling = None
        if (self.state, self.reason) != self._shown:
            self._shown = (self.state, self.reason)
            log.info("domain %s is %s%s", self.name, self.state, f": {self.reason}" if self.reason else "")
        # Also when nothing changed: a job may have shown the state in between.
        self._around.publisher.publish(DomainChanged(self.name))

    async def _catch_up(self) -> None:
        """Do what had to wait for this state."""
        if self._store is not None:
            await self._arrears.settle()
            self._around.publisher.publish(DomainChanged(self.name))

    # What it can be told to do

    async def create(self, request: CreateRequest, caller_uid: int) -> Job:
        """Begin to take a snapshot. Returns: its job. Raises: every refusal; nothing is touched then."""
        return await self._begin("create", request.name or "a snapshot", caller_uid, request)

    async def revert(self, request: RevertRequest, caller_uid: int) -> Job:
        """Begin to go back to a snapshot. Returns: its job. Raises: every refusal; nothing is touched then."""
        return await self._begin("revert", request.name or "the last revert", caller_uid, request)

    async def delete(self, request: DeleteRequest, caller_uid: int) -> Job:
        """Begin to delete snapshots. Returns: the job. Raises: every refusal; nothing is touched then."""
        return await self._begin("delete", request.name, caller_uid, request)

    async def plan(self, request: Request) -> list[str]:
        """Return what would be done, a line for each step. Raises: every refusal of the verb."""
        operation = {CreateRequest: "create", RevertRequest: "revert", DeleteRequest: "delete"}[type(request)]
        return await self._mutations.plan(operation, request.name, self._prepare(request))

    async def cancel_pending(self) -> None:
        """Give up the memory that was to be loaded when the domain next runs; its disks stay as they are.

        Raises: NotSupported where none is; DomainBusy, Interrupted, DomainUnreachable.
        """
        pending, store = self.record.pending, self._usable_store("cancel", "a revert")
        if pending is None:
            raise NotSupported(self.name, "Cancelling a pending revert", "no memory is waiting to be loaded")
        await self._mutations.alone(
            f"cancelling the revert to {pending.name}", lambda: store.commit(replace(store.committed, pending=None))
        )
        self._around.publisher.publish(DomainChanged(self.name))

    async def set_protected(self, name: str, protected: bool) -> None:
        """Protect a snapshot from being deleted, or an undo point from ending with the next revert; or take that off.

        Raises: NoSuchSnapshot, DomainBusy, Interrupted, DomainUnreachable, StateDamaged, NoSpace.
        """
        store = self._usable_store("protect", name)
        before = store.committed
        if name in store.damaged:
            # Written anew, its file would say that little for good.
            raise StateDamaged(name, 0, f"the file of this snapshot cannot be read: {store.damaged[name]}")
        snapshot = replace(find_snapshot(before, name), protected=protected)
        tree = replace(before.tree, snapshots={**before.tree.snapshots, name: snapshot})
        await self._mutations.alone(f"protecting {name}", lambda: store.commit(replace(before, tree=tree)))
        for event in changes(self.name, before, self.record):
            self._around.publisher.publish(event)

    def _prepare(self, request: Request) -> Prepare:
        match request:
            case CreateRequest():
                return self._verbs.create(request)
            case RevertRequest():
                return self._verbs.revert(request)
            case DeleteRequest():
                return self._verbs.delete(request)

    async def _begin(self, operation: str, subject: str, caller_uid: int, request: Request) -> Job:
        job = await self._mutations.begin(operation, subject, caller_uid, self._prepare(request))
        if job is None:
            raise RuntimeError(f"there was nothing to {operation}")
        return job

    def _usable_store(self, operation: str, subject: str) -> Ledger:
        if self._store is not None and self._store.interrupted is not None and not self.doing:
            raise Interrupted(self.name, *self._store.interrupted)
        if self._store is None:
            if self.state is DomainState.SHUTOFF:
                why = f"it is shut off ({self.reason}) and nothing is known of it yet; start it once while the service runs"
                raise NotSupported(self.name, f"To {operation} {subject}", why)
            raise DomainUnreachable(self.name, self.reason)
        return self._store

    def _ready(self, operation: str, subject: str) -> Ports:
        """Return the ports for a mutation. Raises: what the domain's state refuses."""
        store = self._usable_store(operation, subject)
        if self.state is DomainState.UNREACHABLE:
            raise DomainUnreachable(self.name, self.reason)
        if self.state is DomainState.DRIFTED:
            raise DomainDrifted(self.name, self.reason)
        images = self._around.adapters.images
        if self.state is DomainState.SHUTOFF:
            return Ports(Offline(images, store.committed), images, store)
        return Ports(self._qemu, images, store, self._agent)

    async def _mutated(self) -> None:
        """See how the domain is after a mutation."""
        if self._came_up_meanwhile:
            try:
                await self._up()
            except SnapdError as error:
                self._become(DomainState.UNREACHABLE, str(error))
            return
        if self.state is DomainState.SHUTOFF or self.seen is None:
            return
        try:
            disks = await self._qemu.disks()
        except SnapdError as error:
            log.info("domain %s: its disks are shown as they were before: %s", self.name, error)
            return
        self.seen = replace(self.seen, disks=tuple(disks))
