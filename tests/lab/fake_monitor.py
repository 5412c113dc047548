# SPDX-License-Identifier: MIT
"""A monitor that is no QEMU: it greets as one, and then answers what the test wants, however wrong.

It knows nothing of pytest. Use it only for what a real QEMU cannot be brought to do.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

Command = dict[str, Any]
Answer = Callable[[Command], Iterable[bytes]]
"""What to send for a command, in pieces; nothing, to leave it without an answer."""

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'
_READ_BYTES = 65536


def reply(command: Command, value: Any) -> bytes:
    """Return the line that answers ``command`` with ``value``."""
    return json.dumps({"return": value, "id": command["id"]}).encode() + b"\r\n"


def event(name: str, **data: Any) -> bytes:
    stamp = {"seconds": 1, "microseconds": 0}
    return json.dumps({"event": name, "data": data, "timestamp": stamp}).encode() + b"\r\n"


def silence(_: Command) -> Iterable[bytes]:
    """Never answer."""
    return ()


class CommandDecoder:
    """Takes bytes as they come and gives whole commands: a client may send them with nothing in between."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes) -> Iterator[Command]:
        self._text = (self._text + data.decode("latin-1")).lstrip()
        while self._text:
            try:
                command, end = self._decoder.raw_decode(self._text)
            except json.JSONDecodeError:
                return
            self._text = self._text[end:].lstrip()
            yield command


class FakeMonitor:
    """Listens at ``path`` while its block runs.

    Args:
        answer: asked for each command but ``qmp_capabilities``, which is answered rightly.
        greeting: sent to who connects.
        deaf: stop reading after the negotiation.
    """

    def __init__(self, path: Path, answer: Answer = silence, *, greeting: bytes = GREETING, deaf: bool = False) -> None:
        self.path, self.commands = path, list[Command]()
        self._answer, self._greeting, self._deaf = answer, greeting, deaf
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for each in self._open:
            each.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._talk(reader, writer)
        finally:
            self._open.discard(task)
            # Nothing that is still to be sent may hold up the test's end.
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = CommandDecoder()
        writer.write(self._greeting)
        while data := await reader.read(_READ_BYTES):
            for command in decoder.feed(data):
                if command["execute"] == "qmp_capabilities":
                    writer.write(reply(command, {}) if "id" in command else b'{"return": {}}\r\n')
                    if self._deaf:
                        writer.transport.pause_reading()  # type: ignore[attr-defined]
                        await asyncio.Event().wait()
                    continue
                self.commands.append(command)
                for piece in self._answer(command):
                    writer.write(piece)
                    await writer.drain()
