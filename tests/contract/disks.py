# SPDX-License-Identifier: MIT
"""Overlays for the disks of a real QEMU, and what its guest has counted on them."""

import itertools
import struct
import subprocess
from pathlib import Path

from snapd.model.domain import Disk
from snapd.model.images import Image, Origin
from snapd.model.plan import Application, Overlay
from snapd.qmp.blocks import NODE_PREFIX, open_overlay, query_blocks, query_disks, take
from snapd.qmp.link import Link
from tests.lab.guest import SECTOR_BYTES, disk_counter
from tests.lab.images import content, make_overlay

TOOL_TIMEOUT_S = 60.0

_numbers = itertools.count(1)


def overlay_for(disk: Disk, path: Path, backing: str | None = None, backing_format: str | None = None) -> Overlay:
    """Make an overlay's file on ``backing``, or on what the disk has now, and describe it."""
    backing, backing_format = backing or disk.image, backing_format or disk.format
    make_overlay(path, backing, backing_format)
    image = Image(str(path), "qcow2", backing, Origin.CREATED, disk.virtual_size_bytes)
    return Overlay(disk, f"{NODE_PREFIX}{next(_numbers)}", image, backing_format)


def application_of(disk: Disk, tag: str = "t", node: str = f"{NODE_PREFIX}applied", image: Image | None = None) -> Application:
    """Describe the return to an internal snapshot in the disk's own image, or in another one."""
    backing = disk.chain[1] if len(disk.chain) > 1 else None
    own = Image(disk.image, "qcow2", backing, Origin.DEFINED, disk.virtual_size_bytes)
    return Application(disk, node, image or own, tag, "", disk.virtual_size_bytes)


async def cover_now(link: Link, *overlays: Overlay) -> None:
    """Open the overlays and put them on top of their disks."""
    for overlay in overlays:
        await open_overlay(link, overlay, "")
    await take(link, overlays, [])


async def only_disk(link: Link) -> Disk:
    """Return the one disk of the guest."""
    (disk,) = await query_disks(link)
    return disk


async def open_files(link: Link) -> set[str]:
    """Return the paths that QEMU has open, at any level."""
    return {path for path in (await query_blocks(link)).files.values() if path}


async def placeholders(link: Link) -> list[str]:
    return [node["node-name"] for node in await link.execute("query-named-block-nodes", flat=True) if node["drv"] == "null-co"]


def assert_counts(path: str, image_format: str, counter: int) -> None:
    """Fail unless the counter on disk is that of the guest, which is stopped, or the one before."""
    assert counter - disk_counter(path, image_format) in (0, 1)


def tag_counter(path: str, tag: str) -> int:
    """Return the guest's counter as an internal snapshot of a qcow2 image has it; a QEMU may have that open."""
    return int(struct.unpack_from("<I", content(path, "qcow2", tag), SECTOR_BYTES)[0])


def qemu_img(*arguments: str) -> None:
    """Run ``qemu-img``. Raises: RuntimeError with what it said."""
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"qemu-img {' '.join(arguments)}: {done.stderr.strip()}")
