# SPDX-License-Identifier: MIT
"""Plans to revert and to delete: what is refused before anything is touched, and what will be done otherwise."""

from dataclasses import replace

import pytest

from snapd.errors import NoSuchSnapshot, NotSupported
from snapd.model.images import Direction, Image, Merge, Origin, Pin, Unlink
from snapd.model.plan import DeleteRequest, Opening, RevertRequest, RevertState
from snapd.model.planner import find_snapshot, plan_delete, plan_revert
from snapd.model.tree import Scope
from tests.unit.planned_domain import LONGEST_NODE_NAME, MACHINE, MEMORY_DIRECTORY, SIZE, TOKEN, VDA, VDB, Domain, make_disk


def _revert_refused(domain: Domain, **seen: object) -> str:
    with pytest.raises(NotSupported) as refusal:
        plan_revert(domain.record, replace(domain.seen, **seen), RevertRequest("s"), {}, TOKEN)  # type: ignore[arg-type]
    assert refusal.value.sentence.startswith("Reverting to s is not possible for domain web: ")
    return refusal.value.reason


@pytest.fixture
def taken() -> Domain:
    domain = Domain(VDA, VDB)
    domain.take("s")
    return domain


def test_a_snapshot_that_is_not_there_is_refused(taken: Domain) -> None:
    with pytest.raises(NoSuchSnapshot, match="Domain web has no snapshot 'x'"):
        plan_revert(taken.record, taken.seen, RevertRequest("x"), {}, TOKEN)
    with pytest.raises(NoSuchSnapshot, match="Domain web has no snapshot 'x'"):
        plan_delete(taken.record, DeleteRequest("x"), {})
    assert find_snapshot(taken.record, "s") is taken.record.tree.snapshots["s"]


@pytest.mark.parametrize("missing", ["memory", "machine"])
def test_a_snapshot_without_memory_is_refused(taken: Domain, missing: str) -> None:
    taken.change("s", **{missing: None})

    assert "it has no memory" in _revert_refused(taken)


def test_another_machine_is_refused_with_what_differs(taken: Domain) -> None:
    reason = _revert_refused(taken, machine=replace(MACHINE, devices=("net0",)))

    assert reason == "its device disk0 is missing; start QEMU as it was then"


def test_a_writable_disk_that_the_snapshot_does_not_include_is_refused(taken: Domain) -> None:
    reason = _revert_refused(taken, disks=(*taken.seen.disks, make_disk("vdc", "/images/c.qcow2")))

    assert reason == "the snapshot does not include disk vdc"


def test_a_disk_of_the_snapshot_that_is_missing_is_refused(taken: Domain) -> None:
    assert _revert_refused(taken, disks=taken.seen.disks[:1]) == "its disk vdb is missing"


def test_an_internal_pin_is_refused(taken: Domain) -> None:
    pins = {**taken.record.graph.pins["s"], "vdb": Pin(VDB.image, "s")}
    taken.record = replace(taken.record, graph=taken.record.graph.pin("s", pins))

    assert _revert_refused(taken) == "its disk vdb is internal"


# Revert: what will be done


def test_a_revert_makes_a_new_overlay_on_what_is_pinned_and_discards_the_old_one(taken: Domain) -> None:
    plan = plan_revert(taken.record, taken.seen, RevertRequest("s"), {}, TOKEN)

    assert [(each.image, each.backing_format, each.disk) for each in plan.overlays] == [
        (Image("/images/web.s.2.qcow2", "qcow2", VDA.image, Origin.CREATED, SIZE), "qcow2", taken.seen.disks[0]),
        (Image("/images/data.s.2.qcow2", "qcow2", VDB.image, Origin.CREATED, SIZE), "raw", taken.seen.disks[1]),
    ]
    assert plan.openings == ()
    assert plan.backing_nodes == {"vda": f"#node:{VDA.image}", "vdb": f"#node:{VDB.image}"}
    assert plan.memory_path == f"{MEMORY_DIRECTORY}/s.vmstate.qcow2"
    assert set(plan.after) == {Unlink("/images/web.s.qcow2"), Unlink("/images/data.s.qcow2")}


def test_images_of_another_branch_are_opened_from_the_bottom_up() -> None:
    domain = Domain(VDA)
    for name in ("root", "branch", "leaf"):
        domain.take(name)
    domain.revert("root")
    branch, leaf = "/images/web.root.qcow2", "/images/web.branch.qcow2"
    assert set(domain.seen.open_images) == {"/images/web.root.2.qcow2", "/images/web.qcow2", "/base/os.raw"}

    plan = plan_revert(domain.record, domain.seen, RevertRequest("leaf"), {}, TOKEN)

    lower, upper = f"domsnap-{TOKEN}-b0", f"domsnap-{TOKEN}-b1"
    assert plan.openings == (
        Opening(lower, domain.record.graph.images[branch], f"#node:{VDA.image}"),
        Opening(upper, domain.record.graph.images[leaf], lower),
    )
    assert plan.backing_nodes == {"vda": upper}
    assert plan.overlays[0].image.backing == leaf
    assert plan.overlays[0].node not in {lower, upper}
    assert plan.after == (Unlink("/images/web.root.2.qcow2"),)


