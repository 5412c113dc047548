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
from snapd.model.images import Collection, Direction, DropTag, ImageGraph, Merge
from snapd.model.record import DomainRecord


async def commit_and_collect(ports: Ports, record: DomainRecord, report: Report, unneeded: Sequence[str] = ()) -> None:
    """Make ``record`` the committed state, then bring its graph to rest.

    Args:
        unneeded: files besides images that ``record`` does not name any more.

    Effects: state committed; files that nothing needs are unlinked; for each merge, in order: images changed, state committed,
    the other file unlinked. An internal snapshot that is deleted stays doomed in the state until the next commit, which is
    harmless: deleting one that is not there does nothing.
    Raises: any Failed. Where the committed graph is true then, the intent is removed, so that it does not block the domain, and
    the next collection goes on from there. It stays after MonitorLost, because QEMU may go on with the merge, and when what was
    done could not be committed: QEMU then runs on images that the state does not know.
    """
    graph = record.graph
    allocated = await ports.images.allocated_bytes(list(graph.images))
    steps = graph.collect(allocated, await ports.qemu.open_images())
    gone = list(unneeded)
    # Whether the images are ahead of the committed state in a way that it has to know of.
    is_ahead = True
    try:
        with connected(record.name, "merging"):
            for number, step in enumerate(steps):
                if isinstance(step, Merge) or (isinstance(step, DropTag) and not _is_drop(steps, number - 1)):
                    await _settle(ports, replace(record, graph=graph), gone)
                    is_ahead = False
                if isinstance(step, Merge):
                    await ports.store.step(f"{step.direction} {step.overlay}")
                    await _merge(ports, graph, step, report)
                    is_ahead = True
                    gone.append(step.removed)
                elif isinstance(step, DropTag):
                    await _drop(ports, step, report)
                else:
                    gone.append(step.path)
                graph = graph.apply(step)
            await _settle(ports, replace(record, graph=graph), gone)
    except MonitorLost:
        raise
    except SnapdError:
        if not is_ahead:
            await ports.store.end()
        raise


def _is_drop(steps: Sequence[Collection], number: int) -> bool:
    """Whether what comes before a step only drops a tag, which leaves the committed state true enough to go on."""
    return number >= 0 and isinstance(steps[number], DropTag)


async def _drop(ports: Ports, step: DropTag, report: Report) -> None:
    report(f"deleting internal snapshot {step.tag}", 0, 0)
    if step.image in await ports.qemu.open_images():
        await ports.qemu.close_unused([step.image])
    if step.image in await ports.qemu.open_images():
        await ports.qemu.drop_tag(step.image, step.tag)
    else:
        await ports.images.drop_tag(step.image, step.tag)


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
