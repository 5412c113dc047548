# SPDX-License-Identifier: MIT
"""Collecting: unlink and merge images until none is left that nothing needs.

Not here: what may be merged or unlinked (``model.images``). A merged image is committed to the state before the other file is
unlinked, so that at every instant each pin in the state names a file that has its content.
"""

from collections.abc import Sequence
from dataclasses import replace

from snapd.engine.ports import Ports, Report
from snapd.errors import MonitorLost, SnapdError
from snapd.model.images import Direction, ImageGraph, Merge, Unlink


async def collect(ports: Ports, report: Report) -> None:
    """Bring the committed graph to rest.

    Effects: for each step, in order: images changed, state committed, file unlinked. An error ends it between two steps, with a
    graph that is true; the next collection goes on from there.
    """
    graph = ports.store.committed.graph
    steps = graph.collect(await ports.images.allocated_bytes(list(graph.images)))
    unlinked = [step.path for step in steps if isinstance(step, Unlink)]
    for step in steps:
        if isinstance(step, Merge):
            await ports.store.step(f"{step.direction} {step.overlay}")
            await _merge(ports, graph, step, report)
        graph = graph.apply(step)
        if isinstance(step, Merge):
            await _commit(ports, graph)
            await _remove(ports, [step.removed])
    if unlinked:
        await _commit(ports, graph)
        await _remove(ports, unlinked)


async def collect_within_intent(ports: Ports, report: Report) -> None:
    """Collect, and on a failure after which the state is still true remove the intent, so that it does not block the domain.

    Raises: what ``collect`` raises; after MonitorLost the intent stays, because QEMU may go on with the merge.
    """
    try:
        await collect(ports, report)
    except MonitorLost:
        raise
    except SnapdError:
        await ports.store.end()
        raise


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


async def _commit(ports: Ports, graph: ImageGraph) -> None:
    await ports.store.commit(replace(ports.store.committed, graph=graph))


async def _remove(ports: Ports, paths: Sequence[str]) -> None:
    await ports.qemu.close_unused(paths)
    for path in paths:
        await ports.images.unlink(path)
