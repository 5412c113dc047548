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
from snapd.errors import InvalidOption, NoSuchSnapshot
from snapd.model.plan import CreateRequest, DeleteRequest, RevertRequest
from snapd.model.snapshot import RevertState
from snapd.model.tree import Scope
from snapd.service.jobs import Job
from snapd.service.managed_domain import ManagedDomain
from snapd.service.policy import Policy

Given = Mapping[str, Variant]

CREATE_OPTIONS = {"description": "s", "memory": "b", "type": "s", "disks": "a{ss}", "live": "s", "quiesce": "s"}
REVERT_OPTIONS = {"state": "s", "undo": "b", "undo-memory": "b", "force": "b"}
DELETE_OPTIONS = {"scope": "s"}
WAIT = {"wait": "b"}
LIST_OPTIONS = {"after": "s", "limit": "u"}


class Verbs:
    def __init__(self, authorization: Authorization, policy: Policy) -> None:
        self._authorization, self._policy = authorization, policy

    async def create(self, caller: Caller, domain: ManagedDomain, name: str, given: Given) -> tuple[str]:
        await self._authorization.check(caller, "create snapshots of", domain.name)
        options = Options("CreateSnapshot", given, CREATE_OPTIONS | WAIT)
        return await _answer(await domain.create(self._create_request(name, options), caller.uid), options)

    async def revert(self, caller: Caller, domain: ManagedDomain, name: str, given: Given) -> tuple[str]:
        await self._authorization.check(caller, "revert", domain.name)
        options = Options("RevertSnapshot", given, REVERT_OPTIONS | WAIT)
        return await _answer(await domain.revert(self._revert_request(name, options), caller.uid), options)

    async def delete(self, caller: Caller, domain: ManagedDomain, name: str, given: Given) -> tuple[str]:
        await self._authorization.check(caller, "delete snapshots of", domain.name)
        options = Options("DeleteSnapshot", given, DELETE_OPTIONS | WAIT)
        return await _answer(await domain.delete(_delete_request(name, options), caller.uid), options)

    async def plan(self, caller: Caller, domain: ManagedDomain, verb: str, name: str, given: Given) -> tuple[list[str]]:
        await self._authorization.check(caller, "plan changes of", domain.name)
        request: CreateRequest | RevertRequest | DeleteRequest
        match verb:
            case "create":
                request = self._create_request(name, Options("Plan of create", given, CREATE_OPTIONS))
            case "revert":
                request = self._revert_request(name, Options("Plan of revert", given, REVERT_OPTIONS))
            case "delete":
                request = _delete_request(name, Options("Plan of delete", given, DELETE_OPTIONS))
            case _:
                raise InvalidOption("verb", f"is {verb!r} and must be one of create, revert, delete")
        return (await domain.plan(request),)

    async def cancel_pending(self, caller: Caller, domain: ManagedDomain) -> tuple[()]:
        await self._authorization.check(caller, "revert", domain.name)
        await domain.cancel_pending()
        return ()

    async def set_protected(self, caller: Caller, domain: ManagedDomain, name: str, protected: bool) -> tuple[()]:
        await self._authorization.check(caller, "change snapshots of", domain.name)
        await domain.set_protected(name, protected)
        return ()

    def _create_request(self, name: str, options: Options) -> CreateRequest:
        return CreateRequest(
            name=name,
            description=options.value("description", ""),
            type=options.choice("type", self._policy.type),
            memory=options.value("memory", None),
            disks=options.value("disks", {}),
            live=options.choice("live", self._policy.live),
            quiesce=options.choice("quiesce", self._policy.quiesce),
        )

    def _revert_request(self, name: str, options: Options) -> RevertRequest:
        undo_memory = options.value("undo-memory", default=False)
        undo = options.value("undo", self._policy.undo or undo_memory)
        if undo_memory and not undo:
            raise InvalidOption("undo-memory", "is true and 'undo' is false; leave one of them out")
        return RevertRequest(
            name=name,
            state=options.choice("state", RevertState.AS_TAKEN),
            undo=undo,
            undo_memory=undo_memory,
            force=options.value("force", default=False),
        )

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


def _delete_request(name: str, options: Options) -> DeleteRequest:
    return DeleteRequest(name, options.choice("scope", Scope.ONE))


async def _answer(job: Job, options: Options) -> tuple[str]:
    """Return the job, at once or, if the caller wants to wait, when it is done. Raises: the job's error, to who waits."""
    if options.value("wait", default=False):
        await job.ended.wait()
        if job.error:
            raise job.error
    return (job_path(job.number),)
