# SPDX-License-Identifier: MIT
"""Domains that cannot be changed now: busy, unreachable, drifted, or started as another machine.

Every test begins and ends with the domain running on its active images, with the snapshot ``s1``.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import pytest_asyncio

from snapd.bus.names import BUS_NAME, SNAPSHOT_INTERFACE, snapshot_path
from snapd.bus.wire import Variant
from tests.lab.guest import TinyGuest
from tests.lab.qemu import GuestDisk, QemuProcess
from tests.lab.scene import DOMAIN, Scene, scene
from tests.lab.untouched import ERROR, assert_sentence, assert_works, refused, untouched

pytestmark = pytest.mark.asyncio(loop_scope="module")

YES, NO = Variant("b", True), Variant("b", False)

OTHER_CLIENTS = 3
"""QEMU greets one, lets one wait, and the kernel sends away the rest."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Scene]:
    async with scene(guest=TinyGuest.dirtying(8), settings={"timeouts": {"monitor": "1s"}}) as made:
        await made.create("s1")
        yield made


async def test_busy_with_a_job(shared: Scene) -> None:
    (job,) = await shared.manager("CreateSnapshot", "ssa{sv}", DOMAIN, "s2", {})
    shared.qemu.freeze()
    try:
        assert (await shared.properties())["Job"] == job
        await _refused_every_verb(shared, f"{ERROR}DomainBusy", DOMAIN, "create s2")
        await refused(_protect(shared, "s1", True), f"{ERROR}DomainBusy", DOMAIN, "create s2")
    finally:
        shared.qemu.thaw()
    await shared.wait_signal("Completed", 2)
    assert [row[1] for row in await shared.snapshots()] == ["s1", "s2"]
    await shared.delete("s2")


async def test_busy_with_a_first_look(shared: Scene) -> None:
    shared.qemu.freeze()
    try:
        async with asyncio.TaskGroup() as together:
            together.create_task(shared.revert("s1"))
            await together.create_task(refused(shared.delete("s1"), f"{ERROR}DomainBusy", DOMAIN, "revert s1"))
            shared.qemu.thaw()
    finally:
        shared.qemu.thaw()
    shared.qemu.wait_counting()


async def test_unreachable_while_qemu_is_stopped(shared: Scene) -> None:
    async with untouched(shared):
        shared.qemu.freeze()
        try:
            await shared.restart_daemon(signal.SIGTERM)
            shown = await _wait_reason(shared, "unreachable", str(shared.qemu.monitor))
            assert [row[1] for row in await shared.snapshots()] == ["s1"]
            await _refused_every_verb(shared, f"{ERROR}DomainUnreachable", DOMAIN, shown)
            # To protect needs no QEMU.
            await _protect(shared, "s1", True)
            await _protect(shared, "s1", False)
        finally:
            shared.qemu.thaw()
        await shared.wait_state("running")
    await assert_works(shared)


async def test_unreachable_while_others_hold_the_monitor(shared: Scene) -> None:
    async with untouched(shared):
        shared.daemon.stop()
        with _clients(shared, OTHER_CLIENTS):
            shared.daemon.start()
            shown = await _wait_reason(shared, "unreachable", str(shared.qemu.monitor))
            assert "another client" in shown
            await _refused_every_verb(shared, f"{ERROR}DomainUnreachable", DOMAIN, shown)
        await shared.wait_state("running")
    await assert_works(shared)


async def test_lost_while_it_is_looked_at(shared: Scene) -> None:
    """QEMU does not answer, and then ends: nothing was begun, so nothing is of unknown outcome."""
    disks = await _active_disks(shared)
    shared.qemu.freeze()
    async with asyncio.TaskGroup() as together:
        together.create_task(refused(shared.create("s2"), f"{ERROR}DomainUnreachable", DOMAIN))
        await together.create_task(refused(shared.delete("s1"), f"{ERROR}DomainBusy", DOMAIN, "create s2"))
        shared.qemu.stop()
    await shared.wait_state("shutoff")
    await _start(shared, disks)


async def test_protected(shared: Scene) -> None:
    """Whatever would take it is refused; to go back to it and to plan that is not."""
    await shared.create("s2")
    await _protect(shared, "s2", True)
    async with untouched(shared):
        for name, scope in (("s2", "one"), ("s2", "tree"), ("s1", "tree"), ("s1", "children")):
            await refused(
                shared.delete(name, scope=Variant("s", scope)), f"{ERROR}Protected", "'s2'", "take the protection off"
            )
            plan = shared.plan("delete", name, scope=Variant("s", scope))
            await refused(plan, f"{ERROR}Protected", "'s2'", "take the protection off")
        await _protect(shared, "s2", True)
    await shared.revert("s2")
    await _protect(shared, "s2", False)
    await shared.delete("s2")
    shared.qemu.wait_counting()


