# SPDX-License-Identifier: MIT
"""Overlays for the disks of a real QEMU, and what its guest has counted on them."""

import itertools
from pathlib import Path

from snapd.model.domain import Disk
from snapd.model.images import Image, Origin
from snapd.model.plan import Overlay
from snapd.qmp.blocks import NODE_PREFIX, cover, open_overlay, query_disks
from snapd.qmp.link import Link
from tests.lab.guest import disk_counter
from tests.lab.images import make_overlay

_numbers = itertools.count(1)


def overlay_for(disk: Disk, path: Path, backing: str | None = None, backing_format: str | None = None) -> Overlay:
    """Make an overlay's file on ``backing``, or on what the disk has now, and describe it."""
    backing, backing_format = backing or disk.image, backing_format or disk.format
    make_overlay(path, backing, backing_format)
    image = Image(str(path), "qcow2", backing, Origin.CREATED, disk.virtual_size_bytes)
    return Overlay(disk, f"{NODE_PREFIX}{next(_numbers)}", image, backing_format)


async def cover_now(link: Link, *overlays: Overlay) -> None:
    """Open the overlays and put them on top of their disks."""
    for overlay in overlays:
        await open_overlay(link, overlay, "")
    await cover(link, overlays)


async def only_disk(link: Link) -> Disk:
    """Return the one disk of the guest."""
    (disk,) = await query_disks(link)
    return disk


def assert_counts(path: str, image_format: str, counter: int) -> None:
    """Fail unless the counter on disk is that of the guest, which is stopped, or the one before."""
    assert counter - disk_counter(path, image_format) in (0, 1)
