# SPDX-License-Identifier: MIT
"""The snapshot tree of one domain: parents, children, and the current snapshot.

Not here: the images (``images``). Invariants: every parent is in the tree or empty; no snapshot is its own ancestor; the
current snapshot is in the tree or empty.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from snapd.model.snapshot import Snapshot


class Scope(StrEnum):
    """Which snapshots a delete takes: the one named, it and all below it, or only those below it."""

    ONE = "one"
    TREE = "tree"
    CHILDREN = "children"


@dataclass(frozen=True)
class SnapshotTree:
    """A value; every change returns a new tree. ``current`` is the snapshot that the domain's present came from."""

    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    current: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.snapshots

    def __len__(self) -> int:
        return len(self.snapshots)

    def children(self, name: str) -> list[Snapshot]:
        """Return the children of ``name``, oldest first; those of the empty name are the roots."""
        return sorted(
            (each for each in self.snapshots.values() if each.parent == name), key=lambda each: (each.created_usec, each.name)
        )

    def walk(self) -> Iterator[Snapshot]:
        """Return all snapshots in tree order: each parent before its children, the oldest branch first."""
        below: dict[str, list[Snapshot]] = {}
        for each in sorted(self.snapshots.values(), key=lambda each: (each.created_usec, each.name), reverse=True):
            below.setdefault(each.parent, []).append(each)
        waiting = list(below.get("", []))
        while waiting:
            each = waiting.pop()
            yield each
            waiting += below.get(each.name, [])

    def scope(self, name: str, scope: Scope) -> list[str]:
        """Return the names that a delete of ``name`` in ``scope`` takes, each parent before its children."""
        if scope is Scope.ONE:
            return [name]
        found, waiting = [], [name]
        while waiting:
            at = waiting.pop(0)
            found.append(at)
            waiting += [each.name for each in self.children(at)]
        return found if scope is Scope.TREE else found[1:]

    def add(self, snapshot: Snapshot) -> "SnapshotTree":
        """Add ``snapshot`` below the current one and make it current."""
        placed = replace(snapshot, parent=self.current)
        return SnapshotTree({**self.snapshots, placed.name: placed}, placed.name)

    def revert_to(self, name: str) -> "SnapshotTree":
        return replace(self, current=name)

    def remove(self, names: Iterable[str]) -> "SnapshotTree":
        """Remove ``names``; their children, and the domain's present, move up to the nearest parent that is left."""
        gone = frozenset(names)

        def nearest(name: str) -> str:
            while name in gone:
                name = self.snapshots[name].parent
            return name

        left = {
            each.name: replace(each, parent=nearest(each.parent)) for each in self.snapshots.values() if each.name not in gone
        }
        return SnapshotTree(left, nearest(self.current))
