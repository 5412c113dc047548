# SPDX-License-Identifier: MIT
"""A real QEMU with disks and monitors of one's choice, for tests, benchmarks and the demonstration.

Not here: what runs in it (``guest``). It knows nothing of pytest.

- The process is ended by its process id when the ``with`` block ends, however it ends.
- A QEMU that did not do what it should says so with what it wrote to its standard error.
"""

import functools
import os
import resource
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab.guest import COUNTS_ON_ONE, make_disk, memory_counter, memory_rounds
from tests.lab.qmp import Qmp

COMMAND_VARIABLE = "DOMSNAPD_TEST_QEMU"
"""A whole command prefix, to run another QEMU than the one on PATH."""

COUNTING_TIMEOUT_S = 60.0
"""A boot takes 0.1 s under TCG, and 5 s where KVM itself is emulated."""

STOP_TIMEOUT_S = 10.0
DEFAULT_MEMORY_MIB = 32
_POLL_S = 0.005


@dataclass(frozen=True)
class GuestDisk:
    """A disk of the guest.

    Args:
        path: of its image; empty for a CD-ROM without medium.
        bus: ``virtio``, ``virtio-iothread``, ``scsi``, ``ide``, ``cdrom``, or ``none`` for a drive that no device uses.
        via: ``drive`` for a legacy ``-drive``, ``blockdev`` for a node of its own name.
        id: of the device; empty for none, and QEMU makes up a path.
        options: more of the ``-drive`` or of the format's ``-blockdev``, as in ``"readonly=on,cache=none"``.
    """

    path: str | os.PathLike[str] = ""
    format: str = "raw"
    bus: str = "virtio"
    via: str = "drive"
    id: str = ""
    options: str = ""

    def arguments(self, index: int) -> list[str]:
        """Return QEMU's arguments for the disk; the first one boots."""
        drive = f"drive{index}" if self.via == "drive" else f"node{index}"
        device = _DEVICES.get(self.bus)
        if device is None:
            return self._back_end(drive)
        front = [device]
        if self.path:
            front.append(f"drive={drive}")
        if self.id:
            front.append(f"id={self.id}")
        if self.bus == "virtio-iothread":
            front.append(f"iothread={_iothread(index)}")
        if index == 0:
            front.append("bootindex=1")
        return [*self._back_end(drive), "-device", ",".join(front)]

    def _back_end(self, drive: str) -> list[str]:
        if not self.path:
            return []
        more = [self.options] if self.options else []
        path = os.fspath(self.path)
        if self.via == "drive":
            return ["-drive", ",".join([f"file={path},format={self.format},if=none,id={drive}", *more])]
        file = f"driver=file,filename={path},node-name={drive}-file"
        return [
            "-blockdev",
            ",".join([file, *more]),
            "-blockdev",
            f"driver={self.format},node-name={drive},file={drive}-file" + (f",{self.options}" if more else ""),
        ]


_DEVICES = {
    "virtio": "virtio-blk-pci",
    "virtio-iothread": "virtio-blk-pci",
    "scsi": "scsi-hd",
    "ide": "ide-hd",
    "cdrom": "ide-cd",
}


def _iothread(index: int) -> str:
    return f"iothread{index}"


def qemu_command() -> list[str]:
    """Return the words that start QEMU."""
    return shlex.split(os.environ.get(COMMAND_VARIABLE, "")) or ["qemu-system-x86_64"]


