# SPDX-License-Identifier: MIT
"""A domain that is shut off: what needs a guest is refused, and so is what cannot be known or is in use."""

import asyncio

import pytest

from snapd.bus.wire import Variant
from tests.lab.images import held_open
from tests.lab.scene import DOMAIN, Scene, scene
from tests.lab.untouched import ERROR, assert_works, refused

YES = Variant("b", True)
OTHER, OTHER_UUID = "vm2", "b4eb4367-b880-3b11-d1e8-d5d2b2c1a3bb"


async def test_what_needs_a_guest() -> None:
    async with scene() as stage:
        await stage.create("s1")
        files = stage.files()
        await stage.shut_off()
        assert (await stage.properties())["StateReason"] == "its QEMU has ended"
        await refused(stage.create("s3", memory=YES), f"{ERROR}NotSupported", DOMAIN, "memory", "shut off")
        await refused(stage.plan("create", "s3", memory=YES), f"{ERROR}NotSupported", DOMAIN, "memory", "shut off")
        await refused(stage.revert("gone"), f"{ERROR}NoSuchSnapshot", DOMAIN, "'gone'")
        assert [row[1] for row in await stage.snapshots()] == ["s1"]
        assert stage.files() == files
        await stage.start("running")
        stage.qemu.wait_counting()
        await stage.shut_off(kill=True)
        assert "killed" in (await stage.properties())["StateReason"]
        await stage.create("offline")
        for state in ("running", "paused"):
            other = stage.revert("offline", state=Variant("s", state))
            await refused(other, f"{ERROR}NotSupported", DOMAIN, "'offline'", "shut off", "no memory", state)
        await stage.delete("offline")
        assert stage.files() == files
        await stage.start("running")
        stage.qemu.wait_counting()
        await assert_works(stage)


async def test_an_image_that_something_else_has_open() -> None:
    async with scene() as stage:
        await stage.create("s1")
        await stage.shut_off()
        files = stage.files()
        image = stage.active_images()["disk1"][0]
        with held_open(image):
            for verb in (stage.create("s3"), stage.revert("s1"), stage.plan("create", "s3")):
                await refused(verb, f"{ERROR}ImageInUse", image, "open in another process")
        assert stage.files() == files
        await assert_works(stage)
        assert stage.files() == files
        await stage.start("running")
        stage.qemu.wait_counting()
        await assert_works(stage)


@pytest.mark.parametrize(
    ("uuid", "why"),
    [("", "nothing is known of it yet"), (OTHER_UUID, "none of its disks is known yet")],
    ids=["without", "with"],
)
async def test_one_that_was_never_seen(uuid: str, why: str) -> None:
    async with scene() as stage:
        stage.daemon.define(OTHER, uuid, stage.directory / "nothing")
        stage.daemon.reload()
        await stage.wait_signal("DomainAdded")
        async with asyncio.timeout(30):
            while await _other_is(stage) != ("shutoff", bool(uuid)):
                await stage.wait_any()
        created = stage.manager("CreateSnapshot", "ssa{sv}", OTHER, "s3", {})
        await refused(created, f"{ERROR}NotSupported", OTHER, why, "start it once while the service runs")
        for verb in ("RevertSnapshot", "DeleteSnapshot"):
            error = "NoSuchSnapshot" if uuid else "NotSupported"
            await refused(stage.manager(verb, "ssa{sv}", OTHER, "s1", {}), f"{ERROR}{error}", OTHER, "s1")
        assert not list((stage.daemon.state / OTHER_UUID).rglob("*"))


async def _other_is(stage: Scene) -> tuple[str, bool]:
    """Return the state of the other domain, and whether its state has been opened."""
    (rows,) = await stage.manager("ListDomains")
    return next((row[2] for row in rows if row[0] == OTHER), ""), (stage.daemon.state / OTHER_UUID).is_dir()
