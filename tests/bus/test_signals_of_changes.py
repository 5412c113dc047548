# SPDX-License-Identifier: MIT
"""Signals about what is no job or comes with one: protection, undo points, a memory that waits to be loaded, plans.

Each is told exactly once, and a client who only listens knows everything.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from snapd.bus.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH, SNAPSHOT_INTERFACE, domain_path, snapshot_path
from snapd.bus.wire import CallError, Variant
from tests.bus.mirror import Mirror, agree, in_order, mirroring, story, told
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, Scene, scene

DOMAIN_PATH = domain_path(DOMAIN)
YES, NO = Variant("b", True), Variant("b", False)


@pytest_asyncio.fixture(params=["dbus-fast", "dbus-next"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene(environment={"DOMSNAPD_DBUS_LIBRARY": request.param}) as made:
        await made.create("one")
        yield made


@pytest_asyncio.fixture
async def mirror(stage: Scene) -> AsyncIterator[Mirror]:
    async with mirroring(stage) as made:
        stage.signals.clear()
        yield made


async def _protect(stage: Scene, name: str, protected: bool) -> None:
    await stage.wire.call(BUS_NAME, snapshot_path(DOMAIN, name), SNAPSHOT_INTERFACE, "SetProtected", "b", (protected,))


async def _undo_point(stage: Scene) -> str:
    """Return the name of the one undo point there is."""
    (name,) = [row[1] for row in await stage.snapshots() if row[5] & 16]
    return str(name)


async def test_protection_is_told_once_and_what_changes_nothing_is_not_told(stage: Scene, mirror: Mirror) -> None:
    path = snapshot_path(DOMAIN, "one")
    for protected in (True, False):
        stage.signals.clear()
        await _protect(stage, "one", protected)
        await _protect(stage, "one", protected)
        await agree(stage, mirror)
        assert story(stage.signals) == [(path, "PropertiesChanged"), (DOMAIN_PATH, "SnapshotChanged")]
        assert told(stage.signals, path, "Protected") == [protected]
        assert [row[5] for row in await stage.snapshots()] == [3 if protected else 1]
        in_order(stage.signals, (path, "PropertiesChanged"), (DOMAIN_PATH, "SnapshotChanged", "one", path))


async def test_a_snapshot_that_is_protected_is_not_deleted_and_nothing_is_told(stage: Scene, mirror: Mirror) -> None:
    await _protect(stage, "one", True)
    stage.signals.clear()
    with pytest.raises(CallError) as error:
        await stage.delete("one")
    assert error.value.name == "org.domsnap1.Error.Protected"
    await agree(stage, mirror)
    assert stage.signals == []


async def test_an_undo_point_is_told_and_so_is_its_end(stage: Scene, mirror: Mirror) -> None:
    one = snapshot_path(DOMAIN, "one")
    await stage.revert("one", undo=YES)
    first = await _undo_point(stage)
    await agree(stage, mirror)
    in_order(
        stage.signals,
        (ROOT_PATH, "JobAdded"),
        (ROOT_PATH, "InterfacesAdded", snapshot_path(DOMAIN, first)),
        (DOMAIN_PATH, "SnapshotCreated", first, snapshot_path(DOMAIN, first)),
        (DOMAIN_PATH, "SnapshotChanged", "one", one),
        (DOMAIN_PATH, "SnapshotReverted", "one", one),
        (ROOT_PATH, "JobRemoved"),
    )
    shown = mirror.objects[snapshot_path(DOMAIN, first)][SNAPSHOT_INTERFACE]
    assert (shown["Undo"], shown["Protected"], shown["Memory"], shown["Current"]) == (True, False, False, False)
    assert shown["Parent"] == one

    stage.signals.clear()
    await stage.revert("one", undo=YES)
    second = await _undo_point(stage)
    await agree(stage, mirror)
    in_order(
        stage.signals,
        (DOMAIN_PATH, "SnapshotDeleted", first, snapshot_path(DOMAIN, first)),
        (ROOT_PATH, "InterfacesRemoved", snapshot_path(DOMAIN, first), [SNAPSHOT_INTERFACE]),
    )
    # Both are durable together; which of the two is told first depends on what else the domain has to tell then.
    in_order(
        stage.signals,
        (ROOT_PATH, "InterfacesAdded", snapshot_path(DOMAIN, second)),
        (DOMAIN_PATH, "SnapshotCreated", second, snapshot_path(DOMAIN, second)),
        (DOMAIN_PATH, "SnapshotReverted", "one", one),
    )

    # The empty name means the undo point, which ends with the revert to it: the job tells its name all the same.
    stage.signals.clear()
    await stage.revert("")
    await agree(stage, mirror)
    in_order(
        stage.signals,
        (DOMAIN_PATH, "SnapshotDeleted", second, snapshot_path(DOMAIN, second)),
        (DOMAIN_PATH, "SnapshotReverted", second, snapshot_path(DOMAIN, second)),
        (ROOT_PATH, "JobRemoved"),
    )
    assert [row[1] for row in await stage.snapshots()] == ["one"]


async def test_a_memory_that_waits_is_told_until_it_is_given_up_or_loaded(stage: Scene, mirror: Mirror) -> None:
    await stage.shut_off()
    await agree(stage, mirror)
    stage.signals.clear()
    await stage.revert("one")
    await agree(stage, mirror)
    assert told(stage.signals, DOMAIN_PATH, "PendingRevert") == ["one"]

    stage.signals.clear()
    await stage.domain("CancelPendingRevert")
    await agree(stage, mirror)
    assert story(stage.signals) == [(DOMAIN_PATH, "PropertiesChanged")]
    assert told(stage.signals, DOMAIN_PATH, "PendingRevert") == [""]
    with pytest.raises(CallError) as error:
        await stage.domain("CancelPendingRevert")
    assert error.value.name == "org.domsnap1.Error.NotSupported"

    await stage.revert("one")
    stage.signals.clear()
    await stage.start()
    await stage.wait_signal("SnapshotReverted")
    await stage.wait_rest()
    await stage.wait_state("running")
    await agree(stage, mirror)
    assert told(stage.signals, DOMAIN_PATH, "PendingRevert") == [""]
    # What the guest did since it was started is kept.
    point = await _undo_point(stage)
    in_order(
        stage.signals,
        (ROOT_PATH, "JobAdded"),
        (DOMAIN_PATH, "SnapshotCreated", point, snapshot_path(DOMAIN, point)),
        (DOMAIN_PATH, "SnapshotReverted", "one", snapshot_path(DOMAIN, "one")),
        (ROOT_PATH, "JobRemoved"),
    )


async def test_a_memory_that_cannot_be_loaded_is_told_with_the_reason(stage: Scene, mirror: Mirror) -> None:
    await stage.shut_off()
    await stage.revert("one")
    stage.qemu.disks = (*stage.qemu.disks, GuestDisk("", bus="cdrom", id="cd0"))
    stage.signals.clear()
    await stage.start()
    shown = await stage.wait_property("PendingProblem")
    assert "cd0" in shown["PendingProblem"]
    await agree(stage, mirror)
    assert told(stage.signals, DOMAIN_PATH, "PendingProblem") == [shown["PendingProblem"]]
    assert told(stage.signals, DOMAIN_PATH, "PendingRevert") == []
    await stage.domain("CancelPendingRevert")
    await agree(stage, mirror)
    assert (await stage.properties())["PendingProblem"] == ""


async def test_a_plan_is_told_to_nobody_but_who_asks(stage: Scene, mirror: Mirror) -> None:
    assert await stage.plan("create", "two")
    assert await stage.plan("create", "")
    assert await stage.plan("revert", "one", undo=NO)
    assert await stage.plan("delete", "one")
    await agree(stage, mirror)
    assert stage.signals == []
    (rows,) = await stage.wire.call(BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "ListJobs")
    assert [row[1] for row in rows] == ["create"]


async def test_what_was_left_for_later_is_a_job_of_its_own_when_its_time_comes(stage: Scene, mirror: Mirror) -> None:
    """An internal snapshot in an image that others need is deleted when nobody has that open any more."""
    await stage.create("inner", type=Variant("s", "internal"), memory=NO)
    await stage.create("outer", type=Variant("s", "external"), memory=NO)
    stage.signals.clear()
    await stage.delete("inner")
    (ended,) = await stage.wait_signal("Completed")
    job = await stage.job(ended.path or "")
    assert len(job["Notes"]) == 2, job
    assert all("'inner' stays in" in note for note in job["Notes"])
    await agree(stage, mirror)
    assert told(stage.signals, ended.path or "", "Notes") == [job["Notes"]]
    stage.signals.clear()
    await stage.shut_off()
    await stage.wait_rest()
    await agree(stage, mirror)
    (path,) = [each.body[0] for each in stage.signals if each.member == "JobAdded"]
    job = await stage.job(path)
    assert (job["Operation"], job["State"], job["Snapshot"], job["StartedByUID"]) == ("tidy", "done", "/", 0)
    in_order(stage.signals, (ROOT_PATH, "JobAdded", path), (path, "Completed", "done", "", "", "/"), (ROOT_PATH, "JobRemoved"))
