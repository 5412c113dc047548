# SPDX-License-Identifier: MIT
"""Plans to revert: what becomes of the guest, which goes on, is reset, or gets its memory later."""

import pytest

from snapd.model.domain import DomainState
from snapd.model.plan import RevertRequest
from snapd.model.snapshot import RevertState
from tests.unit.planned_domain import (
    MEMORY_DIRECTORY,
    VDA,
    Domain,
)

RUNNING, PAUSED, SHUTOFF = DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF


@pytest.mark.parametrize(
    ("wanted", "taken_of", "now", "resume"),
    [
        (RevertState.AS_TAKEN, RUNNING, PAUSED, True),
        (RevertState.AS_TAKEN, RUNNING, RUNNING, True),
        (RevertState.AS_TAKEN, PAUSED, RUNNING, False),
        (RevertState.RUNNING, PAUSED, PAUSED, True),
        (RevertState.PAUSED, RUNNING, RUNNING, False),
        (RevertState.AS_TAKEN, RUNNING, SHUTOFF, False),
    ],
)
@pytest.mark.parametrize("memory", [True, False])
def test_the_guest_goes_on_as_it_was_or_as_asked(
    wanted: RevertState, taken_of: DomainState, now: DomainState, resume: bool, memory: bool
) -> None:
    domain = Domain(VDA)
    domain.looks(taken_of)
    domain.take("s", memory=memory)
    domain.looks(now)

    plan = domain.plan_revert(RevertRequest("s", wanted))

    assert (plan.state, plan.resume) == (now, resume)


@pytest.mark.parametrize("state", [RUNNING, PAUSED])
def test_a_snapshot_without_memory_resets_the_guest(state: DomainState) -> None:
    domain = Domain(VDA)
    domain.take("s", memory=False)
    domain.looks(state)

    plan = domain.plan_revert(RevertRequest("s", undo=False))

    assert (plan.memory_path, plan.later) == ("", None)


@pytest.mark.parametrize(
    ("wanted", "now", "resume"),
    [
        (RevertState.AS_TAKEN, RUNNING, True),
        (RevertState.AS_TAKEN, PAUSED, False),
        (RevertState.PAUSED, RUNNING, False),
        (RevertState.RUNNING, PAUSED, True),
    ],
)
def test_one_of_a_domain_that_was_shut_off_resets_the_guest_by_force(
    wanted: RevertState, now: DomainState, resume: bool
) -> None:
    domain = Domain(VDA)
    domain.looks(SHUTOFF)
    domain.take("s")
    domain.looks(now)

    plan = domain.plan_revert(RevertRequest("s", wanted, force=True))

    assert (plan.memory_path, plan.later, plan.resume) == ("", None, resume)


@pytest.mark.parametrize("wanted", RevertState)
def test_the_memory_of_a_domain_that_is_shut_off_is_loaded_when_it_runs_again(wanted: RevertState) -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.looks(SHUTOFF)

    plan = domain.plan_revert(RevertRequest("s", wanted))

    assert (plan.later, plan.memory_path) == (wanted, f"{MEMORY_DIRECTORY}/s.vmstate.qcow2")
    assert (plan.resume, plan.machine) == (False, None)
    # Where no QEMU is, all that is backed on is named too, and nothing is opened by it.
    assert [each.image.path for each in plan.openings] == ["/base/os.raw", VDA.image]


@pytest.mark.parametrize("taken_of", [RUNNING, SHUTOFF])
def test_without_memory_nothing_is_left_to_be_done_later(taken_of: DomainState) -> None:
    domain = Domain(VDA)
    domain.looks(taken_of)
    domain.take("s", memory=False)
    domain.looks(SHUTOFF)

    plan = domain.plan_revert(RevertRequest("s"))

    assert (plan.later, plan.memory_path, plan.resume) == (None, "", False)