class QemuProcess:
    """A QEMU that runs from ``start`` until ``stop``, and again after another ``start``.

    Args:
        directory: for sockets and logs; it exists, and its path is short enough for a socket (about 90 bytes).
        accel: ``tcg`` or ``kvm``.
        paused: whether the guest waits for ``cont``.
        extra: more arguments, last.
        cwd: the working directory of QEMU, for relative paths.
    """

    def __init__(
        self,
        directory: Path,
        disks: Sequence[GuestDisk] = (),
        *,
        accel: str = "tcg",
        memory_mib: int = DEFAULT_MEMORY_MIB,
        paused: bool = False,
        extra: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {}
        """What QEMU finds in its environment besides the test's own."""
        self._accel, self._memory_mib, self._paused, self._extra = accel, memory_mib, paused, tuple(extra)
        self.monitor = directory / "qmp"
        """For whoever is tested; nothing here connects to it."""
        self._control_path = directory / "ctl"
        self._log = directory / "qemu.log"
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Qmp | None = None
        self.disks = tuple(disks)

    @property
    def disks(self) -> tuple[GuestDisk, ...]:
        """What QEMU has, or has from its next start on; setting them makes ``arguments`` anew."""
        return self._disks

    @disks.setter
    def disks(self, disks: Sequence[GuestDisk]) -> None:
        self._disks = tuple(disks)
        self.arguments = [
            *("-accel", self._accel, "-m", str(self._memory_mib), "-display", "none", "-nodefaults", "-no-user-config"),
            *("-qmp", f"unix:{self.monitor},server=on,wait=off", "-qmp", f"unix:{self._control_path},server=on,wait=off"),
            *(["-S"] if self._paused else []),
            *_disk_arguments(self._disks),
            *self._extra,
        ]

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def control(self) -> Qmp:
        """The test's own monitor, beside the one that is tested."""
        if self._control is None:
            raise RuntimeError("QEMU does not run")
        return self._control

    def start(self) -> Self:
        """Start QEMU and return when its monitors listen. Raises: RuntimeError with what it said when they never do."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*qemu_command(), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env={**os.environ, **self.environment},
                # Python ignores SIGXFSZ; so does QEMU then, and `limit_files` makes its writes fail instead of ending it.
                restore_signals=False,
            )
        try:
            self._control = Qmp(self._control_path)
        except (OSError, EOFError) as error:
            self.stop()
            raise RuntimeError(f"QEMU did not start: {error}\n{self.story()}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End QEMU as ``kill -9`` does and wait until it is gone; does nothing where it does not run."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def wait_ended(self) -> None:
        """Wait until QEMU has ended by itself, as after ``quit``."""
        self._running.wait(STOP_TIMEOUT_S)
        self.stop()

    def freeze(self) -> None:
        """Stop the process itself (SIGSTOP), so that its monitors do not answer."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def limit_files(self, size_bytes: int) -> None:
        """Let each write beyond ``size_bytes`` of any file fail (EFBIG), or none any more with -1."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))

    def counter(self) -> int:
        return memory_counter(self.control.hmp)

    def wait_counting(self, more: int = 2, timeout_s: float = COUNTING_TIMEOUT_S) -> int:
        """Wait until the guest has counted on. Returns: its counter. Raises: TimeoutError with the counters seen."""
        deadline = time.monotonic() + timeout_s
        first = last = self.counter()
        # A counter that went back is one of a guest that was reset or reverted, or was the BIOS's memory before.
        while last - first < more:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest's counter went from {first} to {last} in {timeout_s} s\n{self.story()}")
            time.sleep(_POLL_S)
            last = self.counter()
            first = min(first, last)
        return last

    def wait_dirtied(self, timeout_s: float = COUNTING_TIMEOUT_S) -> None:
        """Wait until the guest has written to all of the memory that it is to dirty. Raises: TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not memory_rounds(self.control.hmp):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest has not dirtied all in {timeout_s} s\n{self.story()}")
            time.sleep(_POLL_S)

    def story(self) -> str:
        """Return how QEMU was started and what it has written, to show when a test fails."""
        said = self._log.read_text(errors="replace") if self._log.exists() else ""
        return f"{shlex.join([*qemu_command(), *self.arguments])}\n{said}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError("QEMU does not run")
        return self._process


def _disk_arguments(disks: Sequence[GuestDisk]) -> Iterator[str]:
    if any(disk.bus == "scsi" for disk in disks):
        yield from ("-device", "virtio-scsi-pci")
    for index, disk in enumerate(disks):
        if disk.bus == "virtio-iothread":
            yield from ("-object", f"iothread,id={_iothread(index)}")
        yield from disk.arguments(index)


@functools.cache
def kvm_works() -> bool:
    """Return whether a guest really runs under KVM here; ``/dev/kvm`` alone does not tell."""
    with tempfile.TemporaryDirectory(prefix="kvm-") as name:
        directory = Path(name)
        disk = GuestDisk(make_disk(directory / "disk.raw", guest=COUNTS_ON_ONE))
        try:
            with QemuProcess(directory, [disk], accel="kvm") as qemu:
                qemu.wait_counting()
        except (RuntimeError, TimeoutError, EOFError, OSError):
            return False
    return True
