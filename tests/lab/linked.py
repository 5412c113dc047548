# SPDX-License-Identifier: MIT
"""A link to a monitor that is kept up while a block runs, and what it has told.

It knows nothing of pytest, and nothing of what is at the other end.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from snapd.qmp.link import Link
from snapd.qmp.monitor import Event

DOMAIN = "lab"
TOLD_TIMEOUT_S = 30.0
GREETING_TIMEOUT_S = 1.0
"""A QEMU that is there and free greets within milliseconds."""


@dataclass(frozen=True)
class Up:
    """The link told that it is connected."""


@dataclass(frozen=True)
class Down:
    """The link told that it is not connected."""

    there: bool
    reason: str


@dataclass
class Linked:
    """A link, and what it told and nobody has asked for yet."""

    link: Link
    told: "asyncio.Queue[Up | Down]"
    events: list[Event] = field(default_factory=list)

    async def next_told(self, timeout_s: float = TOLD_TIMEOUT_S) -> Up | Down:
        """Return the next thing that the link tells. Raises: TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self.told.get()


@contextlib.asynccontextmanager
async def linked(path: Path, *, keep_events: bool = True) -> AsyncIterator[Linked]:
    """Keep a link to the monitor at ``path``; an error that ends it early is raised when the block ends."""
    told: asyncio.Queue[Up | Down] = asyncio.Queue()
    events: list[Event] = []

    async def up() -> None:
        told.put_nowait(Up())

    async def down(there: bool, reason: str) -> None:
        told.put_nowait(Down(there, reason))

    on_event = events.append if keep_events else lambda _: None
    link = Link(DOMAIN, str(path), up, down, on_event, connect_timeout_s=GREETING_TIMEOUT_S)
    keeping = asyncio.ensure_future(link.keep())
    try:
        yield Linked(link, told, events)
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Link]:
    """Keep a link to the monitor at ``path``, which is connected when the block begins. Raises: TimeoutError."""
    async with linked(path) as kept:
        told = await kept.next_told()
        if told != Up():
            raise RuntimeError(f"the link to {path} did not come up: {told}")
        yield kept.link
