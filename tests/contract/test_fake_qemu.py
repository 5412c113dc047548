# SPDX-License-Identifier: MIT
"""The fake QEMU: told the same as the real one, it answers the same; and it fails as it is told to."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from snapd.errors import DomainUnreachable, MonitorLost, QemuFailed
from snapd.qmp.jobs import follow
from snapd.qmp.link import Link
from snapd.qmp.memory import arm, save_live
from tests.lab.fake_qemu.faults import Effect, Fault
from tests.lab.fake_qemu.process import FakeProcess
from tests.lab.fake_qemu.recording import VERSIONS
from tests.lab.fake_qemu.scenarios import SCENARIOS, Scenario, disks_in, wrong_commands
from tests.lab.fake_qemu.server import FakeQemu
from tests.lab.fake_qemu.transcript import Transcript, differences
from tests.lab.guest import make_disk
from tests.lab.linked import Down, Up, connected, linked
from tests.lab.qemu import GuestDisk, QemuProcess

SHORT_S = 0.2
"""How long a test waits for an answer that must not come."""


def play(scenario: Scenario, process: QemuProcess | FakeProcess, directory: Path) -> Transcript:
    with process:
        talk = Transcript(process.control, directory)
        scenario(talk, directory)
        talk.run("query-status")
    return talk


def version_of_real(directory: Path) -> str:
    """Return which recording plays the QEMU that the tests run on."""
    with QemuProcess(directory, paused=True) as process:
        number = process.control.execute("query-version")["qemu"]
    version = f"{number['major']}.{number['minor']}"
    assert version in VERSIONS, f"record QEMU {version} first, with tests.lab.record_schema"
    return version


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_answers_as_the_real_one(tmp_path: Path, scenario: Scenario) -> None:
    """Every answer and every event is the same, but for what differs from one run to the next."""
    for kind in ("fake", "real"):
        (tmp_path / kind).mkdir()
    version = version_of_real(tmp_path / "real")
    process = FakeProcess(tmp_path / "fake", disks_in(tmp_path / "fake"), version=version, paused=True)
    fake = play(scenario, process, tmp_path / "fake")
    complaints = [each for each in process.complaints if scenario is not wrong_commands or "does not take" not in each]
    assert not complaints
    real = play(scenario, QemuProcess(tmp_path / "real", disks_in(tmp_path / "real"), paused=True), tmp_path / "real")
    found = [
        f"{command}{difference}"
        for (command, answer), (told, played) in zip(real.lines, fake.lines, strict=True)
        for difference in (*differences(command, told), *differences(answer, played))
    ]
    assert not found
    assert fake.events() == real.events()


def only(path: Path) -> list[GuestDisk]:
    return [GuestDisk(make_disk(path, "qcow2"), "qcow2", via="blockdev", id="a")]


async def test_fails_once_where_it_is_told_to(tmp_path: Path) -> None:
    """A command is counted among all, or among those of its name, and fails without being done."""
    faults = [Fault(Effect.FAIL, 3, text="all wrong"), Fault(Effect.FAIL, 2, "cont")]
    async with FakeQemu(tmp_path / "qmp", paused=True, faults=faults) as fake, connected(tmp_path / "qmp") as link:
        await link.execute("query-status")
        await link.execute("cont")
        with pytest.raises(QemuFailed, match="stop: all wrong"):
            await link.execute("stop")
        assert fake.machine.is_running
        await link.execute("stop")
        with pytest.raises(QemuFailed, match="Input/output error"):
            await link.execute("cont")
        assert not fake.machine.is_running
        await link.execute("cont")
        assert [fault.text for fault in fake.faults.happened] == ["all wrong", "Input/output error"]
        assert [name for name, _ in fake.commands] == ["query-status", "cont", "stop", "stop", "cont", "cont"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.usefixtures("impatient")
async def test_disconnects_before_or_after_the_deed(tmp_path: Path, after: bool) -> None:
    fault = Fault(Effect.DISCONNECT, 2, after=after)
    async with FakeQemu(tmp_path / "qmp", faults=[fault]) as fake, linked(tmp_path / "qmp") as kept:
        assert await kept.next_told() == Up()
        assert (await kept.link.execute("query-status"))["running"]
        with pytest.raises(MonitorLost):
            await kept.link.execute("stop")
        assert fake.machine.is_running is not after
        assert await kept.next_told() == Up()
        assert (await kept.link.execute("query-status"))["running"] is not after


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.usefixtures("impatient")
async def test_hangs_on_every_monitor_until_it_goes_on(tmp_path: Path, after: bool) -> None:
    monitors = (tmp_path / "qmp", tmp_path / "other")
    async with (
        FakeQemu(*monitors, faults=[Fault(Effect.HANG, 1, "stop", after=after)]) as fake,
        connected(tmp_path / "other") as other,
        linked(tmp_path / "qmp") as kept,
    ):
        assert await kept.next_told() == Up()
        with pytest.raises(MonitorLost, match="no answer"):
            await kept.link.execute("stop", SHORT_S)
        assert fake.machine.is_running is not after
        told = await kept.next_told()
        assert isinstance(told, Down)
        assert told.there
        assert "does not greet" in told.reason
        waiting = asyncio.ensure_future(other.execute("query-status"))
        fake.go_on()
        assert not (await waiting)["running"]
        assert await kept.next_told() == Up()


@pytest.mark.parametrize("after", [False, True])
async def test_dies_and_lets_go_of_everything(tmp_path: Path, after: bool) -> None:
    """Nobody listens any more, and the images are free for other programs."""
    fault = Fault(Effect.DIE, 1, "stop", after=after)
    async with FakeQemu(tmp_path / "qmp", disks=only(tmp_path / "a"), faults=[fault]) as fake:
        async with linked(tmp_path / "qmp") as kept:
            assert await kept.next_told() == Up()
            with pytest.raises(MonitorLost):
                await kept.link.execute("stop")
            assert fake.ended
            with pytest.raises(DomainUnreachable):
                await kept.link.execute("cont")
            assert isinstance(await kept.next_told(), Down)
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as late:
            late.connect(str(tmp_path / "qmp"))
        assert fake.machine.is_running is not after
        async with FakeQemu(tmp_path / "next", disks=[GuestDisk(tmp_path / "a", "qcow2")]), connected(tmp_path / "next"):
            pass


async def test_job_fails_and_leaves_all_as_before(tmp_path: Path) -> None:
    fault = Fault(Effect.FAIL_JOB, 1, "block-stream", text="No space left on device")
    disks = disks_in(tmp_path)
    async with FakeQemu(tmp_path / "qmp", disks=disks, faults=[fault]) as fake, connected(tmp_path / "qmp") as link:
        before = await link.execute("query-block")
        root = before[0]["inserted"]["node-name"]
        await link.execute("block-stream", job_id="j", device=root, auto_dismiss=False)
        with pytest.raises(QemuFailed, match="No space left on device"):
            await follow(link, "j", "block-stream", lambda *_: None)
        assert await link.execute("query-block") == before
        await link.execute("block-stream", job_id="j", device=root, auto_dismiss=False)
        await follow(link, "j", "block-stream", lambda *_: None)
        assert "backing_file" not in (await link.execute("query-block"))[0]["inserted"]
        assert not fake.complaints


@pytest.mark.parametrize("version", VERSIONS)
async def test_memory_stream_that_fails(tmp_path: Path, version: str) -> None:
    async with FakeQemu(tmp_path / "qmp", version=version) as fake, connected(tmp_path / "qmp") as link:
        with (tmp_path / "memory").open("wb") as file, link.watch() as events:
            await arm(link, file.fileno())
            await link.execute("stop")
            fake.migration.next_error = "No space left on device"
            with pytest.raises(QemuFailed, match="No space left on device"):
                await save_live(link, (10, 0, 0), events, lambda *_: None)
        assert not fake.complaints


async def ends_at_its_own_node(link: Link) -> None:
    await link.execute("qom-set", path="a", property="drive", value="node0")


async def ends_at_a_snapshot_of_what_never_ran(link: Link) -> None:
    with open(os.devnull, "wb") as file:
        await arm(link, file.fileno())
        await link.execute("migrate", uri="fd:domsnap-memory")
        while True:
            await link.execute("query-migrate")


async def ends_at_a_reset_that_is_to_end_it(link: Link) -> None:
    await link.execute("set-action", reboot="shutdown")
    await link.execute("system_reset")
    while True:
        await link.execute("query-status")


async def ends_when_told_to(link: Link) -> None:
    await link.execute("quit")
    while True:
        await link.execute("query-status")


DEEDS = [
    *(ends_at_its_own_node, ends_at_a_snapshot_of_what_never_ran),
    *(ends_at_a_reset_that_is_to_end_it, ends_when_told_to),
]
"""The first two are what nobody may ever send: an assertion of QEMU's own does not hold then (7.2 and 10.0)."""


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("kind", ["fake", "real"])
async def test_what_ends_a_real_qemu_ends_the_fake(tmp_path: Path, kind: str, deed: Callable[[Link], Awaitable[None]]) -> None:
    processes: dict[str, Any] = {"fake": FakeProcess, "real": QemuProcess}
    with processes[kind](tmp_path, only(tmp_path / "a"), paused=True) as process:
        async with linked(process.monitor) as kept:
            assert await kept.next_told() == Up()
            with pytest.raises((MonitorLost, DomainUnreachable)):
                await deed(kept.link)
            assert isinstance(await kept.next_told(), Down)


