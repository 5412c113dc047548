# SPDX-License-Identifier: MIT
"""Which objects there are: a path is turned into its faces each time, straight from the service.

Nothing is registered and so nothing can be forgotten: an object exists while the service knows the thing.
"""

from collections.abc import Iterator

from snapd.bus.contract import contract
from snapd.bus.domain import DomainFace
from snapd.bus.faces import Face, shown
from snapd.bus.job import JobFace
from snapd.bus.manager import ManagerFace
from snapd.bus.names import (
    DOMAINS_PATH,
    JOBS_PATH,
    ROOT_PATH,
    DomainPath,
    JobPath,
    SnapshotPath,
    domain_path,
    job_path,
    parse_path,
    snapshot_path,
)
from snapd.bus.snapshot import SnapshotFace
from snapd.bus.verbs import Verbs
from snapd.bus.wire import Variant
from snapd.errors import NoSuchJob
from snapd.service.host import Host


class Objects:
    def __init__(self, host: Host, manager: ManagerFace, verbs: Verbs) -> None:
        self._host, self._manager, self._verbs = host, manager, verbs

    def face(self, path: str) -> Face | None:
        """Return the face of the object at ``path``: each has exactly one interface of ours."""
        if path == ROOT_PATH:
            return self._manager
        match parse_path(path):
            case DomainPath(name) if name in self._host.domains:
                return DomainFace(self._host.domains[name], self._verbs)
            case SnapshotPath(name, snapshot) if name in self._host.domains:
                domain = self._host.domains[name]
                return SnapshotFace(domain, snapshot, self._verbs) if snapshot in domain.record.tree else None
            case JobPath(number):
                try:
                    return JobFace(self._host.jobs.get(number), self._host)
                except NoSuchJob:
                    return None
        return None

    def managed_paths(self) -> Iterator[str]:
        """Return the path of every object below the root."""
        for domain in self._host.domains.values():
            yield domain_path(domain.name)
            for snapshot in domain.record.tree.snapshots:
                yield snapshot_path(domain.name, snapshot)
        for job in self._host.jobs.all():
            yield job_path(job.number)

    def properties(self, path: str) -> dict[str, dict[str, Variant]]:
        """Return the interfaces of the object at ``path`` with their properties; none where there is no object."""
        face = self.face(path)
        return {face.interface: shown(contract()[face.interface], face)} if face else {}

    def children(self, path: str) -> list[str] | None:
        """Return the next element of each path below ``path``; None where neither it nor anything below it exists."""
        prefix = path.rstrip("/") + "/"
        known = [ROOT_PATH, DOMAINS_PATH, JOBS_PATH, *self.managed_paths()]
        below = sorted({each[len(prefix) :].split("/", 1)[0] for each in known if each.startswith(prefix)})
        return below if below or path in known else None
