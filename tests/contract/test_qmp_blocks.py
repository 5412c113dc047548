# SPDX-License-Identifier: MIT
"""Disks and block nodes of a real QEMU, on every bus and however QEMU was told of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from snapd.errors import QemuFailed
from snapd.model.domain import Disk
from snapd.model.images import Image, Origin
from snapd.model.plan import Opening
from snapd.qmp.blocks import (
    NODE_PREFIX,
    close_nodes,
    close_unused,
    hold,
    open_image,
    open_overlay,
    query_disks,
    query_formats,
    query_open,
    swap,
    take,
)
from tests.contract.conftest import StartQemu
from tests.contract.disks import assert_counts, cover_now, only_disk, overlay_for
from tests.lab.guest import COUNTS_ON_ONE, boot_sector, disk_counter, make_disk
from tests.lab.images import backing_of, check_image, make_overlay
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk, QemuProcess

ARRANGEMENTS = [
    ("virtio", "drive", "", "drive0"),
    ("virtio", "drive", "disk-a", "disk-a"),
    ("virtio", "blockdev", "", "device[0]"),
    ("virtio", "blockdev", "disk-a", "disk-a"),
    ("virtio-iothread", "drive", "", "drive0"),
    ("virtio-iothread", "blockdev", "disk-a", "disk-a"),
    ("scsi", "drive", "", "drive0"),
    ("scsi", "blockdev", "", "device[1]"),
    ("ide", "drive", "disk-a", "disk-a"),
    ("ide", "blockdev", "", "device[0]"),
]
"""Bus, how QEMU is told of the disk, the device's id, and what the target must be."""


