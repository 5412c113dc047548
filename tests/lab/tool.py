# SPDX-License-Identifier: MIT
"""``domsnap`` as a process, with and without a terminal.

It knows nothing of pytest.
"""

import json
import os
import pty
import select
import subprocess
import sys
import time
from typing import Any

RUN_TIMEOUT_S = 60.0

_AS_NOBODY = """
import os, sys
import rich.progress, snapd.cli.client
from snapd.cli.main import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main()
"""
"""Everything is imported before, because others may not read where it lies."""


class Tool:
    """Runs the tool for the service on one bus."""

    def __init__(self, bus_address: str) -> None:
        self.environment = {**os.environ, "DOMSNAP_BUS": bus_address, "PYTHONUNBUFFERED": "1"}
        self.command = [sys.executable, "-m", "snapd.cli.main"]

    def run(self, *arguments: str, as_nobody: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run without a terminal."""
        command = [sys.executable, "-c", _AS_NOBODY] if as_nobody else self.command
        return subprocess.run(
            [*command, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )

    def done(self, *arguments: str) -> str:
        """Run what must succeed. Returns: its standard output."""
        ran = self.run(*arguments)
        if ran.returncode:
            raise AssertionError(f"domsnap {' '.join(arguments)} ended with {ran.returncode}: {ran.stderr}")
        return ran.stdout

    def json(self, *arguments: str) -> Any:
        """Run with ``--json`` what must succeed. Returns: what it printed, parsed."""
        return json.loads(self.done("--json", *arguments))

    def on_terminal(self, *arguments: str, answer: str = "") -> tuple[int, str]:
        """Run on a terminal and give ``answer`` to the first question. Returns: exit code, and all that was shown."""
        ours, theirs = pty.openpty()
        try:
            environment = {**self.environment, "TERM": "xterm", "COLUMNS": "100"}
            process = subprocess.Popen(
                [*self.command, *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
            )
        finally:
            os.close(theirs)
        try:
            return self._converse(process, ours, answer)
        finally:
            os.close(ours)
            if process.poll() is None:
                process.kill()
            process.wait()

    def _converse(self, process: "subprocess.Popen[bytes]", terminal: int, answer: str) -> tuple[int, str]:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        shown = b""
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # EIO: the other side has closed it
                return process.wait(RUN_TIMEOUT_S), shown.decode()
            shown += part
            if answer and b"[y/N]" in shown:
                os.write(terminal, answer.encode() + b"\n")
                answer = ""
        raise TimeoutError(f"domsnap shows no more and does not end: {shown.decode(errors='replace')}")
