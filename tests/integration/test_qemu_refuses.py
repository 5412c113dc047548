# SPDX-License-Identifier: MIT
"""QEMU refuses a step that was begun: what was done is taken back, and the guest goes on as if nothing had been."""

import itertools
import os
import pwd
import resource
from pathlib import Path

import pytest

from snapd.bus.wire import CallError, Variant
from tests.lab.guest import TinyGuest
from tests.lab.marks import mark_all, present_marks
from tests.lab.qemu import GuestDisk, QemuProcess
from tests.lab.scene import DOMAIN, TWO_DISKS, Scene, scene
from tests.lab.untouched import ERROR, assert_same, assert_sentence, assert_works, picture, refused, untouched

DEVICE = b"\x05timer"
"""The length and the name of the first device of a PC."""

MOST_DESCRIPTORS_NEEDED = 24
INTERNAL = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), TWO_DISKS[1])
BLOCKDEV = (GuestDisk("disk0.raw", id="disk0", via="blockdev"), GuestDisk("disk1.qcow2", "qcow2", via="blockdev", id="disk1"))


async def test_a_block_job_of_somebody_else_uses_a_disk() -> None:
    """QEMU finds it in the transaction, with the guest stopped, after the other disk was covered."""
    async with scene() as stage:
        await assert_works(stage)
        control = stage.qemu.control
        copy = stage.directory / "copy.qcow2"
        control.execute("drive-mirror", job_id="theirs", device="drive1", target=str(copy), sync="full", format="qcow2")
        control.wait_event("BLOCK_JOB_READY")
        async with untouched(stage, pauses=True):
            await refused(stage.create("s1"), f"{ERROR}QemuFailed", DOMAIN, "transaction", "disk disk1", "mirror")
            assert "STOP" in _events(stage)
            inside = Variant("a{ss}", {"disk1": "internal"})
            # Of an internal snapshot QEMU says only that there is something above the disk's node, and not of which.
            await refused(stage.create("s1", disks=inside), f"{ERROR}QemuFailed", DOMAIN, "transaction", "disk1", "root")
        async with untouched(stage):
            for disks, why in ((Variant("a{ss}", {}), "mirror"), (inside, "root")):
                create = stage.create("s1", memory=Variant("b", False), disks=disks)
                await refused(create, f"{ERROR}QemuFailed", DOMAIN, "transaction", "disk1", why)
        control.execute("block-job-cancel", device="theirs", force=True)
        control.wait_event("BLOCK_JOB_CANCELLED")
        await assert_works(stage)


async def test_a_device_whose_state_cannot_be_saved() -> None:
    async with scene(extra=("-device", "nvme,id=nvme0,serial=1")) as stage:
        async with untouched(stage):
            await refused(stage.create("s1"), f"{ERROR}NotSupported", DOMAIN, "memory", "/nvme")
        capabilities = (await stage.properties())["Capabilities"]
        assert not capabilities["Memory"]
        assert "/nvme" in capabilities["MemoryBlocker"]


async def test_qemu_may_not_open_what_is_made_for_it() -> None:
    nobody = pwd.getpwnam("nobody")
    async with scene(extra=("-runas", nobody.pw_name)) as stage:
        async with untouched(stage):
            await refused(stage.create("s1"), f"{ERROR}QemuFailed", DOMAIN, "blockdev-add", ".s1.qcow2", "Permission denied")
        for directory in (stage.directory, stage.images):
            directory.chmod(0o711)
        for image in stage.images.iterdir():
            os.chown(image, nobody.pw_uid, nobody.pw_gid)
        await assert_works(stage)