async def test_started_without_a_disk(shared: Scene) -> None:
    """It may have been taken away on purpose, so that is no drift; but a revert needs it."""
    disks = await _active_disks(shared)
    await shared.create("disks", memory=NO)
    active = await _active_disks(shared)
    await _restart(shared, active[:1])
    async with untouched(shared):
        for force in (NO, YES):
            await refused(
                shared.revert("s1", force=force), f"{ERROR}NotSupported", DOMAIN, "'s1'", "device disk1", "is missing"
            )
        await refused(shared.revert("disks"), f"{ERROR}NotSupported", DOMAIN, "disk disk1 is missing", "force")
    await shared.delete("disks")
    assert [row[1] for row in await shared.snapshots()] == ["s1"]
    await shared.shut_off()
    await shared.wait_rest()
    assert await _active_disks(shared) == disks
    await _start(shared, disks)
    await assert_works(shared)


async def test_drifted_when_qemu_opens_the_frozen_images(shared: Scene) -> None:
    disks = await _active_disks(shared)
    frozen = [GuestDisk(shared.images / name, name.split(".")[-1], id=name[:5]) for name in ("disk0.raw", "disk1.qcow2")]
    await _restart(shared, frozen, state="drifted")
    async with untouched(shared):
        await _refused_every_verb(shared, f"{ERROR}DomainDrifted", DOMAIN, "disk0", str(frozen[0].path), str(disks[0].path))
    await _restart(shared, disks)


@pytest.mark.parametrize(
    ("memory_mib", "extra", "difference"),
    [
        (64, (), "64 MiB"),
        (32, ("-smp", "2"), "2 processors"),
        (32, ("-device", "virtio-rng-pci,id=rng0"), "rng0"),
        (32, ("-machine", "q35"), "q35"),
    ],
)
async def test_another_machine(shared: Scene, memory_mib: int, extra: Sequence[str], difference: str) -> None:
    disks = await _active_disks(shared)
    await _restart(shared, disks, memory_mib=memory_mib, extra=extra)
    async with untouched(shared):
        await refused(shared.revert("s1"), f"{ERROR}NotSupported", DOMAIN, "s1", difference)
    await assert_works(shared)
    await _restart(shared, disks)


async def test_without_a_device(shared: Scene) -> None:
    """A snapshot that was taken with a device is not loaded without it."""
    disks = await _active_disks(shared)
    await _restart(shared, disks, extra=("-device", "virtio-rng-pci,id=rng0"))
    await shared.create("with-rng")
    active = await _active_disks(shared)
    await _restart(shared, active)
    async with untouched(shared):
        await refused(shared.revert("with-rng"), f"{ERROR}NotSupported", DOMAIN, "with-rng", "rng0", "missing")
    await shared.delete("with-rng")
    await shared.revert("s1")
    shared.qemu.wait_counting()


async def _refused_every_verb(stage: Scene, error: str, *named: str) -> None:
    await refused(stage.create("s3"), error, *named)
    await refused(stage.revert("s1"), error, *named)
    await refused(stage.delete("s1"), error, *named)
    for verb, name in (("create", "s3"), ("revert", "s1"), ("delete", "s1")):
        await refused(stage.plan(verb, name), error, *named)


async def _protect(stage: Scene, name: str, protected: bool) -> None:
    path = snapshot_path(DOMAIN, name)
    await stage.wire.call(BUS_NAME, path, SNAPSHOT_INTERFACE, "SetProtected", "b", (protected,))
    assert (await stage.properties(name))["Protected"] is protected


async def _wait_reason(stage: Scene, state: str, *named: str) -> str:
    """Wait until the domain is in ``state`` for a reason that names all of ``named``, and return the reason."""
    async with asyncio.timeout(30):
        while True:
            reason = str((await stage.wait_state(state))["StateReason"])
            if all(each in reason for each in named):
                assert_sentence(f"{reason}.", *named)
                return reason


async def _active_disks(stage: Scene) -> list[GuestDisk]:
    shown = (await stage.properties())["Disks"]
    return [GuestDisk(disk["Image"], disk["Format"], id=disk["Target"]) for disk in shown]


async def _restart(
    stage: Scene, disks: Sequence[GuestDisk], *, state: str = "running", memory_mib: int = 32, extra: Sequence[str] = ()
) -> None:
    stage.qemu.stop()
    await stage.wait_state("shutoff")
    await _start(stage, disks, state=state, memory_mib=memory_mib, extra=extra)


async def _start(
    stage: Scene, disks: Sequence[GuestDisk], *, state: str = "running", memory_mib: int = 32, extra: Sequence[str] = ()
) -> None:
    stage.qemu.arguments = QemuProcess(stage.directory, disks, memory_mib=memory_mib, extra=extra).arguments
    stage.qemu.start()
    stage.qemu.wait_counting()
    await stage.wait_state(state)


@contextlib.contextmanager
def _clients(stage: Scene, count: int) -> Iterator[None]:
    """Connect to the tested monitor and stay there; the last ones may be sent away, which is as good."""
    with contextlib.ExitStack() as open_ones:
        for _ in range(count):
            client = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(stage.qemu.monitor))
        yield
