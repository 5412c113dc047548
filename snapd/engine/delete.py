# SPDX-License-Identifier: MIT
"""Delete: forget snapshots, then merge and unlink what they alone had needed, while the guest runs.

Not here: what may be merged or unlinked (``model.images``).
"""

from dataclasses import replace

from snapd.engine.look import look
from snapd.engine.merge import commit_and_collect
from snapd.engine.ports import Ports, Report
from snapd.errors import MonitorLost, SnapdError
from snapd.model.domain import DomainDefinition
from snapd.model.plan import DeletePlan, DeleteRequest
from snapd.model.planner import find_snapshot, plan_delete
from snapd.model.record import DomainRecord


async def prepare(ports: Ports, definition: DomainDefinition, request: DeleteRequest) -> tuple[DeletePlan, DomainRecord]:
    """Return the plan, and the record that it starts from; nothing is touched.

    Raises: NoSuchSnapshot, Protected, DomainDrifted, DomainUnreachable, ImageInUse.
    """
    find_snapshot(ports.store.committed, request.name)
    seen, record = await look(ports, definition)
    allocated = await ports.images.allocated_bytes(list(record.graph.images))
    return plan_delete(record, request, allocated, seen.open_images), record


async def carry_out(ports: Ports, record: DomainRecord, plan: DeletePlan, report: Report) -> tuple[str, ...]:
    """Delete the snapshots; when this returns their space is given back.

    Effects: intent written; state committed without the snapshots, which from then on are gone; memory files unlinked; images
    merged and unlinked, each step committed; intent removed.
    Returns: sentences for whoever asked.
    Raises: any Failed. A merge that fails leaves every remaining snapshot readable, and a layer that the next delete or revert
    collects.
    """
    await ports.store.begin("delete", " ".join(plan.names), plan)
    pending = None if record.pending and record.pending.name in plan.names else record.pending
    graph, tree = record.graph.unpin(*plan.names), record.tree.remove(plan.names)
    deleted = replace(record, graph=graph, tree=tree, pending=pending)
    before = ports.store.committed
    try:
        await commit_and_collect(ports, deleted, report, plan.memory_paths)
    except SnapdError as error:
        if ports.store.committed is before and not isinstance(error, MonitorLost):
            await ports.store.end()
        raise
    await ports.store.end()
    return plan.notes
