# SPDX-License-Identifier: MIT
"""Memory and disks of every snapshot are of one instant. This test is never weakened."""

import itertools

import pytest

from snapd.bus.wire import Variant
from tests.lab.consistency import disk_counters, revert_and_compare
from tests.lab.guest import TinyGuest
from tests.lab.qemu import GuestDisk
from tests.lab.scene import scene

ROUNDS = 40

DISKS = (GuestDisk("disk0.raw", "raw", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "scsi", "blockdev", id="disk1"))
QCOW2 = (GuestDisk("disk0.qcow2", "qcow2", "virtio-iothread", id="disk0"), DISKS[1])

KINDS = {
    "external": (DISKS, {"disk0": "external", "disk1": "external"}),
    "internal": (QCOW2, {"disk0": "internal", "disk1": "internal"}),
    "mixed": (DISKS, {"disk0": "external", "disk1": "internal"}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_40_nested_rounds_of_create_and_revert_agree_to_within_one(accel: str, kind: str) -> None:
    """Each round takes a snapshot on top of the one before while the guest writes as fast as it can, and goes back to it."""
    disks, chosen = KINDS[kind]
    async with scene(disks, guest=TinyGuest.dirtying(8), accel=accel, memory_mib=32) as stage:
        for number in range(ROUNDS):
            name = f"round-{number}"
            stage.qemu.wait_counting()
            await stage.create(name, disks=Variant("a{ss}", chosen))
            stage.qemu.wait_counting()
            await revert_and_compare(stage, name)
            made = await stage.properties(name)
            assert (made["Method"], made["Type"]) == ("live", kind)
        for number in (0, ROUNDS // 2, ROUNDS - 1, 1):
            await revert_and_compare(stage, f"round-{number}")
        assert len(await stage.snapshots()) == ROUNDS


async def test_40_snapshots_without_memory_hold_all_disks_at_one_instant(accel: str) -> None:
    """Nothing stops the guest meanwhile, and what was kept stays as it was after each of them was gone back to."""
    disks, chosen = KINDS["mixed"]
    async with scene(disks, guest=TinyGuest.dirtying(8), accel=accel, memory_mib=32) as stage:
        stage.qemu.control.events.clear()
        kept: dict[str, list[int]] = {}
        for number in range(ROUNDS):
            name = f"round-{number}"
            stage.qemu.wait_counting()
            await stage.create(name, memory=Variant("b", False), disks=Variant("a{ss}", chosen))
            kept[name] = await disk_counters(stage, name)
            # It writes the first disk, then the second.
            assert kept[name][0] - kept[name][1] in (0, 1), f"{name}: {kept[name]}"
        assert all(before < after for before, after in itertools.pairwise(kept.values()))
        assert not {"STOP", "RESUME"} & {event["event"] for event in stage.qemu.control.events}
        for number in (0, ROUNDS // 2, ROUNDS - 1, 1):
            await stage.revert(f"round-{number}")
            stage.qemu.wait_counting()
        assert {name: await disk_counters(stage, name) for name in kept} == kept
