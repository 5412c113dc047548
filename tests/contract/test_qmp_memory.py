# SPDX-License-Identifier: MIT
"""Memory state of a QEMU, real or fake, as far as no guest is needed: saved live, saved paused, loaded, refused, and put back.

Not here: whether memory and disks are of one instant, and real obstacles (``test_qmp_memory_guest``).
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapd.errors import QemuFailed
from snapd.images.toolbox import ImageToolbox
from snapd.images.vmstate import MEMORY_TAG
from snapd.qmp.link import Link
from snapd.qmp.memory import arm, disarm, live_blocker, memory_blocker
from snapd.qmp.qemu import Qemu
from tests.lab.fake_qemu.either import KINDS, StartEither, starting
from tests.lab.fake_qemu.process import FakeProcess
from tests.lab.guest import make_disk
from tests.lab.images import check_image
from tests.lab.linked import connected
from tests.lab.qemu import DEFAULT_MEMORY_MIB, GuestDisk, QemuProcess
from tests.lab.qmp import Qmp

MEMORY_BYTES = DEFAULT_MEMORY_MIB << 20
LARGEST_STREAM_BYTES = MEMORY_BYTES + (128 << 20)

TOOLBOX = ImageToolbox()


@pytest.fixture(params=KINDS)
def start_either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartEither]:
    """A function that starts a real QEMU, or a fake one."""
    with starting(request.param, tmp_path) as start:
        yield start


@dataclass
class Machine:
    """A QEMU with one disk, and the port to it; what its guest does, if there is one, is nobody's concern."""

    process: QemuProcess | FakeProcess
    link: Link
    port: Qemu
    directory: Path

    @property
    def control(self) -> Qmp:
        return self.process.control

    async def save_live(self, name: str) -> str:
        """Return the container of a live save."""
        path, reported = str(self.directory / name), list[tuple[str, int, int]]()
        memory = await TOOLBOX.create_memory(path, LARGEST_STREAM_BYTES)
        await self.port.arm_live_save(memory.descriptor)
        await self.port.stop()
        await self.port.save_live(lambda *progress: reported.append(progress))
        assert await self.port.has_run()
        assert await self.port.pause_usec() > 0
        assert all(0 <= done <= total or not total for _, done, total in reported)
        await memory.finish()
        await self.port.disarm_live_save()
        return path

    async def save_paused(self, name: str) -> str:
        """Return the container of a save with the guest paused."""
        path = str(self.directory / name)
        await TOOLBOX.create_container(path)
        await self.port.stop()
        async with self.attached(path):
            await self.port.save_paused(MEMORY_TAG, MEMORY_BYTES)
            assert not await self.port.has_run()
            await self.port.resume()
        assert await self.port.pause_usec() > 0
        return path

    @asynccontextmanager
    async def attached(self, path: str) -> AsyncIterator[None]:
        descriptors = await TOOLBOX.open_container(path)
        try:
            await self.port.attach_memory(*descriptors)
        finally:
            TOOLBOX.close_descriptors(*descriptors)
        yield
        await self.port.detach_memory()


@asynccontextmanager
async def running(start: StartEither, directory: Path) -> AsyncIterator[Machine]:
    process = start(GuestDisk(make_disk(directory / "a.raw"), id="a"))
    async with connected(process.monitor) as link:
        port = Qemu(link)
        await port.inspect()
        yield Machine(process, link, port, directory)


def capabilities(control: Qmp) -> dict[str, bool]:
    return {each["capability"]: each["state"] for each in control.execute("query-migrate-capabilities")}


def set_capability(control: Qmp, name: str, state: bool = True) -> None:
    control.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": state}])


def bandwidth(control: Qmp) -> int:
    return int(control.execute("query-migrate-parameters")["max-bandwidth"])


async def test_plain_guest_can_be_saved_live(start_either: StartEither) -> None:
    qemu = start_either(paused=True)
    before = capabilities(qemu.control)
    async with connected(qemu.monitor) as link:
        assert await live_blocker(link) == ""
        assert await memory_blocker(link) == ""
    assert capabilities(qemu.control) == before


