# SPDX-License-Identifier: MIT
"""Overlays are like what they cover: layout, modes of access, owner and mode; and there are only so many of them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from snapd.bus.wire import Variant
from tests.lab.guest import make_disk
from tests.lab.marks import mark_all, present_marks
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene, short_directory
from tests.lab.untouched import refused, untouched

EXTERNAL = Variant("s", "external")
NO_MEMORY = Variant("b", False)


def info(path: str) -> dict[str, Any]:
    printed = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], check=True, capture_output=True).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


async def active(stage: Scene) -> str:
    (disk,) = (await stage.properties())["Disks"]
    return str(disk["Image"])


def root(stage: Scene) -> dict[str, Any]:
    """Return what QEMU shows of the node that the one disk is on."""
    (found,) = [block["inserted"] for block in stage.qemu.control.execute("query-block") if "disk0" in block.get("qdev", "")]
    shown: dict[str, Any] = found
    return shown


@pytest.mark.parametrize("shut_off", [False, True], ids=["running", "shutoff"])
async def test_layout_owner_and_mode(shut_off: bool) -> None:
    with short_directory() as directory:
        plain, image = make_disk(directory / "plain.raw"), directory / "disk0.qcow2"
        options = ["-o", "cluster_size=32k,extended_l2=on"]
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(plain), str(image)], check=True)
        plain.unlink()
        os.chmod(image, 0o640)
        os.chown(image, 65534, 65534)
        async with scene([GuestDisk(image, "qcow2", id="disk0")]) as stage:
            if shut_off:
                await stage.shut_off()
            await stage.create("s1", type=EXTERNAL)
            await stage.create("s2", type=EXTERNAL)
            overlay = Path(await active(stage))
            found = info(str(overlay))
            assert found["cluster-size"] == 32 << 10
            assert found["format-specific"]["data"]["extended-l2"] is True
            status = overlay.stat()
            assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (65534, 65534, 0o640)
            await stage.revert("s1")
            found = info(await active(stage))
            assert (found["cluster-size"], found["format-specific"]["data"]["extended-l2"]) == (32 << 10, True)


async def test_modes_of_access() -> None:
    disk = GuestDisk("disk0.qcow2", "qcow2", id="disk0", options="cache=none,aio=native,discard=unmap,detect-zeroes=unmap")
    async with scene([disk]) as stage:
        await stage.create("s1", type=EXTERNAL)
        inserted = root(stage)
        assert inserted["file"] == await active(stage)
        assert (inserted["cache"]["direct"], inserted["cache"]["no-flush"]) == (True, False)
        assert inserted["detect_zeroes"] == "unmap"
        await stage.create("s2", type=Variant("s", "internal"))
        await stage.revert("s2")
        assert root(stage)["cache"]["direct"] is True
        assert root(stage)["detect_zeroes"] == "unmap"


async def test_a_long_chain_is_told_of_and_the_longest_refused() -> None:
    async with scene([GuestDisk("disk0.raw", "raw", id="disk0")], settings={"limits": {"chain": 8}}) as stage:
        for number in range(7):
            stage.signals.clear()
            await mark_all(stage, number + 1)
            await stage.create(f"s{number}", memory=NO_MEMORY)
            (ended,) = await stage.wait_signal("Completed")
            notes = (await stage.job(ended.path))["Notes"]
            assert bool(notes) == (number == 6), notes
        assert "chain of 8 images" in notes[0]
        assert "'s0'" in notes[0]
        steps = await stage.plan("delete", "s0")
        assert [step for step in steps if step.startswith("Merge ")]
        async with untouched(stage):
            await refused(stage.create("s7", memory=NO_MEMORY), "org.domsnap1.Error.NotSupported", "disk0", "8 images")
        await stage.delete("s0")
        await stage.create("s7", memory=NO_MEMORY)
        assert await present_marks(stage) == {"disk0": 7}
