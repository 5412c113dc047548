# SPDX-License-Identifier: MIT
"""A freeze and its end: who is thawed, when, and what becomes of an agent that fails."""

import asyncio
from dataclasses import dataclass, field

import pytest

from snapd.engine.quiesce import FREEZE_STEP, THAWED_STEP, Freeze, thaw_after_crash
from snapd.errors import QuiesceFailed
from snapd.model.plan import Quiesce

MUTE = "its agent does not answer"


@dataclass
class Guest:
    """An agent whose guest has ``file_systems``; each of ``failures`` is what its next answer is instead."""

    file_systems: int = 2
    failures: list[BaseException] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    is_frozen: bool = False

    async def freeze(self) -> int:
        self.asked.append("freeze")
        self._fail()
        self.is_frozen = self.file_systems > 0
        return self.file_systems

    async def thaw(self) -> None:
        self.asked.append("thaw")
        self._fail()
        self.is_frozen = False

    async def set_clock(self) -> None:
        self.asked.append("set_clock")

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@pytest.mark.parametrize("wanted", [Quiesce.AUTO, Quiesce.REQUIRE])
async def test_a_guest_is_frozen_and_thawed_once(wanted: Quiesce) -> None:
    guest = Guest()
    freeze = Freeze("web", guest)

    assert await freeze.begin(wanted)
    assert guest.is_frozen
    await freeze.end()
    await freeze.end()

    assert guest.asked == ["freeze", "thaw"]
    assert freeze.reason == ""


async def test_a_freeze_that_was_not_ours_is_not_thawed() -> None:
    guest = Guest(is_frozen=True, failures=[QuiesceFailed("web", "its file systems are frozen already")])
    freeze = Freeze("web", guest)

    assert not await freeze.begin(Quiesce.AUTO)
    await freeze.end()

    assert guest.asked == ["freeze"]
    assert freeze.reason == "its file systems are frozen already"


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        (None, "its definition names no agent"),
        (Guest(failures=[QuiesceFailed("web", MUTE)]), MUTE),
        (Guest(file_systems=0), "its agent finds no file system that could be frozen"),
    ],
)
async def test_what_keeps_a_guest_from_being_frozen_is_told(guest: Guest | None, reason: str) -> None:
    failures = list(guest.failures) if guest else []
    optional = Freeze("web", guest)
    assert not await optional.begin(Quiesce.AUTO)
    assert optional.reason == reason

    if guest:
        guest.failures = failures
    required = Freeze("web", guest)
    with pytest.raises(QuiesceFailed) as failure:
        await required.begin(Quiesce.REQUIRE)

    assert failure.value.reason == reason
    assert failure.value.sentence == f"The file systems of domain web could not be frozen: {reason}."
    assert guest is None or not guest.is_frozen


async def test_an_agent_that_froze_nothing_is_thawed_all_the_same() -> None:
    guest = Guest(file_systems=0)

    await Freeze("web", guest).begin(Quiesce.AUTO)

    assert guest.asked == ["freeze", "thaw"]


async def test_one_that_may_be_frozen_is_a_failure_though_nobody_required_it() -> None:
    guest = Guest(failures=[QuiesceFailed("web", MUTE, may_be_frozen=True)])

    with pytest.raises(QuiesceFailed) as failure:
        await Freeze("web", guest).begin(Quiesce.AUTO)

    assert failure.value.sentence == f"The file systems of domain web could not be thawed for certain: {MUTE}."


async def test_a_thaw_that_fails_is_tried_again() -> None:
    guest = Guest()
    freeze = Freeze("web", guest)
    await freeze.begin(Quiesce.REQUIRE)
    guest.failures.append(QuiesceFailed("web", MUTE))

    with pytest.raises(QuiesceFailed):
        await freeze.end()
    assert guest.is_frozen
    await freeze.end()

    assert not guest.is_frozen
    assert guest.asked == ["freeze", "thaw", "thaw"]


async def test_a_thaw_that_fails_where_nothing_was_frozen_is_a_failure_too_and_tried_again() -> None:
    guest = Guest(file_systems=0)
    freeze = Freeze("web", guest)

    async def fail_to_thaw() -> None:
        guest.asked.append("thaw")
        raise QuiesceFailed("web", MUTE)

    thaw = guest.thaw
    guest.thaw = fail_to_thaw  # type: ignore[method-assign]
    with pytest.raises(QuiesceFailed, match=MUTE):
        await freeze.begin(Quiesce.AUTO)
    guest.thaw = thaw  # type: ignore[method-assign]
    await freeze.end()

    assert guest.asked == ["freeze", "thaw", "thaw"]


async def test_who_is_cancelled_in_a_freeze_thaws() -> None:
    guest = Guest(failures=[asyncio.CancelledError()])
    freeze = Freeze("web", guest)

    with pytest.raises(asyncio.CancelledError):
        await freeze.begin(Quiesce.AUTO)
    await freeze.end()

    assert guest.asked == ["freeze", "thaw"]


# After a crash


@pytest.mark.parametrize(
    ("begun", "thaws"),
    [
        ((), False),
        (("pause",), False),
        ((FREEZE_STEP,), True),
        ((FREEZE_STEP, "pause"), True),
        ((FREEZE_STEP, "pause", THAWED_STEP), False),
    ],
)
async def test_a_guest_is_thawed_that_a_crash_may_have_left_frozen(begun: tuple[str, ...], thaws: bool) -> None:
    guest = Guest(is_frozen=True)

    await thaw_after_crash("web", guest, begun)
    await thaw_after_crash("web", None, begun)

    assert guest.asked == (["thaw"] if thaws else [])
    assert guest.is_frozen is not thaws


async def test_a_thaw_that_fails_after_a_crash_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    guest = Guest(failures=[QuiesceFailed("web", MUTE, may_be_frozen=True)])

    await thaw_after_crash("web", guest, (FREEZE_STEP,))

    assert caplog.messages == [
        f"domain web may have been left frozen: The file systems of domain web could not be thawed for certain: {MUTE}."
    ]
