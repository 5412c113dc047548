# SPDX-License-Identifier: MIT
"""The face ``org.domsnap1.Manager``: the whole service."""

from collections.abc import Mapping
from typing import Any

from snapd.bus.faces import Caller, Method
from snapd.bus.marshal import domain_row, job_row
from snapd.bus.names import MANAGER_INTERFACE, domain_path
from snapd.bus.verbs import Given, Verbs
from snapd.service.host import Host


class ManagerFace:
    interface = MANAGER_INTERFACE

    def __init__(self, host: Host, verbs: Verbs, version: str, qemu_img_version: str) -> None:
        self._host, self._verbs = host, verbs
        self._version, self._qemu_img_version = version, qemu_img_version

    def methods(self) -> Mapping[str, Method]:
        return {
            "ListDomains": self.list_domains,
            "GetDomain": self.get_domain,
            "GetDomainByUUID": self.get_domain_by_uuid,
            "ListJobs": self.list_jobs,
            "CreateSnapshot": self.create,
            "RevertSnapshot": self.revert,
            "DeleteSnapshot": self.delete,
            "ListSnapshots": self.list_snapshots,
        }

    def properties(self) -> Mapping[str, Any]:
        return {
            "Version": self._version,
            "QemuImgVersion": self._qemu_img_version,
            "DomainCount": len(self._host.domains),
            "JobCount": len(self._host.jobs.running()),
        }

    async def list_domains(self, _caller: Caller) -> tuple[Any, ...]:
        return ([domain_row(domain) for _, domain in sorted(self._host.domains.items())],)

    async def get_domain(self, _caller: Caller, name: str) -> tuple[str]:
        return (domain_path(self._host.get(name).name),)

    async def get_domain_by_uuid(self, _caller: Caller, uuid: str) -> tuple[str]:
        return (domain_path(self._host.get_by_uuid(uuid).name),)

    async def list_jobs(self, _caller: Caller) -> tuple[Any, ...]:
        return ([job_row(job) for job in self._host.jobs.all()],)

    async def create(self, caller: Caller, domain: str, name: str, given: Given) -> tuple[str]:
        return await self._verbs.create(caller, self._host.get(domain), name, given)

    async def revert(self, caller: Caller, domain: str, name: str, given: Given) -> tuple[str]:
        return await self._verbs.revert(caller, self._host.get(domain), name, given)

    async def delete(self, caller: Caller, domain: str, name: str, given: Given) -> tuple[str]:
        return await self._verbs.delete(caller, self._host.get(domain), name, given)

    async def list_snapshots(self, caller: Caller, domain: str, given: Given) -> tuple[Any, ...]:
        return await self._verbs.list(caller, self._host.get(domain), given)
