# SPDX-License-Identifier: MIT
"""Memory and disks of every snapshot are of one instant. This test is never weakened."""

from tests.lab.consistency import revert_and_compare
from tests.lab.guest import TinyGuest
from tests.lab.qemu import GuestDisk
from tests.lab.scene import scene

ROUNDS = 40

DISKS = (GuestDisk("disk0.raw", "raw", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "scsi", "blockdev", id="disk1"))


async def test_40_nested_rounds_of_create_and_revert_agree_to_within_one(accel: str) -> None:
    """Each round takes a snapshot on top of the one before while the guest writes as fast as it can, and goes back to it."""
    async with scene(DISKS, guest=TinyGuest.dirtying(8), accel=accel, memory_mib=32) as stage:
        for number in range(ROUNDS):
            name = f"round-{number}"
            stage.qemu.wait_counting()
            await stage.create(name)
            stage.qemu.wait_counting()
            await revert_and_compare(stage, name)
            assert (await stage.properties(name))["Method"] == "live"
        for number in (0, ROUNDS // 2, ROUNDS - 1, 1):
            await revert_and_compare(stage, f"round-{number}")
        assert len(await stage.snapshots()) == ROUNDS
