# SPDX-License-Identifier: MIT
"""A domain of values to mutate: real jobs, a real publisher, and a store that is a value; and preparations of each kind."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, cast

from snapd.engine.ports import Ports, Report
from snapd.errors import NotSupported, QemuFailed, SnapdError
from snapd.model.domain import DomainState
from snapd.model.events import (
    Event,
)
from snapd.model.images import Image, Origin
from snapd.model.plan import DeletePlan, Live
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.service.jobs import Job, Jobs
from snapd.service.mutations import Mutations, Surroundings
from snapd.service.policy import Policy
from snapd.service.publisher import Publisher
from snapd.service.verbs import CarryOut, Prepare, Prepared

DEADLINE_S = 5.0
ROOT, SOMEONE = 0, 1000
PLAN = DeletePlan(("a",), ("/memory/a",), ())
REFUSAL = NotSupported("web", "This", "it is not possible")
FAILURE = QemuFailed("web", "block-commit", "no room")


@dataclass
class Service:
    """A service that looks after one domain, and whose store is a value; ``told`` is all that was announced, in order."""

    mutations: Mutations = field(init=False)
    record: DomainRecord = field(default_factory=lambda: DomainRecord("web", "u"))
    refusal: SnapdError | None = None
    most_jobs: int = 10
    told: list[Event] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        publisher = Publisher()
        publisher.subscribe(self.told.append)
        self.jobs = Jobs(publisher, self.most_jobs, self.most_jobs)
        policy = Policy(0, 64, Live.AUTO)
        around = Surroundings(cast("Any", None), self.jobs, publisher, self._spawn, policy)
        self.mutations = Mutations("web", around, self._ready, lambda: self.record, self._ended)
        self.ports = Ports(cast("Any", "qemu"), cast("Any", "images"), cast("Any", "store"))

    def _spawn(self, work: Awaitable[None]) -> Callable[[], object]:
        task = asyncio.get_running_loop().create_task(cast("Coroutine[Any, Any, None]", work))
        self.tasks.append(task)
        return task.cancel

    def _ready(self, operation: str, subject: str) -> Ports:
        self.seen.append(f"ready to {operation} {subject}")
        if self.refusal:
            raise self.refusal
        return self.ports

    async def _ended(self) -> None:
        self.seen.append(f"ended while {self.mutations.doing or 'idle'}")

    async def begin(self, prepare: Prepare, operation: str = "delete", caller_uid: int = SOMEONE) -> Job | None:
        return await self.mutations.begin(operation, "a", caller_uid, prepare)

    async def finish(self, carry_out: CarryOut, operation: str = "delete") -> Job:
        """Begin, and wait for the end."""
        job = await self.begin(prepared(carry_out), operation)
        assert job is not None
        async with asyncio.timeout(DEADLINE_S):
            await job.ended.wait()
            await asyncio.gather(*self.tasks)
        return job

    def add(self, *names: str) -> None:
        """Commit snapshots."""
        for name in names:
            taken = Snapshot(name, 1, SnapshotType.EXTERNAL, DomainState.RUNNING, ())
            self.record = replace(self.record, tree=self.record.tree.add(taken))

    def change_graph(self) -> None:
        """Commit another graph."""
        graph = self.record.graph.with_images(Image("/new", "qcow2", None, Origin.DEFINED))
        self.record = replace(self.record, graph=graph)


def prepared(carry_out: CarryOut, *, looks: list[Ports] | None = None) -> Prepare:
    async def prepare(ports: Ports) -> Prepared:
        if looks is not None:
            looks.append(ports)
        return Prepared("a", PLAN, carry_out)

    return prepare


async def nothing(_report: Report) -> tuple[str, ...]:
    return ()


async def refused(_ports: Ports) -> Prepared:
    raise REFUSAL


async def faulty(_ports: Ports) -> Prepared:
    raise ZeroDivisionError


async def not_needed(_ports: Ports) -> None:
    return None


def assert_idle(service: Service) -> None:
    assert (service.mutations.doing, service.mutations.job, service.mutations.idle.is_set()) == ("", None, True)
