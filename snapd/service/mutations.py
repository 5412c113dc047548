# SPDX-License-Identifier: MIT
"""One mutation of a domain at a time, from the first look until its outcome is announced.

Not here: which there are (``verbs``) and when a domain allows one (``managed_domain``). Invariants:

- ``doing`` is set from before the first look at QEMU until the outcome is announced, and nobody else mutates meanwhile;
- an event leaves after what it tells is durable.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from snapd.engine.ports import Ports
from snapd.errors import DomainBusy, Internal, LimitReached, SnapdError
from snapd.model.describe import describe
from snapd.model.events import DomainChanged, SnapshotReverted
from snapd.model.record import DomainRecord
from snapd.service.adapters import Adapters
from snapd.service.changes import changes
from snapd.service.jobs import Job, Jobs
from snapd.service.policy import Policy
from snapd.service.publisher import Publisher
from snapd.service.verbs import Prepare, Prepared

log = logging.getLogger(__name__)

Spawn = Callable[[Awaitable[None]], Callable[[], object]]
"""Begins a task of the daemon's and returns what cancels it."""


@dataclass(frozen=True)
class Surroundings:
    """What every domain shares."""

    adapters: Adapters
    jobs: Jobs
    publisher: Publisher
    spawn: Spawn
    policy: Policy


class Mutations:
    """The mutations of one domain.

    Args:
        ready: returns the ports for an operation on a subject. Raises: what the domain's state refuses.
        record: returns what is committed.
        ended: told when a mutation has ended, before anyone else may begin one.
    """

    def __init__(
        self,
        name: str,
        around: Surroundings,
        ready: Callable[[str, str], Ports],
        record: Callable[[], DomainRecord],
        ended: Callable[[], Awaitable[None]],
    ) -> None:
        self._name, self._around = name, around
        self._ready, self._record, self._ended = ready, record, ended
        self.doing = ""
        self.idle = asyncio.Event()
        self.idle.set()
        self.job: Job | None = None

    async def begin(self, operation: str, subject: str, caller_uid: int, prepare: Prepare) -> Job | None:
        """Begin a mutation. Returns: its job, or None where there is nothing to do.

        Raises: every refusal; nothing is touched then.
        """
        ports = self._claim(operation, subject)
        try:
            prepared = await prepare(ports)
        except BaseException:
            self._release()
            raise
        if prepared is None:
            self._release()
            return None
        try:
            job = self._around.jobs.open(operation, self._name, prepared.subject, caller_uid)
        except LimitReached:
            self._release()
            raise
        self.job = job
        self._around.publisher.publish(DomainChanged(self._name))
        self._around.spawn(self._run(job, prepared))
        return job

    async def plan(self, operation: str, subject: str, prepare: Prepare) -> list[str]:
        """Return what a mutation would do, in words. Raises: every refusal of ``begin``."""
        ports = self._claim(operation, subject)
        try:
            prepared = await prepare(ports)
        finally:
            self._release()
        return describe(prepared.plan) if prepared else []

    async def alone(self, operation: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do something short while nothing else mutates. Raises: DomainBusy; what the work raises."""
        self._refuse_busy()
        self.doing = operation
        self.idle.clear()
        try:
            await work()
        finally:
            self._release()

    def _refuse_busy(self) -> None:
        if self.doing:
            raise DomainBusy(self._name, self.doing)

    def _claim(self, operation: str, subject: str) -> Ports:
        """Make sure that a mutation may begin now, and that no other can until it has ended."""
        self._refuse_busy()
        ports = self._ready(operation, subject)
        self.doing = f"{operation} {subject}".rstrip()
        self.idle.clear()
        return ports

    def _release(self) -> None:
        self.doing = ""
        self.idle.set()
        self.job = None

    async def _run(self, job: Job, prepared: Prepared) -> None:
        """Carry a plan out to its end, then announce what is durable."""
        before = self._record()
        failure: SnapdError | None = None
        notes: tuple[str, ...] = ()
        try:
            notes = await prepared.carry_out(lambda step, done, total: self._around.jobs.report(job, step, done, total))
        except SnapdError as error:
            log.warning("domain %s: %s of %s failed: %s", self._name, job.operation, job.snapshot, error)
            failure = error
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("domain %s: %s of %s met a fault of ours, %s", self._name, job.operation, job.snapshot, reference)
            failure = Internal(reference)
        try:
            await self._ended()
        except Exception:
            log.exception("domain %s: seeing how it is after %s failed", self._name, job.operation)
        finally:
            self._release()
        after = self._record()
        for event in changes(self._name, before, after):
            self._around.publisher.publish(event)
        if job.operation == "revert" and (failure is None or after.graph != before.graph):
            self._around.publisher.publish(SnapshotReverted(self._name, job.snapshot))
        self._around.jobs.end(job, failure, notes)
        self._around.publisher.publish(DomainChanged(self._name))
