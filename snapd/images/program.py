# SPDX-License-Identifier: MIT
"""One run of the program ``qemu-img``: its arguments, its time, its end, and what it says on the way.

What to run it for is not its subject. Invariants:

- Arguments go as a list, never through a shell.
- A run that is cancelled or out of time has been killed and reaped by the time the caller knows.
- What it complains about names files as the caller does.
"""

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

from snapd.errors import ImageInUse, ImageToolFailed

REAP_TIMEOUT_S = 10.0  # a killed process that waits for a dead disk stays until the disk answers

Told = Callable[[float], None]
"""Told how far a run is, in percent."""

_LOCKED = re.compile(r"Failed to get .*lock\nIs another process using the image \[(.*)\]\?", re.MULTILINE)
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_LONGEST_PERCENT_BYTES = 32
_CHUNK_BYTES = 4096


async def run_program(
    program: str,
    *arguments: str,
    about: str,
    timeout_s: float,
    passed: Mapping[int, str] | None = None,
    accept: tuple[int, ...] = (0,),
    told: Told | None = None,
) -> bytes:
    """Run to the end and return what was printed.

    Args: ``about`` is the image to name in errors; ``passed`` are descriptors to inherit, which arguments mention by
    ``descriptor_path``, with what they are to be called in errors; ``told`` hears what a run with ``-p`` says.
    Raises: ImageToolFailed with what the program said; ImageInUse when another process has an image open.
    """
    if about:
        require_absolute(about)
    command = f"qemu-img {arguments[0]} {about}".rstrip()
    named = passed or {}
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            pass_fds=tuple(named),
        )
    except OSError as error:
        raise ImageToolFailed(command, f"{program} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            answer, complaint = await (process.communicate() if told is None else _listen(process, told))
    except TimeoutError as error:
        raise ImageToolFailed(command, f"it did not end within {timeout_s:g} s and was killed") from error
    finally:
        await _reap(process)
    if process.returncode in accept:
        return answer
    shown = complaint.decode(errors="replace")
    for descriptor, name in named.items():
        shown = re.sub(rf"{descriptor_path(descriptor)}\b", name.replace("\\", r"\\"), shown)
    raise _failure(command, shown, process.returncode)


def descriptor_path(descriptor: int) -> str:
    """Return the name under which a program opens a file that it has inherited."""
    return f"/proc/self/fd/{descriptor}"


def require_absolute(path: str) -> None:
    """Raise ValueError for a path that depends on where the program is started."""
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not absolute")


async def _listen(process: asyncio.subprocess.Process, told: Told) -> tuple[bytes, bytes]:
    """Pass on each percentage as it comes; return the complaint alone, which comes at the end if at all."""
    if process.stdout is None or process.stderr is None:
        raise ValueError("the program was started without pipes")
    rest = b""
    while part := await process.stdout.read(_CHUNK_BYTES):
        rest += part
        found = None
        for found in _PERCENT.finditer(rest):
            told(float(found[1]))
        rest = rest[found.end() if found else 0 :][-_LONGEST_PERCENT_BYTES:]
    complaint = await process.stderr.read()
    await process.wait()
    return b"", complaint


async def _reap(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(REAP_TIMEOUT_S):
            await process.wait()


def _failure(command: str, complaint: str, status: int | None) -> ImageInUse | ImageToolFailed:
    if locked := _LOCKED.search(complaint):
        return ImageInUse(locked[1], "is open in another process, most likely QEMU; shut the domain off first")
    lines = [line.removeprefix("qemu-img: ") for line in complaint.splitlines() if line.strip()]
    return ImageToolFailed(command, lines[-1] if lines else f"it ended with status {status} and said nothing")
