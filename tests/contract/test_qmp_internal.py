# SPDX-License-Identifier: MIT
"""Disks of a real QEMU, parked while another program applies an internal snapshot to their images."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from snapd.model.images import Image, Origin
from snapd.model.plan import Tag
from snapd.qmp.blocks import NODE_PREFIX, query_disks, query_open, take
from snapd.qmp.commands import reset
from snapd.qmp.internal import drop_tag, park, unpark
from tests.contract.conftest import StartQemu
from tests.contract.disks import (
    application_of,
    assert_counts,
    cover_now,
    only_disk,
    open_files,
    overlay_for,
    placeholders,
    tag_counter,
)
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.images import apply_tag, check_image, make_overlay, make_tag, resize, tags
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk

KINDS = list(itertools.product(("virtio", "virtio-iothread", "scsi", "ide"), ("drive", "blockdev")))
VIAS = ("drive", "blockdev")


@pytest.mark.parametrize("chained", [False, True], ids=["alone", "chained"])
@pytest.mark.parametrize(("bus", "via"), KINDS)
async def test_a_tag_is_applied_and_the_guest_counts_on(
    start_qemu: StartQemu, tmp_path: Path, bus: str, via: str, chained: bool
) -> None:
    image = make_disk(tmp_path / "base.qcow2", "qcow2", guest=COUNTS_ON_ONE)
    if chained:
        image = make_overlay(tmp_path / "top.qcow2", image, "qcow2")
    qemu = start_qemu(GuestDisk(image, "qcow2", bus, via, "a"))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        opened = await open_files(link)
        for number in range(3):
            before, tag = await only_disk(link), f"t{number}"
            await take(link, [], [Tag(before, tag)])
            tagged = tag_counter(before.image, tag)
            qemu.wait_counting(5)
            await link.execute("stop")
            counter = qemu.counter()
            assert counter > tagged
            application = application_of(before, tag, f"{NODE_PREFIX}applied{number}")
            await park(link, application)
            assert str(image) not in await open_files(link)
            assert (await only_disk(link)).virtual_size_bytes == before.virtual_size_bytes
            assert_counts(before.image, "qcow2", counter)
            make_tag(image, f"undo{number}")
            apply_tag(image, tag)
            await unpark(link, application)
            after = await only_disk(link)
            assert after == replace(before, node=application.node, tags=(*before.tags, tag, f"undo{number}"))
            assert_counts(after.image, "qcow2", tagged + 1)
            assert await open_files(link) == opened
            assert await placeholders(link) == []
            await reset(link)
            await link.execute("cont")
            qemu.wait_counting(5)
        await link.execute("stop")
        assert_counts(str(image), "qcow2", qemu.counter())
        await drop_tag(link, str(image), "undo1")
        await cover_now(link, overlay_for(await only_disk(link), tmp_path / "over.qcow2"))
        await link.execute("cont")
        qemu.wait_counting(5)
    qemu.stop()
    check_image(image)
    assert tags(image) == ["t0", "undo0", "t1", "t2", "undo2"]


@pytest.mark.parametrize("via", VIAS)
async def test_modes_go_on(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    modes = "cache.direct=on,discard=unmap,detect-zeroes=unmap" + (",aio=native" if via == "drive" else "")
    qemu = start_qemu(GuestDisk(image, "qcow2", "scsi", via, "a", modes), paused=True)
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        application = application_of(before)
        await park(link, application)
        await unpark(link, application)
        assert await only_disk(link) == replace(before, node=application.node)
        assert (before.cache_direct, before.discard, before.detect_zeroes) == (True, "unmap", "unmap")


@pytest.mark.parametrize("via", VIAS)
async def test_doing_either_again_does_nothing(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2", "virtio", via), paused=True)
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        application = application_of(before)
        await unpark(link, application)
        assert await only_disk(link) == before
        await park(link, application)
        parked = await only_disk(link)
        await park(link, application)
        assert await only_disk(link) == parked
        await unpark(link, application)
        after = await only_disk(link)
        await unpark(link, application)
        assert await only_disk(link) == after
        assert await placeholders(link) == []


@pytest.mark.parametrize("via", VIAS)
async def test_a_backing_image_that_another_disk_reads_too(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    base = make_disk(tmp_path / "base.qcow2", "qcow2")
    tops = [make_overlay(tmp_path / f"{name}.qcow2", base, "qcow2") for name in ("a", "b")]
    qemu = start_qemu(
        GuestDisk(tops[0], "qcow2", "virtio-iothread", via, "a"), GuestDisk(tops[1], "qcow2", "virtio-iothread", via, "b")
    )
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        await link.execute("stop")
        first, second = await query_disks(link)
        await take(link, [], [Tag(first, "t")])
        application = application_of(first)
        await park(link, application)
        apply_tag(tops[0], "t")
        await unpark(link, application)
        assert (await query_disks(link))[0].chain == first.chain
        assert (await query_disks(link))[1] == second
        await link.execute("cont")
        qemu.wait_counting(5)


@pytest.mark.parametrize("mode", ["read-only=on", "read-only=off"])
async def test_a_backing_node_with_a_name_is_used_again(start_qemu: StartQemu, tmp_path: Path, mode: str) -> None:
    """Whoever gave it a name said how it is to be opened; its format may stand nowhere else."""
    base = make_disk(tmp_path / "base.raw", guest=COUNTS_ON_ONE)
    image = make_overlay(tmp_path / "top.qcow2", base, "raw")
    below = f"driver=raw,node-name=base,{mode},file.driver=file,file.filename={base}"
    top = f"driver=qcow2,node-name=top,file.driver=file,file.filename={image},backing=base"
    device = ["-device", "virtio-blk-pci,drive=top,id=a"]
    qemu = start_qemu(extra=["-blockdev", below, "-blockdev", top, *device])
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        await link.execute("stop")
        before = await only_disk(link)
        await take(link, [], [Tag(before, "t")])
        application = application_of(before)
        await park(link, application)
        apply_tag(image, "t")
        await unpark(link, application)
        assert await query_open(link) == {str(base): ("base", "raw"), str(image): (application.node, "qcow2")}
        await reset(link)
        await link.execute("cont")
        qemu.wait_counting(5)


@pytest.mark.parametrize("via", VIAS)
async def test_a_disk_on_another_image_goes_to_the_one_with_the_tag(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    image = make_disk(tmp_path / "tagged.qcow2", "qcow2", guest=COUNTS_ON_ONE)
    make_tag(image, "t")
    present = make_disk(tmp_path / "present.qcow2", "qcow2", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(present, "qcow2", "ide", via, "a"))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        await link.execute("stop")
        before = await only_disk(link)
        application = application_of(before, image=Image(str(image), "qcow2", None, Origin.CREATED, 1 << 20))
        assert not application.is_active
        await park(link, application)
        assert await only_disk(link) == before
        apply_tag(image, "t")
        await unpark(link, application)
        after = await only_disk(link)
        assert (after.image, after.node) == (str(image), application.node)
        await unpark(link, application)
        assert await only_disk(link) == after
        await reset(link)
        await link.execute("cont")
        qemu.wait_counting(5)


async def test_an_image_of_another_size(start_qemu: StartQemu, tmp_path: Path) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    make_tag(image, "t")
    resize(image, 4 << 20)
    qemu = start_qemu(GuestDisk(image, "qcow2", "ide", id="a"), paused=True)
    async with connected(qemu.monitor) as link:
        application = application_of(await only_disk(link))
        assert application.disk.virtual_size_bytes == 4 << 20
        await park(link, application)
        apply_tag(image, "t")
        await unpark(link, application)
        assert (await only_disk(link)).virtual_size_bytes == 1 << 20
