# SPDX-License-Identifier: MIT
"""Disks that cannot take part: skipped with the reason shown where nothing is lost by it, else named and refused."""

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from snapd.bus.wire import Variant
from tests.lab.guest import COUNTS_ON_ONE
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, Scene, scene, short_directory
from tests.lab.untouched import ERROR, assert_works, refused, untouched

DISK = GuestDisk("disk0.raw", id="disk0")
RAW = "its format raw has no internal snapshots"
INTERNAL, NO_MEMORY = Variant("s", "internal"), Variant("b", False)


async def test_disks_that_the_guest_cannot_write_are_skipped_with_their_reason() -> None:
    disks = (
        DISK,
        GuestDisk("fixed.qcow2", "qcow2", id="fixed", options="readonly=on"),
        GuestDisk("cd.raw", bus="cdrom", id="cd", options="readonly=on"),
        GuestDisk(bus="cdrom", id="empty"),
    )
    async with scene(disks, guest=COUNTS_ON_ONE) as stage:
        assert await _reasons(stage) == {
            "disk0": RAW,
            "fixed": "it is read-only",
            "cd": "it is a CD-ROM or floppy",
            "empty": "it has no medium",
        }
        async with untouched(stage):
            for target, reason in (("fixed", "read-only"), ("cd", "CD-ROM"), ("empty", "no medium")):
                for kind in ("external", "internal"):
                    await refused(_create_with(stage, {target: kind}), f"{ERROR}NotSupported", DOMAIN, kind, target, reason)
        await stage.create("s1")
        made = await stage.properties("s1")
        assert [disk["Target"] for disk in made["Disks"]] == ["disk0"]
        assert made["LeftOut"] == {
            "fixed": "it is read-only",
            "cd": "it is a CD-ROM or floppy",
            "empty": "it has no medium",
        }
        # To leave one out that takes no part is no contradiction.
        await _create_with(stage, {"cd": "no", "fixed": "no"}, "s2")
        await stage.revert("s1")
        stage.qemu.wait_counting()
        assert {path.name for path in stage.images.iterdir() if "fixed" in path.name or "cd" in path.name} == {
            "fixed.qcow2",
            "cd.raw",
        }


async def test_a_writable_disk_whose_definition_says_no() -> None:
    """Left out of a snapshot without memory only; a request that names it decides otherwise."""
    async with _scene_with_data("qcow2", "no") as stage:
        async with untouched(stage):
            await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, "disk data", "'snapshot: no'")
            await refused(
                _create_with(stage, {"data": "no"}), f"{ERROR}NotSupported", DOMAIN, "disk data", "the request says 'no'"
            )
        await stage.create("s1", memory=NO_MEMORY)
        made = await stage.properties("s1")
        assert [disk["Target"] for disk in made["Disks"]] == ["disk0"]
        assert made["LeftOut"] == {"data": "its definition says 'snapshot: no'"}
        for kind in ("external", "internal"):
            await _create_with(stage, {"data": kind}, f"with-{kind}")
            assert {disk["Target"] for disk in (await stage.properties(f"with-{kind}"))["Disks"]} == {"disk0", "data"}
        await stage.revert("s1")
        stage.qemu.wait_counting()


async def test_a_writable_disk_whose_definition_asks_for_what_its_format_has_not() -> None:
    async with _scene_with_data("raw", "internal") as stage:
        named = ("disk data", "'snapshot: internal'", RAW)
        async with untouched(stage):
            await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, *named)
            await refused(_create_with(stage, {"disk0": "external"}), f"{ERROR}NotSupported", DOMAIN, *named)
            await refused(_create_with(stage, {"data": "internal"}), f"{ERROR}NotSupported", DOMAIN, "disk data", RAW)
        await _create_with(stage, {"data": "external"})
        assert {disk["Target"] for disk in (await stage.properties("s1"))["Disks"]} == {"disk0", "data"}
        await stage.delete("s1")
        await stage.create("s1", memory=NO_MEMORY)
        assert (await stage.properties("s1"))["LeftOut"] == {"data": f"its definition says 'snapshot: internal', and {RAW}"}


