# SPDX-License-Identifier: MIT
"""A new image with the content of an internal snapshot: what the snapshot itself holds is copied, the rest is backed on.

Not here: to apply it to the image that holds it (``tags``). Invariants:

- The new image reads as the internal snapshot did when it was made, and has its size.
- The image that holds it is only read; when another process may write to it, nothing is made.
- The new image is made where nothing was, is readable by the service alone until it is whole, and is gone after a failure.
"""

import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from snapd.errors import ImageToolFailed
from snapd.images.files import like, named, new_file, run_to_end
from snapd.images.header import ImageInfo
from snapd.images.program import descriptor_path, require_absolute
from snapd.images.qemu_img import QemuImg, backing_arguments, qcow2_layout
from snapd.images.tags import HOLDER_FORMAT, require_one
from snapd.model.images import Pin
from snapd.model.plan import Overlay

Report = Callable[[str, int, int], None]

_SIZE_OFFSET = 24  # of the virtual size in a qcow2 header, 8 bytes big-endian
_VIEW_CLUSTER_BYTES = 64 << 10
_SECTOR_BYTES = 512


async def create_copy(tool: QemuImg, overlay: Overlay, pin: Pin, report: Report) -> None:
    """Make the image of ``overlay`` with the content of the internal snapshot ``pin``.

    Args: ``report`` is told of the bytes of its virtual size that are done.
    Effects: owner and mode are those of the image that holds the snapshot, see ``files.like``; file and name are durable.
    Raises: ImageInUse when anything has that name, or when a QEMU may write to what is read; ImageToolFailed. Nothing is left.
    Cancellation: nothing is left behind.
    """
    image = overlay.image
    require_absolute(image.path)
    if image.virtual_size_bytes <= 0:
        raise ValueError(f"the size of {image.path} is not given")
    doing = f"copying internal snapshot {pin.tag!r} out of {pin.image}"
    holder = await tool.info(pin.image, image_format=HOLDER_FORMAT)
    require_one(holder, pin.tag, doing)
    is_at_home = await run_to_end(lambda: _is_same(image.backing, holder.backing))
    own_format = overlay.backing_format if is_at_home else holder.backing_format
    if holder.backing is not None and not own_format:
        raise ImageToolFailed(doing, f"it does not say which format its backing image {holder.backing} has")
    await _Copy(tool, overlay, pin.tag, holder, own_format, is_at_home, report).make()


@dataclass
class _Copy:
    """``own_format`` is that of what the holder backs on; ``is_at_home`` when the new image is to back on the same."""

    tool: QemuImg
    overlay: Overlay
    tag: str
    holder: ImageInfo
    own_format: str | None
    is_at_home: bool
    report: Report

    async def make(self) -> None:
        image = self.overlay.image
        steps = 1 if self.is_at_home else 2
        async with new_file(image.path, like(self.holder.path)) as fd:
            if image.virtual_size_bytes == self.holder.virtual_size_bytes:
                await self._convert(fd, steps, "-f", HOLDER_FORMAT, self.holder.path)
            else:
                async with self._resized() as (source, view):
                    await self._convert(fd, steps, source, view=view)
            if not self.is_at_home:
                await self._rebase(fd)

    async def _convert(self, fd: int, steps: int, *source: str, view: int | None = None) -> None:
        """Copy what the internal snapshot itself holds, onto what the holder backs on."""
        disk, image = self.overlay.disk, self.overlay.image
        onto: tuple[str, ...] = ()
        if self.holder.backing is not None:
            # As it is to stand in the header, where it stays.
            backing = image.backing if self.is_at_home else self.holder.backing
            onto = ("-B", backing or "", "-F", self.own_format or "")
        await self.tool.run(
            *("convert", "-p", "-l", f"snapshot.name={self.tag.replace(',', ',,')}", "-O", HOLDER_FORMAT),
            *qcow2_layout(disk.cluster_bytes, extended_l2=disk.extended_l2),
            *(*onto, *source, descriptor_path(fd)),
            about=image.path,
            timeout_s=self.tool.copy_timeout_s,
            passed={fd: image.path} | ({} if view is None else {view: self.holder.path}),
            told=lambda percent: self._tell(percent / steps),
        )

    async def _rebase(self, fd: int) -> None:
        """Put the copy onto the image that it is to back on, and add to it what differs there."""
        image = self.overlay.image
        await self.tool.run(
            *("rebase", "-p", "-f", HOLDER_FORMAT, *backing_arguments("-b", image.backing, self.overlay.backing_format)),
            descriptor_path(fd),
            about=image.path,
            timeout_s=self.tool.copy_timeout_s,
            passed={fd: image.path},
            told=lambda percent: self._tell((100 + percent) / 2),
        )

    def _tell(self, percent: float) -> None:
        size_bytes = self.overlay.image.virtual_size_bytes
        self.report(f"copying {self.tag}", int(size_bytes * percent / 100), size_bytes)

    @asynccontextmanager
    async def _resized(self) -> AsyncIterator[tuple[str, int]]:
        """Show the holder as if it had the size that it had when the internal snapshot was made.

        ``convert`` reads an internal snapshot only as far as the image reaches now, and shows zeros beyond its end. So there
        is an overlay on the holder's file, in memory, that holds another first cluster, with the size changed in the header.
        Yields: what stands for the holder in arguments, and the descriptor to pass on with it.
        """
        path, size_bytes = self.holder.path, self.overlay.image.virtual_size_bytes
        first = await run_to_end(lambda: _first_cluster(path, size_bytes), undo=os.close)
        view = os.memfd_create("view")
        try:
            await self.tool.run(
                *("convert", "-q", "-f", "raw", "-O", "qcow2", *qcow2_layout(_VIEW_CLUSTER_BYTES, extended_l2=False)),
                *(descriptor_path(first), descriptor_path(view)),
                about=path,
                timeout_s=self.tool.quick_timeout_s,
                passed={first: path, view: path},
            )
            file = {"driver": "qcow2", "file": {"filename": descriptor_path(view)}, "backing": _opened("raw", path)}
            own = None if self.holder.backing is None else _opened(self.own_format or "", self.holder.backing)
            yield "json:" + json.dumps({"driver": HOLDER_FORMAT, "file": file, "backing": own}), view
        finally:
            os.close(first)
            os.close(view)


def _opened(image_format: str, path: str) -> dict[str, object]:
    return {"driver": image_format, "file": {"filename": path}}


def _first_cluster(path: str, size_bytes: int) -> int:
    """Return a file in memory, as long as an image, that has only its beginning, with another virtual size; blocking."""
    with named("reading", path), Path(path).open("rb") as file:
        beginning = bytearray(file.read(_VIEW_CLUSTER_BYTES))
        length = file.seek(0, os.SEEK_END)
    struct.pack_into(">Q", beginning, _SIZE_OFFSET, size_bytes)
    made = os.memfd_create("beginning")
    os.write(made, beginning)
    os.ftruncate(made, -(-length // _SECTOR_BYTES) * _SECTOR_BYTES)
    return made


def _is_same(one: str | None, other: str | None) -> bool:
    """Tell whether two names of images, or of none, stand for the same; blocking."""
    if one is None or other is None:
        return one is other
    return os.path.realpath(one) == os.path.realpath(other)
