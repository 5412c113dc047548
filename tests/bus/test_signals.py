# SPDX-License-Identifier: MIT
"""Signals: their order, that they tell what is durable, and that a client who only listens knows everything."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from snapd.bus.names import (
    BUS_NAME,
    DOMAIN_INTERFACE,
    JOB_INTERFACE,
    MANAGER_INTERFACE,
    OBJECT_MANAGER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
    domain_path,
    snapshot_path,
)
from snapd.bus.wire import CallError, Message, Variant, unwrap
from snapd.service.jobs import PROGRESS_EVERY_S
from tests.bus.mirror import Mirror, agree, fetch, in_order, mirroring
from tests.lab.guest import TinyGuest
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, Scene, scene

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOMAIN_PATH = domain_path(DOMAIN)
ONE_DISK = (GuestDisk("disk0.raw", "raw", id="disk0"),)
OTHER, OTHER_UUID = "größer 2", "b4eb4367-b880-3b11-d1e8-d5d2b2c1a3bb"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["dbus-fast", "dbus-next"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene(environment={"DOMSNAPD_DBUS_LIBRARY": request.param}) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def mirror(stage: Scene) -> AsyncIterator[Mirror]:
    async with mirroring(stage) as made:
        yield made


async def carried_out(stage: Scene, act: Callable[[], Awaitable[None]]) -> tuple[str, list[Message]]:
    """Do a verb and return the path of its job and every signal up to the job's end."""
    stage.signals.clear()
    await act()
    await stage.wait_signal("JobRemoved")
    (added,) = [each for each in stage.signals if each.member == "JobAdded"]
    return added.body[0], list(stage.signals)


async def test_a_creation_is_told_in_order(stage: Scene, mirror: Mirror) -> None:
    await stage.create("one")
    job, heard = await carried_out(stage, lambda: stage.create("two"))
    path = snapshot_path(DOMAIN, "two")
    in_order(
        heard,
        (ROOT_PATH, "InterfacesAdded", job),
        (ROOT_PATH, "JobAdded", job),
        (ROOT_PATH, "InterfacesAdded", path),
        (DOMAIN_PATH, "SnapshotCreated", "two", path),
        (snapshot_path(DOMAIN, "one"), "PropertiesChanged"),
        (DOMAIN_PATH, "SnapshotChanged", "one"),
        (job, "Completed", "done", "", "", path),
        (ROOT_PATH, "JobRemoved", job, "done"),
    )
    await agree(stage, mirror)


async def test_a_reversion_is_told_in_order(stage: Scene, mirror: Mirror) -> None:
    job, heard = await carried_out(stage, lambda: stage.revert("one"))
    in_order(
        heard,
        (ROOT_PATH, "JobAdded", job),
        (DOMAIN_PATH, "SnapshotReverted", "one", snapshot_path(DOMAIN, "one")),
        (job, "Completed", "done", "", "", snapshot_path(DOMAIN, "one")),
        (ROOT_PATH, "JobRemoved", job, "done"),
    )
    current = [each.body[1] for each in heard if each.member == "PropertiesChanged" and "Current" in each.body[1]]
    assert sorted(each["Current"].value for each in current) == [False, True]
    await agree(stage, mirror)


async def test_a_deletion_is_told_in_order(stage: Scene, mirror: Mirror) -> None:
    job, heard = await carried_out(stage, lambda: stage.delete("two"))
    path = snapshot_path(DOMAIN, "two")
    in_order(
        heard,
        (ROOT_PATH, "JobAdded", job),
        (DOMAIN_PATH, "SnapshotDeleted", "two", path),
        (ROOT_PATH, "InterfacesRemoved", path, ["org.domsnap1.Snapshot"]),
        (DOMAIN_PATH, "SnapshotChanged", "one"),
        (job, "Completed", "done", "", "", "/"),
        (ROOT_PATH, "JobRemoved", job, "done"),
    )
    await agree(stage, mirror)


async def test_each_of_several_that_go_at_once_is_told(stage: Scene, mirror: Mirror) -> None:
    await stage.create("below")
    await stage.create("further below")
    _, heard = await carried_out(stage, lambda: stage.delete("one", scope=Variant("s", "tree")))
    deleted = [each.body[0] for each in heard if each.member == "SnapshotDeleted"]
    assert sorted(deleted) == ["below", "further below", "one"]
    await agree(stage, mirror)


