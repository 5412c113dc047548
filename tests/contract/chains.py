# SPDX-License-Identifier: MIT
"""Chains of images whose content is known, and merges in them carried out as the engine does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from snapd.model.images import Direction, Merge
from snapd.qmp.blocks import NODE_PREFIX, close_unused
from snapd.qmp.link import Link
from snapd.qmp.merges import merge
from tests.lab.fake_qemu.process import FakeProcess
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.images import digest, make_overlay, write_pattern
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk, QemuProcess

JOB = f"{NODE_PREFIX}job-1"
DISK_BYTES = 8 << 20


class Chain:
    """Images on each other, bottom first; each has written over a part of what is below it."""

    def __init__(self, directory: Path, length: int, layer_bytes: int = 1 << 20) -> None:
        size_bytes = DISK_BYTES + length * layer_bytes
        self.paths = [make_disk(directory / "image0.raw", "raw", size_bytes, COUNTS_ON_ONE)]
        for number in range(1, length):
            path = make_overlay(directory / f"image{number}.qcow2", self.paths[-1], self.format(self.paths[-1]))
            write_pattern(path, "qcow2", number, (number << 20) // 2, layer_bytes)
            self.paths.append(path)
        self.digests = [digest(path, self.format(path)) for path in self.paths]

    def format(self, path: Path) -> str:
        return "raw" if path.suffix == ".raw" else "qcow2"

    def disk(self, via: str = "drive") -> GuestDisk:
        return GuestDisk(self.paths[-1], self.format(self.paths[-1]), via=via)

    def commit(self, number: int) -> Merge:
        """Return the merge of image ``number`` into the one below it."""
        active = number == len(self.paths) - 1
        below = str(self.paths[number - 2]) if number > 1 else None
        above = () if active else (str(self.paths[number + 1]),)
        return Merge(Direction.COMMIT, str(self.paths[number]), str(self.paths[number - 1]), below, active, above)

    def stream(self, number: int) -> Merge:
        """Return the merge of the image below image ``number`` into that one."""
        below = str(self.paths[number - 2]) if number > 1 else None
        active = number == len(self.paths) - 1
        return Merge(Direction.STREAM, str(self.paths[number]), str(self.paths[number - 1]), below, active)


class Progress:
    """Takes note of progress and fails when it goes out of its bounds."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.seen.append((done, total))


@asynccontextmanager
async def merged(qemu: QemuProcess | FakeProcess, *merges: Merge) -> AsyncIterator[Link]:
    """Carry the merges out one after the other and close what they leave, as the engine does."""
    async with connected(qemu.monitor) as link:
        for each in merges:
            progress = Progress()
            await merge(link, each, JOB, progress)
            await close_unused(link, [each.removed], NODE_PREFIX)
            assert progress.seen
            assert not qemu.control.execute("query-jobs")
        yield link
