# SPDX-License-Identifier: MIT
"""Marks on the disks of a scene: one byte that fills a block of its own, written through QEMU or into the image.

It knows nothing of pytest. Marks are read from outside, through the images. The guest counts in the first sectors of a disk and
never touches the marks.
"""

from tests.lab.images import content, write
from tests.lab.scene import Scene

MARK_BYTES = 1 << 16
MARK_AT = 8 << 16


async def mark(stage: Scene, target: str, value: int) -> None:
    """Write the mark of a disk, through QEMU where that runs."""
    disk = await _disk(stage, target)
    command = f"write -q -P {value} {MARK_AT} {MARK_BYTES}"
    if disk["Device"]:
        printed = stage.qemu.control.hmp(f'qemu-io -d {disk["Device"]} "{command}"')
        assert not printed, printed
    else:
        write(disk["Image"], disk["Format"], command)


async def mark_all(stage: Scene, value: int) -> None:
    for disk in (await stage.properties())["Disks"]:
        await mark(stage, disk["Target"], value)


async def present_mark(stage: Scene, target: str) -> int:
    """Return the mark that a disk has now."""
    disk = await _disk(stage, target)
    if disk["Device"]:
        printed = stage.qemu.control.hmp(f"qemu-io -d {disk['Device']} flush")
        assert not printed, printed
    return _mark_in(content(disk["Image"], disk["Format"]))


async def present_marks(stage: Scene) -> dict[str, int]:
    return {disk["Target"]: await present_mark(stage, disk["Target"]) for disk in (await stage.properties())["Disks"]}


async def kept_marks(stage: Scene, snapshot: str) -> dict[str, int]:
    """Return the mark that a snapshot keeps of each of its disks."""
    return {
        disk["Target"]: _mark_in(content(disk["Image"], disk["Format"], disk["Tag"]))
        for disk in (await stage.properties(snapshot))["Disks"]
    }


async def _disk(stage: Scene, target: str) -> dict[str, str]:
    return next(disk for disk in (await stage.properties())["Disks"] if disk["Target"] == target)


def _mark_in(data: bytes) -> int:
    found = set(data[MARK_AT : MARK_AT + MARK_BYTES])
    assert len(found) == 1, f"there is more than one mark: {sorted(found)}"
    return found.pop()
