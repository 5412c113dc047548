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

    Raises: NoSuchSnapshot, DomainDrifted, DomainUnreachable.
    """
    find_snapshot(ports.store.committed, request.name)
    _, record = await look(ports, definition)
    allocated = await ports.images.allocated_bytes(list(record.graph.images))
    return plan_delete(record, request, allocated), record


async def carry_out(ports: Ports, record: DomainRecord, plan: DeletePlan, report: Report) -> None:
    """Delete the snapshots; when this returns their space is given back.

    Effects: intent written; state committed without the snapshots, which from then on are gone; memory files unlinked; images
    merged and unlinked, each step committed; intent removed.
    Raises: any Failed. A merge that fails leaves every remaining snapshot readable, and a layer that the next delete or revert
    collects.
    """
    await ports.store.begin("delete", " ".join(plan.names), plan)
    graph = record.graph
    for name in plan.names:
        graph = graph.unpin(name)
    deleted = replace(record, graph=graph, tree=record.tree.remove(plan.names))
    before = ports.store.committed
    try:
        await commit_and_collect(ports, deleted, report, plan.memory_paths)
    except SnapdError as error:
        if ports.store.committed is before and not isinstance(error, MonitorLost):
            await ports.store.end()
        raise
    await ports.store.end()
