# SPDX-License-Identifier: MIT
"""The tiny guest: a boot sector that counts in memory and on its disks, and how to read its counters.

Not here: running it (``qemu``). It knows nothing of pytest.

- With the guest stopped, its counter in memory and the one on each disk differ by one at most.
- Every disk made here can boot, whatever its format.
"""

import functools
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.images import content

SECTOR_BYTES = 512
COUNTER_ADDRESS = 0x7E00
ROUNDS_ADDRESS = 0x7C00 + 504
TOOL_TIMEOUT_S = 60.0

_SOURCE = Path(__file__).with_name("tiny.S")
_LOAD_ADDRESS = 0x7C00

Hmp = Callable[[str], str]
"""Runs a command of QEMU's human monitor and returns what that printed."""


@dataclass(frozen=True)
class TinyGuest:
    """A variant of the guest: it counts on ``disks`` disks (0 to 2) and dirties memory from ``first`` up to ``last``.

    Both are addresses on page boundaries from 1 MiB on; equal ones dirty nothing. ``pages`` are dirtied at each count.
    """

    disks: int = 2
    first: int = 0x1000000
    last: int = 0x1000000
    pages: int = 64

    @classmethod
    def dirtying(cls, size_mib: int, disks: int = 2) -> "TinyGuest":
        """Return the variant that dirties ``size_mib`` of memory, from 16 MiB on, over and over."""
        return cls(disks=disks, last=0x1000000 + (size_mib << 20))


COUNTS_ON_TWO = TinyGuest()
COUNTS_ON_ONE = TinyGuest(disks=1)


@functools.cache
def boot_sector(guest: TinyGuest = COUNTS_ON_TWO) -> bytes:
    """Assemble the guest. Raises: RuntimeError with what the assembler said."""
    symbols = {"DISKS": guest.disks, "FIRST": guest.first, "LAST": guest.last, "PAGES": guest.pages}
    with tempfile.TemporaryDirectory(prefix="tiny-guest-") as directory:
        object_file, binary = f"{directory}/tiny.o", Path(directory, "tiny.bin")
        defined = [word for name, value in symbols.items() for word in ("--defsym", f"{name}={value}")]
        _run("as", "--32", *defined, "-o", object_file, str(_SOURCE))
        _run("ld", "-m", "elf_i386", "--oformat", "binary", f"-Ttext={_LOAD_ADDRESS:#x}", "-o", str(binary), object_file)
        code = binary.read_bytes()
    if len(code) != SECTOR_BYTES:
        raise RuntimeError(f"the tiny guest has {len(code)} bytes and must fit a sector of {SECTOR_BYTES}")
    return code


def make_disk(
    path: str | os.PathLike[str],
    image_format: str = "raw",
    size_bytes: int = 1 << 20,
    guest: TinyGuest = COUNTS_ON_TWO,
) -> Path:
    """Make a bootable disk with the guest on it and nothing else. Raises: RuntimeError with what ``qemu-img`` said."""
    path = Path(path)
    raw = path if image_format == "raw" else path.with_name(f"{path.name}.boot")
    with raw.open("xb") as file:
        file.write(boot_sector(guest))
        file.truncate(size_bytes)
    if raw is not path:
        try:
            _run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(path))
        finally:
            raw.unlink()
    return path


def memory_counter(hmp: Hmp) -> int:
    return _word(hmp, COUNTER_ADDRESS)


def memory_rounds(hmp: Hmp) -> int:
    """Return how often the guest has dirtied all of its part of memory."""
    return _word(hmp, ROUNDS_ADDRESS)


def disk_counter(path: str | os.PathLike[str], image_format: str, tag: str = "") -> int:
    """Return the counter in the image, or in an internal snapshot of it, with its backing images; a QEMU may have it open."""
    if tag:
        return int(struct.unpack_from("<I", content(path, image_format, tag), SECTOR_BYTES)[0])
    with tempfile.TemporaryDirectory(prefix="tiny-guest-") as directory:
        sectors = Path(directory, "sectors")
        # From the start of the disk: with skip=, qemu-img takes count= for where to end.
        arguments = [f"if={os.fspath(path)}", f"of={sectors}", f"bs={2 * SECTOR_BYTES}", "count=1"]
        _run("qemu-img", "dd", "-U", "-f", image_format, "-O", "raw", *arguments)
        return int(struct.unpack_from("<I", sectors.read_bytes(), SECTOR_BYTES)[0])


def _word(hmp: Hmp, address: int) -> int:
    printed = hmp(f"xp /1wx {address:#x}")
    _, _, value = printed.partition(":")
    return int(value, 16)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