async def test_what_is_told_is_durable(stage: Scene) -> None:
    """What a client reads from disk at the moment a signal arrives says what the signal says."""
    seen: list[tuple[str, str, bool, str]] = []

    def look(message: Message) -> bool:
        if message.member in ("SnapshotCreated", "SnapshotReverted", "SnapshotDeleted"):
            ours = json.loads((stage.state / "domain.libxl-json").read_text())["domsnap"]
            listed = message.body[0] in [each["name"] for each in ours.get("snapshots", [])]
            file = (stage.state / f"snapshotdata-{message.body[0]}.libxl-json").exists()
            intent = (stage.state / "intent.json").exists()
            assert not intent
            assert file is listed
            seen.append((message.member, message.body[0], listed, ours.get("current", "")))
        return stage.hear(message)

    stage.wire.handle(look)
    try:
        for name in ("a", "b"):
            await stage.create(name)
        await stage.revert("a")
        await stage.delete("b")
        await stage.delete("a")
    finally:
        stage.wire.handle(stage.hear)
    assert seen == [
        ("SnapshotCreated", "a", True, "a"),
        ("SnapshotCreated", "b", True, "b"),
        ("SnapshotReverted", "a", True, "a"),
        ("SnapshotDeleted", "b", False, "a"),
        ("SnapshotDeleted", "a", False, ""),
    ]


async def test_who_only_listens_knows_all_that_happens_to_snapshots(stage: Scene, mirror: Mirror) -> None:
    steps: list[Callable[[], Awaitable[None]]] = [
        lambda: stage.create("root"),
        lambda: stage.create("left"),
        lambda: stage.create("leaf"),
        lambda: stage.revert("root"),
        lambda: stage.create("right"),
        lambda: stage.revert_paused("leaf"),
        lambda: stage.create("of a paused guest"),
        lambda: stage.delete("left"),
        lambda: stage.revert("right"),
        lambda: stage.delete("root"),
        lambda: stage.delete("leaf", scope=Variant("s", "children")),
        lambda: stage.create("root"),
    ]
    for step in steps:
        await step()
        await agree(stage, mirror)
    with pytest.raises(CallError):
        await stage.create("root")
    await agree(stage, mirror)


async def test_who_only_listens_knows_what_the_guest_does(stage: Scene, mirror: Mirror) -> None:
    for command, state in (("stop", "paused"), ("cont", "running")):
        await asyncio.to_thread(stage.qemu.control.execute, command)
        await stage.wait_state(state)
        await agree(stage, mirror)
    # A pause too short to be announced by itself, in which a job shows the state.
    for number in range(5):
        await stage.create(f"pause {number}")
    for number in range(5):
        stage.qemu.control.execute("stop")
        (job,) = await stage.manager("DeleteSnapshot", "ssa{sv}", DOMAIN, f"pause {number}", {})
        stage.qemu.control.execute("cont")
        await stage.wire.call(BUS_NAME, job, JOB_INTERFACE, "Wait")
    await agree(stage, mirror)
    await stage.wait_state("running")
    await agree(stage, mirror)


async def test_who_only_listens_knows_when_qemu_goes_and_comes_back(stage: Scene, mirror: Mirror) -> None:
    stage.qemu.stop()
    gone = await stage.wait_state("shutoff")
    assert "killed, or crashed" in gone["StateReason"]
    await agree(stage, mirror)
    with pytest.raises(CallError) as error:
        await stage.create("of no memory", memory=Variant("b", True))
    assert error.value.name == "org.domsnap1.Error.NotSupported"
    await agree(stage, mirror)
    await stage.create("of no guest")
    await agree(stage, mirror)
    await stage.delete("of no guest")
    await agree(stage, mirror)
    stage.qemu.start()
    # It starts with the images that it was defined with, and not with those that its snapshots have left it.
    await stage.wait_state("drifted")
    await agree(stage, mirror)


