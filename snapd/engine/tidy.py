# SPDX-License-Identifier: MIT
"""Tidy: do what earlier deletes had to leave, once it can be done.

An internal snapshot in an image that QEMU has open for reading only, or a merge that failed, is left to the next collection;
this is the one that comes by itself, when a domain is shut off or connects.
"""

from snapd.engine.look import look
from snapd.engine.merge import commit_and_collect
from snapd.engine.ports import Ports, Report
from snapd.errors import MonitorLost, SnapdError
from snapd.model.domain import DomainDefinition
from snapd.model.plan import TidyPlan
from snapd.model.record import DomainRecord


async def prepare(ports: Ports, definition: DomainDefinition) -> tuple[TidyPlan, DomainRecord] | None:
    """Return what is to be collected, if anything is. Raises: DomainDrifted, DomainUnreachable, ImageInUse."""
    if not ports.store.committed.graph.collect({}):
        return None
    seen, record = await look(ports, definition)
    allocated = await ports.images.allocated_bytes(list(record.graph.images))
    steps = record.graph.collect(allocated, seen.open_images)
    return (TidyPlan(tuple(steps)), record) if steps else None


async def carry_out(ports: Ports, record: DomainRecord, plan: TidyPlan, report: Report) -> tuple[str, ...]:
    """Collect. Raises: any Failed, as ``merge.commit_and_collect``; every snapshot stays readable."""
    await ports.store.begin("tidy", record.name, plan)
    before = ports.store.committed
    try:
        await commit_and_collect(ports, record, report)
    except SnapdError as error:
        if ports.store.committed is before and not isinstance(error, MonitorLost):
            await ports.store.end()
        raise
    await ports.store.end()
    return plan.notes
