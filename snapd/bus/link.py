# SPDX-License-Identifier: MIT
"""The socket of a bus: the greeting, framing, the line of what waits to leave, and why it ended.

It knows bytes and time only; what is in a message is the business of `wire`, and no D-Bus library is needed here.

- A message over the limit is never held: its header is, its body is let go slice by slice as it arrives.
- Bytes leave in the order in which they were put, and a full socket means "nothing was sent", not a lost connection.
- No timer exists while nothing waits, so an idle connection never wakes anyone.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 16 * 1024  # one read in each turn of the loop: a flood of small calls leaves turns to everyone else
MAX_HEADER_BYTES = 64 * 1024
MAX_POSTED_BYTES = 16 * 1024 * 1024
STALL_TIMEOUT_S = 60.0
MAX_GREETING_BYTES = 4096

_FIXED_HEADER_BYTES = 16
_PROTOCOL_MAX_BYTES = 128 * 1024 * 1024
_ENDED = "the bus ended the connection"


class WireClosed(Exception):
    """The connection to the bus is not there, or ended before the answer came; `str()` says why."""


class Garbled(Exception):
    """The bytes that arrived are not D-Bus messages."""


@dataclass(frozen=True)
class Frame:
    """One message as it arrived; of a refused one only the header, which then says that the body is empty."""

    data: bytes
    refused_bytes: int = 0


class Frames:
    """Cut the stream of bytes into messages."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()
        self._skip_bytes = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take what arrived and yield what it completes; to be exhausted before it is called again.

        A message whose header alone passes `MAX_HEADER_BYTES` is let go without a word: who sent it stands in that header.

        Raises: `Garbled`; nothing that follows can be made sense of.
        Source: D-Bus specification, "Message Format".
        """
        skipped = min(self._skip_bytes, len(data))
        self._skip_bytes -= skipped
        self._held += memoryview(data)[skipped:]
        while len(self._held) >= _FIXED_HEADER_BYTES:
            header_bytes, body_bytes = _lengths(self._held)
            whole_bytes = header_bytes + body_bytes
            if header_bytes > MAX_HEADER_BYTES:
                self._let_go(whole_bytes)
                continue
            refused = whole_bytes > self._limit_bytes
            needed = header_bytes if refused else whole_bytes
            if len(self._held) < needed:
                return
            frame = bytearray(memoryview(self._held)[:needed])
            if refused:
                frame[4:8] = bytes(4)
            self._let_go(whole_bytes)
            yield Frame(bytes(frame), whole_bytes if refused else 0)

    def _let_go(self, count: int) -> None:
        self._skip_bytes = max(0, count - len(self._held))
        del self._held[:count]


def _lengths(start: bytearray) -> tuple[int, int]:
    """Return the length of the header, with its padding, and that of the body."""
    order = {ord("l"): "<", ord("B"): ">"}.get(start[0])
    if order is None:
        raise Garbled(f"a message begins with byte {start[0]:#04x}")
    body_bytes, _serial, fields_bytes = struct.unpack_from(f"{order}III", start, 4)
    header_bytes = _FIXED_HEADER_BYTES + fields_bytes + -fields_bytes % 8
    if header_bytes + body_bytes > _PROTOCOL_MAX_BYTES:
        raise Garbled(f"a message claims to be {header_bytes + body_bytes} bytes long")
    return header_bytes, body_bytes


class Outbox:
    """The line of messages that wait for the kernel to take them.

    Who waits for its message holds back itself. What is posted has nobody who waits, so it is bounded: past
    `MAX_POSTED_BYTES`, and when the bus takes nothing for `STALL_TIMEOUT_S`, the connection is given up.
    """

    def __init__(self, sock: socket.socket, give_up: Callable[[str], None]) -> None:
        self._sock = sock
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._line: deque[tuple[bytes | bytearray, asyncio.Future[None] | None]] = deque()
        self._sent_bytes = 0
        self._posted_bytes = 0
        self._stall: asyncio.TimerHandle | None = None

    def put(self, data: bytes | bytearray, sent: asyncio.Future[None] | None = None) -> None:
        """Append a message; `sent` is done once the kernel has all of it, and without one the message counts as posted."""
        self._line.append((data, sent))
        if sent is None:
            self._posted_bytes += len(data)
        if len(self._line) == 1:
            self._flush()
        if self._posted_bytes > MAX_POSTED_BYTES:
            self._give_up(f"the bus does not take what is sent: more than {MAX_POSTED_BYTES >> 20} MiB of signals wait")

    def close(self, error: Exception) -> None:
        """Drop the line; whoever waits for a message in it gets the error."""
        self._loop.remove_writer(self._sock)
        if self._stall is not None:
            self._stall.cancel()
        for _, sent in self._line:
            if sent is not None and not sent.done():
                sent.set_exception(error)
        self._line.clear()

    def _flush(self) -> None:
        progressed = False
        try:
            while self._line:
                data, sent = self._line[0]
                self._sent_bytes += self._sock.send(memoryview(data)[self._sent_bytes :])
                progressed = True
                if self._sent_bytes < len(data):
                    break  # full for now, and the others in the loop have their turn
                self._line.popleft()
                self._sent_bytes = 0
                if sent is None:
                    self._posted_bytes -= len(data)
                elif not sent.done():
                    sent.set_result(None)
        except BlockingIOError:
            pass  # the kernel took nothing: the rest leaves when the socket is writable
        except OSError as error:
            self._give_up(_reason(error))
            return
        self._wait_for_room(progressed)

    def _wait_for_room(self, progressed: bool) -> None:
        if self._stall is not None and (progressed or not self._line):
            self._stall.cancel()
            self._stall = None
        if not self._line:
            self._loop.remove_writer(self._sock)
            return
        self._loop.add_writer(self._sock, self._flush)
        if self._stall is None:
            reason = f"the bus took nothing for {STALL_TIMEOUT_S:.0f} s"
            self._stall = self._loop.call_later(STALL_TIMEOUT_S, self._give_up, reason)


class Link:
    """The authenticated socket: frames in, bytes out, and why it ended."""

    def __init__(self, sock: socket.socket, limit_bytes: int, received: Callable[[Frame], None]) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._sock = sock
        self._received = received
        self._frames = Frames(limit_bytes)
        self._outbox = Outbox(sock, self.end)
        asyncio.get_running_loop().add_reader(sock, self._read)

    @classmethod
    async def open(cls, address: str, limit_bytes: int, received: Callable[[Frame], None]) -> Self:
        """Connect and authenticate.

        Raises: `WireClosed`; `ValueError` when the address is none.
        """
        path = socket_path(address)
        with ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await asyncio.get_running_loop().sock_connect(sock, path)
                    await _greet(sock)
            except OSError as error:
                why = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
                raise WireClosed(f"the bus at {address} cannot be reached: {why}") from error
            undo.pop_all()
        return cls(sock, limit_bytes, received)

    def put(self, data: bytes | bytearray, sent: asyncio.Future[None] | None = None) -> None:
        """As `Outbox.put`.

        Raises: `WireClosed`.
        """
        if self.closed.done():
            raise WireClosed(self.closed.result())
        self._outbox.put(data, sent)

    def end(self, reason: str) -> None:
        """Close the socket; the first reason counts."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        asyncio.get_running_loop().remove_reader(self._sock)
        self._outbox.close(WireClosed(reason))
        self._sock.close()

    def _read(self) -> None:
        # recv, and not recvmsg: the kernel closes file descriptors that somebody sends nevertheless.
        try:
            data = self._sock.recv(READ_BYTES)
            for frame in self._frames.feed(data):
                self._received(frame)
                if self.closed.done():
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self.end(_reason(error))
            return
        except Garbled as error:
            self.end(f"the bus sent what is not D-Bus: {error}")
            return
        if not data:
            self.end(_ENDED)


