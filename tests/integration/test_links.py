# SPDX-License-Identifier: MIT
"""QEMU started through ``disks.env`` or the links beside it: external snapshots, which the next start finds."""

from dataclasses import replace

import pytest

from tests.lab.marks import kept_marks, mark_all, present_marks
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene

QCOW2 = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "ide", id="disk1"))
MIXED = (GuestDisk("disk0.raw", "raw", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "ide", via="blockdev", id="disk1"))


async def start_through_links(stage: Scene) -> None:
    """Start QEMU on the links, as a unit with fixed paths in ``disks/`` does."""
    links = {each.name.rsplit(".", 1)[0]: each for each in (stage.state / "disks").iterdir()}
    stage.qemu.disks = tuple(
        replace(disk, path=links[disk.id], format=links[disk.id].suffix.removeprefix(".")) for disk in stage.qemu.disks
    )
    stage.qemu.start()
    await stage.wait_state("running")
    stage.qemu.wait_counting()


@pytest.mark.parametrize("disks", [QCOW2, MIXED], ids=["qcow2", "mixed"])
async def test_through_links(disks: tuple[GuestDisk, ...]) -> None:
    async with scene(disks) as stage:
        names = {disk.id: str(stage.images / str(disk.path)) for disk in disks}
        await stage.shut_off()
        await start_through_links(stage)
        assert {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]} == names
        await mark_all(stage, 1)
        await stage.create("s1")
        assert (await stage.properties("s1"))["Type"] == "external"
        await mark_all(stage, 2)
        await stage.revert("s1")
        assert await present_marks(stage) == {"disk0": 1, "disk1": 1}
        await mark_all(stage, 3)
        # QEMU calls what lies below by the link's name, and the link leads elsewhere by now.
        await stage.restart_daemon(15)
        await stage.wait_state("running")
        assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
        await stage.shut_off()
        await start_through_links(stage)
        assert await present_marks(stage) == {"disk0": 3, "disk1": 3}
        await stage.delete("s1")
        assert {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]} == names
        assert await present_marks(stage) == {"disk0": 3, "disk1": 3}


async def test_an_active_commit_through_a_link() -> None:
    """The image that a link led to at the start is below an overlay, and is what the disk comes back to."""
    async with scene(QCOW2) as stage:
        await stage.shut_off()
        await start_through_links(stage)
        await stage.create("s1")
        await mark_all(stage, 2)
        await stage.delete("s1")
        disks = {disk["Target"]: disk["Image"] for disk in (await stage.properties())["Disks"]}
        assert disks == {target: str(stage.images / f"{target}.qcow2") for target in ("disk0", "disk1")}
        assert await present_marks(stage) == {"disk0": 2, "disk1": 2}
        await stage.shut_off()
        await start_through_links(stage)
        assert await present_marks(stage) == {"disk0": 2, "disk1": 2}


async def test_variables_in_the_environment_tell() -> None:
    async with scene(QCOW2) as stage:
        await stage.create("fixed")
        assert (await stage.properties("fixed"))["Type"] == "internal"
        await stage.shut_off()
        stage.qemu.environment["DOMSNAP_DISK0_FILE"] = str(stage.images / "disk0.qcow2")
        await stage.start("running")
        await stage.create("followed")
        assert (await stage.properties("followed"))["Type"] == "external"
        await stage.shut_off()
        await stage.create("offline")
        assert (await stage.properties("offline"))["Type"] == "external"


async def test_an_image_that_is_not_the_active_one_is_drift() -> None:
    """The link was moved while QEMU was being started: it has the older image open, whatever the link says now."""
    async with scene(QCOW2) as stage:
        await stage.shut_off()
        await start_through_links(stage)
        await stage.create("s1")
        await stage.shut_off()
        stage.daemon.stop(15)
        links = {each.name.rsplit(".", 1)[0]: each for each in (stage.state / "disks").iterdir()}
        active = {target: link.readlink() for target, link in links.items()}
        links["disk0"].unlink()
        links["disk0"].symlink_to(stage.images / "disk0.qcow2")
        stage.qemu.start()
        links["disk0"].unlink()
        links["disk0"].symlink_to(active["disk0"])
        stage.daemon.start()
        shown = await stage.wait_state("drifted")
        assert "disk0" in shown["StateReason"]
