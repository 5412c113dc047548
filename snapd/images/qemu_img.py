# SPDX-License-Identifier: MIT
"""Every use of ``qemu-img``: make overlays, look into images, merge and repoint them while no QEMU has them open.

Which image may be merged with which is decided elsewhere. Invariants:

- Arguments go as a list, never through a shell; the format is given wherever it is known, never guessed.
- A run that is cancelled or out of time has been killed and reaped by the time the caller knows.
- Nothing is created over an existing file, and no file but our own new one is removed.
- No merge empties or removes an image.
"""

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images.files import create_exclusively, named, run_to_end, sync_directory

QUICK_TIMEOUT_S = 30.0  # header work, milliseconds on a healthy disk
CHECK_TIMEOUT_S = 3600.0  # reads all tables of an image
COPY_TIMEOUT_S = 24 * 3600.0  # copies what an image holds
REAP_TIMEOUT_S = 10.0  # a killed process that waits for a dead disk stays until the disk answers

T = TypeVar("T")

_CORRUPT, _LEAKED = 2, 3  # exit codes of qemu-img check that come with a full answer
_LOCKED = re.compile(r"Failed to get .*lock\nIs another process using the image \[(.*)\]\?", re.MULTILINE)


@dataclass(frozen=True)
class ImageInfo:
    """What an image says of itself.

    ``backing`` is an absolute path, or QEMU's own notation (``json:``, ``nbd:``) where it is no local file.
    """

    path: str
    format: str
    virtual_size_bytes: int
    actual_size_bytes: int
    backing: str | None
    backing_format: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True)
class ImageCheck:
    """What ``qemu-img check`` counted; leaks waste space and harm nothing."""

    corruptions: int
    leaks: int
    unchecked: int

    @property
    def is_clean(self) -> bool:
        return not (self.corruptions or self.leaks or self.unchecked)


class _Snapshot(msgspec.Struct):
    name: str


class _Info(msgspec.Struct, rename="kebab"):
    filename: str
    format: str
    virtual_size: int
    actual_size: int = 0
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: list[_Snapshot] = []


class _Check(msgspec.Struct, rename="kebab"):
    check_errors: int
    corruptions: int = 0
    leaks: int = 0


