# SPDX-License-Identifier: MIT
"""What one caller can have at once, and that others are served meanwhile.

A job stays under way while its QEMU is stopped (SIGSTOP), which happens as soon as it is announced.
"""

import asyncio
import os
import pwd
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from snapd.bus.dispatch import MOST_CALLS_PER_USER
from snapd.bus.names import BUS_NAME, DOMAIN_INTERFACE, JOB_INTERFACE, domain_path, snapshot_path
from snapd.bus.wire import CallError, Message, Wire
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.qemu import GuestDisk, QemuProcess
from tests.lab.scene import DOMAIN, Scene, scene

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = Path(__file__).parents[2] / "dbus" / "org.domsnap1.conf"
NOBODY = pwd.getpwnam("nobody").pw_uid
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"
OTHER, OTHER_UUID = "vm2", "b4eb4367-b880-3b11-d1e8-d5d2b2c1a3bb"
ONE_DISK = (GuestDisk("disk0.raw", "raw", id="disk0"),)
TIMEOUT_S = 20.0
CALLS_OF_ONE_CONNECTION = 100
SPARE = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Scene]:
    """Two domains, and one job for each caller."""
    async with scene(ONE_DISK, policies=(POLICY,), settings={"limits": {"jobs_per_caller": 1}}) as made:
        made.directory.chmod(0o711)
        second = made.directory / "second"
        second.mkdir()
        disk = GuestDisk(make_disk(second / "disk0.raw", guest=COUNTS_ON_ONE), id="disk0")
        with QemuProcess(second, [disk]) as qemu:
            made.daemon.define(OTHER, OTHER_UUID, qemu.monitor)
            os.kill(made.daemon.pid, signal.SIGHUP)
            async with asyncio.timeout(TIMEOUT_S):
                while [row[2] for row in (await made.manager("ListDomains"))[0]] != ["running", "running"]:
                    await made.wait_any()
            yield made


async def begin_and_freeze(stage: Scene, name: str) -> str:
    """Begin a snapshot and stop its QEMU as soon as it is announced. Returns: the path of its job."""

    def freeze(message: Message) -> bool:
        if message.member == "JobAdded":
            stage.qemu.freeze()
        return stage.hear(message)

    stage.wire.handle(freeze)
    try:
        (job,) = await stage.manager("CreateSnapshot", "ssa{sv}", DOMAIN, name, {})
    finally:
        stage.wire.handle(stage.hear)
    return str(job)


async def create_on_other(stage: Scene, name: str) -> str:
    (job,) = await stage.wire.call(BUS_NAME, domain_path(OTHER), DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", (name, {}))
    return str(job)


async def wait_for(wire: Wire, job: str) -> str:
    """Return the result of the job, or the name of the error that waiting for it met."""
    try:
        return str((await wire.call(BUS_NAME, job, JOB_INTERFACE, "Wait", timeout_s=TIMEOUT_S))[0])
    except CallError as error:
        return error.name


async def test_one_job_too_many_is_refused_and_leaves_its_domain_free(stage: Scene) -> None:
    try:
        job = await begin_and_freeze(stage, "long")
        for _ in range(2):
            with pytest.raises(CallError) as error:
                await create_on_other(stage, "too many")
            assert error.value.name == LIMITS_EXCEEDED
            assert "No more than 1 jobs of one caller" in error.value.text
    finally:
        stage.qemu.thaw()
    assert await wait_for(stage.wire, job) == "done"
    assert await wait_for(stage.wire, await create_on_other(stage, "now")) == "done"
    (found,) = await stage.wire.call(BUS_NAME, domain_path(OTHER), DOMAIN_INTERFACE, "GetSnapshot", "s", ("now",))
    assert found == snapshot_path(OTHER, "now")


async def test_two_that_ask_at_once_do_not_both_get_the_last_place(stage: Scene) -> None:
    asked = (
        stage.manager("CreateSnapshot", "ssa{sv}", DOMAIN, "at once", {}),
        stage.manager("CreateSnapshot", "ssa{sv}", OTHER, "at once", {}),
    )
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    jobs = [each[0] for each in outcomes if isinstance(each, tuple)]
    refusals = [each.name for each in outcomes if isinstance(each, CallError)]
    assert (len(jobs), refusals) == (1, [LIMITS_EXCEEDED])
    assert await wait_for(stage.wire, jobs[0]) == "done"


async def test_a_user_who_waits_in_many_calls_does_not_shut_others_out(stage: Scene) -> None:
    os.seteuid(NOBODY)
    try:
        count = (MOST_CALLS_PER_USER + SPARE) // CALLS_OF_ONE_CONNECTION + 1
        wires = [await Wire.connect(stage.bus_address) for _ in range(count)]
    finally:
        os.seteuid(0)
    try:
        job = await begin_and_freeze(stage, "waited for")
        waiting = [
            asyncio.ensure_future(wait_for(wires[number // CALLS_OF_ONE_CONNECTION], job))
            for number in range(MOST_CALLS_PER_USER + SPARE)
        ]
        async with asyncio.timeout(TIMEOUT_S):
            while sum(each.done() for each in waiting) < SPARE:
                await stage.wait_any(0.01)
        assert {each.result() for each in waiting if each.done()} == {LIMITS_EXCEEDED}
        assert len((await stage.manager("ListDomains"))[0]) == 2
        own = asyncio.ensure_future(wait_for(stage.wire, job))
        assert len((await stage.manager("ListJobs"))[0]) > 1
        assert not own.done()
    finally:
        stage.qemu.thaw()
    try:
        results = await asyncio.gather(own, *waiting)
    finally:
        for wire in wires:
            wire.close()
    assert results.count("done") == 1 + MOST_CALLS_PER_USER
    assert results.count(LIMITS_EXCEEDED) == SPARE
