# SPDX-License-Identifier: MIT
"""All that the engine needs of images, as one object: the port ``Images``.

It only puts together the other modules; see ``engine.ports`` for what each method promises.
"""

import os
from collections.abc import Sequence

from snapd.images import files, tag_copy, tags, vmstate, vmstate_check
from snapd.images.qemu_img import QemuImg
from snapd.model.images import Direction, ImageFacts, Merge
from snapd.model.plan import Overlay


class EmptyMemory:
    """A memory file that QEMU is about to fill."""

    def __init__(self, made: vmstate.MemoryFile) -> None:
        self._made = made
        self.path = made.path
        self.descriptor = made.fd

    async def finish(self) -> int:
        return await vmstate.finish(self._made)

    async def discard(self) -> None:
        await vmstate.discard(self._made)


class ImageToolbox:
    """Images, their files and memory-state containers on this host."""

    def __init__(self, tool: QemuImg | None = None) -> None:
        self._tool = tool or QemuImg()

    async def version(self) -> str:
        return await self._tool.version()

    async def create_overlay(self, overlay: Overlay, report: tag_copy.Report) -> None:
        disk, image = overlay.disk, overlay.image
        if overlay.copy_of is not None:
            await tag_copy.create_copy(self._tool, overlay, overlay.copy_of, report)
            return
        await self._tool.create_overlay(
            image.path,
            image.backing or "",
            overlay.backing_format,
            image.virtual_size_bytes,
            cluster_bytes=disk.cluster_bytes,
            extended_l2=disk.extended_l2,
        )

    async def look(self, path: str, image_format: str) -> ImageFacts:
        await self._tool.refuse_written(path)
        info = await self._tool.info(path, image_format=image_format)
        return ImageFacts(info.virtual_size_bytes, info.tags, info.cluster_bytes, info.extended_l2)

    async def make_tag(self, path: str, tag: str) -> None:
        await tags.make_tag(self._tool, path, tag)

    async def apply_tag(self, path: str, tag: str) -> None:
        await tags.apply_tag(self._tool, path, tag)

    async def drop_tag(self, path: str, tag: str) -> None:
        await tags.drop_tag(self._tool, path, tag)

    async def link_targets(self, paths: Sequence[str]) -> dict[str, str]:
        return await files.link_targets(paths)

    async def unlink(self, path: str) -> None:
        await files.unlink_created(path)

    async def exists(self, path: str) -> bool:
        return await files.exists(path)

    async def allocated_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        return await files.allocated_bytes_of(paths)

    async def free_bytes(self, directory: str) -> tuple[int, int]:
        return await files.device_of(directory), await files.free_bytes(directory)

    async def merge(self, merge: Merge, below_format: str) -> None:
        if merge.direction is Direction.COMMIT:
            await self._tool.commit(merge.overlay, merge.backing)
        else:
            await self._tool.rebase_onto(merge.overlay, merge.below, below_format or None)

    async def repoint(self, path: str, backing: str, backing_format: str) -> None:
        await self._tool.repoint(path, backing, backing_format)

    async def create_memory(self, path: str, largest_stream_bytes: int) -> EmptyMemory:
        return EmptyMemory(await vmstate.create_memory_file(path, largest_stream_bytes))

    async def create_container(self, path: str) -> None:
        await vmstate.create_empty(path, self._tool)

    async def sync_container(self, path: str) -> int:
        await files.sync_file(path)
        return await files.allocated_bytes(path)

    async def check_container(self, path: str) -> None:
        await vmstate_check.check(path)

    async def open_container(self, path: str) -> tuple[int, int]:
        return await vmstate.open_for_loading(path)

    def close_descriptors(self, *descriptors: int) -> None:
        for each in descriptors:
            os.close(each)
