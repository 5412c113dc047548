# SPDX-License-Identifier: MIT
"""A UEFI guest: its firmware's variables lie in a flash that takes part as a disk, or is refused by name.

QEMU reads a flash once, so that only a memory state, or a start, brings its content back.
"""

import asyncio
import time

import pytest

from snapd.bus.wire import Variant
from tests.lab.firmware import MEMORY_MIB, flash_arguments, make_vars
from tests.lab.images import content
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene, short_directory
from tests.lab.untouched import refused, untouched

DISKS = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"),)
FLASH = "pflash1"
NO_MEMORY = Variant("b", False)
WRITTEN_TIMEOUT_S = 120.0
KINDS = [("raw", "drive"), ("qcow2", "drive"), ("qcow2", "blockdev")]


def kept(shown: dict[str, object], target: str) -> bytes:
    """Return the content that a snapshot keeps of a disk."""
    disk = next(disk for disk in shown["Disks"] if disk["Target"] == target)  # type: ignore[attr-defined]
    return content(disk["Image"], disk["Format"], disk["Tag"])


async def variables(stage: Scene) -> bytes:
    """Return what the image of the flash holds now."""
    disk = next(disk for disk in (await stage.properties())["Disks"] if disk["Target"] == FLASH)
    if disk["Device"]:
        node = next(
            block["inserted"]["node-name"]
            for block in stage.qemu.control.execute("query-block")
            if block.get("qdev") == disk["Device"]
        )
        assert not stage.qemu.control.hmp(f"qemu-io {node} flush")
    return content(disk["Image"], disk["Format"])


async def wait_written(stage: Scene, before: bytes) -> bytes:
    """Wait until the firmware has written to its flash. Returns: what that holds then."""
    deadline = time.monotonic() + WRITTEN_TIMEOUT_S
    while (now := await variables(stage)) == before:
        assert time.monotonic() < deadline, "the firmware has written nothing"
        await asyncio.sleep(0.05)
    return now


@pytest.mark.parametrize(("image_format", "via"), KINDS)
async def test_with_memory_the_variables_go_back(image_format: str, via: str) -> None:
    with short_directory() as directory:
        image = make_vars(directory / f"vars.{image_format}", image_format)
        extra = flash_arguments(image, image_format, via)
        async with scene(DISKS, paused=True, memory_mib=MEMORY_MIB, extra=extra) as stage:
            fresh = await variables(stage)
            await stage.create("fresh")
            assert {disk["Target"] for disk in (await stage.properties("fresh"))["Disks"]} == {"disk0", FLASH}
            stage.qemu.control.execute("cont")
            booted = await wait_written(stage, fresh)
            assert kept(await stage.properties("fresh"), FLASH) == fresh
            await stage.create("booted")
            await stage.revert("fresh")
            # QEMU writes the flash of a guest that was loaded once that runs; it was paused when it was taken.
            assert await variables(stage) == fresh
            await stage.revert("booted", state=Variant("s", "running"))
            assert await variables(stage) != fresh
            assert kept(await stage.properties("fresh"), FLASH) == fresh
            assert kept(await stage.properties("booted"), FLASH) != fresh
            assert booted != fresh
            await stage.delete("fresh")
            await stage.delete("booted")
            assert sorted(each.name for each in directory.iterdir()) == [f"vars.{image_format}"]


async def test_without_memory_a_guest_that_runs_is_refused_by_name() -> None:
    with short_directory() as directory:
        image = make_vars(directory / "vars.qcow2", "qcow2")
        extra = flash_arguments(image, "qcow2")
        async with scene(DISKS, paused=True, memory_mib=MEMORY_MIB, extra=extra) as stage:
            fresh = await variables(stage)
            await stage.create("disks", memory=NO_MEMORY)
            assert {disk["Target"] for disk in (await stage.properties("disks"))["Disks"]} == {"disk0", FLASH}
            async with untouched(stage):
                await refused(stage.revert("disks"), "org.domsnap1.Error.NotSupported", FLASH, "shut the domain off", "force")
            stage.qemu.control.execute("cont")
            booted = await wait_written(stage, fresh)
            await stage.revert("disks", force=Variant("b", True))
            assert await variables(stage) != fresh
            assert booted != fresh
            await stage.shut_off()
            await stage.revert("disks")
            assert await variables(stage) == fresh


async def test_one_that_is_left_out_stays() -> None:
    with short_directory() as directory:
        image = make_vars(directory / "vars.fd")
        async with scene(DISKS, paused=True, memory_mib=MEMORY_MIB, extra=flash_arguments(image)) as stage:
            await stage.create("disks", memory=NO_MEMORY, disks=Variant("a{ss}", {FLASH: "no"}))
            shown = await stage.properties("disks")
            assert FLASH in shown["LeftOut"]
            await refused(stage.create("full", disks=Variant("a{ss}", {FLASH: "no"})), "org.domsnap1.Error.NotSupported", FLASH)
            await stage.revert("disks")
            assert sorted(each.name for each in directory.iterdir()) == ["vars.fd"]
