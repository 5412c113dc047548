# SPDX-License-Identifier: MIT
"""What ``qemu-img`` does with whole images: make overlays, look into images, merge and repoint them.

Not here: internal snapshots (``tags``, ``tag_copy``), and how the program is run (``program``). Which image may be merged
with which is decided elsewhere, and that no QEMU has them open. Invariants:

- The format is given wherever it is known, never guessed.
- Nothing is created over an existing file, and no file but our own new one is removed.
- No merge empties or removes an image.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snapd.errors import ImageToolFailed
from snapd.images import header
from snapd.images.files import like, new_file
from snapd.images.header import ImageCheck, ImageInfo
from snapd.images.program import Told, descriptor_path, require_absolute, run_program

QUICK_TIMEOUT_S = 30.0  # header work, milliseconds on a healthy disk
TABLES_TIMEOUT_S = 3600.0  # reads, or writes, all tables of an image
COPY_TIMEOUT_S = 24 * 3600.0  # copies what an image holds

_CORRUPT, _LEAKED = 2, 3  # exit codes of qemu-img check that come with a full answer


@dataclass(frozen=True)
class QemuImg:
    """One ``qemu-img`` program. Paths are absolute. Methods may run at the same time on different images.

    All raise ImageToolFailed with what the program said, and ImageInUse when another process has the image open.
    """

    program: str = "qemu-img"
    quick_timeout_s: float = QUICK_TIMEOUT_S
    tables_timeout_s: float = TABLES_TIMEOUT_S
    copy_timeout_s: float = COPY_TIMEOUT_S

    async def version(self) -> str:
        """Return the version alone, such as ``7.2.22``."""
        answer = await self.run("--version", about="", timeout_s=self.quick_timeout_s)
        found = re.search(rb"version (\S+)", answer)
        if found is None:
            raise ImageToolFailed("qemu-img --version", "the answer names no version")
        return found[1].decode()

    async def create_overlay(
        self,
        path: str,
        backing: str,
        backing_format: str,
        size_bytes: int,
        *,
        cluster_bytes: int = 0,
        extended_l2: bool = False,
    ) -> None:
        """Create an empty qcow2 overlay; the backing image is not opened, so a running QEMU may hold it.

        Args: clusters of ``cluster_bytes``, or of QEMU's default with 0.
        Effects: owner and mode are the backing's, see ``files.like``; file and name are durable.
        Raises: ImageInUse when anything has that name, which is then untouched; nothing is left behind.
        Cancellation: nothing is left behind.
        """
        require_absolute(backing)
        layout = qcow2_layout(cluster_bytes, extended_l2=extended_l2)
        await self.create_new(path, size_bytes, *layout, "-F", backing_format, "-b", backing, "-u", prepare=like(backing))

    async def create_new(
        self, path: str, size_bytes: int, *options: str, prepare: Callable[[int], None] = lambda _fd: None
    ) -> None:
        """Create a qcow2 image, 0600, where nothing is yet.

        Args: ``prepare`` is given the finished image's descriptor, in a thread, before it is made durable.
        Raises, Cancellation: as for ``create_overlay``.
        """
        require_absolute(path)
        async with new_file(path, prepare) as fd:
            # By descriptor: qemu-img truncates what it creates, and by now the name could lead to another's file.
            arguments = ("create", "-q", "-f", "qcow2", *options, descriptor_path(fd), str(size_bytes))
            await self.run(*arguments, about=path, timeout_s=self.quick_timeout_s, passed={fd: path})

    async def info(self, path: str, force_share: bool = False, image_format: str | None = None) -> ImageInfo:
        """Read an image's header.

        Args: ``force_share`` reads although a QEMU writes, so the answer may be a moment old. Give ``image_format``
        wherever it is known: in a raw image the guest could write a header of its own choice.
        """
        return header.read_info(await self._info(path, force_share, image_format), f"qemu-img info {path}")

    async def chain(self, path: str, force_share: bool = False, image_format: str | None = None) -> list[ImageInfo]:
        """Read the headers of an image and all that it backs on, the image first; arguments as for ``info``."""
        answer = await self._info(path, force_share, image_format, "--backing-chain")
        return header.read_chain(answer, f"qemu-img info {path}")

    async def refuse_written(self, path: str) -> None:
        """Raise ImageInUse when another process has the image open for writing; ``info`` overlooks that of a raw one."""
        # Of all that only reads, convert alone lets nobody write meanwhile. Here it copies nothing, to nowhere.
        nothing = json.dumps({"driver": "raw", "size": 0, "file": {"filename": path}})
        await self.run(
            *("convert", "-q", "-n", "-O", "raw", f"json:{nothing}", "null-co://"), about=path, timeout_s=self.quick_timeout_s
        )

    async def check(self, path: str, force_share: bool = False) -> ImageCheck:
        """Count what is wrong inside a qcow2 image; nothing is repaired."""
        answer = await self.run(
            *("check", "--output=json", "-f", "qcow2", *_sharing(force_share), path),
            about=path,
            timeout_s=self.tables_timeout_s,
            accept=(0, _CORRUPT, _LEAKED),
        )
        return header.read_check(answer, f"qemu-img check {path}")

    async def commit(self, overlay: str, into: str) -> None:
        """Copy what a qcow2 overlay holds into its backing image, which then reads the same.

        Effects: ``into`` grows to the overlay's size where that is larger; the overlay and the internal snapshots in
        ``into`` stay as they are.
        Raises: when ``into`` is no image below the overlay, before anything is written. After any other failure
        ``into`` is partly written, the overlay still whole: commit again.
        Cancellation: as after a failure.
        """
        require_absolute(into)
        await self.run(
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
        onto = backing_arguments("-b", backing, backing_format)
        await self.run("rebase", "-q", "-f", "qcow2", *options, *onto, path, about=path, timeout_s=timeout_s)

    async def _info(self, path: str, force_share: bool, image_format: str | None, *options: str) -> bytes:
        given = ("-f", image_format) if image_format else ()
        return await self.run(
            *("info", "--output=json", *given, *_sharing(force_share), *options, path),
            about=path,
            timeout_s=self.quick_timeout_s,
        )

    async def run(
        self,
        *arguments: str,
        about: str,
        timeout_s: float,
        passed: Mapping[int, str] | None = None,
        accept: tuple[int, ...] = (0,),
        told: Told | None = None,
    ) -> bytes:
        """Run the program; see ``run_program``."""
        return await run_program(
            self.program, *arguments, about=about, timeout_s=timeout_s, passed=passed, accept=accept, told=told
        )


def qcow2_layout(cluster_bytes: int, *, extended_l2: bool) -> tuple[str, ...]:
    """Return the options that give a new qcow2 image its cluster size, QEMU's default with 0, and its kind of L2 entries."""
    options = [f"cluster_size={cluster_bytes}"] if cluster_bytes else []
    options += ["extended_l2=on"] if extended_l2 else []
    return ("-o", ",".join(options)) if options else ()


def backing_arguments(option: str, backing: str | None, backing_format: str | None) -> tuple[str, ...]:
    """Return the arguments that name a backing image, or none, after ``option``."""
    if backing is None:
        return (option, "")
    if not backing_format:
        raise ValueError(f"the format of {backing} is not given")
    require_absolute(backing)
    return (option, backing, "-F", backing_format)


def _sharing(force_share: bool) -> tuple[str, ...]:
    return ("-U",) if force_share else ()
