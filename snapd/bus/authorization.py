# SPDX-License-Identifier: MIT
"""Who may do what, decided for the sender of each call before anything is done for it.

For now: everyone may look; root and the user that the service runs as may change. A refusal is an error, never a value.
"""

import os

from snapd.bus.faces import Caller
from snapd.bus.wire import BUS, BUS_PATH, CallError, Wire
from snapd.errors import AccessDenied

LOOK_UP_TIMEOUT_S = 5.0


class Authorization:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def identify(self, sender: str) -> Caller:
        """Return who ``sender`` is, by the bus's word. Raises: AccessDenied when the bus does not know it any more."""
        try:
            (uid,) = await self._wire.call(
                BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", (sender,), timeout_s=LOOK_UP_TIMEOUT_S
            )
        except CallError as error:
            raise AccessDenied("call this service without being on its bus") from error
        return Caller(sender, uid)

    async def check(self, caller: Caller, action: str, domain: str) -> None:
        """Make sure that ``caller`` may do ``action`` with ``domain``. Raises: AccessDenied."""
        if caller.uid not in (0, os.geteuid()):
            raise AccessDenied(action, domain)
