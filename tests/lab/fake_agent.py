# SPDX-License-Identifier: MIT
"""A guest agent that is none: it behaves as QEMU's own does, until the test makes it do otherwise.

It knows nothing of pytest. Use it only for what a real agent cannot be brought to do.

- As at QEMU's end of the port, one client is served at a time, and others wait until it has gone.
- Commands are carried out one after the other, also those of a client that has gone; what they answer goes to whoever is
  there then.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from snapd.qmp.agent import LONGEST_LINE_BYTES

Command = dict[str, Any]
React = Callable[["FakeAgent", Command], Iterable[bytes]]
"""What to send for a command, in pieces; ``ConnectionResetError`` ends the connection."""

SYNCHRONISE, STATUS, FREEZE, THAW = (
    "guest-sync-delimited",
    "guest-fsfreeze-status",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-thaw",
)
SENTINEL = b"\xff"
_MISTAKE = ""
"""Stands for what is no command."""

_ALLOWED_WHEN_FROZEN = (SYNCHRONISE, STATUS, THAW)
_READ_BYTES = 65536


def reply(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def refusal(text: Any) -> bytes:
    return json.dumps({"error": {"class": "GenericError", "desc": text}}).encode() + b"\n"


SENSELESS = {
    "nothing": b"",
    "empty line": b"\n",
    "no JSON": b"\x00\xff no JSON at all\n",
    "no UTF-8": b'{"return": "\xc3\x28"}\n',
    "list": b"[1, 2, 3]\n",
    "no member": b"{}\n",
    "deep": b"[" * 30_000 + b"]" * 30_000 + b"\n",
    "deep object": b'{"return":' * 6_000 + b"1" + b"}" * 6_000 + b"\n",
    "long number": b'{"return": ' + b"9" * 60_000 + b"}\n",
    "long line": b'{"return": "' + b"x" * LONGEST_LINE_BYTES + b'"}\n',
    "object": reply({}),
    "text": reply("1"),
    "truth": reply(True),
    "negative": reply(-1),
    "fraction": reply(1.5),
    "null": reply(None),
    "error without text": b'{"error": 5}\n',
    "error with a list": refusal(["text"]),
}
"""Answers that no agent gives, by what is wrong with them."""


def behave(agent: "FakeAgent", command: Command) -> Iterable[bytes]:
    """Do what QEMU's agent does."""
    name = command["execute"]
    if name == _MISTAKE:
        return [refusal("JSON parse error, stray '\\uFFFD'")]
    if agent.is_frozen and name not in _ALLOWED_WHEN_FROZEN:
        return [refusal(f"Command {name} has been disabled: the agent is in frozen state")]
    if name == SYNCHRONISE:
        return [SENTINEL, reply(command["arguments"]["id"])]
    if name == STATUS:
        return [reply("frozen" if agent.is_frozen else "thawed")]
    if name == FREEZE:
        agent.is_frozen = agent.file_systems > 0
        return [reply(agent.file_systems)]
    if name == THAW:
        was_frozen, agent.is_frozen = agent.is_frozen, False
        return [reply(agent.file_systems if was_frozen else 0)]
    if name == "guest-set-time":
        agent.clock_ns = command["arguments"]["time"]
        return [reply({})]
    if name == "guest-get-time":
        return [reply(agent.clock_ns)]
    return [refusal(f"The command {name} has not been found")]


def instead(name: str, react: React) -> React:
    """Return what behaves well but for the command ``name``."""
    return lambda agent, command: (react if command["execute"] == name else behave)(agent, command)


def first(times: int, react: React) -> React:
    """Return what reacts so to the first commands and behaves well from then on."""
    left = iter(range(times))

    def choose(agent: FakeAgent, command: Command) -> Iterable[bytes]:
        now = behave if next(left, None) is None else react
        return now(agent, command)

    return choose


def done_but(*pieces: bytes) -> React:
    """Return what carries the command out and answers something else, or nothing."""

    def react(agent: FakeAgent, command: Command) -> Iterable[bytes]:
        behave(agent, command)
        return pieces

    return react


def not_done_but(*pieces: bytes) -> React:
    """Return what only answers, or does not even that."""
    return lambda _agent, _command: pieces


def done_but_lost(agent: "FakeAgent", command: Command) -> Iterable[bytes]:
    """Carry the command out and end the connection."""
    behave(agent, command)
    raise ConnectionResetError


def not_done_but_lost(_agent: "FakeAgent", _command: Command) -> Iterable[bytes]:
    raise ConnectionResetError


class FakeAgent:
    """Listens at ``path`` while its block runs.

    Args:
        react: asked for each command.
        file_systems: how many can be frozen.
    """

    def __init__(self, path: Path, react: React = behave, *, file_systems: int = 1) -> None:
        self.path, self.react, self.file_systems = path, react, file_systems
        self.is_frozen = False
        self.clock_ns = 0
        self.commands: list[str] = []
        """The names of what was carried out, oldest first, without synchronisations."""
        self._runs = asyncio.Event()
        self._runs.set()
        self._taken: asyncio.Queue[Command] = asyncio.Queue()
        self._has_come = asyncio.Condition()
        self._served = asyncio.Lock()
        self._client: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Let commands come and carry none out, as in a guest that is stopped."""
        self._runs.clear()

    def resume(self) -> None:
        self._runs.set()

    async def carried_out(self, *names: str, timeout_s: float = 10.0) -> None:
        """Wait until the last commands that were carried out are these. Raises: TimeoutError."""
        async with asyncio.timeout(timeout_s), self._has_come:
            await self._has_come.wait_for(lambda: tuple(self.commands[-len(names) :]) == names)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        self._tasks.add(asyncio.create_task(self._work()))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for each in self._tasks:
            each.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                async with self._served:
                    self._client = writer
                    await self._take(reader)
        finally:
            self._tasks.discard(task)
            if self._client is writer:
                self._client = None
            # Nothing that is still to be sent may hold up the test's end.
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        text = b""
        while data := await reader.read(_READ_BYTES):
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                spoiled, found, sent = line.rpartition(SENTINEL)
                if found:
                    # QEMU's agent takes the sentinel for a mistake and says so.
                    self._taken.put_nowait({"execute": _MISTAKE})
                self._taken.put_nowait(json.loads(sent if found else spoiled + sent))

    async def _work(self) -> None:
        while True:
            command = await self._taken.get()
            await self._runs.wait()
            if command["execute"] not in (SYNCHRONISE, _MISTAKE):
                async with self._has_come:
                    self.commands.append(command["execute"])
                    self._has_come.notify_all()
            await self._answer(command)

    async def _answer(self, command: Command) -> None:
        writer = self._client
        try:
            for piece in self.react(self, command):
                if writer is not None:
                    writer.write(piece)
                    await writer.drain()
        except OSError:
            if writer is not None:
                writer.transport.abort()
