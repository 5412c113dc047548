# SPDX-License-Identifier: MIT
"""Internal and external snapshots taken together by a real QEMU, and internal ones deleted."""

import itertools
from pathlib import Path

import pytest

from snapd.errors import QemuFailed
from snapd.model.plan import Tag
from snapd.qmp.blocks import close_nodes, open_overlay, query_disks, query_open, take
from snapd.qmp.internal import drop_tag
from tests.contract.conftest import StartQemu
from tests.contract.disks import cover_now, only_disk, overlay_for, tag_counter
from tests.lab.guest import disk_counter, make_disk
from tests.lab.images import check_image, make_tag
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk

BUSES = ("virtio", "virtio-iothread", "scsi", "ide")
WAYS = list(itertools.product(BUSES, ("drive", "blockdev")))
ROUNDS = 4


@pytest.mark.parametrize(("bus", "via"), WAYS)
async def test_both_kinds_are_of_one_instant_while_the_guest_writes(
    start_qemu: StartQemu, tmp_path: Path, bus: str, via: str
) -> None:
    qemu = start_qemu(
        GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2", bus, via, "a"),
        GuestDisk(make_disk(tmp_path / "b.raw"), "raw", bus, via, "b"),
    )
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        for number in range(ROUNDS):
            first, second = await query_disks(link)
            overlay = overlay_for(second, tmp_path / f"b{number}.qcow2")
            await open_overlay(link, overlay, "")
            await take(link, [overlay], [Tag(first, f"t{number}")])
            assert tag_counter(first.image, f"t{number}") - disk_counter(second.image, second.format) in (0, 1)
            qemu.wait_counting(5)
        first, second = await query_disks(link)
        assert first.tags == tuple(f"t{number}" for number in range(ROUNDS))
        assert (first.image, len(second.chain)) == (str(tmp_path / "a.qcow2"), ROUNDS + 1)
        kept = {tag: tag_counter(first.image, tag) for tag in first.tags}
        assert sorted(set(kept.values())) == list(kept.values())

        for tag in ("t1", "t1", "t3"):
            await drop_tag(link, first.image, tag)
        qemu.wait_counting(5)
        assert (await query_disks(link))[0].tags == ("t0", "t2")
        assert {tag: tag_counter(first.image, tag) for tag in ("t0", "t2")} == {tag: kept[tag] for tag in ("t0", "t2")}
    qemu.stop()
    check_image(tmp_path / "a.qcow2")


async def test_tags_alone(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(
        GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2", "virtio-iothread"),
        GuestDisk(make_disk(tmp_path / "b.qcow2", "qcow2"), "qcow2", "ide", "blockdev"),
    )
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        disks = await query_disks(link)
        await take(link, [], [Tag(disk, "t") for disk in disks])
        first, second = (tag_counter(disk.image, "t") for disk in disks)
        assert first - second in (0, 1)


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_a_failure_names_the_disk_and_leaves_nothing(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    qemu = start_qemu(
        GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2", "virtio", via, "a"),
        GuestDisk(make_disk(tmp_path / "b.raw"), "raw", "virtio", via, "b"),
        GuestDisk(make_disk(tmp_path / "c.qcow2", "qcow2"), "qcow2", "scsi", via, "c"),
    )
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        a, b, c = await query_disks(link)
        await take(link, [], [Tag(c, "there")])
        before = await query_disks(link)
        overlay = overlay_for(b, tmp_path / "b.qcow2")
        await open_overlay(link, overlay, "")
        with pytest.raises(QemuFailed, match=r"'there' already exists.*\(disk c\)"):
            await take(link, [overlay], [Tag(a, "new"), Tag(c, "there")])
        with pytest.raises(QemuFailed, match=r"\(disk b\)"):
            await take(link, [], [Tag(a, "new"), Tag(b, "new")])
        assert await query_disks(link) == before
        await close_nodes(link, [overlay.node])
        await take(link, [], [Tag(a, "new")])
        qemu.wait_counting(5)


async def test_a_tag_in_an_image_that_no_disk_writes_to_is_not_deleted(start_qemu: StartQemu, tmp_path: Path) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    fixed = make_disk(tmp_path / "fixed.qcow2", "qcow2")
    for each in (image, fixed):
        make_tag(each, "t")
    qemu = start_qemu(
        GuestDisk(image, "qcow2", id="a"), GuestDisk(fixed, "qcow2", options="readonly=on", id="fixed"), paused=True
    )
    async with connected(qemu.monitor) as link:
        for path in (fixed, tmp_path / "closed.qcow2"):
            with pytest.raises(QemuFailed, match=r"is not the image that a disk writes to"):
                await drop_tag(link, str(path), "t")
        disk = (await query_disks(link))[0]
        assert disk.tags == ("t",)
        await cover_now(link, overlay_for(disk, tmp_path / "over.qcow2"))
        with pytest.raises(QemuFailed, match=r"a\.qcow2 is not the image"):
            await drop_tag(link, str(image), "t")
        assert (await query_disks(link))[0].tags == ()
        assert set(await query_open(link)) == {str(image), str(fixed), str(tmp_path / "over.qcow2")}
    qemu.stop()
    for each in (image, fixed):
        assert tag_counter(str(each), "t") == 0


async def test_a_name_that_is_a_number_is_still_a_name(start_qemu: StartQemu, tmp_path: Path) -> None:
    """QEMU numbers the snapshots of an image; the one called 1 is another than the one with that number."""
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2"), paused=True)
    async with connected(qemu.monitor) as link:
        for tag in ("first", "1"):
            await take(link, [], [Tag(await only_disk(link), tag)])
        await drop_tag(link, str(tmp_path / "a.qcow2"), "1")
        assert (await only_disk(link)).tags == ("first",)
