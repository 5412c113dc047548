# SPDX-License-Identifier: MIT
"""Merges on a running domain: ``block-commit`` and ``block-stream`` by node name.

Not here: which merges are allowed (``model.images``).
"""

from snapd.errors import QemuFailed
from snapd.model.images import Direction, Merge
from snapd.qmp.blocks import query_blocks
from snapd.qmp.jobs import Progress, follow
from snapd.qmp.link import Link


async def merge(link: Link, merge: Merge, job: str, progress: Progress) -> None:
    """Merge two images of a disk's chain.

    Raises: QemuFailed; both images read as before. MonitorLost; the job may go on.
    """
    view = await query_blocks(link)
    opened = view.opened
    disk = next((disk for disk in view.disks if merge.overlay in disk.chain), None)
    if disk is None or merge.backing not in opened:
        raise QemuFailed(
            link.domain, f"block-{merge.direction}", f"no disk has {merge.overlay} on {merge.backing} in its chain"
        )
    if merge.direction is Direction.COMMIT:
        active = disk.image == merge.overlay
        await link.execute(
            "block-commit",
            job_id=job,
            device=disk.node,
            top_node=opened[merge.overlay][0],
            base_node=opened[merge.backing][0],
            backing_file=None if active else merge.backing,
            auto_dismiss=False,
        )
        await follow(link, job, "block-commit", progress, complete_when_ready=active)
    else:
        await link.execute(
            "block-stream",
            job_id=job,
            device=opened[merge.overlay][0],
            base_node=opened[merge.below][0] if merge.below else None,
            backing_file=merge.below,
            auto_dismiss=False,
        )
        await follow(link, job, "block-stream", progress)
