# SPDX-License-Identifier: MIT
"""The face ``org.domsnap1.Domain``: one domain."""

from collections.abc import Mapping
from typing import Any

from snapd.bus.faces import Caller, Method
from snapd.bus.marshal import capabilities, disk_row, job_of, snapshot_or_none
from snapd.bus.names import DOMAIN_INTERFACE, snapshot_path
from snapd.bus.verbs import Given, Verbs
from snapd.model.planner import find_snapshot
from snapd.service.managed_domain import ManagedDomain


class DomainFace:
    interface = DOMAIN_INTERFACE

    def __init__(self, domain: ManagedDomain, verbs: Verbs) -> None:
        self._domain, self._verbs = domain, verbs

    def methods(self) -> Mapping[str, Method]:
        return {
            "CreateSnapshot": self.create,
            "RevertSnapshot": self.revert,
            "DeleteSnapshot": self.delete,
            "GetSnapshot": self.get_snapshot,
            "ListSnapshots": self.list_snapshots,
            "Plan": self.plan,
            "CancelPendingRevert": self.cancel_pending_revert,
        }

    def properties(self) -> Mapping[str, Any]:
        domain = self._domain
        return {
            "Name": domain.name,
            "UUID": domain.record.uuid,
            "State": domain.state.value,
            "StateReason": domain.reason,
            "Interrupted": domain.interrupted,
            "Source": "defined",
            "Monitor": domain.definition.monitor,
            "CurrentSnapshot": snapshot_or_none(domain, domain.record.tree.current),
            "SnapshotCount": len(domain.record.tree),
            "PendingRevert": domain.record.pending.name if domain.record.pending else "",
            "PendingProblem": domain.pending_problem,
            "Disks": [disk_row(disk) for disk in domain.disks],
            "Capabilities": capabilities(domain.seen),
            "Job": job_of(domain),
        }

    async def create(self, caller: Caller, name: str, given: Given) -> tuple[str]:
        return await self._verbs.create(caller, self._domain, name, given)

    async def revert(self, caller: Caller, name: str, given: Given) -> tuple[str]:
        return await self._verbs.revert(caller, self._domain, name, given)

    async def delete(self, caller: Caller, name: str, given: Given) -> tuple[str]:
        return await self._verbs.delete(caller, self._domain, name, given)

    async def get_snapshot(self, _caller: Caller, name: str) -> tuple[str]:
        return (snapshot_path(self._domain.name, find_snapshot(self._domain.record, name).name),)

    async def list_snapshots(self, caller: Caller, given: Given) -> tuple[Any, ...]:
        return await self._verbs.list(caller, self._domain, given)

    async def plan(self, caller: Caller, verb: str, name: str, given: Given) -> tuple[list[str]]:
        return await self._verbs.plan(caller, self._domain, verb, name, given)

    async def cancel_pending_revert(self, caller: Caller) -> tuple[()]:
        return await self._verbs.cancel_pending(caller, self._domain)
