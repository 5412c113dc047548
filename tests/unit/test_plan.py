# SPDX-License-Identifier: MIT
"""Plans to create: what is refused before anything is touched; memory, file systems, and the length of chains.

Not here: which disks take part (``test_disk_choice.py``) and what is made for them (``test_plan_disks.py``).
"""

import pytest

from snapd.errors import InvalidName, InvalidOption, NotSupported, Refused, SnapshotExists
from snapd.model.domain import DomainDefinition, DomainState
from snapd.model.plan import CHAIN_LIMIT, CreateRequest, Live, MemoryPlan, Quiesce
from snapd.model.planner import plan_create
from snapd.model.snapshot import SaveMethod, SnapshotType
from tests.unit.planned_domain import (
    DEFINITION,
    MACHINE,
    MEMORY_DIRECTORY,
    TOKEN,
    VDA,
    VDB,
    WITH_AGENT,
    Domain,
    make_disk,
)

RUNNING, PAUSED, SHUTOFF = DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF
EXTERNAL, INTERNAL = SnapshotType.EXTERNAL, SnapshotType.INTERNAL


# What is refused


@pytest.mark.parametrize(
    ("request_", "error", "culprit"),
    [
        (CreateRequest("a/b"), InvalidName, "'a/b' cannot be the name of a snapshot: it has a '/'"),
        (CreateRequest("7"), InvalidName, "'7' cannot be"),
        (CreateRequest("first"), SnapshotExists, "Domain web already has a snapshot 'first'"),
        (CreateRequest("new", disks={"vdx": "external"}), InvalidOption, "names vdx, and domain web has vda, vdb"),
        (CreateRequest("new", disks={"vdb": "no"}), NotSupported, "the guest can write to disk vdb"),
    ],
)
def test_a_request_is_refused(request_: CreateRequest, error: type[Refused], culprit: str) -> None:
    domain = Domain(VDA, VDB)
    domain.take("first")

    with pytest.raises(error) as refusal:
        domain.plan(request_)

    assert culprit in refusal.value.sentence


def test_memory_that_cannot_be_saved_is_refused_with_the_device() -> None:
    blocker = "device hostdev0 blocks it"
    domain = Domain(VDA)

    with pytest.raises(NotSupported) as refusal:
        domain.plan(CreateRequest("new"), memory_blocker=blocker)

    assert refusal.value.sentence == (
        "Saving memory is not possible for domain web: device hostdev0 blocks it; a snapshot of the disks alone is possible, "
        "with the option memory: false."
    )
    assert domain.plan(CreateRequest("new", memory=False), memory_blocker=blocker).memory is None


# Memory


@pytest.mark.parametrize(
    ("state", "memory", "has_memory", "pauses"),
    [
        (RUNNING, None, True, True),
        (RUNNING, True, True, True),
        (RUNNING, False, False, False),
        (PAUSED, None, True, False),
        (PAUSED, True, True, False),
        (PAUSED, False, False, False),
        (SHUTOFF, None, False, False),
        (SHUTOFF, False, False, False),
    ],
)
def test_memory_is_saved_where_there_is_a_guest_unless_it_is_not_wanted(
    state: DomainState, memory: bool | None, has_memory: bool, pauses: bool
) -> None:
    domain = Domain(VDA)
    domain.looks(state)

    plan = domain.plan(CreateRequest("s", memory=memory))

    assert (plan.memory is not None, plan.machine is not None) == (has_memory, has_memory)
    assert (plan.state, plan.pauses) == (state, pauses)


def test_memory_of_a_domain_that_is_shut_off_is_refused() -> None:
    domain = Domain(VDA)
    domain.looks(SHUTOFF)

    with pytest.raises(NotSupported) as refusal:
        domain.plan(CreateRequest("s", memory=True))

    assert refusal.value.sentence == (
        "A snapshot with memory is not possible for domain web: it is shut off and has none; leave the option out."
    )


def test_the_memory_file_has_room_for_all_that_qemu_may_write() -> None:
    memory = Domain(VDA).plan(CreateRequest("before update")).memory

    assert memory == MemoryPlan(
        path=f"{MEMORY_DIRECTORY}/before%20update.vmstate.qcow2",
        largest_stream_bytes=MACHINE.memory_bytes + MACHINE.memory_bytes // 4096 * 16 + (128 << 20),
        method=SaveMethod.LIVE,
    )


@pytest.mark.parametrize(
    ("live", "state", "blocker", "method", "reason"),
    [
        (Live.AUTO, RUNNING, "", SaveMethod.LIVE, ""),
        (Live.REQUIRE, RUNNING, "", SaveMethod.LIVE, ""),
        (Live.AUTO, RUNNING, "huge pages", SaveMethod.PAUSED, "huge pages"),
        (Live.NO, RUNNING, "", SaveMethod.PAUSED, "live: no was asked for"),
        (Live.NO, PAUSED, "", SaveMethod.PAUSED, "live: no was asked for"),
        (Live.AUTO, PAUSED, "huge pages", SaveMethod.PAUSED, "the domain is paused anyway"),
        (Live.REQUIRE, PAUSED, "", SaveMethod.PAUSED, "the domain is paused anyway"),
    ],
)
def test_the_method_and_why_it_is_not_live(
    live: Live, state: DomainState, blocker: str, method: SaveMethod, reason: str
) -> None:
    memory = Domain(VDA).plan(CreateRequest("s", live=live), state=state, live_blocker=blocker).memory

    assert memory is not None
    assert (memory.method, memory.method_reason) == (method, reason)


