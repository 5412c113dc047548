# SPDX-License-Identifier: MIT
"""Memory and disks of every snapshot are of one instant. This test is never weakened."""

from tests.lab.guest import TinyGuest, disk_counter
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene

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
            await _revert_and_compare(stage, name)
            assert (await stage.properties(name))["Method"] == "live"
        for number in (0, ROUNDS // 2, ROUNDS - 1, 1):
            await _revert_and_compare(stage, f"round-{number}")
        assert len(await stage.snapshots()) == ROUNDS


async def _revert_and_compare(stage: Scene, name: str) -> None:
    """Go back with the guest left paused, and compare its memory with the disks that the snapshot pins."""
    await stage.revert_paused(name)
    memory = stage.qemu.counter()
    pinned = (await stage.properties(name))["Disks"]
    counters = [disk_counter(disk["Image"], disk["Format"]) for disk in pinned]
    assert len(counters) == len(DISKS)
    # It counts in memory, then writes the first disk, then the second: each may be one behind what comes before it.
    assert all(memory - counter in (0, 1) for counter in counters), f"{name}: memory {memory}, disks {counters}"
    assert counters[0] - counters[1] in (0, 1), f"{name}: disks {counters}"
    stage.qemu.control.execute("cont")
    stage.qemu.wait_counting()
