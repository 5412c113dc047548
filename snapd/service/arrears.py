# SPDX-License-Identifier: MIT
"""What a domain owes: a memory to load once QEMU runs, images to collect once they can be.

Not here: how either is done (``engine``). Each is tried when the domain has come to a state that allows it, and again the next
time; nothing is lost by its failing.
"""

import asyncio
import logging
from collections.abc import Callable

from snapd.errors import ImageInUse, SnapdError
from snapd.model.domain import DomainState
from snapd.model.plan import RevertRequest
from snapd.model.record import DomainRecord
from snapd.service.mutations import Mutations
from snapd.service.verbs import Verbs

OURSELVES_UID = 0
"""Who begins what the service does by itself."""

TIDY_ATTEMPTS = 10
TIDY_AGAIN_S = 1.0

log = logging.getLogger(__name__)


class Arrears:
    """``problem`` says why the memory that is to be loaded was not when the domain last ran."""

    def __init__(
        self,
        name: str,
        record: Callable[[], DomainRecord],
        state: Callable[[], DomainState],
        mutations: Mutations,
        verbs: Verbs,
    ) -> None:
        self._name, self._record, self._state = name, record, state
        self._mutations, self._verbs = mutations, verbs
        self.problem = ""

    async def settle(self) -> None:
        """Do what can be done in the domain's state, once nothing else is being done."""
        await self._mutations.idle.wait()
        try:
            await self._load()
            if self._record().graph.collect({}):
                await self._tidy()
        except SnapdError as error:
            log.info("domain %s: %s", self._name, error)

    async def _load(self) -> None:
        pending = self._record().pending
        if pending is None or self._state() not in (DomainState.RUNNING, DomainState.PAUSED):
            return
        # A further undo point keeps what the domain has written since it was started, which may be long ago.
        request = RevertRequest(pending.name, pending.state, undo=True, keeps_undo_points=True)
        try:
            job = await self._mutations.begin("revert", pending.name, OURSELVES_UID, self._verbs.revert(request))
        except SnapdError as error:
            self.problem = str(error)
            raise
        if job:
            await job.ended.wait()
            self.problem = str(job.error) if job.error else ""

    async def _tidy(self) -> None:
        for attempt in range(TIDY_ATTEMPTS):
            try:
                await self._mutations.begin("tidy", "", OURSELVES_UID, self._verbs.tidy())
                return
            except ImageInUse:
                # A QEMU that ends closes its monitor before its images.
                if attempt + 1 == TIDY_ATTEMPTS or self._state() is not DomainState.SHUTOFF:
                    raise
            await asyncio.sleep(TIDY_AGAIN_S)