def test_an_image_that_two_disks_stand_on_is_opened_once() -> None:
    domain = Domain(make_disk("vda", "/a.qcow2", "/base/os.raw"), make_disk("vdb", "/b.qcow2", "/base/os.raw"))
    domain.take("s")

    plan = plan_revert(domain.record, replace(domain.seen, open_images={}), RevertRequest("s"), {}, TOKEN)

    base, first, second = plan.openings
    assert [each.image.path for each in plan.openings] == ["/base/os.raw", "/a.qcow2", "/b.qcow2"]
    assert (base.backing_node, first.backing_node, second.backing_node) == ("", base.node, base.node)
    assert plan.backing_nodes == {"vda": first.node, "vdb": second.node}
    assert len({*(each.node for each in plan.openings), *(each.node for each in plan.overlays)}) == 5
    assert all(len(each.node) <= LONGEST_NODE_NAME for each in plan.openings)


def test_overlays_of_the_same_stem_in_one_directory_are_numbered() -> None:
    domain = Domain(make_disk("vda", "/a/x.qcow2"), make_disk("vdb", "/a/x.raw"))
    domain.take("s")

    overlays = plan_revert(domain.record, domain.seen, RevertRequest("s"), {}, TOKEN).overlays

    assert [each.image.path for each in overlays] == ["/a/x.s.3.qcow2", "/a/x.s.4.qcow2"]


@pytest.mark.parametrize(
    ("state", "was_running", "resume"),
    [
        (RevertState.AS_TAKEN, True, True),
        (RevertState.AS_TAKEN, False, False),
        (RevertState.RUNNING, False, True),
        (RevertState.PAUSED, True, False),
    ],
)
def test_the_guest_goes_on_as_it_was_or_as_asked(state: RevertState, was_running: bool, resume: bool) -> None:
    domain = Domain(VDA)
    domain.take("s", running=was_running)

    plan = plan_revert(domain.record, replace(domain.seen, running=not was_running), RevertRequest("s", state), {}, TOKEN)

    assert (plan.was_running, plan.resume) == (not was_running, resume)


# Delete


@pytest.fixture
def branched() -> Domain:
    """root ─ left ─ leaf, and root ─ right, where the domain is."""
    domain = Domain(VDB)
    for name in ("root", "left", "leaf"):
        domain.take(name)
    domain.revert("root")
    domain.take("right")
    return domain


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
    plan = plan_delete(branched.record, DeleteRequest(name, scope), {})

    assert plan.names == names
    assert plan.memory_paths == tuple(f"{MEMORY_DIRECTORY}/{each}.vmstate.qcow2" for each in names)
    graph = branched.record.graph
    for each in names:
        graph = graph.unpin(each)
    for step in plan.after:
        graph = graph.apply(step)
        assert graph.violations() == []
    assert graph.collect({}) == []
    assert set(graph.pins) == {"root", "left", "leaf", "right"} - set(names)


def test_deleting_a_leaf_of_another_branch_unlinks_it(branched: Domain) -> None:
    pinned = branched.record.graph.pins["leaf"]["vdb"].image

    plan = plan_delete(branched.record, DeleteRequest("leaf"), {})

    assert plan.after == (Unlink(pinned),)


def test_deleting_a_shared_root_leaves_its_image_as_a_layer(branched: Domain) -> None:
    assert plan_delete(branched.record, DeleteRequest("root"), {}).after == ()


def test_deleting_the_only_snapshot_brings_the_disk_back_to_its_own_image() -> None:
    domain = Domain(VDB)
    domain.take("s")

    plan = plan_delete(domain.record, DeleteRequest("s"), {"/images/data.s.qcow2": 1 << 30, VDB.image: 1})

    assert plan.after == (Merge(Direction.COMMIT, "/images/data.s.qcow2", VDB.image, None, active=True),)


def test_the_size_of_images_decides_the_direction() -> None:
    domain = Domain(VDB)
    domain.take("one")
    domain.take("two")

    def direction(one: int, two: int) -> Direction:
        (step,) = plan_delete(
            domain.record, DeleteRequest("two"), {"/images/data.one.qcow2": one, "/images/data.two.qcow2": two}
        ).after
        assert isinstance(step, Merge)
        return step.direction

    assert direction(one=1, two=2) is Direction.STREAM
    assert direction(one=2, two=1) is Direction.COMMIT


def test_a_snapshot_without_memory_is_deleted_too(taken: Domain) -> None:
    taken.change("s", memory=None)

    assert plan_delete(taken.record, DeleteRequest("s"), {}).memory_paths == ()
