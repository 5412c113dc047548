# SPDX-License-Identifier: MIT
"""What each verb needs besides its request: where memory goes, what must stay free, the time, a token for node names.

Not here: whether it may begin and what becomes of it (``mutations``), and how it is done (``engine``).
"""

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from snapd.engine import create, delete, revert, tidy
from snapd.engine.ports import Ports, Report
from snapd.model.domain import DomainDefinition
from snapd.model.names import made_up_name
from snapd.model.plan import CreateRequest, DeleteRequest, Plan, RevertRequest
from snapd.service.policy import Policy

CarryOut = Callable[[Report], Awaitable[tuple[str, ...]]]


@dataclass(frozen=True)
class Prepared:
    """A plan about the snapshot ``subject``, and what does it and returns sentences for whoever asked."""

    subject: str
    plan: Plan
    carry_out: CarryOut


Prepare = Callable[[Ports], Awaitable[Prepared | None]]


@dataclass(frozen=True)
class Verbs:
    """The verbs of one domain; what each returns looks and plans, and changes nothing."""

    definition: DomainDefinition
    policy: Policy
    memory_directory: Callable[[], str]

    def create(self, request: CreateRequest) -> Prepare:
        async def prepare(ports: Ports) -> Prepared:
            taken = frozenset(ports.store.committed.tree.snapshots)
            named = request if request.name else replace(request, name=made_up_name(_stamp(), taken))
            plan, record = await create.prepare(
                ports,
                self.definition,
                named,
                self.memory_directory(),
                _token(),
                self.policy.reserve_bytes,
                self.policy.chain_limit,
            )
            now = _now_usec()
            return Prepared(named.name, plan, lambda report: create.carry_out(ports, record, plan, now, report))

        return prepare

    def revert(self, request: RevertRequest) -> Prepare:
        async def prepare(ports: Ports) -> Prepared:
            plan, record = await revert.prepare(
                ports, self.definition, request, self.memory_directory(), _stamp(), _token(), self.policy.reserve_bytes
            )
            now = _now_usec()
            return Prepared(plan.name, plan, lambda report: revert.carry_out(ports, record, plan, now, report))

        return prepare

    def delete(self, request: DeleteRequest) -> Prepare:
        async def prepare(ports: Ports) -> Prepared:
            plan, record = await delete.prepare(ports, self.definition, request)
            return Prepared(request.name, plan, lambda report: delete.carry_out(ports, record, plan, report))

        return prepare

    def tidy(self) -> Prepare:
        """Return what collects the things that had to wait; it prepares nothing where there are none."""

        async def prepare(ports: Ports) -> Prepared | None:
            found = await tidy.prepare(ports, self.definition)
            if found is None:
                return None
            plan, record = found
            return Prepared("", plan, lambda report: tidy.carry_out(ports, record, plan, report))

        return prepare


def _stamp() -> str:
    return time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime())


def _token() -> str:
    return secrets.token_hex(4)


def _now_usec() -> int:
    return time.time_ns() // 1000
