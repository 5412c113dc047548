# SPDX-License-Identifier: MIT
"""A guest agent that means no good, or fails at the worst moment: fakes only. The real one is in ``test_agent``."""

import asyncio
import logging
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import count, repeat
from pathlib import Path

import pytest

from snapd.errors import QuiesceFailed
from snapd.qmp import agent as agent_module
from snapd.qmp.agent import THAW_ATTEMPTS, GuestAgent
from tests.contract.test_agent import DOMAIN, MAY_BE_FROZEN, PATIENT_S, SOON_S, fails
from tests.lab.fake_agent import (
    FREEZE,
    SENSELESS,
    SENTINEL,
    STATUS,
    SYNCHRONISE,
    THAW,
    Command,
    FakeAgent,
    React,
    behave,
    done_but,
    done_but_lost,
    first,
    instead,
    not_done_but,
    not_done_but_lost,
    refusal,
    reply,
)

SEEN_THAWED = "they are seen to be thawed"
MOST_KEPT_BYTES = 4 << 20
"""What the client and the fake together may have in memory at once."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "THAW_PAUSE_S", 0.01)


def hasty(fake: FakeAgent) -> GuestAgent:
    return GuestAgent(DOMAIN, str(fake.path), SOON_S, SOON_S)


senseless = pytest.mark.parametrize("senseless", SENSELESS.values(), ids=SENSELESS)


@senseless
async def test_senseless_synchronisation(tmp_path: Path, senseless: bytes) -> None:
    async with FakeAgent(tmp_path / "agent", instead(SYNCHRONISE, done_but(SENTINEL, senseless))) as fake:
        with fails():
            await hasty(fake).freeze()
        assert fake.commands == []


@senseless
async def test_senseless_status(tmp_path: Path, senseless: bytes) -> None:
    async with FakeAgent(tmp_path / "agent", instead(STATUS, done_but(senseless))) as fake:
        with fails():
            await hasty(fake).freeze()
        assert fake.commands == [STATUS]


@senseless
async def test_senseless_answer_to_a_freeze(tmp_path: Path, senseless: bytes) -> None:
    async with FakeAgent(tmp_path / "agent", instead(FREEZE, done_but(senseless))) as fake:
        with fails(SEEN_THAWED):
            await hasty(fake).freeze()
        assert fake.commands[-2:] == [THAW, STATUS]
        assert not fake.is_frozen


@senseless
async def test_senseless_answer_to_a_thaw(tmp_path: Path, senseless: bytes) -> None:
    async with FakeAgent(tmp_path / "agent", instead(THAW, first(1, not_done_but(senseless)))) as fake:
        agent = hasty(fake)
        assert await agent.freeze() == 1
        await agent.thaw()
        assert fake.commands.count(THAW) == 2
        assert not fake.is_frozen


ENDLESS: dict[str, Callable[[], Iterable[bytes]]] = {
    "line": lambda: repeat(b"x" * 65536),
    "lines": lambda: (b'{"return": %d}\n' % number for number in count()),
    "wrong synchronisations": lambda: repeat(b'\xff{"return": 1}\n' * 1000),
    "newlines": lambda: repeat(b"\n" * 65536),
}


@pytest.mark.parametrize("endless", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("at", [SYNCHRONISE, STATUS])
async def test_endless_answer(tmp_path: Path, at: str, endless: Callable[[], Iterable[bytes]]) -> None:
    async with FakeAgent(tmp_path / "agent", instead(at, lambda _agent, _command: endless())) as fake:
        tracemalloc.start()
        try:
            with fails("sends on and on" if at == SYNCHRONISE else "its agent"):
                await GuestAgent(DOMAIN, str(fake.path), PATIENT_S).freeze()
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < MOST_KEPT_BYTES
        assert FREEZE not in fake.commands


async def test_many_late_answers_are_drained(tmp_path: Path) -> None:
    def answers(agent: FakeAgent, command: Command) -> Iterable[bytes]:
        yield b'{"return": {"buf-b64": "' + b"A" * (8 << 20) + b'"}}\n'
        for number in range(100):
            yield SENTINEL + reply(number)
        yield from behave(agent, command)

    async with FakeAgent(tmp_path / "agent", instead(SYNCHRONISE, answers)) as fake:
        agent = GuestAgent(DOMAIN, str(fake.path), PATIENT_S, PATIENT_S)
        assert await agent.freeze() == 1
        await agent.thaw()


async def test_no_file_system(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", file_systems=0) as fake:
        agent = hasty(fake)
        assert await agent.freeze() == 0
        await agent.thaw()


async def test_refused_freeze_is_not_thawed(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(FREEZE, not_done_but(refusal("it has been disabled")))) as fake:
        with fails("its agent refused guest-fsfreeze-freeze: it has been disabled."):
            await hasty(fake).freeze()
        assert fake.commands == [STATUS, FREEZE, STATUS]


async def test_refusal_is_shown_short_and_on_one_line(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(STATUS, not_done_but(refusal("a\nb\x1b[31m\u202e" + "x" * 1000)))) as fake:
        with pytest.raises(QuiesceFailed) as caught:
            await hasty(fake).freeze()
        reason = caught.value.reason
        assert "a?b?[31m?xxx" in reason
        assert reason.endswith("x...")
        assert len(reason) < 300


async def test_freeze_that_is_refused_and_done_is_thawed(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(FREEZE, done_but(refusal("a hook has failed")))) as fake:
        with fails("a hook has failed", SEEN_THAWED):
            await hasty(fake).freeze()
        assert fake.commands == [STATUS, FREEZE, STATUS, THAW, STATUS]
        assert not fake.is_frozen


async def test_lost_answer_to_a_freeze_is_thawed(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(FREEZE, done_but_lost)) as fake:
        with fails("was closed before an answer to guest-fsfreeze-freeze came", SEEN_THAWED):
            await hasty(fake).freeze()
        assert fake.commands == [STATUS, FREEZE, THAW, STATUS]
        assert not fake.is_frozen


async def test_freeze_without_an_answer_is_thawed(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(FREEZE, done_but())) as fake:
        with fails(f"does not answer guest-fsfreeze-freeze within {SOON_S:g} s", SEEN_THAWED):
            await hasty(fake).freeze()
        assert not fake.is_frozen


async def test_freeze_that_comes_after_we_gave_up_is_thawed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guest does that is stopped between its status and its freeze, once it goes on."""
    monkeypatch.setattr(agent_module, "THAW_ATTEMPTS", 2)

    def answers(agent: FakeAgent, command: Command) -> Iterable[bytes]:
        agent.stop()
        return behave(agent, command)

    async with FakeAgent(tmp_path / "agent", instead(STATUS, answers)) as fake:
        with fails("does not answer guest-fsfreeze-freeze", MAY_BE_FROZEN):
            await hasty(fake).freeze()
        assert fake.commands == [STATUS]
        fake.resume()
        await fake.carried_out(STATUS, FREEZE, THAW, THAW)
        assert not fake.is_frozen


