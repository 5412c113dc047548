# SPDX-License-Identifier: MIT
"""The table of methods, by state of the domain and kind of the snapshot: create, change, revert, and what is there then.

One test for each row of the table and each of its columns; a cell is a parameter's id.
"""

from collections.abc import AsyncIterator

import pytest

from snapd.bus.wire import Variant
from tests.lab.marks import kept_marks, mark_all, present_marks
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene
from tests.lab.untouched import assert_works, refused

DISKS = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "ide", id="disk1"))

KINDS = {
    "external": {"disk0": "external", "disk1": "external"},
    "internal": {"disk0": "internal", "disk1": "internal"},
    "mixed": {"disk0": "external", "disk1": "internal"},
}


@pytest.fixture(params=["running", "paused"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene(DISKS) as made:
        if request.param == "paused":
            made.qemu.control.execute("stop")
            await made.wait_state("paused")
        yield made


def chosen(kind: str, **more: Variant) -> dict[str, Variant]:
    return {"disks": Variant("a{ss}", KINDS[kind]), **more}


@pytest.mark.parametrize("kind", KINDS)
async def test_with_memory(stage: Scene, kind: str) -> None:
    """Running or paused, with memory: the guest goes on from where it was, in the same QEMU."""
    before = await stage.properties()
    pid = stage.qemu.pid
    await mark_all(stage, 1)
    await stage.create("s1", **chosen(kind))
    shown = await stage.properties("s1")
    assert (shown["Type"], shown["Memory"], shown["Consistency"]) == (kind, True, "full")
    assert shown["DomainState"] == before["State"]
    await mark_all(stage, 2)
    counter = stage.qemu.counter()
    assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
    await stage.revert("s1", state=Variant("s", "paused"))
    assert stage.qemu.counter() <= counter
    assert await present_marks(stage) == {"disk0": 1, "disk1": 1}
    assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
    assert stage.qemu.pid == pid
    stage.qemu.control.execute("cont")
    stage.qemu.wait_counting()
    await stage.delete("s1")
    await _assert_bare(stage)


@pytest.mark.parametrize("kind", KINDS)
async def test_disk_only(stage: Scene, kind: str) -> None:
    """Running or paused, without memory: no pause at all, and a revert in place that resets the guest."""
    before = await stage.properties()
    stage.qemu.control.events.clear()
    await mark_all(stage, 1)
    await stage.create("s1", **chosen(kind, memory=Variant("b", False)))
    stage.qemu.control.execute("query-status")
    assert not [event for event in stage.qemu.control.events if event["event"] in ("STOP", "RESUME")]
    shown = await stage.properties("s1")
    assert (shown["Type"], shown["Memory"], shown["PauseUSec"]) == (kind, False, 0)
    assert (shown["Consistency"], shown["DomainState"]) == ("crash-consistent", before["State"])
    await mark_all(stage, 2)
    assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
    pid = stage.qemu.pid
    await stage.revert("s1")
    assert (await stage.properties())["State"] == before["State"]
    assert await present_marks(stage) == {"disk0": 1, "disk1": 1}
    assert stage.qemu.pid == pid
    assert "RESET" in [event["event"] for event in stage.qemu.control.events]
    stage.qemu.control.execute("cont")
    stage.qemu.wait_counting()
    await stage.delete("s1")
    await _assert_bare(stage)


@pytest.mark.parametrize("kind", KINDS)
async def test_shut_off(kind: str) -> None:
    """Shut off: by the images alone; the next start finds the active ones."""
    async with scene(DISKS) as stage:
        await stage.shut_off()
        await mark_all(stage, 1)
        await stage.create("s1", **chosen(kind))
        shown = await stage.properties("s1")
        assert (shown["Type"], shown["Memory"]) == (kind, False)
        assert (shown["Consistency"], shown["DomainState"]) == ("offline", "shutoff")
        await mark_all(stage, 2)
        assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
        await stage.revert("s1")
        assert await present_marks(stage) == {"disk0": 1, "disk1": 1}
        await mark_all(stage, 3)
        await stage.start("running")
        stage.qemu.wait_counting()
        assert await present_marks(stage) == {"disk0": 3, "disk1": 3}
        assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
        await stage.delete("s1")
        await _assert_bare(stage)


@pytest.mark.parametrize("kind", KINDS)
async def test_memory_is_loaded_at_the_next_start(kind: str) -> None:
    """Shut off, and the target has memory: the disks at once, the memory when QEMU runs again."""
    async with scene(DISKS) as stage:
        await mark_all(stage, 1)
        await stage.create("s1", **chosen(kind))
        counter = stage.qemu.counter()
        stage.qemu.wait_counting(more=50)
        await mark_all(stage, 2)
        await stage.shut_off()
        await stage.revert("s1")
        assert (await stage.properties())["PendingRevert"] == "s1"
        assert await present_marks(stage) == {"disk0": 1, "disk1": 1}
        stage.signals.clear()
        await stage.start()
        await stage.wait_signal("SnapshotReverted")
        shown = await stage.properties()
        assert (shown["PendingRevert"], shown["PendingProblem"], shown["State"]) == ("", "", "running")
        assert stage.qemu.wait_counting() > 0
        await stage.revert("s1", state=Variant("s", "paused"))
        assert stage.qemu.counter() <= counter + 50
        assert await present_marks(stage) == {"disk0": 1, "disk1": 1}


@pytest.mark.parametrize("kind", KINDS)
async def test_running_to_one_taken_shut_off(kind: str) -> None:
    """Running, and the target was taken shut off: refused, unless forced; then as disk-only."""
    async with scene(DISKS) as stage:
        await stage.shut_off()
        await mark_all(stage, 1)
        await stage.create("s1", **chosen(kind))
        await stage.start("running")
        await mark_all(stage, 2)
        await refused(stage.revert("s1"), "org.domsnap1.Error.NotSupported", "s1", "force")
        assert await present_marks(stage) == {"disk0": 2, "disk1": 2}
        await stage.revert("s1", force=Variant("b", True))
        assert await present_marks(stage) == {"disk0": 1, "disk1": 1}
        stage.qemu.wait_counting()
        await assert_works(stage)


async def _assert_bare(stage: Scene) -> None:
    """Only the domain's own images are left, nothing of ours is in them, and QEMU runs on them."""
    names = [each for each in stage.files() if each.startswith("images/")]
    assert names == ["images/disk0.qcow2", "images/disk1.qcow2"]
    disks = {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]}
    assert disks == {target: str(stage.images / f"{target}.qcow2") for target in ("disk0", "disk1")}
    nodes = stage.qemu.control.execute("query-named-block-nodes", flat=True)
    tags = [each["name"] for node in nodes for each in node["image"].get("snapshots", [])]
    assert tags == []
    assert not [node["node-name"] for node in nodes if node["node-name"].endswith(("-held", "-parked"))]
    assert not [each for each in stage.files() if "vmstate" in each or "intent" in each]
