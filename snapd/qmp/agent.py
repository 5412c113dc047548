# SPDX-License-Identifier: MIT
"""The guest agent: freezing and thawing a guest's file systems and setting its clock, over the agent's unix socket.

Not here: when a guest is quiesced (the engine). The peer is the guest, and is not trusted. Invariants:

- every wait is bounded, and so is what is kept of what the peer sends, whatever it sends;
- each use has a connection of its own, synchronised first, so that a late answer to somebody else is never taken for ours;
- a thaw is sent only after a freeze of ours; it is sent behind the synchronisation without waiting for that, so that an agent
  which answers only after we have given up still thaws;
- a thaw that comes late harms nobody: the agent does one thing after the other, and a later freeze comes behind it.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

from snapd.errors import QuiesceFailed

ANSWER_TIMEOUT_S = 5.0
FREEZE_TIMEOUT_S = 10.0

THAW_ATTEMPTS = 6
"""Each has a new connection and ends within three times the answer time-out; one that nobody answers within one."""

THAW_PAUSE_S = 0.5
"""Between two attempts, for a QEMU or an agent that refuses at once."""

LONGEST_LINE_BYTES = 64 << 10
MOST_SKIPPED_LINES = 1024
"""How much may lie before the answer to our synchronisation: late answers to another client, 48 MiB of a file at most."""

_LONGEST_TEXT = 200
_SENTINEL = b"\xff"
"""No valid UTF-8 has it: the agent throws away what it has read when it comes, and marks its answer with it."""

_FREEZE, _THAW, _STATUS = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status"
_FROZEN, _THAWED = "frozen", "thawed"

log = logging.getLogger(__name__)


class _Trouble(Exception):
    """The agent did not do as asked, or may not have; the text says why."""


class _Refused(_Trouble):
    """The agent answered with an error."""


class GuestAgent:
    """See ``engine.ports.Agent`` for what each method promises. One use at a time; others wait for it.

    Args:
        path: of the socket at QEMU's end of the agent's port.
        answer_timeout_s: for connecting and synchronising together, and for each answer but that to a freeze.
        freeze_timeout_s: for a freeze, which writes down all that the guest has cached.
    """

    def __init__(
        self,
        domain: str,
        path: str,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        freeze_timeout_s: float = FREEZE_TIMEOUT_S,
    ) -> None:
        self._domain, self._path = domain, path
        self._answer_timeout_s, self._freeze_timeout_s = answer_timeout_s, freeze_timeout_s
        self._one_user = asyncio.Lock()

    async def freeze(self) -> int:
        """Freeze the guest's file systems. Returns: how many; none is no error.

        Raises: QuiesceFailed; nothing is frozen by us then, unless the sentence says that it may be.
        Cancellation: the guest may be, or become, frozen. The agent has been told to thaw, but nobody has seen it do that: the
            caller calls ``thaw``.
        """
        async with self._one_user:
            is_sent = False
            try:
                async with self._session() as session:
                    await self._check_thawed(session)
                    is_sent = True
                    return await self._freeze(session)
            except _Trouble as trouble:
                reason = str(trouble)
                if is_sent:
                    if left := await self._thaw():
                        raise QuiesceFailed(self._domain, f"{reason}; {left}", may_be_frozen=True) from trouble
                    reason += "; they are seen to be thawed"
                raise QuiesceFailed(self._domain, reason) from trouble

    async def thaw(self) -> None:
        """Thaw the guest's file systems; they are seen to be thawed when this returns. Only for after a freeze of ours.

        Raises: QuiesceFailed; the guest may be frozen.
        Cancellation: the guest may be frozen.
        """
        async with self._one_user:
            if left := await self._thaw():
                raise QuiesceFailed(self._domain, left, may_be_frozen=True)

    async def set_clock(self) -> None:
        """Set the guest's clock to the host's. Effects: an agent that cannot or does not answer is passed over."""
        async with self._one_user:
            try:
                async with self._session() as session:
                    # Without a time the agent reads the guest's hardware clock, which not every guest has.
                    session.send("guest-set-time", time=time.time_ns())
                    await session.answer(self._answer_timeout_s)
            except _Trouble as trouble:
                log.info("domain %s: the guest's clock is not set: %s", self._domain, trouble)

    async def _check_thawed(self, session: "_Session") -> None:
        status = await self._status(session)
        if status == _FROZEN:
            raise QuiesceFailed(self._domain, "they are frozen already, and not by this service; thaw them first")

    async def _freeze(self, session: "_Session") -> int:
        session.send(_FREEZE)
        try:
            count = await session.answer(self._freeze_timeout_s)
        except asyncio.CancelledError:
            session.send(_THAW)
            raise
        except _Refused as refused:
            if await self._status(session) == _THAWED:
                raise QuiesceFailed(self._domain, str(refused)) from refused
            raise
        if type(count) is not int or count < 0:
            raise _Trouble(f"its agent's answer to {_FREEZE} is no number of file systems")
        return count

    async def _thaw(self) -> str:
        """Thaw, with a new connection for each attempt. Returns: empty, or why the guest may still be frozen."""
        reason = ""
        for attempt in range(THAW_ATTEMPTS):
            if attempt:
                await asyncio.sleep(THAW_PAUSE_S)
            try:
                async with self._session(_THAW) as session:
                    with contextlib.suppress(_Refused):  # a hook that failed, or they are thawed: the status tells
                        await session.answer(self._answer_timeout_s)
                    if await self._status(session) == _THAWED:
                        return ""
                    reason = "its agent says that they are still frozen"
            except _Trouble as trouble:
                reason = str(trouble)
            log.warning("domain %s: its file systems are not seen to be thawed: %s", self._domain, reason)
        return (
            f"{reason}, so the guest may be frozen and its programs may hang; send {_THAW} to its agent when it answers again, "
            "or reset the guest"
        )

    async def _status(self, session: "_Session") -> str:
        session.send(_STATUS)
        status = await session.answer(self._answer_timeout_s)
        if status not in (_FROZEN, _THAWED):
            raise _Trouble(f"its agent's answer to {_STATUS} is neither {_FROZEN} nor {_THAWED}")
        return str(status)

    @contextlib.asynccontextmanager
    async def _session(self, behind: str = "") -> AsyncIterator["_Session"]:
        """Connect and synchronise, with the command ``behind`` sent along. Raises: _Trouble."""
        try:
            session = await _connect(self._path)
        except OSError as error:
            raise _Trouble(self._unreachable(error)) from error
        try:
            try:
                await session.synchronise(self._answer_timeout_s, behind)
            except TimeoutError as error:
                raise _Trouble(
                    f"its agent does not answer within {self._answer_timeout_s:g} s: it does not run, the guest is stopped, "
                    f"or another client holds {self._path}"
                ) from error
            yield session
        finally:
            session.close()

    def _unreachable(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return f"no QEMU listens at its agent's socket {self._path}"
        if isinstance(error, BlockingIOError):
            return f"other clients hold its agent's socket {self._path}"
        return f"its agent's socket {self._path} cannot be used: {error.strerror or error}"


async def _connect(path: str) -> "_Session":
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        # A unix socket connects at once or never; asyncio would take the EAGAIN of a full queue for a connect under way.
        connection.connect(path)
        return _Session(*await asyncio.open_unix_connection(sock=connection, limit=LONGEST_LINE_BYTES))
    except BaseException:
        connection.close()
        raise


class _Session:
    """One connection to the agent. Its owner closes it after any trouble: what comes then cannot be told apart any more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._asked = ""

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command; the few bytes of one fit what the kernel keeps for a peer that does not read."""
        self._asked = command
        message = {"execute": command, "arguments": arguments} if arguments else {"execute": command}
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def synchronise(self, timeout_s: float, behind: str) -> None:
        """Skip all that was meant for others. Raises: TimeoutError; _Trouble."""
        wanted = secrets.randbits(48)
        self._writer.write(_SENTINEL)
        self.send("guest-sync-delimited", id=wanted)
        if behind:
            self.send(behind)
        async with asyncio.timeout(timeout_s):
            for _ in range(MOST_SKIPPED_LINES):
                line = await self._line(skips=True)
                _, found, answer = line.rpartition(_SENTINEL)
                if found and _parsed(answer) == {"return": wanted}:
                    return
        raise _Trouble(f"its agent sends on and on: not synchronised after {MOST_SKIPPED_LINES} lines")

    async def answer(self, timeout_s: float) -> Any:
        """Return what the agent answers to the command sent last or, behind a synchronisation, then. Raises: _Trouble."""
        asked = self._asked
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._line()
        except TimeoutError as error:
            raise _Trouble(f"its agent does not answer {asked} within {timeout_s:g} s") from error
        message = _parsed(line)
        if isinstance(message, dict) and "error" in message:
            raise _Refused(f"its agent refused {asked}: {_text(message['error'])}")
        if not isinstance(message, dict) or "return" not in message:
            raise _Trouble(f"its agent's answer to {asked} makes no sense")
        return message["return"]

    def close(self) -> None:
        """End the connection at once; what the kernel has taken still arrives."""
        self._writer.transport.abort()

    async def _line(self, *, skips: bool = False) -> bytes:
        """Return the next line or, where it is too long and ``skips`` is set, a part of it. Raises: _Trouble."""
        try:
            return await self._reader.readuntil()
        except asyncio.LimitOverrunError as error:
            if skips:
                return await self._reader.readexactly(error.consumed)
            raise _Trouble(f"its agent's answer to {self._asked} is longer than {LONGEST_LINE_BYTES} bytes") from error
        except asyncio.IncompleteReadError as error:
            raise _Trouble(f"its agent's socket was closed before an answer to {self._asked} came") from error
        except OSError as error:
            raise _Trouble(f"its agent's socket was lost before an answer to {self._asked} came: {error.strerror}") from error


def _parsed(line: bytes) -> Any:
    """Return the JSON of a line, None for what is none."""
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None


def _text(error: Any) -> str:
    """Return an agent's own text, short and without what could not be shown in one line."""
    described = error.get("desc") if isinstance(error, dict) else None
    if not isinstance(described, str) or not described:
        return "it does not say why"
    shown = "".join(each if each.isprintable() else "?" for each in described[: _LONGEST_TEXT + 1])
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[:_LONGEST_TEXT]}..."
