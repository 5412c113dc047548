# SPDX-License-Identifier: MIT
"""Merges on a real QEMU whose guest writes, or that ends early: no write is lost, and what is left can be merged again."""

from pathlib import Path

import pytest

from snapd.errors import MonitorLost, QemuFailed
from snapd.model.images import Direction, Merge
from snapd.qmp.blocks import NODE_PREFIX, close_unused, query_open
from snapd.qmp.merges import merge
from tests.contract.chains import JOB, Chain, Progress, merged
from tests.contract.conftest import StartQemu
from tests.contract.disks import assert_counts, cover_now, only_disk, overlay_for
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.images import backing_of, check_image, digest
from tests.lab.linked import Down, Up, connected, linked
from tests.lab.qemu import GuestDisk


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

    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        with pytest.raises(MonitorLost):
            await merge(kept.link, wanted, JOB, kill)
        assert isinstance(await kept.next_told(), Down)
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
