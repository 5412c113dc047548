# SPDX-License-Identifier: MIT
"""The snapshot tree: order, scopes, and what becomes of children when a parent goes."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from snapd.model.domain import DomainState
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.model.tree import Scope, SnapshotTree

picks = st.integers(0, 999)


def _snapshot(name: str, created_usec: int = 0) -> Snapshot:
    return Snapshot(name, created_usec, SnapshotType.EXTERNAL, DomainState.RUNNING, disks=())


@st.composite
def trees(draw: st.DrawFn, least: int = 0) -> SnapshotTree:
    """Grow a tree by adding below the present and reverting now and then; clocks may stand still or go back."""
    tree = SnapshotTree()
    for number in range(draw(st.integers(least, 12))):
        if len(tree) and draw(st.booleans()):
            tree = tree.revert_to(draw(st.sampled_from(sorted(tree.snapshots))))
        tree = tree.add(_snapshot(f"s{number}", draw(st.integers(0, 5))))
    if draw(st.booleans()):
        tree = replace(tree, current="")
    return tree


def _ancestors(tree: SnapshotTree, name: str) -> list[str]:
    """Return the parent of ``name``, the parent's parent, and so on."""
    found: list[str] = []
    while parent := tree.snapshots[name].parent:
        assert parent not in found, f"{parent} is its own ancestor"
        found.append(parent)
        name = parent
    return found


def test_a_snapshot_is_added_below_the_current_one_and_becomes_current() -> None:
    tree = SnapshotTree().add(_snapshot("a")).add(_snapshot("b")).revert_to("a").add(_snapshot("c"))

    assert {name: each.parent for name, each in tree.snapshots.items()} == {"a": "", "b": "a", "c": "a"}
    assert tree.current == "c"
    assert "b" in tree
    assert "x" not in tree
    assert len(tree) == 3


def test_walk_goes_down_the_oldest_branch_first() -> None:
    tree = SnapshotTree().add(_snapshot("root", 1)).add(_snapshot("young", 9)).add(_snapshot("leaf", 10))
    tree = tree.revert_to("root").add(_snapshot("old", 2)).add(_snapshot("twig", 11))

    assert [each.name for each in tree.walk()] == ["root", "old", "twig", "young", "leaf"]


@given(trees())
def test_walk_names_each_snapshot_once_and_keeps_branches_together(tree: SnapshotTree) -> None:
    order = [each.name for each in tree.walk()]

    assert sorted(order) == sorted(tree.snapshots)
    for at, name in enumerate(order):
        below = set(tree.scope(name, Scope.CHILDREN))
        assert set(order[at + 1 : at + 1 + len(below)]) == below
    for name in ("", *order):
        children = tree.children(name)
        assert children == sorted(children, key=lambda each: (each.created_usec, each.name))
        assert [order.index(each.name) for each in children] == sorted(order.index(each.name) for each in children)


@given(trees(least=1), picks)
def test_a_scope_is_the_named_snapshot_and_its_descendants(tree: SnapshotTree, pick: int) -> None:
    name = sorted(tree.snapshots)[pick % len(tree)]
    descendants = {each for each in tree.snapshots if name in _ancestors(tree, each)}
    whole = tree.scope(name, Scope.TREE)

    assert tree.scope(name, Scope.ONE) == [name]
    assert whole[0] == name
    assert set(whole[1:]) == descendants
    assert len(whole) == len(descendants) + 1
    assert tree.scope(name, Scope.CHILDREN) == whole[1:]
    for at, each in enumerate(whole[1:], start=1):
        assert tree.snapshots[each].parent in whole[:at]


@given(trees(), st.data())
def test_remove_moves_children_and_the_present_up_to_the_nearest_left(tree: SnapshotTree, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(sorted(tree.snapshots)))) if len(tree) else set()

    after = tree.remove(gone)

    def expected(name: str) -> str:
        lineage = [name, *_ancestors(tree, name)] if name else []
        return next((each for each in lineage if each not in gone), "")

    assert set(after.snapshots) == set(tree.snapshots) - gone
    assert after.current == expected(tree.current)
    for name, each in after.snapshots.items():
        assert each == replace(tree.snapshots[name], parent=expected(tree.snapshots[name].parent))
        assert set(_ancestors(after, name)) == set(_ancestors(tree, name)) - gone
    assert len(list(after.walk())) == len(after)


@given(trees(least=1), picks, st.sampled_from(Scope))
def test_removing_a_scope_leaves_a_whole_tree(tree: SnapshotTree, pick: int, scope: Scope) -> None:
    name = sorted(tree.snapshots)[pick % len(tree)]

    after = tree.remove(tree.scope(name, scope))

    assert (name in after) == (scope is Scope.CHILDREN)
    assert after.current == "" or after.current in after
    assert all(each.parent == "" or each.parent in after for each in after.snapshots.values())
