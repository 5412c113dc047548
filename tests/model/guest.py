# SPDX-License-Identifier: MIT
"""The guest of the model test: how it is made, and what its memory is worth comparing.

Not here: running it (``rig``).
"""

import functools
import hashlib
import struct
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab.qemu import QemuProcess

COUNTER_ADDRESS = 0x7E00
FIRST_PAGE, PAGES, PAGE_BYTES = 0x10000, 128, 4096
LOW_MEMORY_BYTES = 0x9F000
"""All that the guest and its BIOS write to, but for the BIOS's own data at the end."""

TOOL_TIMEOUT_S = 60.0
MOST_TICKS = 200 * 60
"""What the guest counts in a minute, far longer than any request takes to stop it."""

_SOURCE = Path(__file__).with_name("ticking.S")


@dataclass(frozen=True)
class Memory:
    """What is known of a guest's memory at one instant.

    Its counter was from ``first`` to ``last``; where the guest stood still, ``digest`` is that of all its low memory, else
    empty. ``booted`` is whether the guest had come to counting since its last reset.
    """

    first: int
    last: int
    digest: str
    booted: bool

    def difference(self, now: "Sample", *, stands_still: bool) -> str:
        """Return how a memory that was loaded from this instant differs from it, or nothing.

        Args:
            stands_still: whether the guest has not run since.
        """
        if stands_still and self.digest and now.digest != self.digest:
            return f"memory was {self.digest} and is {now.digest} (counter {self.first}, now {now.counter})"
        if stands_still and not self.first <= now.counter <= self.last:
            return f"the counter was in {self.first}..{self.last} and is {now.counter}"
        # A guest that goes on before it has booted sets its counter to zero when it does.
        if self.booted and now.counter < self.first:
            return f"the counter was at least {self.first} and is {now.counter}"
        return now.torn() if self.booted and stands_still else ""


@dataclass(frozen=True)
class Sample:
    """What was read from a guest's memory."""

    counter: int
    digest: str
    pages: tuple[int, ...]

    def torn(self) -> str:
        """Return which page does not fit the counter, or nothing where all is of one instant."""
        for index, value in enumerate(self.pages):
            latest = self.counter - (self.counter - index) % PAGES
            # The page of the present count may not be written yet; page 0 holds nothing before count 128.
            allowed = {max(0, latest)} | ({max(0, latest - PAGES)} if latest == self.counter else set())
            if value not in allowed:
                return f"page {index} holds {value} with the counter at {self.counter}"
        return ""


def sample(qemu: QemuProcess) -> Sample:
    """Read the guest's low memory; it may be running, but then only the counter means anything."""
    path = qemu.directory / "memory"
    qemu.control.execute("pmemsave", val=0, size=LOW_MEMORY_BYTES, filename=str(path))
    data = path.read_bytes()
    path.unlink()
    (counter,) = struct.unpack_from("<I", data, COUNTER_ADDRESS)
    pages = tuple(struct.unpack_from("<I", data, FIRST_PAGE + index * PAGE_BYTES)[0] for index in range(PAGES))
    return Sample(counter, hashlib.sha256(data).hexdigest()[:16], pages)


class Watch:
    """What is known of the running guest; ``booted`` is whether it has come to counting since its last reset."""

    def __init__(self) -> None:
        self.booted = False

    def until_counting(self, qemu: QemuProcess) -> None:
        """Wait until the guest counts. Raises: TimeoutError."""
        qemu.wait_counting()
        self.booted = True

    def look(self, qemu: QemuProcess, *, stands_still: bool) -> Memory:
        """Return what its memory holds now; of a guest that runs, only what that began with is known afterwards."""
        now = sample(qemu)
        return Memory(now.counter, now.counter, now.digest if stands_still else "", self.booted)

    def until_now(self, qemu: QemuProcess, begun: Memory) -> Memory:
        """Return what was the memory at an instant between ``begun`` and now."""
        return replace(begun, last=sample(qemu).counter)

    def until_soon(self, begun: Memory) -> Memory:
        """Return what was the memory of a guest that ran at an instant after ``begun``, and has another one now."""
        return replace(begun, last=begun.last + MOST_TICKS, digest="")

    def compare(self, qemu: QemuProcess, loaded: Memory, *, stands_still: bool) -> None:
        """See that the guest has ``loaded``, a moment ago. Raises: AssertionError."""
        difference = loaded.difference(sample(qemu), stands_still=stands_still)
        assert not difference, difference
        self.booted = loaded.booted


@functools.cache
def boot_sector() -> bytes:
    """Assemble the guest."""
    with tempfile.TemporaryDirectory(prefix="ticking-") as directory:
        object_file, binary = f"{directory}/ticking.o", Path(directory, "ticking.bin")
        _run("as", "--32", "-o", object_file, str(_SOURCE))
        _run("ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext=0x7c00", "-o", str(binary), object_file)
        return binary.read_bytes()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=TOOL_TIMEOUT_S, capture_output=True)
