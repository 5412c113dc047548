# SPDX-License-Identifier: MIT
"""File facts and removal: how much room there is, what a file takes, that a file is gone for good.

What is inside an image is not its subject. Invariants:

- Nothing here waits for a disk on the event loop.
- A file that was unlinked stays unlinked after a power failure.
- Every ``OSError`` leaves as an error that names the file.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from snapd.errors import ImageInUse, ImageToolFailed, NoSpace

BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own block is

T = TypeVar("T")


async def free_bytes(directory: str) -> int:
    """Return how much an unprivileged writer may still put into the file system of ``directory``."""
    return await asyncio.to_thread(_free_bytes, directory)


async def device_of(directory: str) -> int:
    """Return what tells file systems apart; needs for space in directories that share it add up."""
    return await asyncio.to_thread(_device_of, directory)


async def allocated_bytes(path: str) -> int:
    """Return what the file takes on disk; holes cost nothing. A symbolic link stands for its target."""
    return await asyncio.to_thread(_allocated_bytes, path)


async def allocated_bytes_of(paths: Sequence[str]) -> dict[str, int]:
    """Return what each of the files takes on disk; those that are missing are left out."""
    return await asyncio.to_thread(lambda: {path: _allocated_bytes(path) for path in paths if _exists(path)})


async def exists(path: str) -> bool:
    """Tell whether there is a file to open; a symbolic link that leads nowhere is none."""
    return await asyncio.to_thread(_exists, path)


async def unlink_created(path: str) -> None:
    """Remove a file that this service created, durably; one that is missing is fine.

    Cancellation: the file is gone before it is passed on.
    """
    await run_to_end(lambda: _unlink(path))


async def sync_file(path: str) -> None:
    """Make the content of a file durable that another process has written."""
    await run_to_end(lambda: _sync_file(path))


async def run_to_end(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Do blocking file work in a thread, and never leave it half done.

    Args: ``undo`` takes back the result of work whose caller was cancelled and will never see it.
    Cancellation: waits for the end of the work, which a thread cannot be stopped short of, then of ``undo``.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _end_of(future)
        if undo is not None and future.exception() is None:
            result = future.result()
            await _end_of(asyncio.get_running_loop().run_in_executor(None, lambda: undo(result)))
        raise


async def _end_of(future: asyncio.Future[T]) -> None:
    """Wait for file work whatever cancellations arrive; only the kernel decides how long it takes."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])


@contextmanager
def named(doing: str, path: str, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an error that says what was being done to which file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            directory = str(Path(path).parent)
            raise NoSpace(directory, needed_bytes, _free_bytes(directory)) from error
        if error.errno == errno.EEXIST:
            raise ImageInUse(path, "already exists and is never overwritten; move it away") from error
        raise ImageToolFailed(f"{doing} {path}", error.strerror or str(error)) from error


def create_exclusively(path: str) -> int:
    """Create an empty file, 0600, and return its descriptor; blocking.

    Raises: ImageInUse when anything has that name, which is then untouched.
    """
    with named("creating", path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def sync_directory(directory: str) -> None:
    """Make the names in ``directory`` durable; blocking."""
    with named("syncing", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _free_bytes(directory: str) -> int:
    with named("asking for the free space of", directory):
        facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize


def _device_of(directory: str) -> int:
    with named("looking at", directory):
        return Path(directory).stat().st_dev


def _allocated_bytes(path: str) -> int:
    with named("looking at", path):
        return Path(path).stat().st_blocks * BLOCK_BYTES


def _sync_file(path: str) -> None:
    with named("making durable", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exists(path: str) -> bool:
    with named("looking at", path):
        return Path(path).exists()


def _unlink(path: str) -> None:
    with named("removing", path):
        try:
            Path(path).unlink()
        except FileNotFoundError:
            return
    sync_directory(str(Path(path).parent))
