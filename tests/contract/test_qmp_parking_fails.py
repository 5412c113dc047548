# SPDX-License-Identifier: MIT
"""Disks of a real QEMU that cannot be parked, or cannot come back at once."""

from dataclasses import replace
from pathlib import Path

import pytest

from snapd.errors import QemuFailed, UndoFailed
from snapd.qmp.blocks import query_disks, swap
from snapd.qmp.internal import park, unpark
from tests.contract.conftest import StartQemu
from tests.contract.disks import application_of, only_disk, placeholders
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk

VIAS = ("drive", "blockdev")


@pytest.mark.parametrize("via", VIAS)
async def test_unpark_goes_on_from_wherever_it_was_left(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(image, "qcow2", "virtio", via, "a"))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        await link.execute("stop")
        application = application_of(await only_disk(link))
        placeholder = f"{application.node}-parked"

        # The placeholder is there, and the disk is still on its image.
        size = application.disk.virtual_size_bytes
        await link.execute("blockdev-add", driver="null-co", node_name=placeholder, size=size, read_zeroes=True)
        await unpark(link, application)
        assert await only_disk(link) == application.disk
        assert await placeholders(link) == []

        # The image is open again, and the disk is on the placeholder.
        await park(link, application)
        options = {"driver": "qcow2", "node-name": application.node, "file": {"driver": "file", "filename": str(image)}}
        await link.execute_exactly("blockdev-add", options)
        await unpark(link, application)
        assert (await only_disk(link)).node == application.node
        assert await placeholders(link) == []

        # The disk is on its image, and the placeholder is still there.
        await link.execute("blockdev-add", driver="null-co", node_name=placeholder, size=size, read_zeroes=True)
        await unpark(link, application)
        assert await placeholders(link) == []
        await link.execute("cont")
        qemu.wait_counting(5)


@pytest.mark.parametrize("via", VIAS)
async def test_an_image_that_others_have_open_is_not_taken_away(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(image, "qcow2", "virtio", via, "a"))
    qemu.wait_counting()
    address = {"type": "unix", "data": {"path": str(qemu.directory / "nbd")}}
    qemu.control.execute("nbd-server-start", addr=address)
    async with connected(qemu.monitor) as link:
        await link.execute("stop")
        before = await only_disk(link)
        await link.execute("block-export-add", type="nbd", id="reads", node_name=before.node, name="x")
        with pytest.raises(QemuFailed, match=r"in use|stays open"):
            await park(link, application_of(before))
        assert await only_disk(link) == before
        assert await placeholders(link) == []
        await link.execute("cont")
        qemu.wait_counting(5)


@pytest.mark.parametrize("there", [True, False])
async def test_a_failure_after_the_image_was_closed(start_qemu: StartQemu, tmp_path: Path, there: bool) -> None:
    """A device that shares what it reads has the node of the file: then that of the format is closed before the failure."""
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    reader = ["-blockdev", "driver=raw,node-name=reader,file=node0-file,read-only=on"]
    device = ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=reader,id=b,share-rw=on"]
    qemu = start_qemu(GuestDisk(image, "qcow2", "virtio", "blockdev", "a"), paused=True, extra=[*reader, *device])
    async with connected(qemu.monitor) as link:
        before, _ = await query_disks(link)
        application = application_of(before)
        if there:
            with pytest.raises(QemuFailed, match="in use"):
                await park(link, application)
            assert (await query_disks(link))[0] == replace(before, node=application.node)
            return
        image.rename(tmp_path / "moved.qcow2")
        with pytest.raises(UndoFailed, match=r"disk a is without its image .*a\.qcow2"):
            await park(link, application)
        (tmp_path / "moved.qcow2").rename(image)
        await unpark(link, application)
        assert (await query_disks(link))[0] == replace(before, node=application.node)


async def test_an_image_that_cannot_be_opened_leaves_the_disk_parked_for_another_try(
    start_qemu: StartQemu, tmp_path: Path
) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    qemu = start_qemu(GuestDisk(image, "qcow2", id="a"), paused=True)
    async with connected(qemu.monitor) as link:
        application = application_of(await only_disk(link))
        await park(link, application)
        image.rename(tmp_path / "moved.qcow2")
        with pytest.raises(QemuFailed, match=r"a\.qcow2"):
            await unpark(link, application)
        assert await placeholders(link) == [f"{application.node}-parked"]
        (tmp_path / "moved.qcow2").rename(image)
        await unpark(link, application)
        assert (await only_disk(link)).image == str(image)


async def test_a_disk_that_is_gone(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2", id="a"), paused=True)
    async with connected(qemu.monitor) as link:
        application = application_of(await only_disk(link))
        gone = replace(application, disk=replace(application.disk, device="/machine/peripheral/gone", target="gone"))
        for act in (park, unpark):
            with pytest.raises(QemuFailed, match="disk gone is gone"):
                await act(link, gone)
        with pytest.raises(QemuFailed):
            await swap(link, gone.disk, "nothing")
        assert await only_disk(link) == application.disk