def test_live_that_is_required_and_not_possible_is_refused_with_the_reason() -> None:
    domain = Domain(VDA)

    with pytest.raises(NotSupported, match="A live snapshot is not possible for domain web: huge pages"):
        domain.plan(CreateRequest("s", live=Live.REQUIRE), live_blocker="huge pages")
    # Without memory there is nothing to be saved live.
    assert domain.plan(CreateRequest("s", live=Live.REQUIRE, memory=False), live_blocker="huge pages").memory is None


# Quiesce


@pytest.mark.parametrize(
    ("definition", "state", "memory", "wanted", "quiesce"),
    [
        (WITH_AGENT, RUNNING, False, Quiesce.AUTO, Quiesce.AUTO),
        (WITH_AGENT, RUNNING, False, Quiesce.REQUIRE, Quiesce.REQUIRE),
        (WITH_AGENT, RUNNING, False, Quiesce.NO, Quiesce.NO),
        (DEFINITION, RUNNING, False, Quiesce.AUTO, Quiesce.NO),
        (DEFINITION, RUNNING, False, Quiesce.NO, Quiesce.NO),
        # A paused guest cannot answer, and one that is shut off has nothing left to write.
        (WITH_AGENT, PAUSED, False, Quiesce.AUTO, Quiesce.NO),
        (WITH_AGENT, SHUTOFF, False, Quiesce.AUTO, Quiesce.NO),
        (WITH_AGENT, SHUTOFF, False, Quiesce.REQUIRE, Quiesce.NO),
        (DEFINITION, SHUTOFF, False, Quiesce.REQUIRE, Quiesce.NO),
        # With its memory, what the guest has not written yet is in the snapshot too.
        (WITH_AGENT, RUNNING, True, Quiesce.AUTO, Quiesce.NO),
        (WITH_AGENT, RUNNING, True, Quiesce.REQUIRE, Quiesce.NO),
        (DEFINITION, PAUSED, True, Quiesce.REQUIRE, Quiesce.NO),
    ],
)
def test_file_systems_are_frozen_where_a_running_guest_has_an_agent_and_no_memory_is_saved(
    definition: DomainDefinition, state: DomainState, memory: bool, wanted: Quiesce, quiesce: Quiesce
) -> None:
    domain = Domain(VDA, definition=definition)
    domain.looks(state)

    assert domain.plan(CreateRequest("s", memory=memory, quiesce=wanted)).quiesce is quiesce


@pytest.mark.parametrize(
    ("definition", "state", "reason"),
    [
        (DEFINITION, RUNNING, "its definition names no agent; add 'agent:' with the path of its socket"),
        (WITH_AGENT, PAUSED, "it is paused, and its agent cannot answer; resume it"),
        (DEFINITION, PAUSED, "it is paused, and its agent cannot answer; resume it"),
    ],
)
def test_a_freeze_that_is_required_and_not_possible_is_refused(
    definition: DomainDefinition, state: DomainState, reason: str
) -> None:
    domain = Domain(VDA, definition=definition)

    with pytest.raises(NotSupported) as refusal:
        domain.plan(CreateRequest("s", memory=False, quiesce=Quiesce.REQUIRE), state=state)

    assert refusal.value.sentence == f"Freezing file systems is not possible for domain web: {reason}."


# The chain


def _with_chain_of(images: int) -> Domain:
    return Domain(make_disk("vda", "/images/web.qcow2", *(f"/base/{number}.raw" for number in range(images - 1))))


@pytest.mark.parametrize(("images", "is_near"), [(1, False), (55, False), (56, True), (63, True)])
def test_whoever_comes_near_to_the_longest_chain_is_told(images: int, is_near: bool) -> None:
    notes = _with_chain_of(images).plan(CreateRequest("s", type=EXTERNAL)).notes

    assert CHAIN_LIMIT == 64
    assert notes == (
        (f"Disk vda has a chain of {images + 1} images now, and 64 are allowed; deleting snapshots merges them.",)
        if is_near
        else ()
    )


def test_the_note_names_the_oldest_snapshot() -> None:
    domain = Domain(VDB)
    domain.take("oldest")
    domain.take("newest")

    plan = plan_create(DEFINITION, domain.record, domain.seen, CreateRequest("s"), MEMORY_DIRECTORY, TOKEN, chain_limit=4)

    assert plan.notes == (
        "Disk vdb has a chain of 4 images now, and 4 are allowed; deleting snapshots merges them, such as the oldest one, "
        "'oldest'.",
    )


def test_a_chain_grows_to_the_limit_and_not_beyond() -> None:
    domain = Domain(VDB, VDA)
    for number in range(CHAIN_LIMIT - 2):
        domain.take(f"s{number}")
    assert {len(disk.chain) for disk in domain.seen.disks} == {CHAIN_LIMIT, CHAIN_LIMIT - 1}

    with pytest.raises(NotSupported) as refusal:
        domain.plan(CreateRequest("new"))

    assert refusal.value.sentence == (
        "One more snapshot is not possible for domain web: disk vda has a chain of 64 images already; delete some first."
    )
    # An internal one makes no chain longer.
    plan = domain.plan(CreateRequest("new", type=INTERNAL))
    assert ([tag.disk.target for tag in plan.tags], plan.notes) == (["vdb", "vda"], ())
