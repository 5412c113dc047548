# SPDX-License-Identifier: MIT
"""The daemon or QEMU ends in the middle of an operation: what was begun is found again, and nothing is pretended.

Settling what was interrupted is not tested here: until then the domain is shown as it is, and not changed.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from snapd.bus.wire import CallError, Variant
from tests.lab.guest import TinyGuest
from tests.lab.marks import kept_marks, mark_all
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, TWO_DISKS, Scene, scene
from tests.lab.untouched import BUS_ERROR, ERROR, assert_sentence, assert_works, picture, refused, untouched

DIRTYING = TinyGuest.dirtying(8)
INTERNAL = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), TWO_DISKS[1])
INTENT_TIMEOUT_S = 20.0
_POLL_S = 0.0002


async def test_the_daemon_is_killed_before_the_pause() -> None:
    async with scene(guest=DIRTYING) as stage:
        await stage.create("s1")
        call = asyncio.create_task(_gone(stage.create("s2")))
        await asyncio.to_thread(_stop_at_intent, stage)
        stage.daemon.stop(signal.SIGKILL)
        await call
        # The step is recorded before the guest stops, so it may be either.
        await _restarted(stage, "create s2")
        await _assert_shown_truthfully(stage)


@pytest.mark.parametrize("disks", [TWO_DISKS, INTERNAL], ids=["external", "internal"])
async def test_the_daemon_is_killed_in_the_pause(disks: tuple[GuestDisk, ...]) -> None:
    async with scene(disks, guest=DIRTYING) as stage:
        await stage.create("s1")
        call = asyncio.create_task(_gone(stage.create("s2")))
        await _freeze_after(stage, "STOP")
        stage.daemon.stop(signal.SIGKILL)
        stage.qemu.thaw()
        await call
        assert json.loads((stage.state / "intent.json").read_text())["begun"] == ["pause"]
        await _restarted(stage, "create s2")
        await _assert_shown_truthfully(stage)


@pytest.mark.parametrize("disks", [TWO_DISKS, INTERNAL], ids=["external", "internal"])
async def test_the_daemon_is_killed_in_a_snapshot_without_memory(disks: tuple[GuestDisk, ...]) -> None:
    async with scene(disks, guest=DIRTYING) as stage:
        await stage.create("s1")
        call = asyncio.create_task(_gone(stage.create("s2", memory=Variant("b", False))))
        await asyncio.to_thread(_stop_at_intent, stage)
        stage.daemon.stop(signal.SIGKILL)
        await call
        assert await _restarted(stage, "create s2") == ["s1"]
        await _assert_shown_truthfully(stage)
        stage.qemu.wait_counting()


@pytest.mark.parametrize("verb", ["create", "delete", "revert"])
@pytest.mark.parametrize("disks", [TWO_DISKS, INTERNAL], ids=["external", "internal"])
async def test_the_daemon_is_killed_while_the_domain_is_shut_off(disks: tuple[GuestDisk, ...], verb: str) -> None:
    """What it kept can be read, nothing is changed, and a QEMU that is started meanwhile is shown with the same sentence."""
    async with scene(disks, guest=DIRTYING) as stage:
        await mark_all(stage, 1)
        await stage.create("s1")
        await stage.create("s2")
        await stage.shut_off()
        verbs = {
            "create": stage.create("s3"),
            "delete": stage.delete("s2"),
            "revert": stage.revert("s1", undo=Variant("b", True)),
        }
        chosen = verbs.pop(verb)
        for other in verbs.values():
            other.close()
        call = asyncio.create_task(_gone(chosen))
        await asyncio.to_thread(_stop_at_intent, stage)
        stage.daemon.stop(signal.SIGKILL)
        await call
        stage.daemon.start()
        shown = await stage.wait_state("shutoff")
        assert verb in shown["Interrupted"]
        await _refused_every_verb(stage, verb)
        for name in [row[1] for row in await stage.snapshots()]:
            assert await kept_marks(stage, name) == {"disk0": 1, "disk1": 1}
        # With the links and disks.env of before or after: QEMU runs, and the service leaves it alone.
        await stage.start("running", "drifted")
        await _refused_every_verb(stage, verb)


async def test_qemu_is_started_in_the_middle_of_an_operation_on_its_images() -> None:
    """It opens what was active before; whichever of the two was first, nothing is lost and the state shown is true."""
    async with scene(guest=DIRTYING) as stage:
        await mark_all(stage, 1)
        await stage.create("s1")
        await stage.shut_off()
        active = stage.active_images()
        call = asyncio.create_task(_outcome(stage.create("s2")))
        await asyncio.to_thread(_stop_at_intent, stage)
        stage.qemu.disks = tuple(GuestDisk(*active[disk.id], disk.bus, disk.via, disk.id) for disk in stage.qemu.disks)
        stage.qemu.start()
        os.kill(stage.daemon.pid, signal.SIGCONT)
        failure = await call
        shown = await stage.wait_state("running", "drifted")
        assert shown["Interrupted"] == ""
        taken = "s2" in [row[1] for row in await stage.snapshots()]
        assert (taken, shown["State"]) in ((True, "drifted"), (False, "running")), (failure, shown)
        assert taken == (failure is None)
        for row in await stage.snapshots():
            assert await kept_marks(stage, row[1]) == {"disk0": 1, "disk1": 1}
        await stage.shut_off()
        await stage.start("running")
        stage.qemu.wait_counting()
        await assert_works(stage)


async def test_the_daemon_is_killed_while_it_merges() -> None:
    async with scene(guest=DIRTYING) as stage:
        await stage.create("s1")
        await stage.create("s2")
        call = asyncio.create_task(_gone(stage.delete("s2")))
        await _freeze_after(stage, "JOB_STATUS_CHANGE")
        stage.daemon.stop(signal.SIGKILL)
        stage.qemu.thaw()
        await call
        assert await _restarted(stage, "delete s2") == ["s1"]
        await _assert_shown_truthfully(stage)


async def test_qemu_is_killed_before_the_pause() -> None:
    """Nothing was done that is not undone without QEMU, so nothing is in the way when it is started again."""
    async with scene(guest=DIRTYING) as stage:
        await assert_works(stage)
        files = stage.files()
        call = asyncio.create_task(refused(stage.create("s1"), f"{ERROR}MonitorLost", DOMAIN))
        await asyncio.to_thread(_stop_at_intent, stage, begun=0)
        stage.qemu.stop()
        os.kill(stage.daemon.pid, signal.SIGCONT)
        await call
        await stage.wait_state("shutoff")
        assert stage.files() == files
        assert await stage.snapshots() == []
        stage.qemu.start()
        await stage.wait_state("running")
        stage.qemu.wait_counting()
        await assert_works(stage)


@pytest.mark.parametrize(
    ("disks", "verb"),
    [*((TWO_DISKS, verb) for verb in ("create", "delete", "revert")), (INTERNAL, "create"), (INTERNAL, "revert")],
    ids=["external-create", "external-delete", "external-revert", "internal-create", "internal-revert"],
)
async def test_qemu_is_killed_in_the_middle(disks: tuple[GuestDisk, ...], verb: str) -> None:
    async with scene(disks, guest=DIRTYING) as stage:
        await stage.create("s1")
        await stage.create("s2")
        verbs = {"create": stage.create("s3"), "delete": stage.delete("s2"), "revert": stage.revert("s1")}
        chosen = verbs.pop(verb)
        for other in verbs.values():
            other.close()
        call = asyncio.create_task(refused(chosen, f"{ERROR}MonitorLost", DOMAIN))
        await _freeze_after(stage, "JOB_STATUS_CHANGE" if verb == "delete" else "STOP")
        stage.qemu.stop()
        await call
        shown = await stage.wait_state("shutoff")
        left = ["s1"] if verb == "delete" else ["s1", "s2"]
        assert [row[1] for row in await stage.snapshots()] == left
        assert str(stage.state / "intent.json") in shown["Interrupted"]
        await _refused_every_verb(stage, verb)
        # The same is said by a daemon that did not see it happen.
        await stage.restart_daemon(signal.SIGTERM)
        await stage.wait_state("shutoff")
        await _refused_every_verb(stage, verb)
        assert [row[1] for row in await stage.snapshots()] == left


async def test_told_to_end_the_daemon_first_ends_its_jobs() -> None:
    async with scene(guest=DIRTYING) as stage:
        call = asyncio.create_task(stage.create("s1"))
        await _freeze_after(stage, "STOP")
        os.kill(stage.daemon.pid, signal.SIGTERM)
        # A call that still gets an answer after it was told to end gets a no.
        with pytest.raises(CallError) as later:
            while True:
                await stage.manager("ListDomains")
        assert later.value.name == f"{BUS_ERROR}UnknownMethod"
        stage.qemu.thaw()
        await call
        assert stage.daemon.wait_ended() == 0
        stage.daemon.stop()
        assert not (stage.state / "intent.json").exists()
        stage.qemu.wait_counting()
        stage.daemon.start()
        shown = await stage.wait_state("running")
        assert shown["Interrupted"] == ""
        assert [row[1] for row in await stage.snapshots()] == ["s1"]
        await stage.revert("s1")
        await assert_works(stage)


async def _restarted(stage: Scene, title: str) -> list[str]:
    """Start the daemon again and see that it tells of the operation called ``title``. Returns: the snapshots it lists."""
    stage.daemon.start()
    shown = await stage.wait_state("running", "paused")
    assert title in shown["Interrupted"]
    assert str(stage.state / "intent.json") in shown["Interrupted"]
    await _refused_every_verb(stage, title)
    return [row[1] for row in await stage.snapshots()]


async def _assert_shown_truthfully(stage: Scene) -> None:
    """See that the state on the bus is QEMU's own, that refusals change nothing, and that the guest counts when it runs."""
    now = await picture(stage)
    assert now.domain[0] == ("running" if now.running else "paused")
    assert "s1" in [row[1] for row in now.tree]
    async with untouched(stage):
        await _refused_every_verb(stage, "s2")
    if not now.running:
        stage.qemu.control.execute("cont")
        await stage.wait_state("running")
        stage.qemu.wait_counting()


