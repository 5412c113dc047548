# SPDX-License-Identifier: MIT
"""``domsnapd`` as a process: its command line, how it starts, reloads and ends, and how it follows what QEMU does."""

import asyncio
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from snapd.bus.names import BUS_NAME, DOMAIN_INTERFACE, MANAGER_INTERFACE, ROOT_PATH, domain_path
from snapd.bus.wire import Variant, Wire
from tests.lab.bus import private_bus
from tests.lab.consistency import revert_and_compare
from tests.lab.daemon import DaemonProcess
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.qemu import GuestDisk, QemuProcess
from tests.lab.qmp import Qmp
from tests.lab.scene import DOMAIN, TWO_DISKS, UUID, Scene, scene, short_directory

RUN_TIMEOUT_S = 30.0
NOTIFIED_TIMEOUT_S = 20.0
QUICK_S = 5.0
"""Far more than ending takes, and less than any time-out that it could wait for."""

OTHER = "vm2"
OTHER_UUID = "11111111-2222-3333-4444-555555555555"

GOOD = f"uuid: {UUID}\nmonitor: /run/qemu/vm1.monitor\n"


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "snapd", *arguments], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )


def _configure(directory: Path, main: str = "", **domains: str) -> Path:
    """Write a main file and domain files. Returns: the path of the main file."""
    (directory / "domains.d").mkdir()
    for name, text in domains.items():
        (directory / "domains.d" / f"{name}.yaml").write_text(text)
    config = directory / "domsnapd.yaml"
    config.write_text(main)
    return config


def test_check_accepts_good_files_and_says_nothing(tmp_path: Path) -> None:
    ran = _run("--check", "--config", str(_configure(tmp_path, "limits: {chain: 8}\n", vm1=GOOD)))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_check_prints_each_mistake_with_file_and_line(tmp_path: Path) -> None:
    config = _configure(tmp_path, "limits:\n  chain: many\nfrobnicate: 1\n", vm1=GOOD, vm2="uuid: 1\nmonitor: run/x\n")
    ran = _run("--check", "--config", str(config))
    assert ran.returncode == 1
    lines = ran.stdout.splitlines()
    places = [re.match(r"(.*):(\d+): \S", line) for line in lines]
    other = tmp_path / "domains.d" / "vm2.yaml"
    assert [(each[1], int(each[2])) for each in places if each] == [
        *((str(config), line) for line in (2, 3)),
        *((str(other), line) for line in (1, 2)),
    ]
    assert len(lines) == 4


def test_a_wrong_command_line_is_exit_2() -> None:
    for arguments in (["--frobnicate"], ["--log-level", "loud"], ["stray"]):
        ran = _run(*arguments)
        assert ran.returncode == 2
        assert "Usage:" in ran.stderr


def test_a_mistake_in_the_main_file_is_exit_1(tmp_path: Path) -> None:
    ran = _run("--config", str(_configure(tmp_path, "frobnicate: 1\n")), "--state-directory", str(tmp_path / "state"))
    assert ran.returncode == 1
    assert "domsnapd.yaml:1: " in ran.stderr
    ran = _run("--config", str(tmp_path / "missing.yaml"), "--state-directory", str(tmp_path / "state"))
    assert ran.returncode == 1
    assert "missing.yaml:1: " in ran.stderr
    assert not (tmp_path / "state").exists()


def test_no_bus_is_exit_3(tmp_path: Path) -> None:
    for bus in (f"unix:path={tmp_path}/nobus", "nonsense"):
        ran = _run("--config", str(_some_config(tmp_path)), "--state-directory", str(tmp_path / "state"), "--bus", bus)
        assert ran.returncode == 3
        assert "domsnapd: the bus cannot be used: " in ran.stderr
        assert "Traceback" not in ran.stderr


def _some_config(directory: Path) -> Path:
    config = directory / "domsnapd.yaml"
    return config if config.exists() else _configure(directory)


