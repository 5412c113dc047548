# SPDX-License-Identifier: MIT
"""Memory state of a real QEMU whose guest runs: memory and disks are of one instant, and real obstacles stand in the way.

Not here: what needs no guest (``test_qmp_memory``).
"""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapd.errors import QemuFailed
from snapd.images.toolbox import ImageToolbox
from snapd.images.vmstate import MEMORY_TAG
from snapd.model.plan import Overlay
from snapd.qmp.blocks import open_overlay, query_disks, query_open
from snapd.qmp.link import Link
from snapd.qmp.memory import arm, disarm, live_blocker, memory_blocker
from snapd.qmp.qemu import Qemu
from tests.contract.conftest import StartQemu
from tests.contract.disks import assert_counts, cover_now, overlay_for
from tests.lab.guest import TinyGuest, make_disk
from tests.lab.images import check_image
from tests.lab.linked import connected
from tests.lab.qemu import DEFAULT_MEMORY_MIB, GuestDisk, QemuProcess, kvm_works
from tests.lab.qmp import Qmp

MEMORY_BYTES = DEFAULT_MEMORY_MIB << 20
LARGEST_STREAM_BYTES = MEMORY_BYTES + (128 << 20)
LONGEST_PAUSE_USEC = 2_000_000
"""What is measured here is that the guest does not stand still until all is saved, on however slow a host."""

TOOLBOX = ImageToolbox()


@dataclass
class Guest:
    """A guest that counts on two disks, and the port to its QEMU."""

    process: QemuProcess
    link: Link
    port: Qemu
    directory: Path

    async def overlays(self, name: str) -> list[Overlay]:
        return [overlay_for(disk, self.directory / f"{disk.target}.{name}.qcow2") for disk in await query_disks(self.link)]

    async def checkpoint_live(self, name: str) -> tuple[str, list[Overlay], list[tuple[str, int, int]]]:
        """Take a live checkpoint. Returns: the container, the overlays, and what was reported."""
        path, reported = str(self.directory / f"{name}.vmstate.qcow2"), list[tuple[str, int, int]]()
        overlays = await self.overlays(name)
        memory = await TOOLBOX.create_memory(path, LARGEST_STREAM_BYTES)
        await self.port.arm_live_save(memory.descriptor)
        await self.port.stop()
        await cover_now(self.link, *overlays)
        await self.port.save_live(lambda *progress: reported.append(progress))
        await memory.finish()
        await self.port.disarm_live_save()
        return path, overlays, reported

    async def revert(self, path: str, overlays: list[Overlay], name: str) -> int:
        """Put the disks back to what ``overlays`` cover, load the memory, and run on. Returns: the counter that was loaded."""
        opened, new = await query_open(self.link), list[Overlay]()
        for overlay in overlays:
            pinned = overlay.disk
            new.append(overlay_for(pinned, self.directory / f"{pinned.target}.{name}.qcow2"))
            await open_overlay(self.link, new[-1], opened[pinned.image][0])
        async with self.attached(path):
            await self.port.stop()
            for overlay in new:
                await self.port.swap(overlay)
            await self.port.load(MEMORY_TAG, MEMORY_BYTES)
            counter = self.process.counter()
            for overlay in new:
                assert_counts(overlay.image.path, "qcow2", counter)
            await self.port.resume()
        assert path not in self.files_open()
        self.process.wait_counting(5)
        return counter

    @asynccontextmanager
    async def attached(self, path: str) -> AsyncIterator[None]:
        descriptors = await TOOLBOX.open_container(path)
        try:
            await self.port.attach_memory(*descriptors)
        finally:
            TOOLBOX.close_descriptors(*descriptors)
        yield
        await self.port.detach_memory()

    def files_open(self) -> set[str]:
        """Return the paths of the regular files that QEMU has open."""
        found = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return {os.readlink(each) for each in found if each.is_file()}


StartGuest = Callable[..., Any]