async def test_what_fits_no_schema_stands_in_the_complaints(tmp_path: Path) -> None:
    async with FakeQemu(tmp_path / "qmp", version="7.2") as fake, connected(tmp_path / "qmp") as link:
        with pytest.raises(QemuFailed, match="Parameter 'now' is unexpected"):
            await link.execute("stop", now=True)
        assert fake.complaints == [
            f"QEMU {version} does not take stop {{\"now\": true}}: Parameter 'now' is unexpected" for version in VERSIONS
        ]
        fake.complaints.clear()
        await link.execute("migrate-set-capabilities", capabilities=[{"capability": "compress", "state": False}])
        assert not fake.complaints, "whoever asks takes the names from this QEMU"
        fake.blocks.exports.append({"id": "e"})
        await link.execute("query-block-exports")
        assert "its answer to query-block-exports" in fake.complaints[0]


async def test_a_fake_that_breaks_says_so(tmp_path: Path) -> None:
    async with FakeQemu(tmp_path / "qmp") as fake, linked(tmp_path / "qmp") as kept:
        assert await kept.next_told() == Up()
        del fake.machine.status
        with pytest.raises(MonitorLost):
            await kept.link.execute("query-status")
        assert isinstance(await kept.next_told(), Down)
        assert "the fake broke at query-status: AttributeError" in fake.complaints[0]
        fake.machine.status = "running"


