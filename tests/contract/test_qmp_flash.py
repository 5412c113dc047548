# SPDX-License-Identifier: MIT
"""The flash of a UEFI guest: a disk whose content QEMU reads once and then keeps in memory.

- What the guest writes reaches the image that the flash is on then; nothing is read from that.
- A memory state holds the content, and QEMU writes all of it to the image when a guest that was loaded runs.
"""

import asyncio
import time
from pathlib import Path

import pytest

from snapd.model.plan import Tag
from snapd.qmp.blocks import flush, open_overlay, query_blocks, query_disks, query_open, swap, take
from snapd.qmp.commands import reset
from snapd.qmp.internal import park, unpark
from snapd.qmp.jobs import follow
from snapd.qmp.link import Link
from tests.contract.conftest import StartQemu
from tests.contract.disks import application_of, cover_now, overlay_for, qemu_img
from tests.lab.firmware import CODE, MEMORY_MIB, flash_arguments, make_vars
from tests.lab.images import apply_tag, content
from tests.lab.linked import connected

KINDS = [("drive", "raw"), ("drive", "qcow2"), ("blockdev", "raw"), ("blockdev", "qcow2")]
WRITTEN_TIMEOUT_S = 120.0


async def _wait_written(link: Link, path: str, image_format: str, before: bytes) -> bytes:
    """Wait until the firmware has written to the flash, whose image is at ``path``. Returns: what that holds then."""
    node = (await query_open(link))[path][0]
    deadline = time.monotonic() + WRITTEN_TIMEOUT_S
    while True:
        await flush(link, node)  # QEMU keeps the tables of a qcow2 image back, and the firmware flushes nothing
        now = content(path, image_format)
        if now != before:
            return now
        assert time.monotonic() < deadline, f"nothing was written to {path}"
        await asyncio.sleep(0.05)


async def _run_job(link: Link, command: str) -> None:
    await link.execute(command, job_id=command, tag="m", vmstate="memory", devices=["memory"])
    await follow(link, command, command, lambda done, total: None)


@pytest.mark.parametrize(("via", "image_format"), KINDS)
async def test_a_flash_is_a_disk_that_can_be_covered(
    start_qemu: StartQemu, tmp_path: Path, via: str, image_format: str
) -> None:
    image = make_vars(tmp_path / "vars", image_format)
    code = CODE.read_bytes()
    qemu = start_qemu(memory_mib=MEMORY_MIB, paused=True, extra=flash_arguments(image, image_format, via))
    async with connected(qemu.monitor) as link:
        fixed, flash = sorted(await query_disks(link), key=lambda disk: disk.target)
        assert (fixed.target, fixed.is_flash, fixed.obstacle) == ("pflash0", True, "it is read-only")
        assert (flash.target, flash.device, flash.image) == ("pflash1", "/machine/system.flash1", str(image))
        assert flash.is_flash
        assert flash.eligible
        assert flash.writable
        assert (flash.no_internal == "") == (image_format == "qcow2")
        before = content(image, image_format)
        overlay = overlay_for(flash, tmp_path / "over.qcow2")
        await cover_now(link, overlay)
        await link.execute("cont")
        await _wait_written(link, overlay.image.path, "qcow2", before)
        assert content(image, image_format) == before
        assert (await query_blocks(link)).disks[1].chain == (overlay.image.path, str(image))
        assert set(await query_open(link)) == {str(CODE), str(image), overlay.image.path}
    assert CODE.read_bytes() == code


async def test_a_drive_with_an_id_is_called_that(start_qemu: StartQemu, tmp_path: Path) -> None:
    image = make_vars(tmp_path / "vars")
    qemu = start_qemu(memory_mib=MEMORY_MIB, paused=True, extra=flash_arguments(image, drive_id="nvram"))
    async with connected(qemu.monitor) as link:
        assert [disk.target for disk in await query_disks(link) if disk.writable] == ["nvram"]


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_a_reset_does_not_read_the_flash_again(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    """What a flash is put on, or is applied to its image, the guest does not see: it goes on with what it had."""
    image = make_vars(tmp_path / "vars.qcow2", "qcow2")
    qemu = start_qemu(memory_mib=MEMORY_MIB, paused=True, extra=flash_arguments(image, "qcow2", via))
    async with connected(qemu.monitor) as link:
        flash = (await query_disks(link))[1]
        fresh = content(image, "qcow2")
        await take(link, [], [Tag(flash, "fresh")])
        await link.execute("cont")
        await _wait_written(link, str(image), "qcow2", fresh)
        await link.execute("stop")
        application = application_of(flash, "fresh")
        await park(link, application)
        apply_tag(image, "fresh")
        await unpark(link, application)
        assert content(image, "qcow2") == fresh
        with link.watch() as events:
            await reset(link)
            assert events.last("RESET") is not None
        assert content(image, "qcow2") == fresh
        await link.execute("cont")
        mixed = await _wait_written(link, str(image), "qcow2", fresh)
        assert mixed != fresh


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_a_loaded_guest_writes_its_flash_to_the_image(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    image, memory = make_vars(tmp_path / "vars"), tmp_path / "memory.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(memory), "1M")
    container = ["-blockdev", f"driver=qcow2,node-name=memory,file.driver=file,file.filename={memory}"]
    extra = [*flash_arguments(image, "raw", via), *container]
    qemu = start_qemu(memory_mib=MEMORY_MIB, paused=True, extra=extra)
    async with connected(qemu.monitor) as link:
        flash = (await query_disks(link))[1]
        fresh = content(image, "raw")
        await link.execute("stop")
        await _run_job(link, "snapshot-save")
        await link.execute("cont")
        await _wait_written(link, str(image), "raw", fresh)
        await link.execute("stop")
        written = content(image, "raw")

        empty = tmp_path / "empty.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", str(empty), str(flash.virtual_size_bytes))
        overlay = overlay_for(flash, tmp_path / "over.qcow2", str(empty), "qcow2")
        await link.execute("blockdev-add", driver="qcow2", node_name="empty", file={"driver": "file", "filename": str(empty)})
        await open_overlay(link, overlay, "empty")
        await swap(link, flash, overlay.node)
        await _run_job(link, "snapshot-load")
        assert content(overlay.image.path, "qcow2") == bytes(flash.virtual_size_bytes)
        await link.execute("cont")
        await link.execute("stop")
        loaded = content(overlay.image.path, "qcow2")
        assert loaded[: 256 << 10] != bytes(256 << 10)
        assert len(loaded) == len(fresh)
        assert content(image, "raw") == written
        assert content(empty, "qcow2") == bytes(flash.virtual_size_bytes)
