# SPDX-License-Identifier: MIT
"""Merges on a running QEMU: what every image of the chain reads like afterwards, and what is left when one ends early."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from snapd.errors import MonitorLost, QemuFailed
from snapd.model.images import Direction, Merge
from snapd.qmp.blocks import NODE_PREFIX, close_unused, query_disks, query_open
from snapd.qmp.link import Link
from snapd.qmp.merges import merge
from tests.contract.conftest import StartQemu
from tests.contract.disks import assert_counts, cover_now, only_disk, overlay_for
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.images import backing_of, check_image, digest, make_overlay, write_pattern
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
async def merged(qemu: QemuProcess, *merges: Merge) -> AsyncIterator[Link]:
    """Carry the merges out one after the other and close what they leave, as the engine does."""
    async with connected(qemu.monitor) as link:
        for each in merges:
            progress = Progress()
            await merge(link, each, JOB, progress)
            await close_unused(link, [each.removed], NODE_PREFIX)
            assert progress.seen
            assert not qemu.control.execute("query-jobs")
        yield link


@pytest.mark.parametrize("via", ["drive", "blockdev"])
@pytest.mark.parametrize("length", [2, 3])
async def test_active_commit(start_qemu: StartQemu, tmp_path: Path, via: str, length: int) -> None:
    chain = Chain(tmp_path, length)
    qemu = start_qemu(chain.disk(via), paused=True)
    async with merged(qemu, chain.commit(length - 1)) as link:
        disk = await only_disk(link)
        assert disk.chain == tuple(str(path) for path in reversed(chain.paths[:-1]))
        assert disk.writable
    qemu.stop()
    assert digest(chain.paths[-2], chain.format(chain.paths[-2])) == chain.digests[-1]
    for below in range(length - 2):
        assert digest(chain.paths[below], chain.format(chain.paths[below])) == chain.digests[below]


async def test_active_commits_down_to_the_first_image(start_qemu: StartQemu, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 4)
    qemu = start_qemu(chain.disk(), paused=True)
    async with merged(qemu, *(chain.commit(number) for number in (3, 2, 1))) as link:
        assert (await only_disk(link)).chain == (str(chain.paths[0]),)
    qemu.stop()
    assert digest(chain.paths[0], "raw") == chain.digests[-1]


async def test_intermediate_commit(start_qemu: StartQemu, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 4)
    base, low, middle, top = chain.paths
    qemu = start_qemu(chain.disk(), paused=True)
    async with merged(qemu, chain.commit(2)) as link:
        assert (await only_disk(link)).chain == (str(top), str(low), str(base))
        assert str(middle) not in await query_open(link)
    assert backing_of(top) == (str(low), "qcow2")
    qemu.stop()
    assert [digest(path, chain.format(path)) for path in (base, low, top)] == [chain.digests[each] for each in (0, 2, 3)]
    for path in (low, top):
        check_image(path)


async def test_intermediate_commit_into_raw(start_qemu: StartQemu, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 3)
    qemu = start_qemu(chain.disk(), paused=True)
    async with merged(qemu, chain.commit(1)) as link:
        assert (await only_disk(link)).chain == (str(chain.paths[2]), str(chain.paths[0]))
    assert backing_of(chain.paths[2]) == (str(chain.paths[0]), "raw")
    qemu.stop()
    assert digest(chain.paths[0], "raw") == chain.digests[1]
    assert digest(chain.paths[2], "qcow2") == chain.digests[2]


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_stream(start_qemu: StartQemu, tmp_path: Path, number: int) -> None:
    """Into the active image and into one below it, with something further below and with nothing."""
    chain = Chain(tmp_path, 4)
    qemu = start_qemu(chain.disk(), paused=True)
    async with merged(qemu, chain.stream(number)) as link:
        left = [path for path in chain.paths if path != chain.paths[number - 1]]
        assert (await only_disk(link)).chain == tuple(
            str(path) for path in reversed(left if number > 1 else left[left.index(chain.paths[1]) :])
        )
        assert str(chain.paths[number - 1]) not in await query_open(link)
    below = chain.paths[number - 2] if number > 1 else None
    assert backing_of(chain.paths[number]) == ((str(below), chain.format(below)) if below else ("", ""))
    qemu.stop()
    for path, expected in zip(chain.paths, chain.digests, strict=True):
        assert digest(path, chain.format(path)) == expected
        if path.suffix == ".qcow2":
            check_image(path)


@pytest.mark.parametrize("bus", ["virtio", "virtio-iothread", "scsi", "ide"])
async def test_merges_while_the_guest_writes(start_qemu: StartQemu, tmp_path: Path, bus: str) -> None:
    """No kind of merge loses a write, and none ends QEMU."""
    base = make_disk(tmp_path / "base.raw", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(base, bus=bus))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        for number in range(3):
            low, middle, high = (tmp_path / f"{name}{number}.qcow2" for name in ("low", "middle", "high"))
            for path in (low, middle, high):
                await cover_now(link, overlay_for(await only_disk(link), path))
                qemu.wait_counting(3)
            for each in (
                Merge(Direction.COMMIT, str(middle), str(low), str(base), active=False, repoint=(str(high),)),
                Merge(Direction.STREAM, str(high), str(low), str(base), active=True),
                Merge(Direction.COMMIT, str(high), str(base), None, active=True),
            ):
                await merge(link, each, JOB, Progress())
                await close_unused(link, [each.removed], NODE_PREFIX)
                qemu.wait_counting(3)
        assert await only_disk(link) == before
        await link.execute("stop")
        assert_counts(str(base), "raw", qemu.counter())


@pytest.mark.parametrize("running", [True, False])
async def test_cover_is_taken_back_by_a_commit(start_qemu: StartQemu, tmp_path: Path, running: bool) -> None:
    """What a checkpoint that failed leaves behind goes again, whether the guest has run on it or still stands."""
    base = make_disk(tmp_path / "base.raw", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(base))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        overlay = overlay_for(before, tmp_path / "overlay.qcow2")
        await link.execute("stop")
        await cover_now(link, overlay)
        if running:
            await link.execute("cont")
            qemu.wait_counting(20)
        taken_back = Merge(Direction.COMMIT, overlay.image.path, str(base), None, active=True)
        await merge(link, taken_back, JOB, Progress())
        await close_unused(link, [overlay.image.path], NODE_PREFIX)
        assert await only_disk(link) == before
        assert set(await query_open(link)) == {str(base)}
        await link.execute("cont")
        qemu.wait_counting(20)
        await link.execute("stop")
        assert_counts(str(base), "raw", qemu.counter())


async def test_merge_of_two_disks_touches_one(start_qemu: StartQemu, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    chains = [Chain(tmp_path / name, 3) for name in ("a", "b")]
    qemu = start_qemu(*(chain.disk() for chain in chains), paused=True)
    async with merged(qemu, chains[1].commit(2)) as link:
        assert [len(disk.chain) for disk in await query_disks(link)] == [3, 2]
    qemu.stop()
    assert digest(chains[0].paths[-1], "qcow2") == chains[0].digests[-1]


async def test_what_is_no_chain_is_refused(start_qemu: StartQemu, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 2)
    qemu = start_qemu(chain.disk(), paused=True)
    async with connected(qemu.monitor) as link:
        stranger = Merge(Direction.COMMIT, str(tmp_path / "stranger.qcow2"), str(chain.paths[0]), None, active=True)
        with pytest.raises(QemuFailed, match="no disk has"):
            await merge(link, stranger, JOB, Progress())
        assert not qemu.control.execute("query-jobs")


@pytest.mark.parametrize("direction", ["commit", "stream"])
async def test_job_that_fails(start_qemu: StartQemu, tmp_path: Path, direction: str) -> None:
    """The chain reads as before, and the merge can be done again."""
    chain = Chain(tmp_path, 3, layer_bytes=4 << 20)
    wanted = chain.commit(2) if direction == "commit" else chain.stream(2)
    qemu = start_qemu(chain.disk(), paused=True)
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        qemu.limit_files(1 << 20)
        with pytest.raises(QemuFailed, match=f"block-{direction}: File too large"):
            await merge(link, wanted, JOB, Progress())
        qemu.limit_files(-1)
        assert await only_disk(link) == before
        assert not qemu.control.execute("query-jobs")
        assert digest(chain.paths[-1], "qcow2") == chain.digests[-1]
        await merge(link, wanted, JOB, Progress())
        assert len((await only_disk(link)).chain) == 2
    qemu.stop()
    assert digest(wanted.kept, "qcow2") == chain.digests[-1]


def chain_of(path: Path) -> list[str]:
    """Return the images of a chain as their headers have it, top first."""
    found, image_format = [str(path)], "qcow2"
    while image_format == "qcow2":
        backing, image_format = backing_of(found[-1])
        found += [backing] if backing else []
    return found


@pytest.mark.parametrize("status", ["running", "ready", "pending", "concluded"])
@pytest.mark.parametrize("kind", ["active commit", "commit", "stream", "active stream"])
async def test_killed_during_a_merge(start_qemu: StartQemu, tmp_path: Path, kind: str, status: str) -> None:
    """The active image stays whole: begun again on the next QEMU, the merge ends with the same content."""
    chain = Chain(tmp_path, 4, layer_bytes=2 << 20)
    number = 3 if kind.startswith("active") else 2
    wanted = chain.stream(number) if kind.endswith("stream") else chain.commit(number)
    qemu = start_qemu(chain.disk(), paused=True)

    def kill(*_: int) -> None:
        jobs = qemu.control.execute("query-jobs")
        if jobs[0]["status"] in (status, "concluded"):
            qemu.stop()

    async with connected(qemu.monitor) as link:
        with pytest.raises(MonitorLost):
            await merge(link, wanted, JOB, kill)
    active = chain.paths[-1]
    check_image(active)
    assert digest(active, "qcow2") == chain.digests[-1]
    if wanted.removed in chain_of(active):
        qemu.start()
        async with merged(qemu, wanted) as link:
            active = Path((await only_disk(link)).image)
            qemu.stop()
    assert wanted.removed not in chain_of(active)
    assert digest(active, "qcow2") == chain.digests[-1]