async def test_one_client_at_a_time(tmp_path: Path) -> None:
    """The second is accepted and not greeted before the first has gone."""
    async with FakeQemu(tmp_path / "qmp"), linked(tmp_path / "qmp") as first:
        assert await first.next_told() == Up()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "qmp"))
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SHORT_S):
                    await reader.readline()
        finally:
            writer.close()
            await writer.wait_closed()


def open_files() -> set[str]:
    """Return what this process has open, but for files that are no files."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.add(os.readlink(each))
        except FileNotFoundError:
            continue
    return {name for name in found if name.startswith("/") and not name.startswith(("/proc", "/dev"))}


async def test_nothing_stays_open(tmp_path: Path) -> None:
    """Images and descriptors that were handed over are closed at the end, also those that nobody asked for."""
    before = open_files()
    async with FakeQemu(tmp_path / "qmp", disks=only(tmp_path / "a")), connected(tmp_path / "qmp") as link:
        for name in ("named", "added", "left"):
            (tmp_path / name).write_bytes(b"x")
            with (tmp_path / name).open("rb") as file:
                match name:
                    case "named":
                        await link.execute_with_descriptor(file.fileno(), "getfd", fdname="n")
                    case "added":
                        await link.execute_with_descriptor(file.fileno(), "add-fd")
                    case _:
                        await link.execute_with_descriptor(file.fileno(), "query-status")
        assert open_files() - before == {str(tmp_path / name) for name in ("a", "named", "added", "left")}
    assert open_files() == before
