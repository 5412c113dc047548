# SPDX-License-Identifier: MIT
"""Internal snapshots in images that QEMU has open: deleting one, and parking a disk while another program applies one.

Not here: making them (``blocks.take``). A parked disk's device is on a placeholder, an empty node of the same size, so that the
node of its image can be closed. Invariants:

- when ``park`` returns, no node has the image open;
- when it fails, the disk is on its image again, or the error says that it is not;
- ``unpark`` goes on from whatever is found, also after either of them was interrupted.
"""

from snapd.errors import QemuFailed, SnapdError, UndoFailed
from snapd.model.domain import Disk
from snapd.model.plan import Parking
from snapd.qmp.blocks import TAGS_TIMEOUT_S, BlockView, close_nodes, open_for, query_blocks, swap
from snapd.qmp.link import Link

_DELETE = "blockdev-snapshot-delete-internal-sync"


async def drop_tag(link: Link, image: str, tag: str) -> None:
    """Delete an internal snapshot by its name in the active image of a disk; one that is not there is passed over.

    Raises: QemuFailed, also where ``image`` is not the active image of a disk that the guest may write to.
    """
    view = await query_blocks(link)
    disk = next((disk for disk in view.disks if disk.image == image and disk.writable), None)
    if disk is None:
        raise QemuFailed(link.domain, _DELETE, f"{image} is not the image that a disk writes to")
    if tag in disk.tags:
        await link.execute(_DELETE, TAGS_TIMEOUT_S, device=disk.node, name=tag)


async def park(link: Link, parking: Parking) -> None:
    """Put the disk of the stopped guest on a placeholder and close its image; does nothing where it is on another image.

    Raises: QemuFailed when something else has the image open; the disk is on it again then. UndoFailed when it is not.
    """
    placeholder = _placeholder(parking)
    if not parking.is_active:
        return
    view = await query_blocks(link)
    now = _find(link, view, parking)
    if now.node == placeholder:
        return
    try:
        if placeholder not in view.files:
            size = parking.disk.virtual_size_bytes
            await link.execute("blockdev-add", driver="null-co", node_name=placeholder, size=size, read_zeroes=True)
        await swap(link, now, placeholder)
        await _close_image(link, now.image)
    except QemuFailed as error:
        await _put_back(link, parking, now, error)
        raise


async def unpark(link: Link, parking: Parking) -> None:
    """Open the parking's image for the disk, put the disk on it, and close the placeholder.

    Effects: where the disk is on it, only a placeholder that is left over is closed. A backing image that has a node of its own
    which no disk uses, as those of ``-blockdev`` have, is not opened again.
    """
    view = await query_blocks(link)
    now = _find(link, view, parking)
    if not _is_back(parking, now):
        if parking.node not in view.files:
            backing = _spare_node(view, parking.image.backing)
            await open_for(link, parking.disk, parking.node, parking.image, **backing)
        try:
            await swap(link, now, parking.node)
        except QemuFailed:
            await close_nodes(link, [parking.node])
            raise
    await close_nodes(link, [_placeholder(parking)])


def _placeholder(parking: Parking) -> str:
    return f"{parking.node}-parked"


def _is_back(parking: Parking, now: Disk) -> bool:
    """Tell whether the disk is on the parking's image; that it never left may have another name than the path we know."""
    return now.node == parking.node or (parking.is_active and now.node != _placeholder(parking))


def _find(link: Link, view: BlockView, parking: Parking) -> Disk:
    """Return the disk as it is now. Raises: QemuFailed when the guest has it no more."""
    device = parking.disk.device
    found = next((disk for disk in view.disks if disk.device == device), None)
    if found is None:
        raise QemuFailed(link.domain, "query-block", f"disk {parking.disk.target} is gone")
    return found


async def _close_image(link: Link, path: str) -> None:
    """Close every node that has ``path`` open. Raises: QemuFailed naming those that cannot be closed."""
    view = await query_blocks(link)
    await close_nodes(link, [name for name, file in view.files.items() if file == path and not name.startswith("#")])
    if left := [name for name, file in (await query_blocks(link)).files.items() if file == path]:
        raise QemuFailed(link.domain, "blockdev-del", f"{path} stays open as {', '.join(left)}")


async def _put_back(link: Link, parking: Parking, before: Disk, cause: QemuFailed) -> None:
    """Bring the disk back to its image after a failure. Raises: UndoFailed."""
    try:
        if before.node in (view := await query_blocks(link)).files:
            if _find(link, view, parking).node != before.node:
                await swap(link, before, before.node)
            await close_nodes(link, [_placeholder(parking)])
        else:
            await unpark(link, parking)
    except SnapdError as error:
        left = f"disk {before.target} is without its image ({error.sentence.rstrip('.')})"
        raise UndoFailed(link.domain, cause.sentence, [], [left]) from cause


def _spare_node(view: BlockView, path: str | None) -> dict[str, str | None]:
    """Return the option that names the backing node, if there is one to use again.

    One in the chain of another disk is left alone: the two may run in different threads.
    """
    used = {path for disk in view.disks for path in disk.chain}
    if path is None or path in used or path not in view.opened:
        return {}
    node, _ = view.opened[path]
    return {} if node.startswith("#") else {"backing": node}
