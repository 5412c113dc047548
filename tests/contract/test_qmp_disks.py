# SPDX-License-Identifier: MIT
"""What a real QEMU shows of a disk: why it cannot take part, what its image is like, and the modes that QMP does not tell."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from snapd.errors import QemuFailed
from snapd.model.domain import DomainState
from snapd.qmp.blocks import open_overlay, query_disks
from snapd.qmp.qemu import Qemu
from tests.contract.conftest import StartQemu
from tests.contract.disks import cover_now, only_disk, overlay_for, qemu_img
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.images import content, make_tag
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk

NO_INTERNAL = "its format raw has no internal snapshots"


async def test_disks_that_cannot_take_part(start_qemu: StartQemu, tmp_path: Path) -> None:
    def image(name: str, image_format: str = "raw") -> Path:
        return make_disk(tmp_path / name, image_format)

    qemu = start_qemu(
        GuestDisk(image("good.qcow2", "qcow2"), "qcow2", id="good"),
        GuestDisk(bus="cdrom", id="empty"),
        GuestDisk(image("medium.iso"), bus="cdrom", id="medium", options="readonly=on"),
        GuestDisk(image("fixed.raw"), id="fixed", options="readonly=on"),
        GuestDisk(image("vmdk", "vmdk"), "vmdk", id="vmdk"),
        GuestDisk(image("part.raw"), "raw", via="blockdev", bus="none"),
        GuestDisk(image("unused.raw"), bus="none"),
        paused=True,
        extra=[
            *("-blockdev", "driver=raw,node-name=part,file=node5-file,offset=4096,size=8192"),
            *("-device", "virtio-blk-pci,drive=part,id=part"),
        ],
    )
    async with connected(qemu.monitor) as link:
        disks = {disk.target: disk for disk in await query_disks(link)}
    assert set(disks) == {"good", "empty", "medium", "fixed", "vmdk", "part"}
    assert disks["good"].eligible
    assert disks["empty"].obstacle == "it has no medium"
    assert disks["medium"].obstacle == "it is a CD-ROM or floppy"
    assert disks["fixed"].obstacle == "it is read-only"
    assert "vmdk" in disks["vmdk"].obstacle
    assert disks["part"].obstacle.startswith("it is not a whole file on this host")
    assert {name: disk.writable for name, disk in disks.items()} == {
        "good": True,
        "empty": False,
        "medium": False,
        "fixed": False,
        "vmdk": True,
        "part": True,
    }
    assert disks["medium"].image == str(tmp_path / "medium.iso")


async def test_relative_path_is_named_as_the_obstacle(start_qemu: StartQemu, tmp_path: Path) -> None:
    make_disk(tmp_path / "disk.qcow2", "qcow2")
    qemu = start_qemu(GuestDisk("disk.qcow2", "qcow2"), paused=True, cwd=tmp_path)
    async with connected(qemu.monitor) as link:
        assert "its path disk.qcow2 is relative" in (await only_disk(link)).obstacle


async def test_what_the_image_is_like(start_qemu: StartQemu, tmp_path: Path) -> None:
    fine = tmp_path / "fine.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=128k,extended_l2=on", str(fine), "1M")
    apart = tmp_path / "apart.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", str(apart), "1M")
    plain = make_disk(tmp_path / "plain.qcow2", "qcow2")
    for tag in ("one", "two"):
        make_tag(plain, tag)
    qemu = start_qemu(
        GuestDisk(fine, "qcow2", id="fine"),
        GuestDisk(plain, "qcow2", "ide", "blockdev", id="plain"),
        GuestDisk(make_disk(tmp_path / "a.raw"), id="raw"),
        GuestDisk(apart, "qcow2", id="apart"),
        paused=True,
    )
    async with connected(qemu.monitor) as link:
        disks = {disk.target: disk for disk in await query_disks(link)}
        assert {name: (disk.cluster_bytes, disk.extended_l2, disk.tags) for name, disk in disks.items()} == {
            "fine": (128 << 10, True, ()),
            "plain": (64 << 10, False, ("one", "two")),
            "raw": (0, False, ()),
            "apart": (64 << 10, False, ()),
        }
        assert all(disk.eligible and not disk.no_external and not disk.is_flash for disk in disks.values())
        assert {name: disk.no_internal for name, disk in disks.items()} == {
            "fine": "",
            "plain": "",
            "raw": NO_INTERNAL,
            "apart": f"its content lies in the data file {tmp_path / 'data'}, which has no internal snapshots",
        }


@pytest.mark.parametrize("via", ["drive", "blockdev"])
async def test_an_export_that_writes_is_an_obstacle_and_one_that_reads_is_none(
    start_qemu: StartQemu, tmp_path: Path, via: str
) -> None:
    disk = GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2", "scsi", via)
    qemu = start_qemu(disk, paused=True)
    qemu.control.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(qemu.directory / "nbd")}})
    async with connected(qemu.monitor) as link:
        node = (await only_disk(link)).node
        await link.execute("block-export-add", type="nbd", id="reads", node_name=node, writable=False)
        assert (await only_disk(link)).eligible


async def test_an_export_that_writes_to_what_a_device_shares_is_named(start_qemu: StartQemu, tmp_path: Path) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    options = ("-blockdev", f"driver=qcow2,node-name=n,file.driver=file,file.filename={image}")
    qemu = start_qemu(paused=True, extra=[*options, "-device", "virtio-blk-pci,drive=n,id=a,share-rw=on"])
    qemu.control.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(qemu.directory / "nbd")}})
    async with connected(qemu.monitor) as link:
        await link.execute("block-export-add", type="nbd", id="writes", node_name="n", name="x", writable=True)
        assert (await only_disk(link)).obstacle == "the nbd export writes writes to its node n; end that first"
        await link.execute("block-export-del", id="writes")
        while await link.execute("query-block-exports"):
            pass
        assert (await only_disk(link)).obstacle == ""


MODES = [
    ("drive", "aio=native,cache.direct=on,discard=unmap", ("native", "unmap", True)),
    ("drive", "aio=threads,discard=off", ("threads", "ignore", False)),
    ("drive", "", ("", "", False)),
    ("blockdev", "cache.direct=on,discard=ignore", ("", "ignore", True)),
]


@pytest.mark.parametrize(("via", "options", "expected"), MODES)
async def test_modes_that_qmp_does_not_show(
    start_qemu: StartQemu, tmp_path: Path, via: str, options: str, expected: tuple[str, str, bool]
) -> None:
    """They are known of each overlay again, so that they go on for as long as the QEMU lives."""
    image = make_disk(tmp_path / "a.qcow2", "qcow2", guest=COUNTS_ON_ONE)
    qemu = start_qemu(GuestDisk(image, "qcow2", via=via, id="a", options=options))
    qemu.wait_counting()
    async with connected(qemu.monitor) as link:
        for number in range(3):
            disk = await only_disk(link)
            assert (disk.aio, disk.discard, disk.cache_direct) == expected
            await cover_now(link, overlay_for(disk, tmp_path / f"{number}.qcow2"))
            qemu.wait_counting(5)


async def test_an_overlay_gets_the_aio_mode_where_qemu_takes_it(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "a.qcow2", "qcow2"), "qcow2"), paused=True)
    async with connected(qemu.monitor) as link:
        disk = await only_disk(link)
        for number, (mode, direct) in enumerate([("threads", False), ("native", False), ("native", True)]):
            covering = overlay_for(replace(disk, aio=mode, cache_direct=direct), tmp_path / f"{number}.qcow2")
            await open_overlay(link, covering, "")
        wrong = overlay_for(replace(disk, aio="no-such-mode"), tmp_path / "wrong.qcow2")
        with pytest.raises(QemuFailed, match="no-such-mode"):
            await open_overlay(link, wrong, "")


@pytest.mark.parametrize(("discard", "left_bytes"), [("", 0), ("unmap", 0), ("ignore", 65536)])
async def test_an_overlay_discards_as_what_it_covers(
    start_qemu: StartQemu, tmp_path: Path, discard: str, left_bytes: int
) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    qemu = start_qemu(GuestDisk(image, "qcow2", options=f"discard={discard}" if discard else ""), paused=True)
    async with connected(qemu.monitor) as link:
        overlay = overlay_for(await only_disk(link), tmp_path / "over.qcow2")
        await cover_now(link, overlay)
        for command in ("write -q -P 0x5a 128k 64k", "discard -q 128k 64k", "flush"):
            assert qemu.control.hmp(f'qemu-io -d {overlay.disk.device} "{command}"') == ""
        assert content(overlay.image.path, "qcow2").count(0x5A, 128 << 10) == left_bytes


async def test_whether_qemu_follows_what_is_active(
    start_qemu: StartQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_disk(tmp_path / "a.qcow2", "qcow2")
    (tmp_path / "state" / "disks").mkdir(parents=True)
    ours = tmp_path / "state" / "disks" / "a.qcow2"
    ours.symlink_to(image)

    async def follows(path: Path) -> bool:
        qemu = start_qemu(GuestDisk(path, "qcow2"), paused=True)
        try:
            async with connected(qemu.monitor) as link:
                seen = await Qemu(link).inspect()
                assert (seen.state, seen.disks[0].image) == (DomainState.PAUSED, str(path))
                return seen.follows_active
        finally:
            qemu.stop()

    assert not await follows(image)
    assert not await follows(ours)
    (tmp_path / "state" / "disks.env").touch()
    assert await follows(ours)
    assert not await follows(image)
    monkeypatch.setenv("DOMSNAP_DISK0_FILE", os.fspath(image))
    assert await follows(image)
