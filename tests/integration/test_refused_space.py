# SPDX-License-Identifier: MIT
"""No room for what a snapshot or a revert makes: found before the guest stops, and the directory is named."""

import signal
from pathlib import Path

import yaml

from tests.lab.guest import COUNTS_ON_ONE
from tests.lab.qemu import GuestDisk
from tests.lab.scene import UUID, scene, short_directory
from tests.lab.small import SmallFileSystem
from tests.lab.untouched import ERROR, assert_works, refused, untouched

DISK = GuestDisk("disk0.raw", id="disk0")
LARGER_THAN_ANY_DISK = "8000TiB"


async def test_no_room_is_left_beside_the_images() -> None:
    async with scene((DISK,), guest=COUNTS_ON_ONE) as stage:
        await stage.create("s1")
        config = stage.directory / "etc" / "domsnapd.yaml"
        config.write_text(yaml.safe_dump({"limits": {"free_bytes": LARGER_THAN_ANY_DISK}}))
        await stage.restart_daemon(signal.SIGTERM)
        await stage.wait_state("running")
        async with untouched(stage):
            await refused(stage.create("s2"), f"{ERROR}NoSpace", str(stage.images), "MiB free")
            await refused(stage.revert("s1"), f"{ERROR}NoSpace", str(stage.images), "MiB free")
        # Where there is no room a snapshot can still be deleted.
        await stage.delete("s1")
        assert [path.name for path in stage.images.iterdir()] == ["disk0.raw"]


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
            await stage.revert("s1")
            stage.qemu.wait_counting()
