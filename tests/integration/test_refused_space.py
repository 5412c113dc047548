# SPDX-License-Identifier: MIT
"""No room for what a snapshot or a revert makes: found before the guest stops, and the directory is named."""

import signal
from pathlib import Path

import pytest
import yaml

from snapd.bus.wire import Variant
from tests.lab.guest import COUNTS_ON_ONE
from tests.lab.qemu import GuestDisk
from tests.lab.scene import UUID, scene, short_directory
from tests.lab.small import SmallFileSystem
from tests.lab.untouched import ERROR, assert_works, refused, untouched

DISK = GuestDisk("disk0.raw", id="disk0")
QCOW2 = GuestDisk("disk0.qcow2", "qcow2", id="disk0")
LARGER_THAN_ANY_DISK = "8000TiB"


@pytest.mark.parametrize("disk", [DISK, QCOW2], ids=["external", "internal"])
async def test_no_room_is_left_beside_the_images(disk: GuestDisk) -> None:
    async with scene((disk,), guest=COUNTS_ON_ONE) as stage:
        await stage.create("s1")
        config = stage.directory / "etc" / "domsnapd.yaml"
        config.write_text(yaml.safe_dump({"limits": {"free_bytes": LARGER_THAN_ANY_DISK}}))
        await stage.restart_daemon(signal.SIGTERM)
        await stage.wait_state("running")
        async with untouched(stage):
            await refused(stage.create("s2"), f"{ERROR}NoSpace", str(stage.images), "MiB free")
            await refused(stage.create("s2", memory=Variant("b", False)), f"{ERROR}NoSpace", str(stage.images), "MiB free")
            await refused(stage.plan("create", "s2"), f"{ERROR}NoSpace", str(stage.images), "MiB free")
            await refused(stage.revert("s1"), f"{ERROR}NoSpace", str(stage.images), "MiB free")
        # Where there is no room a snapshot can still be deleted.
        await stage.delete("s1")
        assert [path.name for path in stage.images.iterdir()] == [str(disk.path)]


async def test_the_file_system_for_memory_is_small() -> None:
    with short_directory() as directory:
        small = SmallFileSystem(directory, 64 << 20)
        settings = {"snapshots": {"directory": str(directory)}, "limits": {"free_bytes": "1MiB"}}
        async with scene((DISK,), guest=COUNTS_ON_ONE, settings=settings, prefix=small.prefix) as stage:
            async with untouched(stage):
                text = await refused(stage.create("s1"), f"{ERROR}NoSpace", str(directory / UUID), "MiB free")
            assert "64 MiB free" in text
            assert small.files(stage.daemon.pid) == []
            small.remount(stage.daemon.pid, "size=512m")
            await stage.create("s1")
            assert small.files(stage.daemon.pid) == [str(Path(UUID) / "s1.vmstate.qcow2")]
            await assert_works(stage)
            small.remount(stage.daemon.pid, "size=128m")
            async with untouched(stage):
                memory = {"undo": Variant("b", True), "undo-memory": Variant("b", True)}
                await refused(stage.revert("s1", **memory), f"{ERROR}NoSpace", str(directory / UUID), "MiB free")
            await stage.revert("s1")
            stage.qemu.wait_counting()
