# SPDX-License-Identifier: MIT
"""Undo points: what a revert keeps of the present, how long that stays, and the way back to it."""

from dataclasses import replace

import pytest

from snapd.errors import NoSuchSnapshot, NotSupported
from snapd.model.domain import DomainState
from snapd.model.images import Direction, DropTag, Merge, Pin, Unlink
from snapd.model.plan import MemoryPlan, RevertRequest
from snapd.model.revert_planner import find_target
from snapd.model.snapshot import RevertState, SaveMethod, SnapshotType
from tests.unit.planned_domain import (
    CDROM,
    FLASH,
    MACHINE,
    MEMORY_DIRECTORY,
    SIZE,
    UNDO,
    VDA,
    VDB,
    VDC,
    Domain,
)

SHUTOFF = DomainState.SHUTOFF
EXTERNAL, INTERNAL = SnapshotType.EXTERNAL, SnapshotType.INTERNAL


# What is kept


def test_the_image_that_a_disk_leaves_is_kept_whole() -> None:
    domain = Domain(VDA, VDB)
    domain.take("s")

    plan = domain.plan_revert(RevertRequest("s"))

    assert plan.undo is not None
    assert (plan.undo.name, plan.undo.memory) == (UNDO, None)
    assert plan.undo.pins == {"vda": Pin("/images/web.s.qcow2"), "vdb": Pin("/images/data.s.qcow2")}
    assert plan.undo.virtual_sizes == {"vda": SIZE, "vdb": SIZE}
    assert plan.graph(domain.graph).pins[UNDO] == plan.undo.pins
    assert plan.after == ()


def test_what_is_applied_over_is_kept_in_an_internal_snapshot() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)

    plan = domain.plan_revert(RevertRequest("s"))

    assert plan.undo is not None
    assert plan.undo.pins == {"vda": Pin(VDA.image, UNDO)}
    assert [each.keep for each in plan.applications] == [UNDO]
    assert plan.after == ()


def test_an_image_that_is_left_for_another_of_its_snapshots_is_kept_whole() -> None:
    domain = Domain(VDA)
    domain.take("root")
    domain.take("s", INTERNAL)
    domain.revert("root", undo=False)

    plan = domain.plan_revert(RevertRequest("s"))

    assert plan.undo is not None
    assert plan.undo.pins == {"vda": Pin("/images/web.root.2.qcow2")}
    assert [each.keep for each in plan.applications] == [""]


def test_disks_of_both_kinds_are_kept_in_one() -> None:
    domain = Domain(VDA, VDB)
    domain.take("old", EXTERNAL)
    domain.take("s", INTERNAL)
    pins = {"vda": Pin(VDA.image), "vdb": Pin("/images/data.old.qcow2", "s")}
    domain.record = replace(domain.record, graph=domain.graph.pin("s", pins))

    undo = domain.plan_revert(RevertRequest("s")).undo

    assert undo is not None
    assert undo.pins == {"vda": Pin("/images/web.old.qcow2"), "vdb": Pin("/images/data.old.qcow2", UNDO)}


@pytest.mark.parametrize("memory", [True, False])
def test_memory_is_kept_where_that_was_asked_for(memory: bool) -> None:
    domain = Domain(VDA)
    domain.take("s", memory=memory)

    plan = domain.plan_revert(RevertRequest("s", undo_memory=True))

    assert plan.undo is not None
    assert plan.undo.memory == MemoryPlan(
        path=f"{MEMORY_DIRECTORY}/{UNDO}.vmstate.qcow2",
        largest_stream_bytes=MACHINE.memory_bytes + MACHINE.memory_bytes // 256 + (128 << 20),
        method=SaveMethod.PAUSED,
        method_reason="the guest stands still for the revert anyway",
    )
    assert plan.machine == MACHINE


def test_a_domain_that_is_shut_off_has_no_memory_to_keep() -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.looks(SHUTOFF)

    undo = domain.plan_revert(RevertRequest("s", undo_memory=True)).undo

    assert undo is not None
    assert undo.memory is None


def test_memory_that_cannot_be_saved_cannot_be_kept() -> None:
    domain = Domain(VDA)
    domain.take("s")

    with pytest.raises(NotSupported) as refusal:
        domain.plan_revert(RevertRequest("s", undo_memory=True), memory_blocker="device hostdev0 blocks it")

    assert refusal.value.sentence == (
        "An undo point with memory is not possible for domain web: device hostdev0 blocks it; keep the disks alone."
    )


def test_a_revert_that_moves_no_disk_keeps_memory_alone_or_nothing() -> None:
    domain = Domain(CDROM)
    domain.take("s")

    assert domain.plan_revert(RevertRequest("s")).undo is None
    undo = domain.plan_revert(RevertRequest("s", undo_memory=True)).undo
    assert undo is not None
    assert (undo.pins, undo.memory is not None) == ({}, True)


def test_a_disk_that_the_revert_leaves_as_it_is_is_left_by_the_way_back_too() -> None:
    domain = Domain(VDA, FLASH, CDROM)
    domain.take("s", memory=False)

    plan = domain.revert("s", force=True)

    assert plan.undo is not None
    assert set(plan.undo.pins) == {"vda"}
    assert plan.undo.left_out == dict.fromkeys(("pflash0", "cd"), "the revert left it as it was")
    assert [each.disk.target for each in domain.plan_revert(RevertRequest("")).overlays] == ["vda"]