@pytest.fixture
def start_guest(start_qemu: StartQemu, tmp_path: Path) -> StartGuest:
    """A function that gives a `Guest` that counts already, as a context."""

    @asynccontextmanager
    async def start(variant: TinyGuest | None = None, **options: Any) -> AsyncIterator[Guest]:
        variant = variant or TinyGuest()
        process = start_qemu(
            GuestDisk(make_disk(tmp_path / "a.raw", guest=variant), "raw", "virtio", id="a"),
            GuestDisk(make_disk(tmp_path / "b.qcow2", "qcow2", guest=variant), "qcow2", "ide", "blockdev", id="b"),
            **options,
        )
        process.wait_counting()
        async with connected(process.monitor) as link:
            port = Qemu(link)
            await port.inspect()
            yield Guest(process, link, port, tmp_path)

    return start


def capabilities(control: Qmp) -> dict[str, bool]:
    return {each["capability"]: each["state"] for each in control.execute("query-migrate-capabilities")}


def set_capability(control: Qmp, name: str, state: bool = True) -> None:
    control.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": state}])


def bandwidth(control: Qmp) -> int:
    return int(control.execute("query-migrate-parameters")["max-bandwidth"])


@pytest.mark.parametrize("capability", ["postcopy-ram", "xbzrle", "multifd"])
async def test_capability_in_conflict_is_put_back(start_guest: StartGuest, capability: str) -> None:
    """What the user has set for a migration some day neither hinders a save or a load nor is lost by it."""
    async with start_guest() as guest:
        set_capability(guest.process.control, capability)
        before = capabilities(guest.process.control)
        assert await live_blocker(guest.link) == ""
        assert capabilities(guest.process.control) == before
        path, overlays, _ = await guest.checkpoint_live("s")
        assert capabilities(guest.process.control) == before
        await guest.revert(path, overlays, "r")
        assert capabilities(guest.process.control) == before


async def test_memory_in_a_file_blocks_live(start_qemu: StartQemu, tmp_path: Path) -> None:
    """Write protection by userfaultfd does not reach pages of a file on disk."""
    backend = f"memory-backend-file,id=ram,size={DEFAULT_MEMORY_MIB}M,mem-path={tmp_path / 'ram'},share=on"
    qemu = start_qemu(paused=True, extra=["-object", backend, "-machine", "memory-backend=ram"])
    async with connected(qemu.monitor) as link:
        assert "guest memory configuration" in await live_blocker(link)
        assert await memory_blocker(link) == ""


