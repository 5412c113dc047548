# SPDX-License-Identifier: MIT
"""All domains of this host that are looked after.

Not here: one domain's life (``managed_domain``).
"""

from collections.abc import Callable, Iterable

from snapd.errors import NoSuchDomain
from snapd.model.domain import DomainDefinition
from snapd.model.events import DomainAdded, DomainRemoved
from snapd.service.managed_domain import ManagedDomain
from snapd.service.mutations import Surroundings


class Host:
    """The domains by name; each is looked after by a task of its own."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self.domains: dict[str, ManagedDomain] = {}
        self.jobs = around.jobs
        self._end: dict[str, Callable[[], object]] = {}

    def follow(self, definitions: Iterable[DomainDefinition]) -> list[str]:
        """Look after exactly these domains: begin with new ones, end with those that are gone, both for changed ones.

        Returns: the names of domains that are busy, and so stay as they are until this is called again.
        """
        wanted = {definition.name: definition for definition in definitions}
        busy = []
        for name, domain in list(self.domains.items()):
            if wanted.get(name) == domain.definition:
                continue
            if domain.doing:
                busy.append(name)
            else:
                self._remove(name)
        for name, definition in wanted.items():
            if name not in self.domains:
                self._add(definition)
        return busy

    def _add(self, definition: DomainDefinition) -> None:
        domain = ManagedDomain(definition, self._around)
        self.domains[definition.name] = domain
        self._end[definition.name] = self._around.spawn(domain.keep())
        self._around.publisher.publish(DomainAdded(definition.name))

    def _remove(self, name: str) -> None:
        self._end.pop(name)()
        domain = self.domains.pop(name)
        self._around.adapters.close_store(domain.name)
        self._around.publisher.publish(DomainRemoved(name))

    def get(self, name: str) -> ManagedDomain:
        """Return a domain. Raises: NoSuchDomain."""
        if name not in self.domains:
            raise NoSuchDomain(name)
        return self.domains[name]

    def get_by_uuid(self, uuid: str) -> ManagedDomain:
        """Return a domain by its UUID in any case, with or without dashes. Raises: NoSuchDomain."""
        wanted = _digits(uuid)
        for domain in self.domains.values():
            if wanted and _digits(domain.record.uuid) == wanted:
                return domain
        raise NoSuchDomain(uuid)

    async def until_idle(self) -> None:
        """Wait until every domain is left alone; the caller has seen to it that no new call comes in."""
        # What a call has claimed already may still become a job while another one is waited for.
        for domain in self.domains.values():
            await domain.idle.wait()


def _digits(uuid: str) -> str:
    return uuid.replace("-", "").lower()
