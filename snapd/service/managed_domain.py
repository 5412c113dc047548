# SPDX-License-Identifier: MIT
"""One domain that is looked after: its state as events tell it, and one mutation of it at a time.

Not here: how a verb is carried out (``engine``). Invariants:

- ``doing`` is set from before the first look at QEMU until the outcome is announced, and nobody else mutates meanwhile;
- an event leaves after what it tells is durable;
- a domain with an intent that nobody has settled is never changed.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from snapd.engine import create, delete, revert
from snapd.engine.ports import Ports, Report
from snapd.errors import (
    DomainBusy,
    DomainDrifted,
    DomainUnreachable,
    Internal,
    Interrupted,
    LimitReached,
    NotSupported,
    SnapdError,
)
from snapd.model.domain import DomainDefinition, DomainState, Inspection
from snapd.model.events import DomainChanged, SnapshotReverted
from snapd.model.names import made_up_name
from snapd.model.plan import CreateRequest, DeleteRequest, RevertRequest
from snapd.model.record import DomainRecord
from snapd.service.adapters import Adapters, Ledger
from snapd.service.changes import changes
from snapd.service.jobs import Job, Jobs
from snapd.service.policy import Policy
from snapd.service.publisher import Publisher

SETTLE_S = 0.05
"""A pause of milliseconds is announced by the snapshot and not as a state that is over when anyone looks."""

RESTART_S = 5.0

NO_UUID = "00000000-0000-0000-0000-000000000000"

log = logging.getLogger(__name__)

Spawn = Callable[[Awaitable[None]], Callable[[], object]]
"""Begins a task of the daemon's and returns what cancels it."""

CarryOut = Callable[[Report], Awaitable[None]]


@dataclass(frozen=True)
class Surroundings:
    """What every domain shares."""

    adapters: Adapters
    jobs: Jobs
    publisher: Publisher
    spawn: Spawn
    policy: Policy


