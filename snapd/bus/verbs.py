# SPDX-License-Identifier: MIT
"""The three verbs as every interface offers them: options in, job out.

They are the same on Manager, Domain and Snapshot, so they stand here once.
"""

from collections.abc import Mapping
from typing import Any

from snapd.bus.authorization import Authorization
from snapd.bus.faces import Caller
from snapd.bus.marshal import snapshot_row
from snapd.bus.names import job_path
from snapd.bus.options import Options
from snapd.bus.wire import Variant
from snapd.errors import NoSuchSnapshot
from snapd.model.plan import CreateRequest, DeleteRequest, Live, RevertRequest, RevertState
from snapd.model.snapshot import SnapshotType
from snapd.model.tree import Scope
from snapd.service.jobs import Job
from snapd.service.managed_domain import ManagedDomain

Given = Mapping[str, Variant]

CREATE_OPTIONS = {"description": "s", "memory": "b", "type": "s", "disks": "a{ss}", "live": "s", "wait": "b"}
REVERT_OPTIONS = {"state": "s", "wait": "b"}
DELETE_OPTIONS = {"scope": "s", "wait": "b"}
LIST_OPTIONS = {"after": "s", "limit": "u"}


class Verbs:
    def __init__(self, authorization: Authorization, default_live: Live) -> None:
        self._authorization, self._default_live = authorization, default_live

    async def create(self, caller: Caller, domain: ManagedDomain, name: str, given: Given) -> tuple[str]:
        await self._authorization.check(caller, "create snapshots of", domain.name)
        options = Options("CreateSnapshot", given, CREATE_OPTIONS)
        request = CreateRequest(
            name=name,
            description=options.value("description", ""),
            type=options.choice("type", SnapshotType.ANY),
            memory=options.value("memory", default=True),
            disks=options.value("disks", {}),
            live=options.choice("live", self._default_live),
        )
        return await _answer(await domain.create(request, caller.uid), options)

    async def revert(self, caller: Caller, domain: ManagedDomain, name: str, given: Given) -> tuple[str]:
        await self._authorization.check(caller, "revert", domain.name)
        options = Options("RevertSnapshot", given, REVERT_OPTIONS)
        request = RevertRequest(name, options.choice("state", RevertState.AS_TAKEN))
        return await _answer(await domain.revert(request, caller.uid), options)

    async def delete(self, caller: Caller, domain: ManagedDomain, name: str, given: Given) -> tuple[str]:
        await self._authorization.check(caller, "delete snapshots of", domain.name)
        options = Options("DeleteSnapshot", given, DELETE_OPTIONS)
        request = DeleteRequest(name, options.choice("scope", Scope.ONE))
        return await _answer(await domain.delete(request, caller.uid), options)

    async def list(self, _caller: Caller, domain: ManagedDomain, given: Given) -> tuple[list[Any]]:
        options = Options("ListSnapshots", given, LIST_OPTIONS)
        found = sorted(domain.record.tree.snapshots.values(), key=lambda each: (each.created_usec, each.name))
        after = options.value("after", "")
        if after:
            names = [each.name for each in found]
            if after not in names:
                raise NoSuchSnapshot(domain.name, after)
            found = found[names.index(after) + 1 :]
        return ([snapshot_row(domain, each) for each in found[: options.value("limit", None)]],)


async def _answer(job: Job, options: Options) -> tuple[str]:
    """Return the job, at once or, if the caller wants to wait, when it is done. Raises: the job's error, to who waits."""
    if options.value("wait", default=False):
        await job.ended.wait()
        if job.error:
            raise job.error
    return (job_path(job.number),)
