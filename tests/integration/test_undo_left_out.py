# SPDX-License-Identifier: MIT
"""Undo points of a revert that leaves a disk as it is."""

from snapd.bus.wire import Variant
from tests.integration.test_table import DISKS
from tests.integration.test_undo import undo_points
from tests.lab.marks import mark_all, present_marks
from tests.lab.scene import scene
from tests.lab.untouched import refused, untouched

YES, NO_MEMORY = Variant("b", True), Variant("b", False)


async def test_a_disk_that_the_revert_leaves_is_left_by_the_undo_too() -> None:
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1", memory=NO_MEMORY, disks=Variant("a{ss}", {"disk1": "no"}))
        await mark_all(stage, 2)
        await stage.revert("s1", undo=YES)
        assert await present_marks(stage) == {"disk0": 1, "disk1": 2}
        (point,) = await undo_points(stage)
        assert (await stage.properties(point))["LeftOut"] == {"disk1": "the revert left it as it was"}
        await mark_all(stage, 3)
        await stage.revert("")
        assert await present_marks(stage) == {"disk0": 2, "disk1": 3}


async def test_memory_cannot_be_kept_without_that_disk() -> None:
    """The guest would go on writing to it, and would find other content than its memory says when it is undone."""
    async with scene(DISKS) as stage:
        await stage.create("s1", memory=NO_MEMORY, disks=Variant("a{ss}", {"disk1": "no"}))
        async with untouched(stage):
            call = stage.revert("s1", undo=YES, undo_memory=YES)
            await refused(call, "org.domsnap1.Error.NotSupported", "disk1", "memory")


async def test_options_that_contradict_each_other() -> None:
    async with scene(DISKS) as stage:
        await stage.create("s1")
        async with untouched(stage):
            call = stage.revert("s1", undo=Variant("b", False), undo_memory=YES)
            await refused(call, "org.domsnap1.Error.InvalidOption", "undo-memory", "undo")
