# SPDX-License-Identifier: MIT
"""A domain that is shut off, as the engine sees it: the port ``Qemu`` where no QEMU runs.

So that each verb is written once: what only a QEMU needs is nothing here, and what changes images goes to ``Images``. The disks
are what the state remembers. An image that something has open all the same is refused by the look at it, before anything is
touched. Memory is never asked for, as no plan of a domain that is shut off has any.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from snapd.engine.ports import Images, Report
from snapd.errors import NotSupported, SnapdError
from snapd.model.domain import Disk, DomainState, Inspection
from snapd.model.images import Merge
from snapd.model.plan import Opening, Overlay, Parking, Tag
from snapd.model.record import DomainRecord


class Offline:
    """See ``engine.ports.Qemu`` for what each method promises; ``record`` is the committed state."""

    def __init__(self, images: Images, record: DomainRecord) -> None:
        self._images, self._record = images, record

    async def inspect(self, *, for_saving: bool = False) -> Inspection:
        graph = self._record.graph
        return Inspection(
            state=DomainState.SHUTOFF,
            uuid=self._record.uuid,
            machine=None,
            disks=tuple(await self.disks()),
            open_images={},
            formats={path: image.format for path, image in graph.images.items()},
            qemu_version=(0, 0, 0),
            follows_active=self._record.follows_active,
        )

    def rename(self, names: Mapping[str, str]) -> None: ...

    async def disks(self) -> Sequence[Disk]:
        remembered = self._record.remembered_disks()
        if not remembered:
            why = "none of its disks is known yet; start it once while the service runs, so that they are learned"
            raise NotSupported(self._record.name, "A snapshot of a domain that is shut off", why)
        return await asyncio.gather(*(self._looked_at(disk) for disk in remembered))

    async def _looked_at(self, disk: Disk) -> Disk:
        facts = await self._images.look(disk.image, disk.format)
        return replace(
            disk,
            virtual_size_bytes=facts.virtual_size_bytes,
            tags=facts.tags,
            cluster_bytes=facts.cluster_bytes,
            extended_l2=facts.extended_l2,
        )

    async def open_images(self) -> Mapping[str, str]:
        return {}

    async def take(self, overlays: Sequence[Overlay], tags: Sequence[Tag]) -> None:
        """Make the internal snapshots; an overlay covers its disk once the state says so."""
        made: list[Tag] = []
        try:
            for tag in tags:
                await self._images.make_tag(tag.disk.image, tag.name)
                made.append(tag)
        except SnapdError:
            for tag in reversed(made):
                await self._images.drop_tag(tag.disk.image, tag.name)
            raise

    async def drop_tag(self, image: str, tag: str) -> None:
        await self._images.drop_tag(image, tag)

    # What needs nothing to be done where no QEMU runs

    async def open_overlay(self, overlay: Overlay, backing_node: str) -> None: ...

    async def open_image(self, opening: Opening) -> None: ...

    async def close_nodes(self, nodes: Sequence[str]) -> None: ...

    async def close_unused(self, images: Sequence[str]) -> None: ...

    async def stop(self) -> None: ...

    async def resume(self) -> None: ...

    async def has_run(self) -> bool:
        return False

    async def park(self, parking: Parking) -> None: ...

    async def unpark(self, parking: Parking) -> None: ...

    async def hold(self, disk: Disk, node: str) -> bool:
        return False

    async def swap(self, overlay: Overlay) -> None: ...

    async def swap_back(self, disk: Disk) -> None: ...

    async def reset(self) -> None: ...

    async def pause_usec(self) -> int:
        return 0

    async def merge(self, merge: Merge, report: Report) -> None: ...

    async def disarm_live_save(self) -> None: ...

    async def detach_memory(self) -> None: ...

    # What no plan of a domain that is shut off asks for

    async def arm_live_save(self, descriptor: int) -> None:
        self._has_no_memory()

    async def save_live(self, report: Report) -> None:
        self._has_no_memory()

    async def attach_memory(self, read_write: int, read_only: int) -> None:
        self._has_no_memory()

    async def save_paused(self, tag: str, expected_bytes: int) -> None:
        self._has_no_memory()

    async def make_loadable(self) -> None:
        self._has_no_memory()

    async def load(self, tag: str, expected_bytes: int) -> None:
        self._has_no_memory()

    def _has_no_memory(self) -> NoReturn:
        raise RuntimeError(f"domain {self._record.name} is shut off and has no memory")
