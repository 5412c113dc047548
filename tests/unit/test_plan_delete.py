# SPDX-License-Identifier: MIT
"""Plans to delete: scopes, what is merged and unlinked, and what has to wait because QEMU has it open."""

import pytest

from snapd.errors import NoSuchSnapshot, Protected
from snapd.model.domain import DomainState
from snapd.model.images import Direction, DropTag, Merge, Pin, Unlink
from snapd.model.plan import DeleteRequest
from snapd.model.planner import deferred, plan_delete
from snapd.model.snapshot import SnapshotType
from snapd.model.tree import Scope
from tests.unit.planned_domain import MEMORY_DIRECTORY, VDA, VDB, Domain

INTERNAL = SnapshotType.INTERNAL


@pytest.fixture
def branched() -> Domain:
    """root ─ left ─ leaf, and root ─ right, where the domain is."""
    domain = Domain(VDB)
    for name in ("root", "left", "leaf"):
        domain.take(name)
    domain.revert("root", undo=False)
    domain.take("right")
    return domain


def test_a_snapshot_that_is_not_there_is_refused(branched: Domain) -> None:
    with pytest.raises(NoSuchSnapshot, match="Domain web has no snapshot 'x'"):
        branched.plan_delete("x")


@pytest.mark.parametrize(
    ("name", "scope", "names"),
    [
        ("left", Scope.ONE, ("left",)),
        ("left", Scope.TREE, ("left", "leaf")),
        ("left", Scope.CHILDREN, ("leaf",)),
        ("root", Scope.TREE, ("root", "left", "right", "leaf")),
        ("root", Scope.CHILDREN, ("left", "right", "leaf")),
        ("right", Scope.CHILDREN, ()),
    ],
)
def test_a_delete_takes_its_scope_and_leaves_what_others_need(
    branched: Domain, name: str, scope: Scope, names: tuple[str, ...]
) -> None:
    plan = branched.plan_delete(name, scope)

    assert plan.names == names
    assert plan.memory_paths == tuple(f"{MEMORY_DIRECTORY}/{each}.vmstate.qcow2" for each in names)
    graph = branched.graph.unpin(*names)
    for step in plan.after:
        graph = graph.apply(step)
        assert graph.violations() == []
    assert graph.collect({}) == []
    assert set(graph.pins) == {"root", "left", "leaf", "right"} - set(names)


@pytest.mark.parametrize(
    ("name", "scope", "named"),
    [
        ("leaf", Scope.ONE, "leaf"),
        ("left", Scope.TREE, "leaf"),
        ("root", Scope.CHILDREN, "leaf"),
        ("left", Scope.ONE, ""),
        ("right", Scope.TREE, ""),
        ("leaf", Scope.CHILDREN, ""),
    ],
)
def test_one_that_is_protected_is_not_deleted_with_any_scope(branched: Domain, name: str, scope: Scope, named: str) -> None:
    branched.change("leaf", protected=True)

    if not named:
        assert "leaf" not in branched.plan_delete(name, scope).names
        return
    with pytest.raises(Protected) as refusal:
        branched.plan_delete(name, scope)
    assert refusal.value.sentence == "Snapshot 'leaf' is protected; take the protection off first."


# What becomes of images


def test_deleting_a_leaf_of_another_branch_unlinks_it(branched: Domain) -> None:
    pinned = branched.graph.pins["leaf"]["vdb"].image

    assert branched.plan_delete("leaf").after == (Unlink(pinned),)


def test_deleting_a_shared_root_leaves_its_image_as_a_layer(branched: Domain) -> None:
    assert branched.plan_delete("root").after == ()


def test_deleting_the_only_snapshot_brings_the_disk_back_to_its_own_image() -> None:
    domain = Domain(VDB)
    domain.take("s")

    plan = plan_delete(domain.record, DeleteRequest("s"), {"/images/data.s.qcow2": 1 << 30, VDB.image: 1}, ())

    assert plan.after == (Merge(Direction.COMMIT, "/images/data.s.qcow2", VDB.image, None, active=True),)


@pytest.mark.parametrize(("one", "two", "direction"), [(1, 2, Direction.STREAM), (2, 1, Direction.COMMIT)])
def test_the_size_of_images_decides_the_direction(one: int, two: int, direction: Direction) -> None:
    domain = Domain(VDB)
    domain.take("one")
    domain.take("two")
    allocated = {"/images/data.one.qcow2": one, "/images/data.two.qcow2": two}

    (step,) = plan_delete(domain.record, DeleteRequest("two"), allocated, ()).after

    assert isinstance(step, Merge)
    assert step.direction is direction


@pytest.mark.parametrize("memory", [True, False])
def test_memory_goes_where_there_is_one(memory: bool) -> None:
    domain = Domain(VDA)
    domain.take("s", memory=memory)

    assert domain.plan_delete("s").memory_paths == ((f"{MEMORY_DIRECTORY}/s.vmstate.qcow2",) if memory else ())


# Internal ones


def test_an_internal_snapshot_in_the_active_image_is_deleted_at_once() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)

    plan = domain.plan_delete("s")

    assert (plan.after, plan.notes) == ((DropTag(VDA.image, "s"),), ())


def test_one_in_an_image_that_qemu_has_open_for_reading_has_to_wait() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)
    domain.take("above")

    plan = domain.plan_delete("s")

    assert plan.after == ()
    assert plan.notes == (
        "Internal snapshot 's' stays in /images/web.qcow2 as long as QEMU has that image open for reading; it goes when the "
        "domain is shut off or reverted.",
    )
    assert deferred(domain.graph.unpin("s"), ()) == plan.notes
    domain.looks(DomainState.SHUTOFF)
    shut_off = domain.plan_delete("s")
    assert (shut_off.after, shut_off.notes) == ((DropTag(VDA.image, "s"),), ())


def test_one_in_an_image_that_is_not_open_is_deleted_though_it_is_frozen() -> None:
    domain = Domain(VDA)
    domain.take("root")
    domain.take("s", INTERNAL)
    domain.take("above")
    domain.revert("root", undo=False)
    held = "/images/web.root.qcow2"
    assert domain.graph.is_frozen(held)
    assert held not in domain.seen.open_images

    plan = domain.plan_delete("s")

    assert (plan.after, plan.notes) == ((DropTag(held, "s"),), ())


def test_what_had_to_wait_goes_as_soon_as_the_image_is_the_active_one_again() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)
    domain.take("above")
    domain.delete("s")
    assert domain.graph.images[VDA.image].doomed == ("s",)

    plan = domain.plan_delete("above")

    overlay = "/images/web.above.qcow2"
    assert plan.after == (
        Merge(Direction.COMMIT, overlay, VDA.image, "/base/os.raw", active=True),
        DropTag(VDA.image, "s"),
    )
    assert plan.notes == ()


def test_an_image_with_internal_snapshots_and_all_below_it_wait_for_their_end() -> None:
    domain = Domain(VDA)
    domain.take("root")
    domain.take("s", INTERNAL)
    held = "/images/web.root.qcow2"

    assert domain.plan_delete("root").after == ()
    domain.delete("root")
    assert domain.graph.pins == {"s": {"vda": Pin(held, "s")}}
    assert domain.plan_delete("s").after == (
        DropTag(held, "s"),
        Merge(Direction.COMMIT, held, VDA.image, "/base/os.raw", active=True),
    )
