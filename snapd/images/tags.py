# SPDX-License-Identifier: MIT
"""Internal snapshots of images that no QEMU has open: make, apply and drop one, by its name.

Not here: to copy what one holds into another image (``tag_copy``). Invariants:

- A name stands for one internal snapshot or nothing is done: QEMU makes a second one of the same name without a word, and
  what is to be applied it looks up by id first.
- What was changed is durable.
- A change is not cut short: cancelled in its midst, it comes to its end before that is passed on.

Source: QEMU block/qcow2-snapshot.c, find_snapshot_by_id_or_name.
"""

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images.files import finish, sync_file
from snapd.images.header import ImageInfo
from snapd.images.qemu_img import QemuImg

HOLDER_FORMAT = "qcow2"
LONGEST_TAG_BYTES = 255
"""QEMU cuts off what is longer."""


async def make_tag(tool: QemuImg, path: str, tag: str) -> None:
    """Make an internal snapshot of what the image holds now.

    Raises: ImageInUse when there is one of that name; ImageToolFailed; the image is as before.
    Cancellation: it has been made, unless that failed.
    """
    size_bytes = len(tag.encode())
    if not 0 < size_bytes <= LONGEST_TAG_BYTES:
        reason = f"its name takes {size_bytes} bytes and must take 1 to {LONGEST_TAG_BYTES}"
        raise ImageToolFailed(_doing("making", tag, path), reason)
    if tag in (await tool.info(path, image_format=HOLDER_FORMAT)).tags:
        raise ImageInUse(path, f"has an internal snapshot {tag!r} already; choose another name or delete that one first")
    await finish(_change(tool, "-c", path, tag))


async def apply_tag(tool: QemuImg, path: str, tag: str) -> None:
    """Make size and content of the image those of its internal snapshot, which stays.

    Raises: ImageToolFailed when there is none of that name, or when QEMU could take another one for it.
    Cancellation: it has been applied, unless that failed.
    """
    info = await tool.info(path, image_format=HOLDER_FORMAT)
    doing = _doing("applying", tag, path)
    require_one(info, tag, doing)
    if any(each.id == tag != each.name for each in info.snapshots):
        raise ImageToolFailed(doing, "another one has that name as its id, and QEMU would take that one")
    await finish(_change(tool, "-a", path, tag))


async def drop_tag(tool: QemuImg, path: str, tag: str) -> None:
    """Delete an internal snapshot; one that is not there is passed over.

    Raises: ImageToolFailed when there are two of that name.
    Cancellation: it has been deleted, unless that failed.
    """
    info = await tool.info(path, image_format=HOLDER_FORMAT)
    if tag in info.tags:
        require_one(info, tag, _doing("deleting", tag, path))
        await finish(_change(tool, "-d", path, tag))


def require_one(info: ImageInfo, tag: str, doing: str) -> None:
    """Raise ImageToolFailed of ``doing`` unless exactly one internal snapshot has that name."""
    count = info.tags.count(tag)
    if count != 1:
        raise ImageToolFailed(doing, f"{count} have that name" if count else "there is none of that name")


async def _change(tool: QemuImg, option: str, path: str, tag: str) -> None:
    await tool.run("snapshot", "-q", option, tag, path, about=path, timeout_s=tool.tables_timeout_s)
    await sync_file(path)


def _doing(what: str, tag: str, path: str) -> str:
    return f"{what} internal snapshot {tag!r} in {path}"