def test_memory_is_not_kept_without_a_disk_that_the_guest_writes_to() -> None:
    domain = Domain(VDA, FLASH)
    domain.take("s", memory=False)

    with pytest.raises(NotSupported) as refusal:
        domain.plan_revert(RevertRequest("s", force=True, undo_memory=True))

    assert refusal.value.sentence == (
        "An undo point with memory is not possible for domain web: the revert leaves disk pflash0 as it is, which would not "
        "fit the memory; keep the disks alone."
    )


def test_an_undo_point_has_a_name_that_no_snapshot_has() -> None:
    domain = Domain(VDA)
    domain.take(UNDO)
    domain.take("s")

    undo = domain.plan_revert(RevertRequest("s")).undo

    assert undo is not None
    assert undo.name == f"{UNDO}-2"


# How long


@pytest.mark.parametrize("undo", [True, False])
def test_an_undo_point_goes_with_the_next_revert_and_what_it_kept_with_it(undo: bool) -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.revert("s")
    assert domain.record.tree.current == "s"

    plan = domain.plan_revert(RevertRequest("s", undo=undo))

    assert plan.dropped == (UNDO,)
    kept = "/images/web.s.qcow2"
    assert plan.after == ((Unlink(kept),) if undo else (Unlink("/images/web.s.2.qcow2"), Unlink(kept)))


def test_what_was_kept_in_an_internal_snapshot_goes_too() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)
    domain.revert("s")

    plan = domain.plan_revert(RevertRequest("s"))

    assert [each.keep for each in plan.applications] == [f"{UNDO}-2"]
    assert plan.after == (DropTag(VDA.image, UNDO),)


def test_one_that_is_protected_stays() -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.revert("s")
    domain.change(UNDO, protected=True)

    plan = domain.plan_revert(RevertRequest("s"))

    assert (plan.dropped, plan.after) == ((), ())
    domain.revert("s")
    assert [each.name for each in domain.record.tree.walk() if each.undo] == [UNDO, f"{UNDO}-2"]


# The way back


@pytest.mark.parametrize("kind", [EXTERNAL, INTERNAL])
@pytest.mark.parametrize("by_name", [True, False])
def test_the_last_revert_is_undone_by_its_name_or_by_none(kind: SnapshotType, by_name: bool) -> None:
    domain = Domain(VDA, VDC)
    domain.take("s", kind)
    domain.take("t", kind)
    before = domain.graph
    domain.revert("s")

    plan = domain.plan_revert(RevertRequest(UNDO if by_name else "", undo=False))

    assert (plan.name, plan.dropped) == (UNDO, (UNDO,))
    domain.revert("", undo=False)
    # The snapshots are as before, and the present stands where it stood.
    assert (domain.graph.pins, domain.record.tree.current) == (before.pins, "t")
    assert sorted(domain.record.tree.snapshots) == ["s", "t"]
    if kind is INTERNAL:
        assert domain.graph == before


def test_the_undo_point_of_the_undone_is_a_redo() -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.revert("s")
    discarded = domain.graph.active["vda"]

    plan = domain.plan_revert(RevertRequest(""))

    assert plan.undo is not None
    assert (plan.undo.name, plan.undo.pins) == (f"{UNDO}-2", {"vda": Pin(discarded)})
    # What the first one had kept is the present again, in an image that nothing else needs.
    old, new = "/images/web.s.qcow2", plan.overlays[0].image.path
    assert plan.overlays[0].image.backing == old
    assert plan.after == (Merge(Direction.COMMIT, new, old, VDA.image, active=True),)


def test_the_newest_undo_point_is_meant_also_where_one_is_protected() -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.revert("s")
    domain.change(UNDO, protected=True)
    domain.revert("s")

    assert find_target(domain.record, "").name == f"{UNDO}-2"


def test_without_an_undo_point_there_is_no_way_back() -> None:
    domain = Domain(VDA)
    domain.take("s")

    with pytest.raises(NotSupported) as refusal:
        domain.plan_revert(RevertRequest(""))
    with pytest.raises(NoSuchSnapshot):
        domain.plan_revert(RevertRequest(UNDO))

    assert refusal.value.sentence == (
        "Undoing a revert is not possible for domain web: its last revert kept no undo point, or there was none; "
        "name a snapshot."
    )


def test_the_memory_of_an_undo_point_stays_until_it_is_loaded() -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.revert("s", undo_memory=True)
    domain.looks(SHUTOFF)

    plan = domain.revert("")

    assert (plan.name, plan.later, plan.dropped) == (UNDO, RevertState.AS_TAKEN, ())
    assert domain.record.tree.current == UNDO
    domain.looks(DomainState.RUNNING)
    loaded = domain.revert(UNDO)
    assert (loaded.later, loaded.dropped) == (None, (UNDO, f"{UNDO}-2"))
    assert [each.name for each in domain.record.tree.walk()] == ["s", f"{UNDO}-3"]


def test_a_revert_that_goes_on_with_one_that_had_to_wait_ends_no_undo_point() -> None:
    domain = Domain(VDA)
    domain.take("s")
    domain.revert("s")
    (first,) = [name for name, each in domain.record.tree.snapshots.items() if each.undo]

    assert domain.plan_revert(RevertRequest("s")).dropped == (first,)
    assert domain.plan_revert(RevertRequest("s", keeps_undo_points=True)).dropped == ()