@pytest.mark.parametrize("capability", ["postcopy-ram", "xbzrle", "multifd"])
async def test_capability_in_conflict_is_put_back(start_either: StartEither, tmp_path: Path, capability: str) -> None:
    """What the user has set for a migration some day neither hinders a save or a load nor is lost by it."""
    async with running(start_either, tmp_path) as machine:
        set_capability(machine.control, capability)
        before = capabilities(machine.control)
        assert await live_blocker(machine.link) == ""
        assert capabilities(machine.control) == before
        path = await machine.save_live("live")
        assert capabilities(machine.control) == before
        await machine.port.stop()
        async with machine.attached(path):
            await machine.port.load(MEMORY_TAG, MEMORY_BYTES)
        assert capabilities(machine.control) == before


@pytest.mark.parametrize("events", [True, False])
async def test_arm_and_disarm_restore_what_the_user_had(start_either: StartEither, tmp_path: Path, events: bool) -> None:
    control = (qemu := start_either()).control
    set_capability(control, "events", events)
    control.execute("migrate-set-parameters", max_bandwidth=12_345_678)
    before = capabilities(control)
    async with connected(qemu.monitor) as link:
        with (tmp_path / "memory").open("wb") as file:
            settings = await arm(link, file.fileno())
        armed = capabilities(control)
        assert armed["background-snapshot"]
        assert armed["events"]
        assert bandwidth(control) == 0
        await disarm(link, settings)
        assert capabilities(control) == before
        assert bandwidth(control) == 12_345_678
        with pytest.raises(QemuFailed, match="not found"):
            await link.execute("closefd", fdname="domsnap-memory")


@pytest.mark.parametrize("kind", ["live", "paused"])
async def test_saved_and_loaded(start_either: StartEither, tmp_path: Path, kind: str) -> None:
    """Twice, in any order; nothing of it stays in QEMU."""
    async with running(start_either, tmp_path) as machine:
        before, migration_bandwidth = capabilities(machine.control), bandwidth(machine.control)
        save = {"live": machine.save_live, "paused": machine.save_paused}[kind]
        paths = [await save(f"{kind}{number}") for number in range(2)]
        for path in (*paths, paths[0]):
            await TOOLBOX.check_container(path)
            await machine.port.stop()
            async with machine.attached(path):
                await machine.port.load(MEMORY_TAG, MEMORY_BYTES)
                assert not (await machine.port.inspect()).running
                await machine.port.resume()
        assert (await machine.port.inspect()).running
        assert capabilities(machine.control) == before
        assert bandwidth(machine.control) == migration_bandwidth
        assert not machine.control.execute("query-fdsets")
        assert not machine.control.execute("query-jobs")
        assert set(await machine.port.open_images()) == {str(tmp_path / "a.raw")}
    for path in paths:
        check_image(path)


async def test_loading_what_is_not_there_fails_and_lets_go(start_either: StartEither, tmp_path: Path) -> None:
    async with running(start_either, tmp_path) as machine:
        path = await machine.save_live("live")
        await machine.port.stop()
        async with machine.attached(path):
            with pytest.raises(QemuFailed, match="nobody"):
                await machine.port.load("nobody", MEMORY_BYTES)
            await machine.port.resume()
        assert not machine.control.execute("query-jobs")
        assert not machine.control.execute("query-fdsets")


async def test_attaching_what_is_no_container_lets_go(start_either: StartEither, tmp_path: Path) -> None:
    async with running(start_either, tmp_path) as machine:
        (tmp_path / "none").write_bytes(bytes(1 << 20))
        with pytest.raises(QemuFailed, match="not in qcow2 format"):
            async with machine.attached(str(tmp_path / "none")):
                pass
        await machine.port.detach_memory()
        assert not machine.control.execute("query-fdsets")


async def test_refused_save_leaves_the_guest_stopped(start_either: StartEither, tmp_path: Path) -> None:
    """Nothing was handed over: QEMU refuses before it touches anything."""
    async with running(start_either, tmp_path) as machine:
        await machine.port.stop()
        with pytest.raises(QemuFailed):
            await machine.port.save_live(lambda *_: None)
        assert not await machine.port.has_run()
        await machine.port.resume()
        assert await machine.port.has_run()
