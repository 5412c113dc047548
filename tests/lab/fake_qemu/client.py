# SPDX-License-Identifier: MIT
"""Who is connected to a monitor of a fake QEMU: what comes from them, with descriptors, and what goes to them.

Not here: what it means (``server``).
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_READ_BYTES = 65536
_MOST_DESCRIPTORS = 16
_FLUSH_TIMEOUT_S = 5.0


@dataclass(eq=False)
class Client:
    """Who is connected to a monitor; ``descriptor`` is the last one that was sent and not yet taken."""

    socket: socket.socket
    outgoing: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    is_ready: bool = False
    descriptor: int | None = None

    def send(self, message: dict[str, Any]) -> None:
        self.outgoing.put_nowait(json.dumps(message).encode() + b"\r\n")

    def take_descriptor(self) -> int | None:
        taken, self.descriptor = self.descriptor, None
        return taken

    def keep(self, descriptors: Iterable[int]) -> None:
        for each in descriptors:
            self.drop()
            self.descriptor = each

    def drop(self) -> None:
        """Close what nobody took."""
        if (descriptor := self.take_descriptor()) is not None:
            os.close(descriptor)

    async def flush(self) -> None:
        """Wait until all is sent, unless the client does not read it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await self.outgoing.join()

    async def receive(self) -> bytes:
        """Wait for what comes next and keep the descriptors that come with it. Returns: nothing at the end."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self.socket, arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(self.socket)
        data, descriptors, _, _ = socket.recv_fds(self.socket, _READ_BYTES, _MOST_DESCRIPTORS)
        self.keep(descriptors)
        return data

    async def write(self) -> None:
        """Send what there is to send, until cancelled."""
        while True:
            await asyncio.get_running_loop().sock_sendall(self.socket, await self.outgoing.get())
            self.outgoing.task_done()