async def _refused_every_verb(stage: Scene, title: str) -> None:
    named = (DOMAIN, title, str(stage.state / "intent.json"))
    await refused(stage.create("more"), f"{ERROR}Interrupted", *named)
    await refused(stage.revert("s1"), f"{ERROR}Interrupted", *named)
    await refused(stage.delete("s1"), f"{ERROR}Interrupted", *named)


async def _gone(call: Coroutine[Any, Any, None]) -> None:
    """Await a call to a daemon that is killed meanwhile."""
    with pytest.raises(CallError) as caught:
        await call
    assert caught.value.name == f"{BUS_ERROR}NoReply"


async def _outcome(call: Coroutine[Any, Any, None]) -> CallError | None:
    """Return the error of a call, which is a sentence of ours, or nothing."""
    try:
        await call
    except CallError as error:
        assert error.name.startswith(ERROR), error
        assert error.name != f"{ERROR}Internal", error
        assert_sentence(error.text)
        return error
    return None


async def _freeze_after(stage: Scene, event: str) -> None:
    stage.qemu.control.execute("query-status")
    stage.qemu.control.events.clear()
    await asyncio.to_thread(stage.qemu.control.wait_event, event)
    stage.qemu.freeze()


def _stop_at_intent(stage: Scene, begun: int | None = None) -> None:
    """Stop the daemon as soon as there is an intent, with SIGSTOP. Raises: AssertionError when it is further than ``begun``."""
    path = stage.state / "intent.json"
    deadline = time.monotonic() + INTENT_TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, "there was no intent"
        time.sleep(_POLL_S)
    os.kill(stage.daemon.pid, signal.SIGSTOP)
    steps = json.loads(path.read_text())["begun"]
    assert begun is None or len(steps) <= begun, steps
