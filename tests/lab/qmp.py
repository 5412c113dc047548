# SPDX-License-Identifier: MIT
"""A small synchronous QMP client, for looking at a QEMU from outside while the daemon has its own monitor.

It is no part of what is tested, and shares nothing with it. It knows nothing of pytest.

- Every wait has a deadline; meeting it raises TimeoutError.
"""

import array
import json
import os
import select
import socket
import time
from collections import deque
from typing import Any, Self

CONNECT_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 60.0
_POLL_S = 0.01
_KEPT_EVENTS = 10_000


class QmpError(Exception):
    """QEMU answered with an error."""


class Qmp:
    """A connection to the monitor at ``path``, which may be about to appear.

    Raises: TimeoutError when it did not within ``timeout_s``.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._received = b""
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        deadline = time.monotonic() + timeout_s
        self._socket = _connect(os.fspath(path), deadline)
        try:
            self._message(deadline)
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, descriptor: int | None = None, **arguments: Any) -> Any:
        """Run a command; ``_`` in the names of arguments stands for ``-``. Raises: QmpError."""
        sent = {name.replace("_", "-"): value for name, value in arguments.items()}
        line = json.dumps({"execute": command, "arguments": sent}).encode()
        passed = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        self._socket.sendmsg([line], passed)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def hmp(self, command: str) -> str:
        return str(self.execute("human-monitor-command", command_line=command))

    def wait_event(self, name: str, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Return the oldest event of that name, and forget it and what came before it."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self.events:
                if (event := self.events.popleft())["event"] == name:
                    return event
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"QEMU said no more; the last it began to say was {self._received[-200:]!r}")
            part = self._socket.recv(1 << 20)
            if not part:
                raise EOFError("QEMU has closed the monitor")
            self._received += part
        line, self._received = self._received.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message


def _connect(path: str, deadline: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no monitor at {path}: {error}") from error
            time.sleep(_POLL_S)
        else:
            return connection
