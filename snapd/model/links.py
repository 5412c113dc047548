# SPDX-License-Identifier: MIT
"""Images that QEMU has opened through our links, under their own paths again.

A link moves with the active image, and QEMU goes on calling what it has opened by the link's name. Not here: the links
themselves (``state.active``). What cannot be told for sure keeps the link's name, which then is drift.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from snapd.model.domain import Disk, Inspection
from snapd.model.images import ImageGraph


def real_paths(graph: ImageGraph, seen: Inspection, links: Collection[str], targets: Mapping[str, str]) -> dict[str, str]:
    """Return the image behind each of ``links`` in the chain of a disk.

    Args:
        targets: where each link that there still is leads now. That holds for an active image, if QEMU has it open; what lies
            below another image is what that is known to back on.
    """
    found: dict[str, str] = {}
    for disk in seen.disks:
        above = ""
        for path in disk.chain:
            real = path
            if path in links:
                known = graph.images.get(above)
                real = (known.backing if known else targets.get(path)) or path
                if real in seen.open_files or not seen.open_files:
                    found[path] = real
            above = real
    return found


def renamed(seen: Inspection, names: Mapping[str, str]) -> Inspection:
    """Return the inspection with the images under other names."""
    return replace(
        seen,
        disks=tuple(renamed_disk(disk, names) for disk in seen.disks),
        open_images={names.get(path, path): node for path, node in seen.open_images.items()},
        formats={names.get(path, path): each for path, each in seen.formats.items()},
    )


def renamed_disk(disk: Disk, names: Mapping[str, str]) -> Disk:
    """Return the disk with the images under other names, and with the link's where its own had one."""
    return replace(
        disk,
        image=names.get(disk.image, disk.image),
        chain=tuple(names.get(path, path) for path in disk.chain),
        link=disk.image if disk.image in names else disk.link,
    )
