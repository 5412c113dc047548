# SPDX-License-Identifier: MIT
"""Mixed trees: internal snapshots inside images that others need, copied out, deleted as soon as that is possible."""

import subprocess

from snapd.bus.wire import Variant
from tests.integration.test_table import DISKS, chosen
from tests.lab.images import content, drop_tag, make_tag, tags
from tests.lab.marks import MARK_AT, kept_marks, mark_all, present_marks
from tests.lab.scene import Scene, scene
from tests.lab.untouched import assert_works

NO_MEMORY = Variant("b", False)


def marks(value: int) -> dict[str, int]:
    return {"disk0": value, "disk1": value}


async def _tree(stage: Scene) -> None:
    """Take an internal, an external and one more internal snapshot, so that the first lies in an image that is frozen."""
    for value, (name, kind) in enumerate([("inner", "internal"), ("outer", "external"), ("top", "internal")], 1):
        await mark_all(stage, value)
        await stage.create(name, **chosen(kind, memory=NO_MEMORY))
    await mark_all(stage, 4)


async def _assert_kept(stage: Scene, *names: str) -> None:
    values = {"inner": 1, "outer": 2, "top": 3}
    assert {name: await kept_marks(stage, name) for name in names} == {name: marks(values[name]) for name in names}


async def _check_images(stage: Scene) -> None:
    for each in stage.images.glob("*.qcow2"):
        subprocess.run(["qemu-img", "check", "-U", "-q", str(each)], check=True)


async def test_an_internal_snapshot_in_a_frozen_image_is_copied_out() -> None:
    async with scene(DISKS) as stage:
        await _tree(stage)
        steps = await stage.plan("revert", "inner")
        assert [step for step in steps if step.startswith("Copy internal snapshot 'inner' out of ")]
        assert not [step for step in steps if step.startswith("Apply ")]
        await stage.revert("inner")
        assert await present_marks(stage) == marks(1)
        await _assert_kept(stage, "inner", "outer", "top")
        await stage.revert("top")
        assert await present_marks(stage) == marks(3)
        await stage.revert("outer")
        assert await present_marks(stage) == marks(2)
        await _assert_kept(stage, "inner", "outer", "top")
        await _check_images(stage)
        await assert_works(stage)


async def test_a_copy_comes_home_when_the_snapshots_are_gone() -> None:
    async with scene(DISKS) as stage:
        await _tree(stage)
        await stage.revert("inner")
        await mark_all(stage, 5)
        for name in ("outer", "inner", "top"):
            await stage.delete(name)
        await stage.shut_off()
        await stage.wait_rest()
        assert [each for each in stage.files() if each.startswith("images/")] == ["images/disk0.qcow2", "images/disk1.qcow2"]
        assert await present_marks(stage) == marks(5)
        assert not tags(stage.images / "disk0.qcow2")
        assert not tags(stage.images / "disk1.qcow2")
        await stage.start("running")
        stage.qemu.wait_counting()


async def test_one_deleted_in_a_frozen_image_goes_as_soon_as_it_can() -> None:
    """QEMU has the image open for reading only: the job says so, the record says so, and shutting off settles it."""
    async with scene(DISKS) as stage:
        await _tree(stage)
        stage.signals.clear()
        await stage.delete("inner")
        ended = await stage.wait_signal("Completed")
        job = await stage.job(ended[0].path)
        assert len(job["Notes"]) == 2
        assert all("'inner'" in note and "shut off" in note for note in job["Notes"])
        assert "inner" not in [row[1] for row in await stage.snapshots()]
        assert tags(stage.images / "disk0.qcow2") == ["inner"]
        assert '"doomed"' in (stage.state / "domain.libxl-json").read_text()
        # The name is free again although its internal snapshot is still there.
        await stage.create("inner", **chosen("internal", memory=NO_MEMORY))
        await stage.shut_off()
        await stage.wait_rest()
        assert tags(stage.images / "disk0.qcow2") == []
        assert '"doomed"' not in (stage.state / "domain.libxl-json").read_text()
        await _assert_kept(stage, "outer", "top")
        assert await kept_marks(stage, "inner") == marks(4)


async def test_scopes_take_both_kinds() -> None:
    async with scene(DISKS) as stage:
        await _tree(stage)
        await stage.delete("inner", scope=Variant("s", "children"))
        assert [row[1] for row in await stage.snapshots()] == ["inner"]
        assert await present_marks(stage) == marks(4)
        assert await kept_marks(stage, "inner") == marks(1)
        await stage.delete("inner", scope=Variant("s", "tree"))
        await stage.shut_off()
        await stage.wait_rest()
        assert [each for each in stage.files() if each.startswith("images/")] == ["images/disk0.qcow2", "images/disk1.qcow2"]
        assert await present_marks(stage) == marks(4)


async def test_an_internal_snapshot_that_the_user_made_is_never_merged_away() -> None:
    """In an image of ours: no merge and no unlink takes it, until the user has deleted it."""
    async with scene(DISKS) as stage:
        await stage.create("s1", type=Variant("s", "external"))
        await mark_all(stage, 7)
        await stage.shut_off()
        active = {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]}
        make_tag(active["disk0"], "mine")
        await mark_all(stage, 8)
        await stage.delete("s1")
        after = {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]}
        assert after == {"disk0": active["disk0"], "disk1": str(stage.images / "disk1.qcow2")}
        assert content(active["disk0"], "qcow2", "mine")[MARK_AT] == 7
        assert await present_marks(stage) == marks(8)
        await stage.start("running")
        subprocess.run(["qemu-img", "snapshot", "-U", "-l", active["disk0"]], check=True)
        await stage.shut_off()
        drop_tag(active["disk0"], "mine")
        await stage.create("s2", type=Variant("s", "external"))
        await stage.delete("s2")
        assert {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]} == {
            target: str(stage.images / f"{target}.qcow2") for target in ("disk0", "disk1")
        }
        assert await present_marks(stage) == marks(8)
