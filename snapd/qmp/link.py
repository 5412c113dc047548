# SPDX-License-Identifier: MIT
"""The link to one domain's monitor: connected while QEMU lives, tried again with back-off while it does not.

Not here: what the commands mean. Invariants:

- at most one connection at a time, owned by ``keep``, which runs for the life of the domain;
- every command has a time-out; one that is met ends the connection, because a late answer could no longer be told apart from
  the state of a QEMU that has done what was asked;
- a command that was sent is never cancelled in QEMU: only waiting for it ends.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPError, StateError

from snapd.errors import DomainUnreachable, MonitorLost, QemuFailed
from snapd.qmp.monitor import Event, Monitor

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0
KEPT_EVENTS = 1000
"""How many events one operation can be behind; the oldest go first, and every wait of ours also asks QEMU."""

log = logging.getLogger(__name__)


class EventLog:
    """The events that came since it was opened, newest last, bounded."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._arrived = asyncio.Event()

    def add(self, event: Event) -> None:
        self.events.append(event)
        self._arrived.set()

    def last(self, *names: str) -> Event | None:
        """Return the newest event of one of ``names``."""
        return next((event for event in reversed(self.events) if event["event"] in names), None)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for any event. Returns: whether one came since the last ``wait``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        self._arrived.clear()
        return True

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for events until ``condition`` holds. Returns: whether it does."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass
        return condition()


