# SPDX-License-Identifier: MIT
"""Collecting: unlink and merge images until none is left that nothing needs.

Not here: what may be merged or unlinked (``model.images``). A merged image is committed to the state before the other file is
unlinked, so that at every instant each pin in the state names a file that has its content.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from snapd.engine.ports import Ports, Report
from snapd.engine.undo import all_done, connected
from snapd.errors import MonitorLost, SnapdError
from snapd.model.images import Direction, ImageGraph, Merge
from snapd.model.record import DomainRecord


async def commit_and_collect(ports: Ports, record: DomainRecord, report: Report, unneeded: Sequence[str] = ()) -> None:
    """Make ``record`` the committed state, then bring its graph to rest.

    Args:
        unneeded: files besides images that ``record`` does not name any more.

    Effects: state committed; files that nothing needs are unlinked; for each merge, in order: images changed, state committed,
    the other file unlinked.
    Raises: any Failed. Where the committed graph is true then, the intent is removed, so that it does not block the domain, and
    the next collection goes on from there. It stays after MonitorLost, because QEMU may go on with the merge, and when what was
    done could not be committed: QEMU then runs on images that the state does not know.
    """
    graph = record.graph
    steps = graph.collect(await ports.images.allocated_bytes(list(graph.images)))
    gone = list(unneeded)
    try:
        with connected(record.name, "merging"):
            for step in steps:
                if isinstance(step, Merge):
                    await _settle(ports, replace(record, graph=graph), gone)
                    await ports.store.step(f"{step.direction} {step.overlay}")
                    await _merge(ports, graph, step, report)
                    gone.append(step.removed)
                else:
                    gone.append(step.path)
                graph = graph.apply(step)
            await _settle(ports, replace(record, graph=graph), gone)
    except MonitorLost:
        raise
    except SnapdError:
        if ports.store.committed.graph == graph and ports.store.committed.tree == record.tree:
            await ports.store.end()
        raise


async def _settle(ports: Ports, record: DomainRecord, gone: list[str]) -> None:
    """Commit, and only then unlink what the committed state does not name any more. Effects: ``gone`` is empty after it.

    QEMU closes what it does not use meanwhile, which is harmless whether the commit succeeds or not.
    """
    await all_done(ports.store.commit(record), *([ports.qemu.close_unused(gone)] if gone else []))
    if gone:
        await asyncio.gather(*(ports.images.unlink(path) for path in gone))
        gone.clear()


async def _merge(ports: Ports, graph: ImageGraph, step: Merge, report: Report) -> None:
    below_format = graph.images[step.below].format if step.below else ""
    backing_format = graph.images[step.backing].format
    opened = await ports.qemu.open_images()
    if step.overlay in opened:
        await ports.qemu.merge(step, report)
    else:
        report(f"merging {step.removed}", 0, 0)
        await ports.images.merge(step, below_format)
    if step.direction is Direction.COMMIT:
        # QEMU rewrites the header of the one image above that it has open itself.
        for above in step.repoint:
            if above not in opened:
                await ports.images.repoint(above, step.backing, backing_format)
