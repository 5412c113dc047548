# SPDX-License-Identifier: MIT
"""From events of the service to signals on the bus.

Invariants: a signal leaves after what it tells is durable, because only such events come; ``PropertiesChanged`` tells exactly
the properties that differ from what was told before; objects are announced from the root, before anything about them.
"""

from typing import Any

from snapd.bus.contract import EmitsChanged, contract
from snapd.bus.job import JobFace
from snapd.bus.names import (
    DOMAIN_INTERFACE,
    JOB_INTERFACE,
    MANAGER_INTERFACE,
    OBJECT_MANAGER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
    SNAPSHOT_INTERFACE,
    domain_path,
    job_path,
    snapshot_path,
)
from snapd.bus.objects import Objects
from snapd.bus.wire import Message, Variant, Wire
from snapd.model import events
from snapd.service.host import Host


class Signals:
    """Knows of each object what was told of it last."""

    def __init__(self, wire: Wire, objects: Objects, host: Host) -> None:
        self._wire, self._objects, self._host = wire, objects, host
        self._told: dict[str, dict[str, Variant]] = {}
        for path in (ROOT_PATH, *objects.managed_paths()):
            self._remember(path)

    def announce(self, event: events.Event) -> None:
        """Tell the bus of an event."""
        match event:
            case events.DomainAdded(domain):
                self._added(domain_path(domain))
                self._emit(ROOT_PATH, MANAGER_INTERFACE, "DomainAdded", domain, domain_path(domain))
                self._changed(ROOT_PATH)
            case events.DomainRemoved(domain):
                self._emit(ROOT_PATH, MANAGER_INTERFACE, "DomainRemoved", domain, domain_path(domain))
                self._removed_domain(domain)
                self._changed(ROOT_PATH)
            case events.DomainChanged(domain):
                self._changed_domain(domain)
            case events.SnapshotCreated(domain, snapshot):
                self._added(snapshot_path(domain, snapshot))
                self._about(domain, "SnapshotCreated", snapshot)
                self._changed_jobs(domain, snapshot)
            case events.SnapshotDeleted(domain, snapshot):
                self._about(domain, "SnapshotDeleted", snapshot)
                self._removed(snapshot_path(domain, snapshot), SNAPSHOT_INTERFACE)
                self._changed_jobs(domain, snapshot)
            case events.SnapshotReverted(domain, snapshot):
                self._about(domain, "SnapshotReverted", snapshot)
            case events.SnapshotChanged(domain, snapshot):
                self._changed(snapshot_path(domain, snapshot))
                self._about(domain, "SnapshotChanged", snapshot)
            case events.JobAdded(job):
                self._added(job_path(job))
                self._emit(ROOT_PATH, MANAGER_INTERFACE, "JobAdded", job_path(job))
                self._changed(ROOT_PATH)
            case events.JobChanged(job):
                self._changed(job_path(job))
            case events.JobEnded(job):
                self._changed(job_path(job))
                outcome = JobFace(self._host.jobs.get(job), self._host).outcome()
                self._emit(job_path(job), JOB_INTERFACE, "Completed", *outcome)
                self._emit(ROOT_PATH, MANAGER_INTERFACE, "JobRemoved", job_path(job), outcome[0])
                self._changed(ROOT_PATH)
            case events.JobRemoved(job):
                self._removed(job_path(job), JOB_INTERFACE)

    def _changed_domain(self, domain: str) -> None:
        """Tell what changed of a domain; snapshots that became known with its state are announced first."""
        for snapshot in self._host.domains[domain].record.tree.snapshots if domain in self._host.domains else ():
            if snapshot_path(domain, snapshot) not in self._told:
                self._added(snapshot_path(domain, snapshot))
                self._changed_jobs(domain, snapshot)
        self._changed(domain_path(domain))

    def _removed_domain(self, domain: str) -> None:
        for path in [each for each in self._told if each.startswith(f"{domain_path(domain)}/")]:
            self._removed(path, SNAPSHOT_INTERFACE)
        self._removed(domain_path(domain), DOMAIN_INTERFACE)
        for job in self._host.jobs.all():
            if job.domain == domain:
                self._changed(job_path(job.number))

    def _changed_jobs(self, domain: str, snapshot: str) -> None:
        """Tell what changed of the jobs about a snapshot: they name it only while it exists."""
        for job in self._host.jobs.all():
            if (job.domain, job.snapshot) == (domain, snapshot):
                self._changed(job_path(job.number))

    def _about(self, domain: str, signal: str, snapshot: str) -> None:
        self._emit(domain_path(domain), DOMAIN_INTERFACE, signal, snapshot, snapshot_path(domain, snapshot))
        self._changed(domain_path(domain))

    def _remember(self, path: str) -> None:
        for values in self._objects.properties(path).values():
            self._told[path] = values

    def _added(self, path: str) -> None:
        if path in self._told:
            return
        self._remember(path)
        self._post(ROOT_PATH, OBJECT_MANAGER_INTERFACE, "InterfacesAdded", "oa{sa{sv}}", path, self._objects.properties(path))

    def _removed(self, path: str, interface: str) -> None:
        if self._told.pop(path, None) is not None:
            self._post(ROOT_PATH, OBJECT_MANAGER_INTERFACE, "InterfacesRemoved", "oas", path, [interface])

    def _changed(self, path: str) -> None:
        if path not in self._told:
            return
        for interface, values in self._objects.properties(path).items():
            described = contract()[interface].properties
            told = self._told[path]
            differing = {
                name: value
                for name, value in values.items()
                if described[name].emits_changed is EmitsChanged.TRUE and value != told.get(name)
            }
            self._told[path] = values
            if differing:
                self._post(path, PROPERTIES_INTERFACE, "PropertiesChanged", "sa{sv}as", interface, differing, [])

    def _emit(self, path: str, interface: str, signal: str, *arguments: Any) -> None:
        self._post(path, interface, signal, contract()[interface].signals[signal].signature, *arguments)

    def _post(self, path: str, interface: str, member: str, signature: str, *arguments: Any) -> None:
        self._wire.post(Message.new_signal(path, interface, member, signature, list(arguments)))
