# SPDX-License-Identifier: MIT
"""A real ``domsnapd`` as a process of its own, for tests, benchmarks and the demonstration.

Not here: the bus (``bus``) and the domains' QEMU (``qemu``). It knows nothing of pytest.

- The process is ended by its process id when the ``with`` block ends, however it ends.
- It is ready when it says so through the protocol that systemd uses.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 30.0


class DaemonProcess:
    """A daemon with a configuration, a state and a run-time directory below ``directory``.

    Args:
        prefix: a command that ends by becoming the one it is given, as ``unshare`` does.
        state: the state directory, where it is to be elsewhere.
    """

    def __init__(
        self,
        directory: Path,
        bus_address: str,
        *,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        state: Path | None = None,
    ) -> None:
        self._prefix = list(prefix)
        self.directory = directory
        self.bus_address = bus_address
        self.state = state or directory / "state"
        self._log = directory / "domsnapd.log"
        self._config = directory / "etc" / "domsnapd.yaml"
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "etc" / "domains.d").mkdir(parents=True, exist_ok=True)
        self._config.write_text(yaml.safe_dump(dict(settings or {})) if settings else "")

    def define(self, name: str, uuid: str, monitor: Path, **extra: Any) -> None:
        """Write a domain's file, without a uuid where that is empty; the daemon reads it when it starts or reloads."""
        content = {"name": name, **({"uuid": uuid} if uuid else {}), "monitor": str(monitor), **extra}
        (self.domain_files / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    @property
    def domain_files(self) -> Path:
        """The directory of the domains' files."""
        return self._config.parent / "domains.d"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the daemon does not run")
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> Self:
        """Start and wait until it is ready."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            address = self.directory / "notify"
            address.unlink(missing_ok=True)
            notified.bind(str(address))
            notified.settimeout(READY_TIMEOUT_S)
            arguments = ["--config", str(self._config), "--bus", self.bus_address, "--state-directory", str(self.state)]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*self._prefix, sys.executable, "-m", "snapd", *arguments, "--log-level", "debug"],
                    stdout=log,
                    stderr=log,
                    env={**self._environment, "NOTIFY_SOCKET": str(address)},
                )
            try:
                told = notified.recv(4096)
            except TimeoutError as error:
                self.stop()
                raise RuntimeError(f"the daemon did not become ready:\n{self.log}") from error
            if not told.startswith(b"READY=1"):
                self.stop()
                raise RuntimeError(f"the daemon said {told!r} before it was ready:\n{self.log}")
        return self

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End it and return its exit code; does nothing when it has ended before."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(signal_number)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"the daemon did not end within {STOP_TIMEOUT_S} s:\n{self.log}") from None

    def reload(self) -> None:
        """Tell it to read the domains' files again."""
        os.kill(self.pid, signal.SIGHUP)

    def wait_ended(self) -> int:
        """Wait until it has ended by itself. Returns: its exit code. Raises: RuntimeError with its log when it does not."""
        if self._process is None:
            raise RuntimeError("the daemon does not run")
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the daemon did not end within {STOP_TIMEOUT_S} s:\n{self.log}") from error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
