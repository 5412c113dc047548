# SPDX-License-Identifier: MIT
"""What a plan that was carried out leaves: the record after it.

Not here: carrying it out (``engine``) and making the record durable (``state``).
"""

from dataclasses import replace

from snapd.model.domain import DomainState
from snapd.model.plan import RevertPlan, UndoPoint
from snapd.model.record import DomainRecord, PendingRevert
from snapd.model.snapshot import Consistency, MemoryState, Snapshot, SnapshotDisk, SnapshotType


def type_of(has_external: bool, has_internal: bool) -> SnapshotType:
    """Return the type of a snapshot with disks of these kinds."""
    if has_external and has_internal:
        return SnapshotType.ANY
    return SnapshotType.INTERNAL if has_internal else SnapshotType.EXTERNAL


def record_after_revert(
    record: DomainRecord, plan: RevertPlan, undo_memory: MemoryState | None, created_usec: int
) -> DomainRecord:
    """Return the record with the snapshot current, and the undo point in the place of earlier ones.

    Args:
        undo_memory: what was saved for the undo point.
        created_usec: when the present was kept.
    """
    tree = record.tree
    if plan.undo:
        tree = tree.add(_undo_snapshot(record, plan, plan.undo, undo_memory, created_usec))
    return replace(
        record,
        graph=plan.graph(record.graph),
        tree=tree.revert_to(plan.name).remove(plan.dropped),
        pending=PendingRevert(plan.name, plan.later) if plan.later is not None else None,
    )


def _undo_snapshot(
    record: DomainRecord, plan: RevertPlan, undo: UndoPoint, memory: MemoryState | None, created_usec: int
) -> Snapshot:
    if memory:
        consistency = Consistency.FULL
    else:
        consistency = Consistency.OFFLINE if plan.state is DomainState.SHUTOFF else Consistency.CRASH_CONSISTENT
    tags = [pin.tag for pin in undo.pins.values()]
    return Snapshot(
        name=undo.name,
        created_usec=created_usec,
        type=type_of(not all(tags), any(tags)),
        state=plan.state,
        disks=tuple(_undo_disk(record, plan, undo, target) for target in sorted(undo.pins)),
        machine=plan.machine if memory else None,
        memory=memory,
        description=f"What the revert to {plan.name} discarded.",
        consistency=consistency,
        left_out=undo.left_out,
        undo=True,
    )


def _undo_disk(record: DomainRecord, plan: RevertPlan, undo: UndoPoint, target: str) -> SnapshotDisk:
    size = undo.virtual_sizes[target]
    if undo.pins[target].tag:
        return SnapshotDisk(target, "", "", size)
    # What takes the place of an image that is kept whole stands for the overlay that covers one.
    after = plan.graph(record.graph)
    successor = after.images[after.active[target]]
    return SnapshotDisk(target, successor.path, successor.format, size)