def test_a_name_that_is_taken_is_exit_3(tmp_path: Path) -> None:
    with short_directory() as directory, private_bus(directory) as bus, DaemonProcess(directory, bus.address):
        config = str(_configure(tmp_path))
        ran = _run("--config", config, "--state-directory", str(tmp_path / "state"), "--bus", bus.address)
        assert ran.returncode == 3
        assert BUS_NAME in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_state_directory_that_cannot_be_used_is_exit_4(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for directory in (file, file / "below"):
        ran = _run("--config", str(_some_config(tmp_path)), "--state-directory", str(directory), "--bus", "nonsense")
        assert ran.returncode == 4
        assert f"domsnapd: the state directory {directory} cannot be used: " in ran.stderr
        assert "Traceback" not in ran.stderr


def test_version_names_the_program() -> None:
    assert _run("--version").stdout == f"domsnapd, version {version('domsnapd')}\n"


@contextmanager
def _manager(daemon: DaemonProcess) -> Iterator[socket.socket]:
    """Listen where the daemon tells its manager."""
    address = daemon.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        address.unlink(missing_ok=True)
        listening.bind(str(address))
        listening.settimeout(NOTIFIED_TIMEOUT_S)
        yield listening


async def _told(manager: socket.socket) -> list[str]:
    return (await asyncio.to_thread(manager.recv, 4096)).decode().split("\n")


async def test_sigterm_is_quick_clean_and_leaves_guest_and_monitor() -> None:
    async with scene() as stage:
        await stage.create("a")
        with _manager(stage.daemon) as manager:
            before = time.monotonic()
            code = await asyncio.to_thread(stage.daemon.stop)
            assert (code, time.monotonic() - before < QUICK_S) == (0, True)
            assert await _told(manager) == ["STOPPING=1"]
        assert "Traceback" not in stage.daemon.log
        stage.qemu.wait_counting()
        with Qmp(stage.qemu.monitor) as other:
            assert other.execute("query-status")["running"]
        stage.daemon.start()
        await stage.wait_state("running")
        assert [row[1] for row in await stage.snapshots()] == ["a"]
        await revert_and_compare(stage, "a")


async def test_a_domain_that_cannot_be_reached_does_not_hold_up_the_end() -> None:
    """A monitor that connects and never greets is the longest wait there is."""
    async with scene() as stage:
        stage.qemu.freeze()
        try:
            before = time.monotonic()
            assert await asyncio.to_thread(stage.daemon.stop) == 0
            assert time.monotonic() - before < QUICK_S
            stage.daemon.start()
            before = time.monotonic()
            assert await asyncio.to_thread(stage.daemon.stop) == 0
            assert time.monotonic() - before < QUICK_S
        finally:
            stage.qemu.thaw()
        stage.qemu.wait_counting()


async def test_sighup_adds_removes_and_changes_domains() -> None:
    async with scene() as stage:
        with short_directory() as directory, _other_qemu(directory) as other, _manager(stage.daemon) as manager:
            stage.daemon.define(OTHER, OTHER_UUID, other.monitor)
            await _reload(stage, manager, 2)
            await stage.wait_signal("DomainAdded")
            await _wait_domains(stage, {DOMAIN: "running", OTHER: "running"})

            # Two domains at once, each with a job of its own.
            await asyncio.gather(
                stage.create("a"), stage.manager("CreateSnapshot", "ssa{sv}", OTHER, "b", {"wait": Variant("b", True)})
            )
            assert other.control.execute("query-status")["running"]

            stage.daemon.define(OTHER, OTHER_UUID, directory / "elsewhere")
            await _reload(stage, manager, 2)
            await _wait_domains(stage, {DOMAIN: "running", OTHER: "shutoff"})
            (rows,) = await stage.manager("ListSnapshots", "sa{sv}", OTHER, {})
            assert [row[1] for row in rows] == ["b"]

            # What is wrong with one file is of no concern to the others, and its domain is kept as it was.
            (stage.daemon.domain_files / f"{DOMAIN}.yaml").write_text("frobnicate: 1\n")
            stage.daemon.define(OTHER, OTHER_UUID, other.monitor)
            await _reload(stage, manager, 2)
            await _wait_domains(stage, {DOMAIN: "running", OTHER: "running"})
            assert f"{DOMAIN}.yaml:1: " in stage.daemon.log

            (stage.daemon.domain_files / f"{OTHER}.yaml").unlink()
            await _reload(stage, manager, 1)
            assert (await stage.wait_signal("DomainRemoved", 3))[-1].body[0] == OTHER
            await _wait_domains(stage, {DOMAIN: "running"})
            with Qmp(other.monitor) as free:
                assert free.execute("query-status")["running"]
        await revert_and_compare(stage, "a")


async def _reload(stage: Scene, manager: socket.socket, domains: int) -> None:
    stage.daemon.reload()
    first = await _told(manager)
    assert first[0] == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", first[1])
    assert await _told(manager) == ["READY=1", f"STATUS=Looking after {domains} domains."]


async def _wait_domains(stage: Scene, expected: dict[str, str]) -> None:
    """Wait for signals until there are exactly these domains in these states."""
    seen: dict[str, str] = {}
    deadline = time.monotonic() + NOTIFIED_TIMEOUT_S
    while seen != expected:
        assert time.monotonic() < deadline, f"there are {seen} and not {expected}\n{stage.daemon.log}"
        await stage.wait_any()
        (rows,) = await stage.manager("ListDomains")
        seen = {name: state for name, _uuid, state, _path in rows}


@contextmanager
def _other_qemu(directory: Path) -> Iterator[QemuProcess]:
    disk = GuestDisk(make_disk(directory / "other.raw", guest=COUNTS_ON_ONE), id="disk0")
    with QemuProcess(directory, [disk]) as qemu:
        qemu.wait_counting()
        yield qemu


async def test_a_mistake_in_one_domain_file_leaves_out_that_domain_only() -> None:
    with short_directory() as directory, private_bus(directory) as bus:
        daemon = DaemonProcess(directory, bus.address)
        daemon.define(DOMAIN, UUID, directory / "qmp")
        (daemon.domain_files / f"{OTHER}.yaml").write_text("monitor: [\n")
        (daemon.domain_files / "vm3.yaml").write_text(yaml.safe_dump({"uuid": UUID, "monitor": "/run/x"}))
        with daemon:
            wire = await Wire.connect(bus.address)
            (rows,) = await wire.call(BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "ListDomains")
            wire.close()
            assert [row[0] for row in rows] == [DOMAIN]
            assert f"{OTHER}.yaml:" in daemon.log
            assert "vm3.yaml:" in daemon.log


async def test_when_the_bus_goes_away_it_ends_with_a_sentence() -> None:
    with short_directory() as directory:
        with private_bus(directory) as bus:
            daemon = DaemonProcess(directory, bus.address).start()
        try:
            assert await asyncio.to_thread(daemon.wait_ended) == 3
        finally:
            daemon.stop()
        assert "domsnapd: the bus cannot be used: " in daemon.log.splitlines()[-1]
        assert "Traceback" not in daemon.log


async def test_the_uuid_is_qemus_own_when_the_definition_has_none() -> None:
    async with scene(uuid="", extra=["-uuid", OTHER_UUID]) as stage:
        assert (await stage.properties())["UUID"] == OTHER_UUID
        await stage.create("a")
        await revert_and_compare(stage, "a")
        assert (stage.daemon.state / OTHER_UUID / "domain.libxl-json").is_file()


async def test_without_any_uuid_a_domain_cannot_be_looked_after() -> None:
    async with scene(uuid="", states=("unreachable",)) as stage:
        assert "has a uuid; give it one in the definition" in (await _settled(stage))["StateReason"]
        assert list(stage.daemon.state.iterdir()) == []


async def test_a_uuid_that_disagrees_is_said() -> None:
    async with scene(extra=["-uuid", OTHER_UUID], states=("unreachable",)) as stage:
        reason = (await _settled(stage))["StateReason"]
        assert UUID in reason
        assert OTHER_UUID in reason


async def _settled(stage: Scene) -> dict[str, Any]:
    """Return the domain's properties once its monitor has been tried."""
    deadline = time.monotonic() + NOTIFIED_TIMEOUT_S
    while "not been tried" in (seen := await stage.properties())["StateReason"]:
        assert time.monotonic() < deadline, stage.daemon.log
        await stage.wait_any()
    return seen


async def test_the_state_follows_qemus_events() -> None:
    async with scene() as stage:
        for command, state in (("stop", "paused"), ("cont", "running")):
            stage.signals.clear()
            stage.qemu.control.execute(command)
            await _wait_announced(stage, state)
            assert (await stage.properties())["State"] == state

        stage.qemu.control.execute("quit")
        stage.qemu.wait_ended()
        assert (await stage.wait_state("shutoff"))["StateReason"] == "its QEMU has ended"
        stage.qemu.start()
        assert (await stage.wait_state("running"))["StateReason"] == ""
        stage.qemu.stop()
        assert "killed" in (await stage.wait_state("shutoff"))["StateReason"]


async def _wait_announced(stage: Scene, state: str) -> None:
    """Wait until a signal has told that the domain is in ``state``."""
    deadline = time.monotonic() + NOTIFIED_TIMEOUT_S
    while state not in (seen := _announced_states(stage)):
        assert time.monotonic() < deadline, f"announced were {seen}\n{stage.daemon.log}"
        await stage.wait_any()


def _announced_states(stage: Scene) -> list[str]:
    changes = [
        message.body
        for message in stage.signals
        if (message.member, message.path) == ("PropertiesChanged", domain_path(DOMAIN)) and message.body[0] == DOMAIN_INTERFACE
    ]
    return [str(changed["State"].value) for _, changed, _ in changes if "State" in changed]


@pytest.mark.parametrize("ending", ["quit", "killed"])
async def test_a_qemu_that_is_started_again_on_its_active_images_has_its_snapshots(ending: str) -> None:
    async with scene() as stage:
        await stage.create("a")
        stage.qemu.wait_counting()
        await stage.create("b")
        stage.qemu.wait_counting()
        if ending == "quit":
            stage.qemu.control.execute("quit")
            stage.qemu.wait_ended()
        else:
            stage.qemu.stop()
        await stage.wait_state("shutoff")
        with QemuProcess(stage.directory, _active_disks(stage)) as again:
            stage.qemu = again
            await stage.wait_state("running")
            await asyncio.to_thread(again.wait_counting)
            await revert_and_compare(stage, "a")
            await revert_and_compare(stage, "b")
            await stage.create("c")
            await revert_and_compare(stage, "c")
            for name in ("a", "b", "c"):
                await stage.delete(name)
            assert {Path(disk["Image"]).name for disk in (await stage.properties())["Disks"]} == {"disk0.raw", "disk1.qcow2"}
            again.wait_counting()


async def test_a_qemu_that_is_started_on_its_old_images_has_drifted() -> None:
    async with scene() as stage:
        await stage.create("a")
        stage.qemu.stop()
        await stage.wait_state("shutoff")
        stage.qemu.start()
        seen = await stage.wait_state("drifted")
        assert "disks.env" in seen["StateReason"]
        assert str(stage.images / "disk0.raw") in seen["StateReason"]


def _active_disks(stage: Scene) -> list[GuestDisk]:
    """Return the guest's disks as a unit with ``disks.env`` would start them."""
    lines = shlex.split((stage.state / "disks.env").read_text(), comments=True)
    said = dict(line.split("=", 1) for line in lines)
    return [
        GuestDisk(said[f"DOMSNAP_{stem}_FILE"], said[f"DOMSNAP_{stem}_FORMAT"], disk.bus, disk.via, disk.id)
        for disk in TWO_DISKS
        for stem in (disk.id.upper(),)
    ]


async def test_a_monitor_that_another_client_holds_is_said_and_taken_when_it_is_free() -> None:
    async with scene() as stage:
        stage.daemon.stop()
        with Qmp(stage.qemu.monitor):
            stage.daemon.start()
            seen = await _settled(stage)
            assert seen["State"] == "unreachable"
            assert "another client holds the monitor" in seen["StateReason"]
        assert (await stage.wait_state("running"))["StateReason"] == ""
        await stage.create("a")
        await revert_and_compare(stage, "a")