async def test_a_memory_file_that_is_gone_or_cut_off_is_found_before_the_guest_stops() -> None:
    async with scene(guest=TinyGuest.dirtying(8)) as stage:
        for live in ("auto", "no"):
            await stage.create(f"live-{live}", live=Variant("s", live))
            memory = stage.state / f"live-{live}.vmstate.qcow2"
            whole = memory.read_bytes()
            for length in (0, 100, 3 << 20, len(whole) // 2, len(whole) - 1 if live == "auto" else 0):
                memory.write_bytes(whole[:length])
                async with untouched(stage):
                    await refused(stage.revert(f"live-{live}"), f"{ERROR}StateDamaged", str(memory))
            memory.unlink()
            async with untouched(stage):
                await refused(stage.revert(f"live-{live}"), f"{ERROR}ImageToolFailed", str(memory), "No such file")
            memory.write_bytes(whole)
            await stage.revert(f"live-{live}")
            stage.qemu.wait_counting()


@pytest.mark.parametrize("disks", [TWO_DISKS, BLOCKDEV, INTERNAL], ids=["drive", "blockdev", "internal"])
async def test_a_memory_state_that_cannot_be_loaded_resets_the_guest_on_its_own_disks(disks: tuple[GuestDisk, ...]) -> None:
    async with scene(disks, guest=TinyGuest.dirtying(8)) as stage:
        await stage.create("s1")
        await mark_all(stage, 7)
        memory = stage.state / "s1.vmstate.qcow2"
        whole = memory.read_bytes()
        memory.write_bytes(_with_unknown_device(whole))
        await _refused_load(stage)
        # A QEMU that was started on the active images has them open under other names and by other owners.
        via = disks[0].via
        shown = (await stage.properties())["Disks"]
        active = [GuestDisk(disk["Image"], disk["Format"], via=via, id=disk["Target"]) for disk in shown]
        stage.qemu.stop()
        await stage.wait_state("shutoff")
        stage.qemu.arguments = QemuProcess(stage.directory, active).arguments
        stage.qemu.start()
        await stage.wait_state("running")
        stage.qemu.wait_counting()
        await _refused_load(stage)
        memory.write_bytes(whole)
        await stage.revert("s1")
        stage.qemu.wait_counting()
        assert set((await present_marks(stage)).values()) == {0}
        await stage.delete("s1")
        assert sorted(path.name for path in stage.images.iterdir()) == [str(disk.path) for disk in disks]


async def _refused_load(stage: Scene) -> None:
    async with untouched(stage, pauses=True):
        await refused(stage.revert("s1"), f"{ERROR}QemuFailed", DOMAIN, "snapshot-load", "reset", "disks as they were")
        assert "RESET" in _events(stage)
    assert set((await present_marks(stage)).values()) == {7}
    await assert_works(stage)


def _events(stage: Scene) -> list[str]:
    stage.qemu.control.execute("query-status")  # what came before it has arrived when it is answered
    return [event["event"] for event in stage.qemu.control.events]


def _with_unknown_device(whole: bytes) -> bytes:
    """Rename a device in a container: QEMU finds that after it has loaded all of the memory."""
    name = whole.rindex(DEVICE)
    return whole[:name] + DEVICE[:-1] + b"!" + whole[name + len(DEVICE) :]


@pytest.mark.parametrize("disks", [TWO_DISKS, INTERNAL], ids=["external", "internal"])
@pytest.mark.parametrize("live", ["auto", "no"])
async def test_qemu_runs_out_of_descriptors_anywhere(live: str, disks: tuple[GuestDisk, ...]) -> None:
    """With one descriptor more each time, every step of a create that opens something fails once.

    Not so a revert: QEMU aborts when it finds none in ``snapshot-load``.
    """
    async with scene(disks, guest=TinyGuest.dirtying(4)) as stage:
        await assert_works(stage)
        assert await _starve(stage, live) >= (2 if disks is TWO_DISKS else 1)


async def _starve(stage: Scene, live: str) -> int:
    """Create with more and more descriptors until it succeeds. Returns: how often it failed, each time changing nothing."""
    pid = stage.qemu.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    first_free = next(number for number in itertools.count() if number not in used)
    for more in range(MOST_DESCRIPTORS_NEEDED):
        before = await picture(stage)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free + more, hard))
        try:
            await stage.create("starved", live=Variant("s", live))
        except CallError as error:
            assert error.name == f"{ERROR}QemuFailed", error
            assert_sentence(error.text, DOMAIN)
        else:
            return more
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert_same(before, await picture(stage))
        stage.qemu.wait_counting()
    raise AssertionError("it never succeeded")