async def test_an_internal_snapshot_of_a_disk_that_has_none() -> None:
    async with _scene_with_data("qcow2", "any") as stage:
        async with untouched(stage):
            for options in ({"type": INTERNAL}, {"disks": Variant("a{ss}", {"disk0": "internal"})}):
                await refused(stage.create("s1", **options), f"{ERROR}NotSupported", DOMAIN, "disk disk0", RAW)
                without = stage.create("s1", memory=NO_MEMORY, **options)
                await refused(without, f"{ERROR}NotSupported", DOMAIN, "An internal snapshot of disk disk0", RAW)
        without_it = Variant("a{ss}", {"disk0": "no"})
        await stage.create("s1", memory=NO_MEMORY, type=INTERNAL, disks=without_it)
        made = await stage.properties("s1")
        assert (made["Type"], made["LeftOut"]) == ("internal", {"disk0": "the request says 'no' for it"})
        assert [disk["Target"] for disk in made["Disks"]] == ["data"]


async def test_a_snapshot_without_memory_and_without_any_disk() -> None:
    async with _scene_with_data("qcow2", "no") as stage, untouched(stage):
        nothing = stage.create("s1", memory=NO_MEMORY, disks=Variant("a{ss}", {"disk0": "no"}))
        await refused(nothing, f"{ERROR}NotSupported", DOMAIN, "none of them", "disk0: the request", "data: its definition")


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
                    for kind in ("external", "internal"):
                        only = stage.create("s1", memory=NO_MEMORY, disks=Variant("a{ss}", {"other": kind}))
                        await refused(only, f"{ERROR}NotSupported", DOMAIN, kind, "disk other", f" {image_format} ")
                await stage.create("s1", memory=NO_MEMORY)
                assert f" {image_format} " in (await stage.properties("s1"))["LeftOut"]["other"]
                await stage.delete("s1")
        relative = os.path.relpath(stage.images / "relative.raw")
        Path(relative).write_bytes(bytes(1 << 20))
        with _plugged(stage, "raw", relative):
            async with untouched(stage):
                await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, "disk other", relative, "absolute path")
        await assert_works(stage)


async def test_a_qcow2_image_whose_content_lies_elsewhere_has_no_internal_snapshots() -> None:
    async with scene((DISK,), guest=COUNTS_ON_ONE, extra=("-device", "virtio-scsi-pci,id=hba")) as stage:
        path, content = stage.images / "other.qcow2", stage.images / "other.content"
        options = f"data_file={content},data_file_raw=on"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "1M"], check=True)
        with _plugged(stage, "qcow2", str(path)):
            async with untouched(stage):
                internal = _create_with(stage, {"other": "internal"})
                await refused(internal, f"{ERROR}NotSupported", DOMAIN, "disk other", "data file", str(content))
            await stage.create("s1")
            assert {disk["Target"] for disk in (await stage.properties("s1"))["Disks"]} == {"disk0", "other"}
            await stage.delete("s1")


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
    """Return why each disk cannot take part in one way or the other, empty where both are possible."""
    shown = (await stage.properties())["Disks"]
    for disk in shown:
        assert disk["Eligible"] == (disk["CanInternal"] or disk["CanExternal"]), disk
        assert (disk["CanInternal"] and disk["CanExternal"]) == (not disk["Reason"]), disk
    return {disk["Target"]: disk["Reason"] for disk in shown}


@contextlib.asynccontextmanager
async def _scene_with_data(image_format: str, policy: str) -> AsyncIterator[Scene]:
    """Set a scene with one more disk, called ``data``, whose definition says ``policy``."""
    with short_directory() as directory:
        image = directory / f"data.{image_format}"
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(image), "1M"], check=True)
        defined = {"target": "data", "image": str(image), "format": image_format, "snapshot": policy}
        disks = (DISK, GuestDisk(image, image_format, id="data"))
        async with scene(disks, guest=COUNTS_ON_ONE, define={"disks": [defined]}) as stage:
            yield stage


async def _create_with(stage: Scene, disks: dict[str, str], name: str = "s1") -> None:
    await stage.create(name, disks=Variant("a{ss}", disks))