async def test_device_that_cannot_be_saved_is_named(start_qemu: StartQemu, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw")
    device = [
        *("-drive", f"file={disk},format=raw,if=none,id=d"),
        *("-device", "nvme,drive=d,serial=1"),
    ]
    qemu = start_qemu(paused=True, extra=device)
    async with connected(qemu.monitor) as link:
        assert "nvme" in await memory_blocker(link)


async def test_migration_under_way_blocks(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(paused=True)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        qemu.control.execute("migrate-set-parameters", max_bandwidth=4096)
        qemu.control.execute("migrate", uri=f"unix:{tmp_path / 'deaf'}")
        async with connected(qemu.monitor) as link:
            assert await memory_blocker(link) == "a migration of it is going on"
        qemu.stop()


@pytest.mark.parametrize("events", [True, False])
async def test_arm_and_disarm_restore_what_the_user_had(start_guest: StartGuest, events: bool) -> None:
    async with start_guest() as guest:
        control = guest.process.control
        set_capability(control, "events", events)
        control.execute("migrate-set-parameters", max_bandwidth=12_345_678)
        before, files = capabilities(control), guest.files_open()
        memory = await TOOLBOX.create_memory(str(guest.directory / "memory"), LARGEST_STREAM_BYTES)
        settings = await arm(guest.link, memory.descriptor)
        armed = capabilities(control)
        assert armed["background-snapshot"]
        assert armed["events"]
        assert bandwidth(control) == 0
        await disarm(guest.link, settings)
        assert capabilities(control) == before
        assert bandwidth(control) == 12_345_678
        await memory.discard()
        assert guest.files_open() == files, "QEMU holds on to the memory file, whose room is then not given back"
        guest.process.wait_counting(5)


@pytest.mark.parametrize("accel", ["tcg", "best"])
async def test_live_checkpoints_and_reverts(start_guest: StartGuest, accel: str) -> None:
    """Memory and both disks are of one instant, the guest hardly pauses, and every checkpoint comes back in any order."""
    chosen = "kvm" if accel == "best" and kvm_works() else "tcg"
    async with start_guest(accel=chosen) as guest:
        before, migration_bandwidth = capabilities(guest.process.control), bandwidth(guest.process.control)
        taken = {}
        for name in ("s1", "s2"):
            path, overlays, reported = await guest.checkpoint_live(name)
            assert await guest.port.has_run()
            assert 0 < await guest.port.pause_usec() < LONGEST_PAUSE_USEC
            assert reported
            assert all(0 <= done <= total or not total for _, done, total in reported)
            check_image(path)
            taken[name] = path, overlays
            guest.process.wait_counting(5)
        assert capabilities(guest.process.control) == before
        assert bandwidth(guest.process.control) == migration_bandwidth

        first, second, again = [
            await guest.revert(*taken[name], f"r{number}") for number, name in enumerate(("s1", "s2", "s1"))
        ]
        assert first == again < second
        assert not guest.process.control.execute("query-fdsets")
        for overlay in (*taken["s1"][1], *taken["s2"][1]):
            await guest.port.close_unused([overlay.image.path])
        assert {disk.image for disk in await guest.port.disks()} == {str(guest.directory / f"{x}.r2.qcow2") for x in "ab"}


async def test_guest_runs_while_touched_memory_is_saved(start_guest: StartGuest) -> None:
    async with start_guest(TinyGuest.dirtying(8)) as guest:
        guest.process.wait_dirtied()
        path, overlays, _ = await guest.checkpoint_live("s")
        assert os.stat(path).st_blocks * 512 > 8 << 20
        assert await guest.revert(path, overlays, "r") > 0


async def test_saved_paused_and_loaded(start_guest: StartGuest) -> None:
    async with start_guest() as guest:
        path = str(guest.directory / "s.vmstate.qcow2")
        await TOOLBOX.create_container(path)
        overlays = await guest.overlays("s")
        await guest.port.stop()
        await cover_now(guest.link, *overlays)
        async with guest.attached(path):
            await guest.port.save_paused(MEMORY_TAG, MEMORY_BYTES)
            saved_at = guest.process.counter()
            await guest.port.resume()
        assert await guest.port.pause_usec() > 0
        guest.process.wait_counting(5)
        assert not guest.process.control.execute("query-fdsets")
        assert path not in guest.files_open()
        check_image(path)
        assert await guest.revert(path, overlays, "r") == saved_at


async def test_loading_what_is_not_there_fails_and_lets_go(start_guest: StartGuest) -> None:
    async with start_guest() as guest:
        path, _, _ = await guest.checkpoint_live("s")
        await guest.port.stop()
        async with guest.attached(path):
            with pytest.raises(QemuFailed, match="nobody"):
                await guest.port.load("nobody", MEMORY_BYTES)
            await guest.port.resume()
        guest.process.wait_counting(5)
        assert path not in guest.files_open()
        assert not guest.process.control.execute("query-jobs")


async def test_attaching_what_is_no_container_lets_go(start_guest: StartGuest) -> None:
    async with start_guest() as guest:
        path = guest.directory / "no-container"
        path.write_bytes(bytes(1 << 20))
        with pytest.raises(QemuFailed):
            async with guest.attached(str(path)):
                pass
        await guest.port.detach_memory()
        assert str(path) not in guest.files_open()
        assert not guest.process.control.execute("query-fdsets")
