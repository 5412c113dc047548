# SPDX-License-Identifier: MIT
"""A revert of a domain that is shut off to a snapshot with memory: it waits for the next start, and can be given up."""

from snapd.bus.wire import Variant
from tests.integration.test_table import DISKS
from tests.integration.test_undo import undo_points
from tests.lab.marks import kept_marks, mark_all, present_marks
from tests.lab.qemu import GuestDisk
from tests.lab.scene import scene
from tests.lab.untouched import refused

ONES, TWOS = {"disk0": 1, "disk1": 1}, {"disk0": 2, "disk1": 2}


async def test_it_can_be_given_up() -> None:
    async with scene(DISKS) as stage:
        await refused(stage.domain("CancelPendingRevert"), "org.domsnap1.Error.NotSupported", "no memory")
        await mark_all(stage, 1)
        await stage.create("s1")
        await mark_all(stage, 2)
        await stage.shut_off()
        await stage.revert("s1")
        assert (await stage.properties())["PendingRevert"] == "s1"
        await stage.domain("CancelPendingRevert")
        assert (await stage.properties())["PendingRevert"] == ""
        stage.signals.clear()
        await stage.start("running")
        stage.qemu.wait_counting()
        assert await present_marks(stage) == ONES
        assert not [each for each in stage.signals if each.member == "SnapshotReverted"]


async def test_it_outlasts_the_service_and_ends_with_its_snapshot() -> None:
    async with scene(DISKS) as stage:
        await stage.create("s1")
        await stage.shut_off()
        await stage.revert("s1")
        await stage.restart_daemon(15)
        await stage.wait_state("shutoff")
        assert (await stage.properties())["PendingRevert"] == "s1"
        await stage.delete("s1")
        assert (await stage.properties())["PendingRevert"] == ""


async def test_what_was_written_since_the_start_is_kept_as_an_undo_point() -> None:
    """The service was down while the domain was started and used: nothing of that may be lost."""
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1")
        await stage.shut_off()
        await stage.revert("s1")
        disks = (await stage.properties())["Disks"]
        stage.daemon.stop(15)
        active = stage.active_images()
        stage.qemu.disks = tuple(GuestDisk(*active[disk.id], disk.bus, disk.via, disk.id) for disk in stage.qemu.disks)
        stage.qemu.start()
        stage.qemu.wait_counting()
        for disk in disks:
            device = next(
                block["qdev"]
                for block in stage.qemu.control.execute("query-block")
                if block.get("inserted") and block["inserted"]["file"] == disk["Image"]
            )
            assert not stage.qemu.control.hmp(f'qemu-io -d {device} "write -q -P 9 {8 << 16} {1 << 16}"')
        stage.signals.clear()
        stage.daemon.start()
        await stage.wait_signal("SnapshotReverted")
        assert await present_marks(stage) == ONES
        (point,) = await undo_points(stage)
        assert await kept_marks(stage, point) == {"disk0": 9, "disk1": 9}


async def test_the_undo_point_of_the_revert_outlasts_the_loading() -> None:
    """What the user has discarded must not end because a memory that was asked for with it is loaded later."""
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1")
        await mark_all(stage, 2)
        await stage.shut_off()
        await stage.revert("s1", undo=Variant("b", True))
        (discarded,) = await undo_points(stage)
        stage.signals.clear()
        await stage.start()
        await stage.wait_signal("SnapshotReverted")
        assert discarded in await undo_points(stage)
        assert await kept_marks(stage, discarded) == TWOS
        assert await present_marks(stage) == ONES
        await stage.revert("s1")
        assert await undo_points(stage) == []


async def test_a_machine_that_differs_is_named_and_the_revert_goes_on_waiting() -> None:
    async with scene(DISKS) as stage:
        await stage.create("s1")
        await stage.shut_off()
        await stage.revert("s1", state=Variant("s", "paused"))
        stage.qemu.disks = (*stage.qemu.disks, GuestDisk("", bus="cdrom", id="cd0"))
        await stage.start()
        shown = await stage.wait_property("PendingProblem")
        assert shown["PendingRevert"] == "s1"
        assert "cd0" in shown["PendingProblem"]
        assert shown["State"] == "running"
