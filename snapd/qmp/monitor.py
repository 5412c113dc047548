# SPDX-License-Identifier: MIT
"""One QMP connection: ``qemu.qmp`` made fit for a service that lives for months.

Not here: keeping a connection alive (``link``). What differs from the library: events go to one function of ours and are kept
nowhere; messages are not formatted for a log that is off; the connection tells when it ends, and its end waits for nobody.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import Message, QMPClient, Runstate, StateError

LONGEST_LINE_BYTES = 4 << 20
"""``query-qmp-schema`` has 200 KiB, the blocks of a chain of 64 images 300 KiB."""

Event = Mapping[str, Any]


class Monitor(QMPClient):
    """A QMP client whose events go to ``on_event`` as they come, and nowhere else."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        super().__init__(readbuflen=LONGEST_LINE_BYTES)
        self._on_event = on_event

    async def _event_dispatch(self, msg: Message) -> None:
        # The library's listeners keep every event for ever, the default one included.
        self._on_event(msg)

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _bh_flush_writer(self) -> None:
        # The library would first send what is left, and a QEMU that is stopped never reads it.
        return

    async def _bh_close_stream(self, error_pathway: bool = False) -> None:
        if self._writer is not None:
            self._writer.transport.abort()  # closing alone also waits until all is sent
        await super()._bh_close_stream(error_pathway)

    async def wait_closed(self) -> None:
        """Wait until the connection has begun to end; ``disconnect`` then says why."""
        while self.runstate is Runstate.RUNNING:
            await self.runstate_changed()

    @property
    def is_open(self) -> bool:
        return self.runstate is Runstate.RUNNING

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The connection of now; ending this one cannot end a later one by mistake."""
        if self._writer is None:
            raise StateError("the monitor is not connected", self.runstate, Runstate.RUNNING)
        return self._writer.transport

    async def shut(self) -> Exception | None:
        """End the connection. Returns: what ended it before, if anything did; the object can connect again.

        Cancellation: waits for the end, which is near as nothing is sent any more, and then is passed on.
        """
        # Cancelled itself, the library would leave futures behind whose exceptions nobody retrieves.
        ending = asyncio.ensure_future(self.disconnect())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait([ending])
            if not ending.cancelled():
                ending.exception()
            raise
        except Exception as cause:  # noqa: BLE001 - the library raises here whatever ended the connection
            return cause
        return None
