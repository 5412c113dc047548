# SPDX-License-Identifier: MIT
"""Disks and devices that come or go between create and revert: refused by name before anything stops, or forced."""

from snapd.bus.wire import Variant
from tests.lab.guest import make_disk
from tests.lab.marks import MARK_AT, MARK_BYTES, kept_marks, mark_all, present_mark, present_marks
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene
from tests.lab.untouched import assert_works, refused, untouched

DISKS = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "scsi", id="disk1"))
FORCE = Variant("b", True)
NO_MEMORY = Variant("b", False)
NOT_SUPPORTED = "org.domsnap1.Error.NotSupported"


async def plug(stage: Scene, target: str = "disk2") -> None:
    image = stage.images / f"{target}.qcow2"
    make_disk(image, "qcow2")
    control = stage.qemu.control
    control.execute("blockdev-add", driver="qcow2", node_name=f"{target}-node", file={"driver": "file", "filename": str(image)})
    control.execute("device_add", driver="scsi-hd", id=target, drive=f"{target}-node")


async def unplug(stage: Scene, target: str) -> None:
    """Take a SCSI disk away, which needs nothing of the guest, and close its node if it has one of its own."""
    stage.qemu.control.execute("device_del", id=target)
    stage.qemu.control.wait_event("DEVICE_DELETED")


async def test_a_disk_that_was_added() -> None:
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("full")
        await stage.create("disks", memory=NO_MEMORY)
        await plug(stage)
        async with untouched(stage):
            await refused(stage.revert("full"), NOT_SUPPORTED, "disk2")
            await refused(stage.revert("full", force=FORCE), NOT_SUPPORTED, "disk2")
            await refused(stage.revert("disks"), NOT_SUPPORTED, "disk2", "force")
        assert not stage.qemu.control.hmp(f'qemu-io -d disk2 "write -q -P 2 {MARK_AT} {MARK_BYTES}"')
        await mark_all(stage, 2)
        await stage.revert("disks", force=FORCE)
        assert await present_marks(stage) == {"disk0": 1, "disk1": 1, "disk2": 2}
        await assert_works(stage)


async def test_a_disk_that_was_taken_away() -> None:
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("full")
        await stage.create("disks", memory=NO_MEMORY)
        await mark_all(stage, 2)
        await unplug(stage, "disk1")
        async with untouched(stage):
            await refused(stage.revert("full"), NOT_SUPPORTED, "disk1")
            await refused(stage.revert("disks"), NOT_SUPPORTED, "disk1", "force")
        await stage.revert("disks", force=FORCE)
        assert await present_mark(stage, "disk0") == 1
        assert await kept_marks(stage, "disks") == {"disk0": 1, "disk1": 1}
        await stage.create("more")
        await stage.delete("full")
        await stage.delete("disks")
        await stage.delete("more")
        await stage.shut_off()
        await stage.wait_rest()
        assert [each for each in stage.files() if each.startswith("images/")] == ["images/disk0.qcow2", "images/disk1.qcow2"]
        assert await present_marks(stage) == {"disk0": 1, "disk1": 2}


async def test_a_device_that_was_added_matters_to_memory_only() -> None:
    async with scene(DISKS) as stage:
        await stage.create("full")
        await stage.create("disks", memory=NO_MEMORY)
        stage.qemu.control.execute("device_add", driver="virtio-rng-pci", id="rng0")
        async with untouched(stage):
            await refused(stage.revert("full"), NOT_SUPPORTED, "rng0")
        await stage.revert("disks")
        stage.qemu.wait_counting()