async def test_lost_freeze_that_cannot_be_thawed(tmp_path: Path) -> None:
    def react(agent: FakeAgent, command: Command) -> Iterable[bytes]:
        if command["execute"] == THAW:
            return [refusal("thawing has failed")]
        return instead(FREEZE, done_but_lost)(agent, command)

    async with FakeAgent(tmp_path / "agent", react) as fake:
        with fails("was closed before", MAY_BE_FROZEN, "says that they are still frozen", f"send {THAW} to its agent"):
            await hasty(fake).freeze()
        assert fake.commands.count(THAW) == THAW_ATTEMPTS


async def test_cancelled_freeze_is_thawed(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(FREEZE, done_but())) as fake:
        agent = GuestAgent(DOMAIN, str(fake.path))
        freezing = asyncio.create_task(agent.freeze())
        await fake.carried_out(FREEZE)
        freezing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await freezing
        await fake.carried_out(FREEZE, THAW)
        await agent.thaw()
        assert not fake.is_frozen


TROUBLES = {
    "refused": not_done_but(refusal("it cannot be done")),
    "refused and done": done_but(refusal("it cannot be done")),
    "never answered": not_done_but(),
    "never answered and done": done_but(),
    "lost": not_done_but_lost,
    "lost and done": done_but_lost,
}
troubled = pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)


@troubled
async def test_thaw_fails_twice_then_works(tmp_path: Path, trouble: React) -> None:
    async with FakeAgent(tmp_path / "agent", instead(THAW, first(2, trouble))) as fake:
        agent = hasty(fake)
        assert await agent.freeze() == 1
        await agent.thaw()
        assert not fake.is_frozen
        assert fake.commands[-1] == STATUS


async def test_thaw_never_works(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(THAW, not_done_but(reply(1)))) as fake:
        agent = hasty(fake)
        assert await agent.freeze() == 1
        with fails(MAY_BE_FROZEN, "its agent says that they are still frozen", "or reset the guest"):
            await agent.thaw()
        assert fake.commands.count(THAW) == THAW_ATTEMPTS


async def test_agent_gone_after_a_freeze(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent") as fake:
        agent = hasty(fake)
        assert await agent.freeze() == 1
    with fails(MAY_BE_FROZEN, "no QEMU listens"):
        await agent.thaw()


async def test_status_lies_about_a_freeze_of_another(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent", instead(STATUS, not_done_but(reply("thawed")))) as fake:
        fake.is_frozen = True
        with fails("the agent is in frozen state"):
            await hasty(fake).freeze()
        assert THAW not in fake.commands
        assert fake.is_frozen


async def test_status_lies_after_a_thaw(tmp_path: Path) -> None:
    async with FakeAgent(tmp_path / "agent") as fake:
        agent = hasty(fake)
        assert await agent.freeze() == 1
        fake.react = instead(STATUS, not_done_but(reply("frozen")))
        with fails(MAY_BE_FROZEN):
            await agent.thaw()


async def test_waiting_for_another_use_is_no_time_out(tmp_path: Path) -> None:
    def react(agent: FakeAgent, command: Command) -> Iterable[bytes]:
        agent.stop()
        return behave(agent, command)

    async with FakeAgent(tmp_path / "agent", instead(STATUS, first(1, react)), file_systems=0) as fake:
        agent = GuestAgent(DOMAIN, str(fake.path), SOON_S, PATIENT_S)
        freezing = asyncio.create_task(agent.freeze())
        await fake.carried_out(STATUS)
        setting = asyncio.create_task(agent.set_clock())
        with fails("another client holds"):
            await hasty(fake).freeze()
        fake.resume()
        assert await freezing == 0
        await setting
        assert fake.clock_ns > 0


@troubled
async def test_clock_is_passed_over(tmp_path: Path, trouble: React, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, agent_module.__name__)
    async with FakeAgent(tmp_path / "agent", instead("guest-set-time", trouble)) as fake:
        await hasty(fake).set_clock()
        assert "domain vm1: the guest's clock is not set: its agent" in caplog.text
        assert fake.commands == ["guest-set-time"]
