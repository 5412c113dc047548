# SPDX-License-Identifier: MIT
"""What every verb does first: look at QEMU, and make sure that it runs on the images that the state knows."""

import asyncio
import contextlib
import posixpath
from collections.abc import Iterable, Mapping

from snapd.engine.ports import Images, Ports
from snapd.errors import DomainDrifted, DomainUnreachable, ImageInUse, ImageToolFailed, MonitorLost, NoSpace
from snapd.model.domain import DomainDefinition, Inspection
from snapd.model.links import real_paths, renamed
from snapd.model.planner import foreign_file
from snapd.model.record import DomainRecord


async def look(ports: Ports, definition: DomainDefinition, *, for_saving: bool = False) -> tuple[Inspection, DomainRecord]:
    """Return what QEMU shows, and the committed record with the disks it did not know yet.

    Raises: DomainDrifted when QEMU has opened other images than those expected; DomainUnreachable.
    """
    try:
        seen = await see(ports, for_saving=for_saving)
    except MonitorLost as error:
        raise DomainUnreachable(definition.name, error.reason) from error
    drift = ports.store.committed.drift(definition, seen.disks)
    if drift:
        raise DomainDrifted(definition.name, drift)
    record = ports.store.committed.learn(seen.disks, seen.formats, follows_active=seen.follows_active)
    record = record.note_tags({disk.image: disk.tags for disk in seen.disks} | await _tags_elsewhere(ports, record, seen))
    if broken := record.graph.violations():
        raise DomainDrifted(definition.name, broken[0])
    return seen, record


async def _tags_elsewhere(ports: Ports, record: DomainRecord, seen: Inspection) -> dict[str, tuple[str, ...]]:
    """Return the internal snapshots in images that held some of others' and that QEMU has not open."""
    found = {}
    for path, image in record.graph.images.items():
        if image.foreign_tags and path not in seen.open_images:
            with contextlib.suppress(ImageInUse, ImageToolFailed):  # what cannot be looked into is taken as it was
                found[path] = (await ports.images.look(path, image.format)).tags
    return found


async def see(ports: Ports, *, for_saving: bool = False) -> Inspection:
    """Return what QEMU shows, with images that were opened through our links under their own paths.

    Effects: from then on QEMU calls them so, too. Raises: MonitorLost, DomainUnreachable, QemuFailed.
    """
    seen = await ports.qemu.inspect(for_saving=for_saving)
    links = [path for disk in seen.disks for path in disk.chain if posixpath.dirname(path) == ports.store.links_directory]
    if not links:
        return seen
    names = real_paths(ports.store.committed.graph, seen, links, await ports.images.link_targets(links))
    ports.qemu.rename(names)
    return renamed(seen, names)


async def refuse_foreign_files(images: Images, paths: Iterable[str]) -> None:
    """Raise ImageInUse for the first of ``paths`` at which there is a file already."""
    wanted = list(paths)
    found = await asyncio.gather(*(images.exists(path) for path in wanted))
    for path, exists in zip(wanted, found, strict=True):
        if exists:
            raise foreign_file(path)


async def refuse_without_space(images: Images, needed_bytes: Mapping[str, int], reserve_bytes: int) -> None:
    """Check that each file system has room for the files that it is to hold, and ``reserve_bytes`` besides.

    Args:
        needed_bytes: how large each file becomes, by path.

    Raises: NoSpace naming the directory.
    """
    needs: dict[int, int] = {}
    for path, size in needed_bytes.items():
        directory = posixpath.dirname(path)
        file_system, free = await images.free_bytes(directory)
        needs[file_system] = needs.get(file_system, reserve_bytes) + size
        if needs[file_system] > free:
            raise NoSpace(directory, needs[file_system], free)