class ManagedDomain:
    def __init__(self, definition: DomainDefinition, around: Surroundings) -> None:
        self.definition = definition
        self._around = around
        self._link, self._qemu = around.adapters.connect(definition, self._up, self._down, self._heard)
        self._store: Ledger | None = None
        self._blank = DomainRecord(definition.name, definition.uuid)
        self.seen: Inspection | None = None
        self.state = DomainState.UNREACHABLE
        self.reason = "its monitor has not been tried yet"
        self.doing = ""
        self.idle = asyncio.Event()
        self.idle.set()
        self.job: Job | None = None
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
        seen = await self._qemu.inspect(for_saving=True)
        problem = await self._agree_on_uuid(seen.uuid)
        self.seen = seen
        if problem:
            self._become(DomainState.UNREACHABLE, problem)
        elif self._store is None:
            self._become(DomainState.UNREACHABLE, self.reason)
        # The images of an operation that was interrupted are for that to explain.
        elif self._store.interrupted is None and (drift := self.record.drift(self.definition, seen.disks)):
            self._become(DomainState.DRIFTED, drift)
        else:
            await self._learn(self._store, seen)
            self._become(DomainState.RUNNING if seen.running else DomainState.PAUSED, "")
        self._around.publisher.publish(DomainChanged(self.name))

    async def _learn(self, store: Ledger, seen: Inspection) -> None:
        """Commit disks that are new, so that ``disks.env`` tells of them before there is any snapshot."""
        learned = store.committed.learn(seen.disks, seen.formats)
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

    async def _down(self, there: bool, reason: str) -> None:
        self._become(DomainState.UNREACHABLE if there else DomainState.SHUTOFF, reason)

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

    # What it can be told to do

    async def create(self, request: CreateRequest, caller_uid: int) -> Job:
        """Begin to take a snapshot. Returns: its job. Raises: every refusal; nothing is touched then."""
        store = self._claim("create", request.name or "a snapshot")
        try:
            if not request.name:
                stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime())
                request = replace(request, name=made_up_name(stamp, frozenset(self.record.tree.snapshots)))
            ports = self._ports(store)
            plan, record = await create.prepare(
                ports,
                self.definition,
                request,
                self._around.adapters.memory_directory(self.record.uuid),
                secrets.token_hex(4),
                self._around.policy.reserve_bytes,
                self._around.policy.chain_limit,
            )
        except BaseException:
            self._release()
            raise
        now_usec = time.time_ns() // 1000
        return self._begin(
            "create", request.name, caller_uid, lambda report: create.carry_out(ports, record, plan, now_usec, report)
        )

    async def revert(self, request: RevertRequest, caller_uid: int) -> Job:
        """Begin to go back to a snapshot. Returns: its job. Raises: every refusal; nothing is touched then."""
        store = self._claim("revert", request.name)
        try:
            ports = self._ports(store)
            plan, record = await revert.prepare(
                ports, self.definition, request, secrets.token_hex(4), self._around.policy.reserve_bytes
            )
        except BaseException:
            self._release()
            raise
        return self._begin("revert", request.name, caller_uid, lambda report: revert.carry_out(ports, record, plan, report))

    async def delete(self, request: DeleteRequest, caller_uid: int) -> Job:
        """Begin to delete snapshots. Returns: the job. Raises: every refusal; nothing is touched then."""
        store = self._claim("delete", request.name)
        try:
            ports = self._ports(store)
            plan, record = await delete.prepare(ports, self.definition, request)
        except BaseException:
            self._release()
            raise
        return self._begin("delete", request.name, caller_uid, lambda report: delete.carry_out(ports, record, plan, report))

    def _ports(self, store: Ledger) -> Ports:
        return Ports(self._qemu, self._around.adapters.images, store)

    def _claim(self, operation: str, subject: str) -> Ledger:
        """Make sure that a mutation may begin now, and that no other can until it has ended."""
        if self.doing:
            raise DomainBusy(self.name, self.doing)
        if self._store is not None and self._store.interrupted is not None:
            raise Interrupted(self.name, *self._store.interrupted)
        if self.state is DomainState.SHUTOFF:
            raise NotSupported(self.name, f"To {operation} {subject}", f"it is shut off ({self.reason}); start it first")
        if self.state is DomainState.UNREACHABLE or self._store is None:
            raise DomainUnreachable(self.name, self.reason)
        if self.state is DomainState.DRIFTED:
            raise DomainDrifted(self.name, self.reason)
        self.doing = f"{operation} {subject}"
        self.idle.clear()
        return self._store

    def _release(self) -> None:
        self.doing = ""
        self.idle.set()
        self.job = None

    def _begin(self, operation: str, snapshot: str, caller_uid: int, carry_out: CarryOut) -> Job:
        try:
            job = self._around.jobs.open(operation, self.name, snapshot, caller_uid)
        except LimitReached:
            self._release()
            raise
        self.job = job
        self._around.publisher.publish(DomainChanged(self.name))
        self._around.spawn(self._run(job, carry_out))
        return job

    async def _run(self, job: Job, carry_out: CarryOut) -> None:
        """Carry a plan out to its end, then announce what is durable."""
        before = self.record
        failure: SnapdError | None = None
        try:
            await carry_out(lambda step, done, total: self._around.jobs.report(job, step, done, total))
        except SnapdError as error:
            log.warning("domain %s: %s of %s failed: %s", self.name, job.operation, job.snapshot, error)
            failure = error
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("domain %s: %s of %s met a fault of ours, %s", self.name, job.operation, job.snapshot, reference)
            failure = Internal(reference)
        await self._look_again()
        self._release()
        for event in changes(self.name, before, self.record):
            self._around.publisher.publish(event)
        if job.operation == "revert" and (failure is None or self.record.graph != before.graph):
            self._around.publisher.publish(SnapshotReverted(self.name, job.snapshot))
        self._around.jobs.end(job, failure)
        self._around.publisher.publish(DomainChanged(self.name))

    async def _look_again(self) -> None:
        try:
            disks = await self._qemu.disks()
        except SnapdError as error:
            log.info("domain %s: its disks are shown as they were before: %s", self.name, error)
            return
        if self.seen:
            self.seen = replace(self.seen, disks=tuple(disks))
