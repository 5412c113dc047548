# SPDX-License-Identifier: MIT
"""What the service needs to be given, besides the engine's ports, to look after a domain.

``daemon`` gives it; tests may give something else.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from snapd.engine.ports import Agent, Images, Qemu, Store
from snapd.model.domain import DomainDefinition


class Link(Protocol):
    """A monitor that is connected whenever it can be."""

    async def keep(self) -> None:
        """Be connected until cancelled."""


class Ledger(Store, Protocol):
    """A store that also tells what it found when it was opened."""

    @property
    def interrupted(self) -> tuple[str, str] | None:
        """The operation and the path of an intent that nobody has settled."""

    @property
    def begun(self) -> tuple[str, ...]:
        """The steps of that intent that were begun."""

    @property
    def damaged(self) -> Mapping[str, str]:
        """Why a snapshot's own file could not be read, by name."""


class Adapters(Protocol):
    """Makes what looks after one domain."""

    def connect(
        self,
        definition: DomainDefinition,
        on_up: Callable[[], Awaitable[None]],
        on_down: Callable[[bool, str], Awaitable[None]],
        on_event: Callable[[Mapping[str, Any]], None],
    ) -> tuple[Link, Qemu]: ...

    def agent(self, definition: DomainDefinition) -> Agent | None:
        """Return the agent in the domain's guest, if the definition names one."""

    @property
    def images(self) -> Images: ...

    async def open_store(self, name: str, uuid: str) -> Ledger:
        """Open the state of a domain. Raises: StateDamaged."""

    def close_store(self, name: str) -> None:
        """Let another domain have the state of this one's uuid."""

    def memory_directory(self, uuid: str) -> str:
        """Return where the domain's memory files go."""