@pytest.mark.parametrize(("bus", "via", "name", "target"), ARRANGEMENTS)
async def test_cover_and_swap_on_every_bus(
    start_qemu: StartQemu, tmp_path: Path, bus: str, via: str, name: str, target: str
) -> None:
    """A covered disk is written no more; a swapped one shows the other content; and all of it works again afterwards."""
    base = make_disk(tmp_path / "base.raw", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(base, "raw", bus, via, name))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        disk = await only_disk(link)
        assert replace(disk, device="", node="") == Disk(
            target=target,
            device="",
            node="",
            image=str(base),
            format="raw",
            chain=(str(base),),
            virtual_size_bytes=1 << 20,
            writable=True,
            no_internal="its format raw has no internal snapshots",
        )
        for number in range(2):
            before = await only_disk(link)
            covering = overlay_for(before, tmp_path / f"covering{number}.qcow2")
            await link.execute("stop")
            await cover_now(link, covering)
            covered_at = qemu.counter()
            assert_counts(before.image, before.format, covered_at)
            await link.execute("cont")
            qemu.wait_counting(5)

            swapped = overlay_for(before, tmp_path / f"swapped{number}.qcow2", before.image, before.format)
            await link.execute("stop")
            await open_overlay(link, swapped, (await query_open(link))[before.image][0])
            await swap(link, await only_disk(link), swapped.node)
            assert_counts(before.image, before.format, covered_at)
            assert_counts(covering.image.path, "qcow2", qemu.counter())
            await close_unused(link, [covering.image.path], NODE_PREFIX)
            after = await only_disk(link)
            assert (after.target, after.device) == (target, disk.device)
            assert after.chain == (swapped.image.path, *before.chain)
            assert set(await query_open(link)) == set(after.chain)
            await link.execute("system_reset")
            await link.execute("cont")
            qemu.wait_counting(5)
        await link.execute("stop")
        assert_counts(after.image, "qcow2", qemu.counter())
    qemu.stop()
    for number in range(2):
        check_image(tmp_path / f"covering{number}.qcow2")
        check_image(tmp_path / f"swapped{number}.qcow2")


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_chain_of_three(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    base = make_disk(tmp_path / "base.raw")
    middle = make_overlay(tmp_path / "middle.qcow2", "base.raw", "raw")  # as others write it: relative to the overlay
    top = make_overlay(tmp_path / "top.qcow2", middle, "qcow2")
    qemu = start_qemu(GuestDisk(top, "qcow2", via=via), paused=True)
    async with connected(qemu.monitor) as link:
        disk = await only_disk(link)
        assert disk.chain == (str(top), str(middle), str(base))
        assert disk.eligible
        assert await query_formats(link) == {str(top): "qcow2", str(middle): "qcow2", str(base): "raw"}
        opened = await query_open(link)
        assert {path: image_format for path, (_, image_format) in opened.items()} == await query_formats(link)
        assert opened[str(top)][0] == disk.node


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_modes_of_the_disk_go_on_in_the_overlay(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    modes = {"drive": "cache.direct=off,cache.no-flush=on,detect-zeroes=on", "blockdev": "cache.no-flush=on,detect-zeroes=on"}
    disk = GuestDisk(make_disk(tmp_path / "disk.qcow2", "qcow2"), "qcow2", via=via, options=modes[via])
    qemu = start_qemu(disk, paused=True)
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        await cover_now(link, overlay_for(before, tmp_path / "overlay.qcow2"))
        after = await only_disk(link)
    for each in (before, after):
        assert (each.cache_direct, each.cache_no_flush, each.detect_zeroes) == (False, True, "on")


async def test_all_disks_are_covered_at_once(start_qemu: StartQemu, tmp_path: Path) -> None:
    """Taken while the guest writes as fast as it can, the disks still agree to within one."""
    qemu = start_qemu(
        GuestDisk(make_disk(tmp_path / "a.raw"), "raw", "virtio"),
        GuestDisk(make_disk(tmp_path / "b.qcow2", "qcow2"), "qcow2", "ide", "blockdev"),
    )
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        for number in range(5):
            disks = await query_disks(link)
            await cover_now(link, *(overlay_for(each, tmp_path / f"{each.target}.{number}.qcow2") for each in disks))
            first, second = (disk_counter(each.image, each.format) for each in disks)
            assert first - second in (0, 1)
            qemu.wait_counting(5)
        assert [len(each.chain) for each in await query_disks(link)] == [6, 6]


async def test_failed_transaction_leaves_all_as_before(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(
        GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2"),
        GuestDisk(make_disk(tmp_path / "b.qcow2", "qcow2"), "qcow2"),
    )
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        before = await query_disks(link)
        good, used = (overlay_for(each, tmp_path / f"{each.target}.over.qcow2") for each in before)
        for each in (good, used):
            await open_overlay(link, each, "")
        twice = replace(used, node=good.node)
        with pytest.raises(QemuFailed):
            await take(link, [good, twice], [])
        assert await query_disks(link) == before
        qemu.wait_counting(5)
        await close_nodes(link, [good.node, used.node])
        assert set(await query_open(link)) == {each.image for each in before}
        await cover_now(link, *(replace(each, node=f"{each.node}-again") for each in (good, used)))
        assert [each.chain[0] for each in await query_disks(link)] == [good.image.path, used.image.path]
    qemu.stop()
    for overlay in (good, used):
        assert backing_of(overlay.image.path) == (overlay.image.backing, "qcow2")


async def test_covering_nothing_asks_nothing(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        await take(link, [], [])
        assert await query_disks(link) == ()


async def test_close_nodes_takes_any_order(start_qemu: StartQemu, tmp_path: Path) -> None:
    base = make_disk(tmp_path / "base.raw")
    middle = make_overlay(tmp_path / "middle.qcow2", base, "raw")
    top = make_overlay(tmp_path / "top.qcow2", middle, "qcow2")
    qemu = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        await open_image(link, Opening("n0", Image(str(base), "raw", None, Origin.DEFINED), ""))
        await open_image(link, Opening("n1", Image(str(middle), "qcow2", str(base), Origin.CREATED), "n0"))
        await open_image(link, Opening("n2", Image(str(top), "qcow2", str(middle), Origin.CREATED), "n1"))
        assert {path: node for path, (node, _) in (await query_open(link)).items()} == {
            str(base): "n0",
            str(middle): "n1",
            str(top): "n2",
        }
        await close_nodes(link, ["n0", "nobody", "n1", "n2"])
        assert await query_open(link) == {}


async def test_closing_a_node_in_use_is_refused(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "disk.raw"), via="blockdev"), paused=True)
    async with connected(qemu.monitor) as link:
        with pytest.raises(QemuFailed, match="in use"):
            await close_nodes(link, ["node0", "nobody"])
        assert (await only_disk(link)).node == "node0"


async def test_close_unused_leaves_the_users_nodes(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(
        GuestDisk(make_disk(tmp_path / "disk.raw")),
        GuestDisk(make_disk(tmp_path / "theirs.raw"), via="blockdev", bus="none"),
        paused=True,
    )
    ours = make_disk(tmp_path / "ours.raw")
    async with connected(qemu.monitor) as link:
        await open_image(link, Opening(f"{NODE_PREFIX}left", Image(str(ours), "raw", None, Origin.CREATED), ""))
        await close_unused(link, [], NODE_PREFIX)
        assert set(await query_open(link)) == {str(tmp_path / "disk.raw"), str(tmp_path / "theirs.raw")}


async def test_open_image_is_only_read(start_qemu: StartQemu, tmp_path: Path) -> None:
    """A pinned image is opened for others to back on: its file stays as it is, and another may open it too."""
    pinned = make_disk(tmp_path / "pinned.raw", guest=COUNTS_ON_ONE)
    pinned.chmod(0o400)
    content = pinned.read_bytes()
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "disk.raw", guest=COUNTS_ON_ONE)))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        await open_image(link, Opening(f"{NODE_PREFIX}pinned", Image(str(pinned), "raw", None, Origin.CREATED), ""))
        disk = await only_disk(link)
        overlay = overlay_for(disk, tmp_path / "overlay.qcow2", str(pinned), "raw")
        await link.execute("stop")
        await open_overlay(link, overlay, f"{NODE_PREFIX}pinned")
        await swap(link, disk, overlay.node)
        await link.execute("system_reset")
        await link.execute("cont")
        qemu.wait_counting(20)
        await link.execute("stop")
    assert pinned.read_bytes() == content
    assert content.startswith(boot_sector(COUNTS_ON_ONE))
    assert_counts(overlay.image.path, "qcow2", qemu.counter())