class Link:
    """A monitor that is connected whenever it can be.

    Args:
        on_up: told after each connect, before anything else uses the link.
        on_down: told why there is no connection, once for each different reason; the first argument is whether QEMU is there.
        on_event: told of each event; must return at once.
    """

    def __init__(
        self,
        domain: str,
        path: str,
        on_up: Callable[[], Awaitable[None]],
        on_down: Callable[[bool, str], Awaitable[None]],
        on_event: Callable[[Event], None],
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self.domain, self.path = domain, path
        self._on_up, self._on_down, self._on_event = on_up, on_down, on_event
        self._monitor = Monitor(self._dispatch)
        self._logs: list[EventLog] = []
        self._up = False
        self._shutdown_seen = False
        self._descriptors = asyncio.Lock()
        self.names: Mapping[str, str] = {}
        """Other names for images than this QEMU's own."""

    @property
    def is_up(self) -> bool:
        return self._up

    async def keep(self) -> None:
        """Connect, stay connected, and connect again; runs until cancelled."""
        retry_s, told, ended = FIRST_RETRY_S, "", ""
        try:
            while True:
                there, reason = await self._connect()
                if not reason:
                    retry_s, told = FIRST_RETRY_S, ""
                    ended = await self._stay()
                    continue  # at once: how the next try fails tells whether QEMU is still there
                reason = reason if there else ended or reason
                if reason != told:
                    log.info("domain %s: %s", self.domain, reason)
                    await self._on_down(there, reason)
                    told = reason
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
        finally:
            self._up = False
            await self._monitor.shut()

    async def _stay(self) -> str:
        """Be connected until the connection ends. Returns: why QEMU is gone, if it is."""
        self._shutdown_seen = False
        self._up = True
        try:
            await self._on_up()
        except (MonitorLost, QemuFailed, DomainUnreachable) as error:
            log.warning("domain %s: %s", self.domain, error)
        await self._monitor.wait_closed()
        self._up = False
        await self._monitor.shut()
        return "its QEMU has ended" if self._shutdown_seen else "its QEMU has ended without saying so: killed, or crashed"

    async def execute(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S, **arguments: Any) -> Any:
        """Run a QMP command; ``_`` in the names of arguments stands for ``-``, and an argument of None is left out.

        Raises: QemuFailed with QEMU's own text; MonitorLost when no answer came; DomainUnreachable when nothing was sent.
        """
        sent = {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
        return await self.execute_exactly(command, sent, timeout_s)

    async def execute_exactly(self, command: str, arguments: dict[str, Any], timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Run a QMP command with arguments as they stand. Raises: as ``execute``."""
        if not self._monitor.is_open:
            raise DomainUnreachable(self.domain, f"its monitor {self.path} is not connected")
        transport = self._monitor.transport
        try:
            async with asyncio.timeout(timeout_s):
                return await self._monitor.execute(command, arguments)
        except ExecuteError as error:
            raise QemuFailed(self.domain, command, str(error)) from error
        except TimeoutError as error:
            log.warning("domain %s: no answer to %s within %s s", self.domain, command, timeout_s)
            transport.abort()
            raise MonitorLost(self.domain, command, f"no answer came within {timeout_s:g} s") from error
        except (ExecInterruptedError, StateError, QMPError, OSError, EOFError) as error:
            raise MonitorLost(self.domain, command, str(error) or type(error).__name__) from error

    async def execute_with_descriptor(self, descriptor: int, command: str, **arguments: Any) -> Any:
        """Run a command that takes a descriptor, sent just before it. Raises: as ``execute``."""
        async with self._descriptors:
            if not self._monitor.is_open:
                raise DomainUnreachable(self.domain, f"its monitor {self.path} is not connected")
            try:
                self._monitor.send_fd_scm(descriptor)
            except OSError as error:
                raise MonitorLost(self.domain, command, str(error)) from error
            return await self.execute(command, **arguments)

    @contextlib.contextmanager
    def watch(self) -> Iterator[EventLog]:
        """Collect the events that come inside the block."""
        watching = EventLog()
        self._logs.append(watching)
        try:
            yield watching
        finally:
            self._logs.remove(watching)

    def _dispatch(self, event: Event) -> None:
        if event["event"] == "SHUTDOWN":
            self._shutdown_seen = True
        for each in self._logs:
            each.add(event)
        self._on_event(event)

    async def _connect(self) -> tuple[bool, str]:
        """Try once. Returns: whether QEMU is there, and why there is no connection, empty where there is one."""
        if insecure := await asyncio.to_thread(_insecurity, Path(self.path)):
            return True, insecure
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._monitor.connect(self.path)
        except TimeoutError:
            await self._monitor.shut()
            return True, self._not_greeted
        except ConnectError as error:
            cause = error.exc
            if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
                return False, "no QEMU listens at its monitor"
            # The kernel says EAGAIN when too many wait, ourselves of earlier times among them. asyncio takes that for a connect
            # that is under way, and meets EINVAL when it reads.
            if isinstance(cause, BlockingIOError) or (isinstance(cause, OSError) and cause.errno == errno.EINVAL):
                return True, self._not_greeted
            if isinstance(cause, EOFError | ConnectionResetError):
                return False, "its QEMU ends"
            return True, f"the monitor {self.path} cannot be used: {cause}"
        if foreign := self._foreign_owner():
            await self._monitor.shut()
            return True, foreign
        return True, ""

    @property
    def _not_greeted(self) -> str:
        return f"another client holds the monitor {self.path}, or its QEMU is stopped: it does not greet us"

    def _foreign_owner(self) -> str:
        """Return why the socket is not to be trusted, or nothing: it must belong to root, to us or to QEMU's own user."""
        connected: socket.socket = self._monitor.transport.get_extra_info("socket")
        size = struct.calcsize("iII")
        _, peer_uid, _ = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        try:
            owner = os.stat(self.path).st_uid  # noqa: PTH116 - one call on a socket that is open
        except OSError:
            return ""
        if owner in (0, os.geteuid(), peer_uid):
            return ""
        return f"the monitor {self.path} belongs to user {owner}, who is neither root nor the user that QEMU runs as"


def _insecurity(path: Path) -> str:
    """Return why anyone could put a socket of theirs at ``path``, or nothing."""
    try:
        status = path.parent.stat()
    except OSError:
        return ""
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return f"anyone may replace the monitor {path}: take the right to write to {path.parent} from others"
    return ""
