# SPDX-License-Identifier: MIT
"""The guest agent: the real one in the Linux guest and a fake, held to the same. Not here: ``test_agent_hostile``."""

import asyncio
import contextlib
import itertools
import json
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapd.errors import QuiesceFailed
from snapd.qmp import agent as agent_module
from snapd.qmp.agent import GuestAgent
from tests.lab.fake_agent import FREEZE, SENTINEL, STATUS, SYNCHRONISE, THAW, FakeAgent
from tests.lab.linux_guest import (
    MEMORY_MIB,
    agent_socket,
    console_count,
    linux_guest,
    linux_guest_arguments,
    make_file_system,
    needs_recovery,
    wait_console_count,
    wait_for_agent,
    written_counts,
)
from tests.lab.qemu import GuestDisk, QemuProcess
from tests.lab.scene import short_directory

DOMAIN = "vm1"
SOON_S = 0.2
"""A fake answers in less, or never."""

LATE_S = 1.5
"""A real agent answers in less, but in a guest that is stopped."""

PATIENT_S = 30.0
MAY_BE_FROZEN = "the guest may be frozen"
ONE_SENTENCE = re.compile(r"The file systems of domain vm1 could not be (frozen|thawed for certain): [^\n]+[^.\n]\.")


@dataclass
class Subject:
    """An agent that is well, and ways to get at it that are not ours; ``late_s`` is longer than it takes to answer."""

    path: Path
    late_s: float
    is_frozen: Callable[[], bool]
    stop: Callable[[], Any]
    resume: Callable[[], Any]

    def client(self, timeout_s: float = PATIENT_S) -> GuestAgent:
        return GuestAgent(DOMAIN, str(self.path), timeout_s, timeout_s)


@dataclass
class RunningGuest:
    directory: Path
    disk: Path
    qemu: QemuProcess

    @property
    def path(self) -> Path:
        return agent_socket(self.directory)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "THAW_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def guest() -> Iterator[RunningGuest]:
    """A Linux guest that writes to its file system all the time."""
    with short_directory() as directory:
        disk = make_file_system(directory / "disk.qcow2", "qcow2")
        extra = linux_guest_arguments(directory, linux_guest(), writes=True)
        with QemuProcess(directory, [GuestDisk(disk, "qcow2", id="disk0")], memory_mib=MEMORY_MIB, extra=extra) as qemu:
            wait_for_agent(directory)
            wait_console_count(directory, 1)
            yield RunningGuest(directory, disk, qemu)


