# SPDX-License-Identifier: MIT
"""Disks that cannot take part: skipped with the reason shown where the guest cannot write to them, else named and refused."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from snapd.bus.wire import Variant
from tests.lab.guest import COUNTS_ON_ONE
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, Scene, scene, short_directory
from tests.lab.untouched import ERROR, assert_works, refused, untouched

DISK = GuestDisk("disk0.raw", id="disk0")


async def test_disks_that_the_guest_cannot_write_are_skipped_with_their_reason() -> None:
    disks = (
        DISK,
        GuestDisk("fixed.qcow2", "qcow2", id="fixed", options="readonly=on"),
        GuestDisk("cd.raw", bus="cdrom", id="cd", options="readonly=on"),
        GuestDisk(bus="cdrom", id="empty"),
    )
    async with scene(disks, guest=COUNTS_ON_ONE) as stage:
        assert await _reasons(stage) == {
            "disk0": "",
            "fixed": "it is read-only",
            "cd": "it is a CD-ROM or floppy",
            "empty": "it has no medium",
        }
        async with untouched(stage):
            for target, reason in (("fixed", "read-only"), ("cd", "CD-ROM"), ("empty", "no medium")):
                await refused(_create_with(stage, {target: "external"}), f"{ERROR}NotSupported", DOMAIN, target, reason)
        await stage.create("s1")
        assert [disk["Target"] for disk in (await stage.properties("s1"))["Disks"]] == ["disk0"]
        # To leave one out that takes no part is no contradiction.
        await _create_with(stage, {"cd": "no", "fixed": "no"}, "s2")
        await stage.revert("s1")
        stage.qemu.wait_counting()
        assert {path.name for path in stage.images.iterdir() if "fixed" in path.name or "cd" in path.name} == {
            "fixed.qcow2",
            "cd.raw",
        }


async def test_a_writable_disk_whose_definition_says_no() -> None:
    with short_directory() as directory:
        image = directory / "data.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
        for policy, words in (("no", "'snapshot: no'"), ("internal", "'snapshot: internal'")):
            defined = {"target": "data", "image": str(image), "format": "qcow2", "snapshot": policy}
            disks = (DISK, GuestDisk(image, "qcow2", id="data"))
            async with scene(disks, guest=COUNTS_ON_ONE, define={"disks": [defined]}) as stage, untouched(stage):
                await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, "data", words)
                await refused(_create_with(stage, {"data": "external"}), f"{ERROR}NotSupported", DOMAIN, "data", words)
                await refused(_create_with(stage, {"data": "no"}), f"{ERROR}NotSupported", DOMAIN, "data")


async def test_a_read_only_disk_whose_definition_says_no() -> None:
    """Nothing is lost without it, so it is only left out."""
    with short_directory() as directory:
        image = directory / "data.raw"
        image.write_bytes(bytes(1 << 20))
        defined = {"target": "data", "image": str(image), "format": "raw", "snapshot": "no"}
        disks = (DISK, GuestDisk(image, id="data", options="readonly=on"))
        async with scene(disks, guest=COUNTS_ON_ONE, define={"disks": [defined]}) as stage:
            await assert_works(stage)


async def test_a_writable_disk_that_no_overlay_can_cover() -> None:
    """Each is plugged into the same running guest, refused by name, and taken out again."""
    async with scene((DISK,), guest=COUNTS_ON_ONE, extra=("-device", "virtio-scsi-pci,id=hba")) as stage:
        await assert_works(stage)
        for image_format in ("qed", "vmdk", "qcow"):
            path = stage.images / f"other.{image_format}"
            subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(path), "1M"], check=True)
            with _plugged(stage, image_format, str(path)):
                async with untouched(stage):
                    await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, "other", f" {image_format} ")
        relative = os.path.relpath(stage.images / "relative.raw")
        Path(relative).write_bytes(bytes(1 << 20))
        with _plugged(stage, "raw", relative):
            async with untouched(stage):
                await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, "disk other", relative, "absolute path")
        await assert_works(stage)


@contextlib.contextmanager
def _plugged(stage: Scene, image_format: str, path: str) -> Iterator[None]:
    """Give the running guest one more disk, called ``other``."""
    control = stage.qemu.control
    file = {"driver": "file", "filename": path}
    control.execute("blockdev-add", driver=image_format, node_name="other-node", file=file)
    control.execute("device_add", driver="scsi-hd", id="other", drive="other-node", bus="hba.0")
    yield
    control.execute("device_del", id="other")
    control.wait_event("DEVICE_DELETED")
    control.execute("blockdev-del", node_name="other-node")


async def _reasons(stage: Scene) -> dict[str, str]:
    """Return why each disk cannot take part, empty where it can."""
    shown = (await stage.properties())["Disks"]
    assert all(disk["Eligible"] == (not disk["Reason"]) for disk in shown)
    return {disk["Target"]: disk["Reason"] for disk in shown}


async def _create_with(stage: Scene, disks: dict[str, str], name: str = "s1") -> None:
    await stage.create(name, disks=Variant("a{ss}", disks))
