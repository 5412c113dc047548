# SPDX-License-Identifier: MIT
"""A real message bus of one's own: a `dbus-daemon` in a directory, for tests, benchmarks and the demonstration.

It knows nothing of pytest, and nothing of who connects.

- The bus is ready when `private_bus` yields, and gone when it returns; it is ended by its process id.
"""

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0

_OPEN_POLICY = """
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>"""

_SYSTEM_POLICY = """
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>"""


@dataclass(frozen=True)
class Bus:
    """A bus that runs."""

    address: str
    pid: int


@contextmanager
def private_bus(
    directory: Path,
    *,
    policies: tuple[Path, ...] = (),
    limits: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Bus]:
    """Run a bus whose socket and configuration lie in the directory.

    Args:
        directory: exists; its path is short enough for a socket (about 100 bytes).
        policies: policy files as in `/etc/dbus-1/system.d`. With any, the bus refuses what a system bus refuses by default;
            without, everything is allowed to everyone.
        limits: names and values as in `dbus-daemon(1)`.
        environment: of the bus and what it activates; that of the caller when it is left out.

    Raises: `RuntimeError` with what the bus said when it did not start.
    """
    socket = directory / "bus"
    config = directory / "bus.conf"
    log = directory / "bus.log"
    config.write_text(_configuration(socket, policies, limits or {}), encoding="utf-8")
    reading, writing = os.pipe()
    try:
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={config}", f"--print-address={writing}"],
                    pass_fds=[writing],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                )
        finally:
            os.close(writing)
        try:
            ready, _, _ = select.select([reading], [], [], START_TIMEOUT_S)
            address = os.read(reading, 4096).decode().strip() if ready else ""
            if not address:
                raise RuntimeError(f"dbus-daemon did not start: {log.read_text(errors='replace')}")
            yield Bus(address, process.pid)
        finally:
            _stop(process)
    finally:
        os.close(reading)
        socket.unlink(missing_ok=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the bus, also one that a test has stopped with SIGSTOP."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def _configuration(socket: Path, policies: tuple[Path, ...], limits: Mapping[str, int]) -> str:
    lines = [f'  <limit name="{name}">{value}</limit>' for name, value in limits.items()]
    lines += [f"  <include>{policy.resolve()}</include>" for policy in policies]
    return f"""<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{"system" if policies else "session"}</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
{_SYSTEM_POLICY if policies else _OPEN_POLICY}
{chr(10).join(lines)}
</busconfig>
"""
