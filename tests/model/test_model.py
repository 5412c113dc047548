# SPDX-License-Identifier: MIT
"""The model test, short profile: hypothesis chooses the walks.

Not here: the long profile (``soak``), which chooses by itself. The rules draw steps that make sense where the walk is; what may
be refused is drawn as well, and must be refused then. A walk that fails is shortened step by step, as in the long profile:
hypothesis would begin it anew, with a QEMU each time, for a thousand ways to draw it.
"""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.chooser import HOWS, KINDS, MOST_SNAPSHOTS, MOST_UNITS, ODD_NAMES, SETUPS, TYPES, snapshot_name
from tests.model.expected import PAUSED, RUNNING, SHUTOFF
from tests.model.soak import Failed, shorten
from tests.model.steps import (
    DISK_UNITS,
    FIRST_UNIT,
    CancelPending,
    Create,
    Delete,
    Pause,
    Protect,
    RestartService,
    Resume,
    Revert,
    Setup,
    ShutOff,
    Start,
    Step,
    Write,
    script,
)
from tests.model.world import World, world

EXAMPLES = 30
STEPS = 30
SHORTEN_S = 120.0
TIMEOUT_S = 900
"""Far more than the walks take: what a failing one needs to be shortened is added."""

picks = st.integers(0, 999)
units = st.integers(FIRST_UNIT, DISK_UNITS - 1)
odd = st.one_of(st.none(), st.none(), st.none(), st.integers(0, len(ODD_NAMES) - 1))
memory = st.sampled_from([None, None, False, False, True])
kinds = st.dictionaries(st.integers(0, 2), st.sampled_from(KINDS), max_size=2)


class DomainMachine(RuleBasedStateMachine):
    """Each rule is one step of a walk; the walk itself compares."""

    walk: World
    has_shortened = False

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._number = 0
        self._failed = False

    @initialize(setup=st.sampled_from(SETUPS))
    def begin(self, setup: Setup) -> None:
        self.walk = self._runner.run(self._stack.enter_async_context(world(setup)))

    def teardown(self) -> None:
        try:
            if hasattr(self, "walk") and not self._failed:
                self._runner.run(self.walk.end())
        finally:
            self._runner.run(self._stack.aclose())
            self._runner.close()
        # Hypothesis takes a walk that failed once more.
        if self._failed and not DomainMachine.has_shortened:
            DomainMachine.has_shortened = True
            shortest = shorten(Failed(self.walk.setup, self.walk.steps, "the walk failed"), SHORTEN_S)
            print(f"shortened to: {shortest.why}\n{script(shortest.setup, shortest.steps)}")

    def _do(self, step: Step) -> None:
        try:
            self._runner.run(self.walk.do(step))
        except BaseException:
            self._failed = True
            raise

    def _is(self, *states: str) -> bool:
        return self.walk.expected.state in states

    def _snapshot(self, pick: int) -> str:
        names = sorted(self.walk.expected.past)
        return names[pick % len(names)]

    def _target(self, pick: int) -> str:
        targets = self.walk.rig.targets
        return targets[pick % len(targets)]

    # Writes and creates have two rules each: hypothesis takes all rules alike, and a walk with few of them tells little.

    @rule(disk=picks, unit=units, count=st.sampled_from([1, 1, 3, 16, MOST_UNITS]), pattern=st.integers(1, 255))
    def write(self, disk: int, unit: int, count: int, pattern: int) -> None:
        self._do(Write(self._target(disk), unit, min(count, DISK_UNITS - unit), pattern))

    @rule(disk=picks, unit=units, count=st.sampled_from([1, 16, MOST_UNITS]), how=st.sampled_from(HOWS[3:]))
    def give_back(self, disk: int, unit: int, count: int, how: str) -> None:
        self._do(Write(self._target(disk), unit, min(count, DISK_UNITS - unit), how=how))

    @precondition(lambda self: len(self.walk.expected.past) < MOST_SNAPSHOTS)
    @rule(odd=odd, kind=st.sampled_from(TYPES), memory=memory, chosen=kinds, live=st.sampled_from(["auto", "auto", "no"]))
    def create(self, odd: int | None, kind: str, memory: bool | None, chosen: dict[int, str], live: str) -> None:
        self._number += 1
        disks = {self._target(index): each for index, each in chosen.items()}
        self._do(Create(snapshot_name(self._number, odd), kind, memory, tuple(sorted(disks.items())), live))

    @precondition(lambda self: len(self.walk.expected.past) < MOST_SNAPSHOTS)
    @rule(memory=memory)
    def create_as_usual(self, memory: bool | None) -> None:
        self._number += 1
        self._do(Create(snapshot_name(self._number, None), memory=memory if not self._is(SHUTOFF) else None))

    @precondition(lambda self: self.walk.expected.past)
    @rule(
        pick=picks,
        state=st.sampled_from(["as-taken", "as-taken", "running", "paused"]),
        undo=st.booleans(),
        undo_memory=st.booleans(),
        force=st.booleans(),
    )
    def revert(self, pick: int, state: str, undo: bool, undo_memory: bool, force: bool) -> None:
        self._do(Revert(self._snapshot(pick), state, undo, undo and undo_memory, force))

    @precondition(lambda self: self.walk.expected.undo_point)
    @rule(undo=st.booleans())
    def undo(self, undo: bool) -> None:
        self._do(Revert("", undo=undo, force=True))

    @precondition(lambda self: self.walk.expected.past)
    @rule(pick=picks, scope=st.sampled_from(["one", "one", "one", "tree", "children"]))
    def delete(self, pick: int, scope: str) -> None:
        self._do(Delete(self._snapshot(pick), scope))

    @precondition(lambda self: self.walk.expected.past)
    @rule(pick=picks, often=st.integers(0, 3))
    def protect(self, pick: int, often: int) -> None:
        name = self._snapshot(pick)
        is_protected = self.walk.expected.past[name].protected
        if is_protected or not often:
            self._do(Protect(name, not is_protected))

    @precondition(lambda self: self.walk.expected.pending)
    @rule()
    def cancel_pending(self) -> None:
        self._do(CancelPending())

    @precondition(lambda self: self._is(RUNNING, PAUSED))
    @rule(kill=st.booleans())
    def shut_off(self, kill: bool) -> None:
        self._do(ShutOff(kill))

    @precondition(lambda self: self._is(SHUTOFF))
    @rule(paused=st.booleans(), links=st.booleans())
    def start(self, paused: bool, links: bool) -> None:
        self._do(Start(paused, links))

    @precondition(lambda self: self._is(RUNNING, PAUSED))
    @rule()
    def pause_or_resume(self) -> None:
        self._do(Pause() if self._is(RUNNING) else Resume())

    @rule(often=st.integers(0, 3))
    def restart_the_service(self, often: int) -> None:
        if not often:
            self._do(RestartService())


TestModel = DomainMachine.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestModel = pytest.mark.timeout(TIMEOUT_S)(TestModel)
