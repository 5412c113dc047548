# SPDX-License-Identifier: MIT
"""What is to be announced after a mutation: the difference of two records of one domain, as events."""

from collections.abc import Iterator

from snapd.model.events import Event, SnapshotChanged, SnapshotCreated, SnapshotDeleted
from snapd.model.record import DomainRecord


def changes(domain: str, before: DomainRecord, after: DomainRecord) -> Iterator[Event]:
    """Yield deletions, then creations, then changes of what a snapshot shows, such as its children."""
    old, new = before.tree.snapshots, after.tree.snapshots
    yield from (SnapshotDeleted(domain, name) for name in old if name not in new)
    yield from (SnapshotCreated(domain, name) for name in new if name not in old)
    for name in new:
        if name in old and _face(before, name) != _face(after, name):
            yield SnapshotChanged(domain, name)


def _face(record: DomainRecord, name: str) -> object:
    """Return all of a snapshot that its properties show."""
    tree = record.tree
    return tree.snapshots[name], tree.current == name, [each.name for each in tree.children(name)], record.graph.pins.get(name)
