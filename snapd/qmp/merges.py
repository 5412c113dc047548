# SPDX-License-Identifier: MIT
"""Merges on a running domain: ``block-commit`` and ``block-stream`` by node name.

Not here: which merges are allowed (``model.images``).
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial

from snapd.errors import MonitorLost, QemuFailed
from snapd.model.domain import Disk
from snapd.model.images import Direction, Merge
from snapd.qmp.blocks import chain_nodes, flush, query_blocks
from snapd.qmp.commands import query_status
from snapd.qmp.jobs import Progress, follow
from snapd.qmp.link import Link


async def merge(link: Link, merge: Merge, job: str, progress: Progress) -> None:
    """Merge two images of a disk's chain; what is kept is durable when this returns.

    Effects: a guest that runs is stopped for the moment in which the active image changes.
    Raises: QemuFailed; both images read as before. MonitorLost; the job may go on, or wait for its ``job-finalize``.
    """
    view = await query_blocks(link)
    disk = next((disk for disk in view.disks if merge.overlay in disk.chain), None)
    if disk is None or merge.backing not in view.opened:
        raise QemuFailed(
            link.domain, f"block-{merge.direction}", f"no disk has {merge.overlay} on {merge.backing} in its chain"
        )
    nodes = await chain_nodes(link, view, disk)
    if merge.direction is Direction.STREAM:
        await _stream(link, merge, nodes, job, progress)
    elif disk.image == merge.overlay:
        await _commit_active(link, merge, disk, nodes, job, progress)
    else:
        await _commit(link, merge, disk, nodes, job, progress)


async def _stream(link: Link, merge: Merge, nodes: Mapping[str, str], job: str, progress: Progress) -> None:
    await link.execute(
        "block-stream",
        job_id=job,
        device=nodes[merge.overlay],
        base_node=nodes[merge.below] if merge.below else None,
        backing_file=merge.below,
        auto_dismiss=False,
        auto_finalize=False,
    )
    await follow(link, job, "block-stream", progress, {"pending": partial(_finalize, link, job, nodes[merge.overlay])})


async def _commit(link: Link, merge: Merge, disk: Disk, nodes: Mapping[str, str], job: str, progress: Progress) -> None:
    await link.execute(
        "block-commit",
        job_id=job,
        device=disk.node,
        top_node=nodes[merge.overlay],
        base_node=nodes[merge.backing],
        backing_file=merge.backing,
        auto_dismiss=False,
        auto_finalize=False,
    )
    await follow(link, job, "block-commit", progress, {"pending": partial(_finalize, link, job, nodes[merge.backing])})


async def _finalize(link: Link, job: str, node: str) -> None:
    """Let a job that has copied all rewrite the header of the image above, once what it has copied to ``node`` is durable.

    QEMU (7.2 and 10.0) writes the header at once and the tables of the copy at the guest's next flush: killed in between, it
    would leave an image that goes past the only one that has the content.
    """
    await flush(link, node)
    await link.execute("job-finalize", id=job)


async def _commit_active(link: Link, merge: Merge, disk: Disk, nodes: Mapping[str, str], job: str, progress: Progress) -> None:
    await link.execute(
        "block-commit",
        job_id=job,
        device=disk.node,
        top_node=nodes[merge.overlay],
        base_node=nodes[merge.backing],
        auto_dismiss=False,
    )
    async with contextlib.AsyncExitStack() as until_durable:

        async def complete() -> None:
            # QEMU 7.2 aborts on nearly every try when the guest writes through IDE at that moment.
            await until_durable.enter_async_context(_stopped(link))
            await link.execute("job-complete", id=job)

        await follow(link, job, "block-commit", progress, {"ready": complete})
        # What the guest has flushed into the overlay is only in the cache of the other.
        await flush(link, nodes[merge.backing])


@contextlib.asynccontextmanager
async def _stopped(link: Link) -> AsyncIterator[None]:
    """Keep the guest stopped, if it runs, while the block lasts."""
    if not (await query_status(link)).running:
        yield
        return
    await link.execute("stop")
    is_lost = False
    try:
        yield
    except MonitorLost:
        is_lost = True
        raise
    finally:
        if not is_lost:
            await link.execute("cont")