@dataclass(frozen=True)
class QemuImg:
    """One ``qemu-img`` program. Paths are absolute. Methods may run at the same time on different images.

    All raise ImageToolFailed with what the program said, and ImageInUse when another process has the image open.
    """

    program: str = "qemu-img"
    quick_timeout_s: float = QUICK_TIMEOUT_S
    check_timeout_s: float = CHECK_TIMEOUT_S
    copy_timeout_s: float = COPY_TIMEOUT_S

    async def version(self) -> str:
        """Return the version alone, such as ``7.2.22``."""
        answer = await self._run("--version", about="", timeout_s=self.quick_timeout_s)
        found = re.search(rb"version (\S+)", answer)
        if found is None:
            raise ImageToolFailed("qemu-img --version", "the answer names no version")
        return found[1].decode()

    async def create_overlay(
        self, path: str, backing: str, backing_format: str, size_bytes: int, mode: int | None = None
    ) -> None:
        """Create an empty qcow2 overlay; the backing image is not opened, so a running QEMU may hold it.

        Args: ``mode`` are the permission bits; by default the backing's, with read and write for its owner, as the
        backing image itself may be frozen and read-only.
        Effects: the owner is the backing's, unless the service may not give files away; file and name are durable.
        Raises: ImageInUse when anything has that name, which is then untouched; nothing is left behind.
        Cancellation: nothing is left behind.
        """

        def hand_over(fd: int) -> None:
            with named("looking at", backing):
                model = Path(backing).stat()
            with suppress(PermissionError):
                os.fchown(fd, model.st_uid, model.st_gid)
            os.fchmod(fd, (model.st_mode & 0o777) | 0o600 if mode is None else mode)

        _require_absolute(backing)
        await self.create_new(path, size_bytes, "-F", backing_format, "-b", backing, "-u", prepare=hand_over)

    async def create_new(
        self, path: str, size_bytes: int, *options: str, prepare: Callable[[int], None] = lambda _fd: None
    ) -> None:
        """Create a qcow2 image, 0600, where nothing is yet.

        Args: ``prepare`` is given the finished image's descriptor, in a thread, before it is made durable.
        Raises, Cancellation: as for ``create_overlay``.
        """
        _require_absolute(path)
        fd = await run_to_end(lambda: create_exclusively(path), undo=lambda made: _take_back(path, made))
        try:
            # By descriptor: qemu-img truncates what it creates, and by now the name could lead to another's file.
            arguments = ("create", "-q", "-f", "qcow2", *options, f"/proc/self/fd/{fd}", str(size_bytes))
            await self._run(*arguments, about=path, timeout_s=self.quick_timeout_s, fd=fd)
            await run_to_end(lambda: _settle(path, fd, prepare))
        except BaseException:
            await run_to_end(lambda: _take_back(path, fd))
            raise
        os.close(fd)

    async def info(self, path: str, force_share: bool = False, image_format: str | None = None) -> ImageInfo:
        """Read an image's header.

        Args: ``force_share`` reads although a QEMU writes, so the answer may be a moment old. Give ``image_format``
        wherever it is known: in a raw image the guest could write a header of its own choice.
        """
        return (await self._infos(path, force_share, image_format, ()))[0]

    async def chain(self, path: str, force_share: bool = False, image_format: str | None = None) -> list[ImageInfo]:
        """Read the headers of an image and all that it backs on, the image first; arguments as for ``info``."""
        return await self._infos(path, force_share, image_format, ("--backing-chain",))

    async def check(self, path: str, force_share: bool = False) -> ImageCheck:
        """Count what is wrong inside a qcow2 image; nothing is repaired."""
        answer = await self._run(
            *("check", "--output=json", "-f", "qcow2", *_sharing(force_share), path),
            about=path,
            timeout_s=self.check_timeout_s,
            accept=(0, _CORRUPT, _LEAKED),
        )
        counted = _decoded(answer, _Check, f"qemu-img check {path}")
        return ImageCheck(counted.corruptions, counted.leaks, counted.check_errors)

    async def commit(self, overlay: str, into: str) -> None:
        """Copy what a qcow2 overlay holds into its backing image, which then reads the same.

        Effects: ``into`` grows to the overlay's size where that is larger; the overlay stays as it is.
        Raises: when ``into`` is no image below the overlay, before anything is written. After any other failure
        ``into`` is partly written, the overlay still whole: commit again.
        Cancellation: as after a failure.
        """
        _require_absolute(into)
        await self._run(
            *("commit", "-q", "-f", "qcow2", "-d", "-b", into, overlay), about=overlay, timeout_s=self.copy_timeout_s
        )

    async def rebase_onto(self, path: str, backing: str | None, backing_format: str | None) -> None:
        """Back a qcow2 image on another one, or on none, and copy into it what it would lose by that.

        Effects: the image reads the same; internal snapshots inside it do not, so it must have none.
        Raises: the header is written last, so after a failure the image reads the same through its old backing image.
        Cancellation: as after a failure.
        """
        await self._rebase(path, backing, backing_format, (), self.copy_timeout_s)

    async def repoint(self, path: str, backing: str | None, backing_format: str | None) -> None:
        """Write another backing image into a qcow2 image's header, and nothing else: both must read the same."""
        await self._rebase(path, backing, backing_format, ("-u",), self.quick_timeout_s)

    async def _rebase(
        self, path: str, backing: str | None, backing_format: str | None, options: tuple[str, ...], timeout_s: float
    ) -> None:
        if backing is None:
            onto: tuple[str, ...] = ("-b", "")
        elif backing_format is None:
            raise ValueError(f"the format of {backing} is not given")
        else:
            _require_absolute(backing)
            onto = ("-b", backing, "-F", backing_format)
        await self._run("rebase", "-q", "-f", "qcow2", *options, *onto, path, about=path, timeout_s=timeout_s)

    async def _infos(self, path: str, force_share: bool, image_format: str | None, options: tuple[str, ...]) -> list[ImageInfo]:
        given = ("-f", image_format) if image_format else ()
        answer = await self._run(
            *("info", "--output=json", *given, *_sharing(force_share), *options, path),
            about=path,
            timeout_s=self.quick_timeout_s,
        )
        command = f"qemu-img info {path}"
        found = _decoded(answer, list[_Info], command) if options else [_decoded(answer, _Info, command)]
        return [
            ImageInfo(
                each.filename,
                each.format,
                each.virtual_size,
                each.actual_size,
                each.full_backing_filename,
                each.backing_filename_format,
                tuple(snapshot.name for snapshot in each.snapshots),
            )
            for each in found
        ]

    async def _run(
        self, *arguments: str, about: str, timeout_s: float, fd: int | None = None, accept: tuple[int, ...] = (0,)
    ) -> bytes:
        """Run to the end and return what was printed; ``about`` names the image, ``fd`` is one to inherit."""
        if about:
            _require_absolute(about)
        command = f"qemu-img {arguments[0]} {about}".rstrip()
        try:
            process = await asyncio.create_subprocess_exec(
                self.program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
                pass_fds=() if fd is None else (fd,),
            )
        except OSError as error:
            raise ImageToolFailed(command, f"{self.program} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                answer, complaint = await process.communicate()
        except TimeoutError as error:
            raise ImageToolFailed(command, f"it did not end within {timeout_s:g} s and was killed") from error
        finally:
            await _reap(process)
        if process.returncode in accept:
            return answer
        shown = complaint.decode(errors="replace")
        if fd is not None:
            shown = shown.replace(f"/proc/self/fd/{fd}", about)
        raise _failure(command, shown, process.returncode)


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


def _decoded(answer: bytes, kind: type[T], command: str) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageToolFailed(command, f"its answer cannot be read: {error}") from error


def _sharing(force_share: bool) -> tuple[str, ...]:
    return ("-U",) if force_share else ()


def _require_absolute(path: str) -> None:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not absolute")


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
