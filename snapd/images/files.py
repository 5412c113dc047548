# SPDX-License-Identifier: MIT
"""Files as such: how much room there is, what a file takes, that one is made whole or not at all, that one is gone for good.

What is inside an image is not its subject. Invariants:

- Nothing here waits for a disk on the event loop.
- A file that was unlinked stays unlinked after a power failure.
- A new file is made where nothing was, and no file but that one is removed when it fails.
- Every ``OSError`` leaves as an error that names the file.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

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


async def link_targets(paths: Sequence[str]) -> dict[str, str]:
    """Return where each of ``paths`` that is a symbolic link leads to, as an absolute path and one link far."""
    return await asyncio.to_thread(lambda: {path: _link_target(path) for path in paths if _is_link(path)})


async def unlink_created(path: str) -> None:
    """Remove a file that this service created, durably; one that is missing is fine.

    Cancellation: the file is gone before it is passed on.
    """
    await run_to_end(lambda: _unlink(path))


async def sync_file(path: str) -> None:
    """Make the content of a file durable that another process has written."""
    await run_to_end(lambda: _sync_file(path))


@asynccontextmanager
async def new_file(path: str, prepare: Callable[[int], None] = lambda _fd: None) -> AsyncIterator[int]:
    """Create a file, 0600, for the block to fill through its descriptor; after it file and name are durable.

    Args: ``prepare`` is given the descriptor of the filled file, in a thread, before that is made durable.
    Raises: ImageInUse when anything has that name, which is then untouched. Nothing is left behind when the block fails.
    Cancellation: nothing is left behind.
    """
    fd = await run_to_end(lambda: create_exclusively(path), undo=lambda made: _take_back(path, made))
    try:
        yield fd
        await run_to_end(lambda: _settle(path, fd, prepare))
    except BaseException:
        await run_to_end(lambda: _take_back(path, fd))
        raise
    os.close(fd)


def like(model: str) -> Callable[[int], None]:
    """Return what gives a file the owner and the mode of ``model``, with read and write for its owner; blocking.

    Those come on top as ``model`` may be frozen and read-only. The owner stays where the service may not give files away.
    """

    def hand_over(fd: int) -> None:
        with named("looking at", model):
            facts = Path(model).stat()
        with suppress(PermissionError):
            os.fchown(fd, facts.st_uid, facts.st_gid)
        os.fchmod(fd, (facts.st_mode & 0o777) | 0o600)

    return hand_over


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Let a change that is better not cut short come to its end.

    Cancellation: waits for that end before it is passed on; the change is done then, unless it failed.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _end_of(task)
        task.exception()  # whoever cancelled does not want to know
        raise


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


def _is_link(path: str) -> bool:
    with named("looking at", path):
        return Path(path).is_symlink()


def _link_target(path: str) -> str:
    with named("looking at", path):
        return str(Path(path).parent / Path(path).readlink())


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


def _settle(path: str, fd: int, prepare: Callable[[int], None]) -> None:
    with named("creating", path):
        prepare(fd)
        os.fsync(fd)
    sync_directory(str(Path(path).parent))


def _take_back(path: str, fd: int) -> None:
    """Remove the file that we created as ``path``, unless the name now stands for another one."""
    try:
        ours = os.fstat(fd)
        with named("removing", path), suppress(FileNotFoundError):
            present = Path(path).lstat()
            if (present.st_dev, present.st_ino) == (ours.st_dev, ours.st_ino):
                Path(path).unlink()
    finally:
        os.close(fd)
