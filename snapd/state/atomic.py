# SPDX-License-Identifier: MIT
"""The only writer of state: files that are wholly the old or wholly the new, whatever happens meanwhile.

It does not know what is in the files. Everything here blocks: callers use ``asyncio.to_thread``, and a call once begun runs
to its end though the waiting for it is cancelled.

- A path always names one whole content: a new one is made beside it, made durable, and only then renamed over it.
- A write that fails leaves the old content, and no file of its own.
- Only ``kill -9`` and a power cut leave a temporary file; ``sweep`` takes those away, before anything else writes there.
- Two writers of one path do not mix: the last rename wins.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from snapd.errors import NoSpace, StateDamaged

_NAME_LIMIT_BYTES = 255
_READ_BYTES = 2**20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, sync_directory: bool = True) -> None:
    """Make ``data`` the content of ``path``.

    Args: ``mode`` holds whatever the umask. Without ``sync_directory`` a power cut may bring the old content back until
    the next write or removal in that directory that does sync it; the content is whole all the same, as it is durable
    before it is renamed. That is safe only where losing the write is as good as its never having happened. It is not
    where a later file refers to this one, however soon that one is synced: nothing promises that two renames become
    durable in their order.
    Raises: NoSpace or StateDamaged. ``path`` has its old content, unless the sentence says that it has the new one.
    """
    with _reported(path, "cannot be written", len(data)), _directory_of(path) as directory:
        with _temporary_name(path, directory) as temporary:
            _write_new(temporary, directory, data, mode)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        if sync_directory:
            _sync_directory(path, directory)


def replace_symlink_atomically(path: Path, target: str | Path) -> None:
    """Make ``path`` a symbolic link to ``target``, which need not exist.

    Raises: NoSpace or StateDamaged, as ``write_atomically``.
    """
    with _reported(path, "cannot be made a link", 0), _directory_of(path) as directory:
        with _temporary_name(path, directory) as temporary:
            os.symlink(target, temporary, dir_fd=directory)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        _sync_directory(path, directory)


def remove_durably(path: Path) -> None:
    """Remove the file ``path``; one that is missing is as good, and its absence is made durable too.

    Raises: NoSpace or StateDamaged; the file is there still, unless the sentence says that it is not.
    """
    with _reported(path, "cannot be removed", 0):
        try:
            with _directory_of(path) as directory:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=directory)
                _sync_directory(path, directory)
        except FileNotFoundError:
            return  # there is no directory, so nothing in it


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a whole regular file of at most ``limit`` bytes.

    Raises: FileNotFoundError when there is none, which is no damage; StateDamaged for all else.
    """
    try:
        # Opening a FIFO that lies there by mistake would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StateDamaged(str(path), 0, "it is no regular file")
            data = bytearray()
            while len(data) <= limit and (piece := os.read(descriptor, min(_READ_BYTES, limit + 1 - len(data)))):
                data += piece
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise StateDamaged(str(path), 0, f"it cannot be read: {cause.strerror}") from cause
    if len(data) > limit:
        raise StateDamaged(str(path), 0, f"it has more than {limit} bytes")
    return bytes(data)


def sweep(directory: Path) -> list[Path]:
    """Remove what a killed writer left in ``directory``; nothing may be writing there.

    Returns: what was removed.
    Raises: StateDamaged when the directory or one of the files resists.
    """
    removed = []
    with _reported(directory, "cannot be swept", 0):
        for each in sorted(directory.iterdir()):
            if _TEMPORARY.fullmatch(each.name) and (each.is_symlink() or each.is_file()):
                each.unlink()
                removed.append(each)
    return removed


@contextlib.contextmanager
def _directory_of(path: Path) -> Iterator[int]:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary_name(path: Path, directory: int) -> Iterator[str]:
    """Give a name that ``sweep`` knows, and leave nothing under it."""
    suffix = f".{secrets.token_hex(8)}.tmp"
    stem = os.fsencode(path.name)[: _NAME_LIMIT_BYTES - len(suffix) - 1]
    name = f".{os.fsdecode(stem)}{suffix}"
    try:
        yield name
    except BaseException:
        # The error that led here is the one to report; what resists is left to sweep.
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise


def _write_new(name: str, directory: int, data: bytes, mode: int) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path, directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as cause:
        raise StateDamaged(
            str(path), 0, f"it was changed, but whether that outlasts a power cut is not known: {cause.strerror}"
        ) from cause


@contextlib.contextmanager
def _reported(path: Path, what: str, size_bytes: int) -> Iterator[None]:
    """Turn what the system says into an error of ours."""
    try:
        yield
    except OSError as cause:
        if cause.errno in _FULL:
            raise NoSpace(str(path.parent), size_bytes, _free_bytes(path.parent)) from cause
        raise StateDamaged(str(path), 0, f"it {what}: {cause.strerror}") from cause


def _free_bytes(directory: Path) -> int:
    try:
        status = os.statvfs(directory)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
