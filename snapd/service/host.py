# SPDX-License-Identifier: MIT
"""All domains of this host that are looked after.

Not here: one domain's life (``managed_domain``).
"""

from collections.abc import Iterable

from snapd.errors import NoSuchDomain
from snapd.model.domain import DomainDefinition
from snapd.model.events import DomainAdded
from snapd.service.managed_domain import ManagedDomain, Surroundings


class Host:
    """The domains by name; each is looked after by a task of its own."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self.domains: dict[str, ManagedDomain] = {}
        self.jobs = around.jobs

    def add(self, definitions: Iterable[DomainDefinition]) -> None:
        """Begin to look after domains."""
        for definition in definitions:
            domain = ManagedDomain(definition, self._around)
            self.domains[definition.name] = domain
            self._around.spawn(domain.keep())
            self._around.publisher.publish(DomainAdded(definition.name))

    def get(self, name: str) -> ManagedDomain:
        """Return a domain. Raises: NoSuchDomain."""
        if name not in self.domains:
            raise NoSuchDomain(name)
        return self.domains[name]

    def get_by_uuid(self, uuid: str) -> ManagedDomain:
        """Return a domain. Raises: NoSuchDomain."""
        wanted = uuid.lower()
        for domain in self.domains.values():
            if domain.record.uuid.lower() == wanted:
                return domain
        raise NoSuchDomain(uuid)

    async def until_idle(self) -> None:
        """Wait until every running job has ended; the caller has seen to it that no new one begins."""
        for job in self.jobs.all():
            await job.ended.wait()
