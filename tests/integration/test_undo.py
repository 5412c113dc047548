# SPDX-License-Identifier: MIT
"""Undo points: what a revert discards is kept, can be gone back to, and ends with the next revert unless it is protected."""

import pytest

from snapd.bus.names import SNAPSHOT_INTERFACE, snapshot_path
from snapd.bus.wire import Variant
from tests.integration.test_table import DISKS, chosen
from tests.lab.marks import kept_marks, mark_all, present_marks
from tests.lab.scene import BUS_NAME, DOMAIN, Scene, scene
from tests.lab.untouched import refused

YES, NO = Variant("b", True), Variant("b", False)
ONES, TWOS = {"disk0": 1, "disk1": 1}, {"disk0": 2, "disk1": 2}


async def undo_points(stage: Scene) -> list[str]:
    return [row[1] for row in await stage.snapshots() if row[5] & 16]


async def set_protected(stage: Scene, name: str, protected: bool) -> None:
    path = snapshot_path(DOMAIN, name)
    await stage.wire.call(BUS_NAME, path, SNAPSHOT_INTERFACE, "SetProtected", "b", (protected,))


@pytest.mark.parametrize("kind", ["external", "internal", "mixed"])
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "disks"])
@pytest.mark.parametrize("shut_off", [False, True], ids=["running", "shutoff"])
async def test_a_revert_can_be_undone(kind: str, memory: bool, shut_off: bool) -> None:
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1", **chosen(kind, memory=Variant("b", memory)))
        await mark_all(stage, 2)
        if shut_off:
            await stage.shut_off()
        await stage.revert("s1", undo=YES)
        (point,) = await undo_points(stage)
        shown = await stage.properties(point)
        assert (shown["Undo"], shown["Memory"], shown["Protected"]) == (True, False, False)
        assert await kept_marks(stage, point) == TWOS
        assert await present_marks(stage) == ONES
        await stage.revert("")
        assert await present_marks(stage) == TWOS
        assert await undo_points(stage) == []
        assert await kept_marks(stage, "s1") == ONES
        await stage.delete("s1")
        assert await stage.snapshots() == []
        images = [each for each in stage.files() if each.startswith("images/")]
        assert images == ["images/disk0.qcow2", "images/disk1.qcow2"]
        assert await present_marks(stage) == TWOS


async def test_the_next_revert_replaces_it() -> None:
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1")
        await mark_all(stage, 2)
        await stage.revert("s1", undo=YES)
        (first,) = await undo_points(stage)
        await mark_all(stage, 3)
        await stage.revert("s1", undo=YES)
        (second,) = await undo_points(stage)
        assert await kept_marks(stage, second) == {"disk0": 3, "disk1": 3}
        assert first == second or first not in [row[1] for row in await stage.snapshots()]
        await stage.revert("s1")
        assert await undo_points(stage) == []


async def test_one_that_is_protected_stays_and_cannot_be_deleted() -> None:
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1")
        await mark_all(stage, 2)
        await stage.revert("s1", undo=YES)
        (point,) = await undo_points(stage)
        await set_protected(stage, point, True)
        await stage.revert("s1")
        assert await kept_marks(stage, point) == TWOS
        await refused(stage.delete(point), "org.domsnap1.Error.Protected", point)
        await refused(stage.delete("s1", scope=Variant("s", "tree")), "org.domsnap1.Error.Protected", point)
        await set_protected(stage, point, False)
        await stage.delete(point)
        assert [row[1] for row in await stage.snapshots()] == ["s1"]


async def test_with_memory_the_guest_goes_on_where_it_was() -> None:
    async with scene(DISKS) as stage:
        await stage.create("s1")
        stage.qemu.wait_counting(more=100)
        stage.qemu.control.execute("stop")
        await stage.wait_state("paused")
        counter = stage.qemu.counter()
        await mark_all(stage, 2)
        await stage.revert("s1", undo=YES, undo_memory=YES, state=Variant("s", "paused"))
        assert stage.qemu.counter() < counter
        (point,) = await undo_points(stage)
        assert (await stage.properties(point))["Memory"] is True
        await stage.revert("", state=Variant("s", "paused"))
        assert stage.qemu.counter() == counter
        assert await present_marks(stage) == TWOS
        assert [each for each in stage.files() if "undo" in each] == []


async def test_without_one_there_is_nothing_to_go_back_to() -> None:
    async with scene(DISKS) as stage:
        await stage.create("s1")
        await refused(stage.revert(""), "org.domsnap1.Error.NotSupported", "undo point")
