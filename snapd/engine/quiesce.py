# SPDX-License-Identifier: MIT
"""Quiesce: the guest's file systems frozen for the instant of a disk-only snapshot, and thawed on every way out.

Not here: how an agent is spoken to (``qmp.agent``). A freeze that was not ours is never thawed.
"""

import asyncio
import logging
from collections.abc import Collection

from snapd.engine.ports import Agent
from snapd.errors import QuiesceFailed, SnapdError
from snapd.model.plan import Quiesce

FREEZE_STEP = "freeze"
THAWED_STEP = "thawed"

log = logging.getLogger(__name__)


class Freeze:
    """One freeze of a guest; ``reason`` says why there is none where one was wanted."""

    def __init__(self, domain: str, agent: Agent | None) -> None:
        self._domain, self._agent = domain, agent
        self._is_frozen = False
        self.reason = ""

    async def begin(self, wanted: Quiesce) -> bool:
        """Freeze. Returns: whether the file systems are frozen. Raises: QuiesceFailed where that is required."""
        try:
            await self._freeze()
        except QuiesceFailed as error:
            if wanted is Quiesce.REQUIRE or self._is_frozen or error.may_be_frozen:
                raise
            self.reason = error.reason
            log.info("domain %s: %s", self._domain, error)
            return False
        return True

    async def _freeze(self) -> None:
        if self._agent is None:
            raise QuiesceFailed(self._domain, "its definition names no agent")
        try:
            count = await self._agent.freeze()
        except asyncio.CancelledError:
            self._is_frozen = True  # perhaps, and then it is ours to thaw
            raise
        self._is_frozen = True
        if not count:
            await self.end()
            raise QuiesceFailed(self._domain, "its agent finds no file system that could be frozen")

    async def end(self) -> None:
        """Thaw, if this has frozen; does nothing where it has been thawed. Raises: QuiesceFailed."""
        if self._is_frozen and self._agent is not None:
            await self._agent.thaw()
            self._is_frozen = False


async def thaw_after_crash(domain: str, agent: Agent | None, begun: Collection[str]) -> None:
    """Thaw the guest if an operation that was cut off may have left it frozen; ``begun`` are the steps of its intent."""
    if agent is None or FREEZE_STEP not in begun or THAWED_STEP in begun:
        return
    try:
        await agent.thaw()
        log.warning("domain %s was left in the middle of a freeze; its file systems are thawed", domain)
    except SnapdError as error:
        log.error("domain %s may have been left frozen: %s", domain, error)  # noqa: TRY400  no fault of ours