async def test_missing_file_is_refused_with_its_name(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu: QemuProcess = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        with pytest.raises(QemuFailed, match=r"missing\.raw"):
            await open_image(link, Opening("n0", Image(str(tmp_path / "missing.raw"), "raw", None, Origin.CREATED), ""))


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_undone_swap_brings_the_disk_back(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    """A revert that fails puts the disk back on the node it had, also on one that QEMU named and that nothing else uses."""
    pinned = make_disk(tmp_path / "pinned.raw", guest=COUNTS_ON_ONE)
    active = make_overlay(tmp_path / "active.qcow2", pinned, "raw")
    qemu = start_qemu(GuestDisk(active, "qcow2", via=via))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        await link.execute("stop")
        before, opened = await only_disk(link), await query_open(link)
        new = overlay_for(before, tmp_path / "new.qcow2", str(pinned), "raw")
        await open_overlay(link, new, opened[str(pinned)][0])
        held = f"{NODE_PREFIX}held"
        await hold(link, before, held)
        await swap(link, before, new.node)
        assert_counts(new.image.path, "qcow2", 0)
        await swap(link, before, before.node)
        await close_nodes(link, [held, new.node])
        assert await only_disk(link) == before
        assert_counts(before.image, before.format, qemu.counter())
        await link.execute("cont")
        qemu.wait_counting(5)
        await cover_now(link, overlay_for(before, tmp_path / "next.qcow2"))
        qemu.wait_counting(5)


async def test_held_node_ends_when_it_is_let_go(start_qemu: StartQemu, tmp_path: Path) -> None:
    """After a revert that succeeds nothing keeps the image open that is active no more."""
    pinned = make_disk(tmp_path / "pinned.raw")
    active = make_overlay(tmp_path / "active.qcow2", pinned, "raw")
    qemu = start_qemu(GuestDisk(active, "qcow2"), paused=True)
    async with connected(qemu.monitor) as link:
        before = await only_disk(link)
        new = overlay_for(before, tmp_path / "new.qcow2", str(pinned), "raw")
        await open_overlay(link, new, (await query_open(link))[str(pinned)][0])
        await hold(link, before, f"{NODE_PREFIX}held")
        assert await only_disk(link) == before
        await swap(link, before, new.node)
        assert str(active) in await query_open(link)
        await close_nodes(link, [f"{NODE_PREFIX}held"])
        assert set(await query_open(link)) == {new.image.path, str(pinned)}


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_a_swap_to_the_node_that_it_is_on_does_nothing(start_qemu: StartQemu, tmp_path: Path, via: str) -> None:
    """QEMU would abort; what undoes a swap that was refused comes here."""
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "a.raw", guest=COUNTS_ON_ONE), via=via))
    async with connected(qemu.monitor) as link:
        disk = await only_disk(link)
        with pytest.raises(QemuFailed):
            await swap(link, disk, "no-such-node")
        await swap(link, disk, disk.node)
        assert await only_disk(link) == disk
    qemu.wait_counting()