async def test_who_only_listens_knows_domains_that_come_and_go(stage: Scene, mirror: Mirror) -> None:
    stage.signals.clear()
    path = domain_path(OTHER)
    stage.daemon.define(OTHER, OTHER_UUID, stage.directory / "nothing")
    os.kill(stage.daemon.pid, signal.SIGHUP)
    await stage.wait_signal("DomainAdded")
    in_order(stage.signals, (ROOT_PATH, "InterfacesAdded", path), (ROOT_PATH, "DomainAdded", OTHER, path))
    assert path == "/org/domsnap1/domain/gr_c3_b6_c3_9fer_202"
    await agree(stage, mirror)
    (rows,) = await stage.wire.call(BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "ListDomains")
    assert [row[0] for row in rows] == [OTHER, DOMAIN]
    domains = stage.directory / "etc" / "domains.d"
    (domains / f"{OTHER}.yaml").unlink()
    kept = (domains / f"{DOMAIN}.yaml").rename(stage.directory / "kept.yaml")
    os.kill(stage.daemon.pid, signal.SIGHUP)
    await stage.wait_signal("DomainRemoved", 2)
    in_order(
        stage.signals,
        (ROOT_PATH, "DomainRemoved", DOMAIN, DOMAIN_PATH),
        (ROOT_PATH, "InterfacesRemoved", DOMAIN_PATH, [DOMAIN_INTERFACE]),
    )
    await agree(stage, mirror)
    assert [each for each in mirror.objects if each.startswith("/org/domsnap1/domain/")] == []
    kept.rename(domains / f"{DOMAIN}.yaml")
    os.kill(stage.daemon.pid, signal.SIGHUP)
    await stage.wait_signal("DomainAdded", 2)
    await stage.wait_state("drifted")
    await agree(stage, mirror)
    assert snapshot_path(DOMAIN, "root") in mirror.objects


async def test_the_death_of_qemu_in_an_operation_is_told() -> None:
    """It is killed as soon as its job is announced."""
    async with scene(ONE_DISK, guest=TinyGuest.dirtying(24, disks=1), memory_mib=64) as stage:
        await stage.create("before")
        mirror = Mirror(await fetch(stage.wire))

        def kill(message: Message) -> bool:
            mirror.hear(message)
            if message.member == "JobAdded":
                os.kill(stage.qemu.pid, signal.SIGKILL)
            return stage.hear(message)

        stage.signals.clear()
        stage.wire.handle(kill)
        with pytest.raises(CallError) as error:
            await stage.create("at the end")
        assert error.value.name.startswith("org.domsnap1.Error.")
        assert error.value.name != "org.domsnap1.Error.Internal"
        (completed,) = await stage.wait_signal("Completed")
        assert completed.body[:2] == ["failed", error.value.name]
        await stage.wait_state("shutoff")
        await agree(stage, mirror)
        assert "Traceback" not in stage.daemon.log


async def test_progress_is_told_no_more_than_five_times_a_second() -> None:
    assert PROGRESS_EVERY_S == 0.2
    async with scene(ONE_DISK, guest=TinyGuest.dirtying(48, disks=1), memory_mib=96) as stage:
        instants: dict[str, list[float]] = {}
        told: dict[str, dict[str, Any]] = {}

        def hear(message: Message) -> bool:
            if message.member == "InterfacesAdded" and JOB_INTERFACE in message.body[1]:
                instants[message.body[0]] = [asyncio.get_running_loop().time()]
                told[message.body[0]] = {}
            if message.member == "PropertiesChanged" and message.body[0] == JOB_INTERFACE:
                instants[message.path or ""].append(asyncio.get_running_loop().time())
                told[message.path or ""].update(unwrap(message.body[1]))
            return stage.hear(message)

        stage.wire.handle(hear)
        for number in range(3):
            await stage.create(f"snapshot {number}")
        for number in range(3):
            await stage.delete(f"snapshot {number}")
        assert len(instants) == 6
        for job, (begun, *changed) in instants.items():
            # One at once, one at the end, and one for delivery that was late.
            assert len(changed) <= 3 + (changed[-1] - begun) / PROGRESS_EVERY_S
            assert (told[job]["State"], told[job]["Progress"], told[job]["ProgressValid"]) == ("done", 1.0, True)


async def test_the_signals_of_the_contract_are_all_that_come(stage: Scene) -> None:
    """Run last: over the whole module no signal came from where the contract has none."""
    allowed = {
        OBJECT_MANAGER_INTERFACE: {"InterfacesAdded", "InterfacesRemoved"},
        PROPERTIES_INTERFACE: {"PropertiesChanged"},
        MANAGER_INTERFACE: {"DomainAdded", "DomainRemoved", "JobAdded", "JobRemoved"},
        DOMAIN_INTERFACE: {"SnapshotCreated", "SnapshotReverted", "SnapshotDeleted", "SnapshotChanged"},
        JOB_INTERFACE: {"Completed"},
    }
    assert {(each.interface, each.member) for each in stage.signals} <= {
        (interface, member) for interface, members in allowed.items() for member in members
    }
    assert stage.signals
    _, _, fault = stage.daemon.log.partition("Traceback")
    assert not fault, fault