@pytest.fixture(params=["real", "fake"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param == "fake":
        async with FakeAgent(tmp_path / "agent") as fake:
            yield Subject(fake.path, SOON_S, lambda: fake.is_frozen, fake.stop, fake.resume)
        return
    real: RunningGuest = request.getfixturevalue("guest")
    control = real.qemu.control
    try:
        yield Subject(
            real.path,
            LATE_S,
            lambda: not needs_recovery(real.disk, "qcow2"),
            lambda: control.execute("stop"),
            lambda: control.execute("cont"),
        )
    finally:
        control.execute("cont")
        async with other_client(real.path) as ask:
            with contextlib.suppress(AssertionError):  # refused: it is thawed
                await ask(THAW)
        before = console_count(real.directory)
        await asyncio.to_thread(wait_console_count, real.directory, before + 1)


_numbers = itertools.count()

Ask = Callable[..., Awaitable[Any]]


@contextlib.asynccontextmanager
async def other_client(path: Path) -> AsyncIterator[Ask]:
    """Hold the socket; gives a function that sends a command and returns what the agent answers."""
    reader, writer = await asyncio.open_unix_connection(str(path))

    async def ask(command: str, **arguments: Any) -> Any:
        sent = {"execute": command, "arguments": arguments}
        async with asyncio.timeout(PATIENT_S):
            number = next(_numbers)
            writer.write(SENTINEL + json.dumps({"execute": SYNCHRONISE, "arguments": {"id": number}}).encode() + b"\n")
            line = b""
            while line != b'{"return": %d}\n' % number:
                await reader.readuntil(SENTINEL)
                line = await reader.readline()
            writer.write(json.dumps(sent).encode() + b"\n")
            answer = json.loads(await reader.readline())
        assert "return" in answer, answer
        return answer["return"]

    try:
        yield ask
    finally:
        writer.close()
        await writer.wait_closed()


@contextlib.contextmanager
def fails(*parts: str) -> Iterator[None]:
    """Expect QuiesceFailed with one sentence that has all ``parts``."""
    with pytest.raises(QuiesceFailed) as caught:
        yield
    assert ONE_SENTENCE.fullmatch(str(caught.value)), str(caught.value)
    assert caught.value.may_be_frozen == (MAY_BE_FROZEN in parts)
    for part in parts:
        assert part in str(caught.value)


async def test_freezes_and_thaws(subject: Subject) -> None:
    agent = subject.client()
    for _ in range(2):
        assert await agent.freeze() == 1
        assert subject.is_frozen()
        await agent.thaw()
        assert not subject.is_frozen()


async def test_thaw_of_what_is_thawed_already(subject: Subject) -> None:
    agent = subject.client()
    assert await agent.freeze() == 1
    async with other_client(subject.path) as ask:
        await ask(THAW)
    await agent.thaw()
    assert not subject.is_frozen()


async def test_freeze_of_another_is_left_alone(subject: Subject) -> None:
    async with other_client(subject.path) as ask:
        assert await ask(FREEZE) == 1
    with fails("they are frozen already, and not by this service"):
        await subject.client().freeze()
    assert subject.is_frozen()


async def test_one_user_at_a_time(subject: Subject) -> None:
    agent = subject.client()
    first, second = await asyncio.gather(agent.freeze(), agent.freeze(), return_exceptions=True)
    assert first == 1
    assert isinstance(second, QuiesceFailed)
    assert "frozen already" in second.reason
    await agent.thaw()


async def test_sets_the_clock(subject: Subject) -> None:
    async with other_client(subject.path) as ask:
        await ask("guest-set-time", time=1_000_000_000 * 10**9)
        assert await ask("guest-get-time") < 1_000_001_000 * 10**9
    await subject.client().set_clock()
    async with other_client(subject.path) as ask:
        assert abs(await ask("guest-get-time") - time.time_ns()) < PATIENT_S * 10**9


async def test_clock_of_a_frozen_guest_is_passed_over(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, agent_module.__name__)
    agent = subject.client()
    await agent.freeze()
    await agent.set_clock()
    assert "the guest's clock is not set: its agent refused guest-set-time: Command guest-set-time has been" in caplog.text
    await agent.thaw()


async def test_stopped_guest(subject: Subject) -> None:
    subject.stop()
    hasty = subject.client(subject.late_s)
    with fails(f"does not answer within {subject.late_s:g} s", "the guest is stopped", str(subject.path)):
        await hasty.freeze()
    await hasty.set_clock()
    subject.resume()
    agent = subject.client()
    assert await agent.freeze() == 1
    await agent.thaw()


async def test_thaw_is_done_when_a_stopped_guest_goes_on(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "THAW_ATTEMPTS", 2)
    assert await subject.client().freeze() == 1
    subject.stop()
    with fails(MAY_BE_FROZEN, "does not answer within", THAW):
        await subject.client(subject.late_s).thaw()
    subject.resume()
    async with other_client(subject.path) as ask:
        assert await ask(STATUS) == "thawed"
    assert not subject.is_frozen()


async def test_late_answers_to_another_are_drained(subject: Subject) -> None:
    subject.stop()
    async with other_client(subject.path) as ask:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(subject.late_s):
                await ask(STATUS)
    waiting = asyncio.create_task(subject.client().freeze())
    await asyncio.sleep(0)  # it has connected and written
    subject.resume()
    assert await waiting == 1
    await subject.client().thaw()


async def test_socket_held_by_another_client(subject: Subject) -> None:
    async with other_client(subject.path) as ask:
        await ask(STATUS)
        with fails("another client holds"):
            await subject.client(subject.late_s).freeze()
    agent = subject.client()
    assert await agent.freeze() == 1
    await agent.thaw()


async def test_socket_held_by_many_clients(guest: RunningGuest) -> None:
    """The kernel refuses who comes when QEMU has one client and others wait."""
    with contextlib.ExitStack() as stack:
        with pytest.raises(BlockingIOError):
            for _ in range(100):
                held = stack.enter_context(socket.socket(socket.AF_UNIX))
                held.setblocking(False)
                held.connect(str(guest.path))
        # Whether the kernel refuses or lets wait depends on whether QEMU has taken one of the others in meanwhile.
        with fails("hold"):
            await GuestAgent(DOMAIN, str(guest.path)).freeze()
    await asyncio.to_thread(wait_for_agent, guest.directory)


async def test_frozen_file_system_is_whole_and_goes_on(guest: RunningGuest) -> None:
    agent = GuestAgent(DOMAIN, str(guest.path), PATIENT_S, PATIENT_S)
    assert await agent.freeze() == 1
    try:
        assert not needs_recovery(guest.disk, "qcow2")
        counts = written_counts(guest.disk, "qcow2")
        assert counts == list(range(1, len(counts) + 1))
        assert len(counts) >= console_count(guest.directory) > 0
    finally:
        await agent.thaw()
    await asyncio.to_thread(wait_console_count, guest.directory, len(counts) + 1)


async def test_nobody_listens(tmp_path: Path) -> None:
    agent = GuestAgent(DOMAIN, str(tmp_path / "agent"))
    with fails("no QEMU listens at its agent's socket"):
        await agent.freeze()
    with fails(MAY_BE_FROZEN, "no QEMU listens at its agent's socket"):
        await agent.thaw()
    await agent.set_clock()