def _reason(error: OSError) -> str:
    return _ENDED if isinstance(error, ConnectionError) else f"the connection to the bus broke: {error.strerror}"


def socket_path(address: str) -> str:
    """Return what to connect to for "system", "session" or a D-Bus address; the first unix socket in it counts.

    Raises: `ValueError` when the address has none.
    """
    if address == "system":
        address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    elif address == "session":
        address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path=/run/user/{os.getuid()}/bus")
    for entry in address.split(";"):
        transport, _, rest = entry.partition(":")
        options = dict(option.partition("=")[::2] for option in rest.split(","))
        if transport == "unix" and "path" in options:
            return unquote(options["path"])
        if transport == "unix" and "abstract" in options:
            return "\0" + unquote(options["abstract"])
    raise ValueError(f"{address!r} is not the address of a unix socket")


async def _greet(sock: socket.socket) -> None:
    """Authenticate as whoever the kernel says we are, and ask for no file descriptors.

    No uid is named: inside a user namespace ours is not the one that the bus sees, and it refuses a wrong one.

    Raises: `ConnectionError` when the bus refuses.
    Source: D-Bus specification, "Authentication Protocol".
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
    answer = b""
    while not answer.endswith(b"\r\n") or answer.count(b"\r\n") < 2:
        received = await loop.sock_recv(sock, MAX_GREETING_BYTES)
        answer += received
        if not received or len(answer) > MAX_GREETING_BYTES or not b"DATA\r\nOK ".startswith(answer[:9]):
            raise ConnectionError(f"it refuses us: {answer[:80].decode(errors='replace').strip() or 'no answer'}")
