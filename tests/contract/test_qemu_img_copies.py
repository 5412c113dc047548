# SPDX-License-Identifier: MIT
"""Internal snapshots copied out by the real qemu-img, also from under a real QEMU: every byte is compared."""

import asyncio
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images.qemu_img import QemuImg
from snapd.images.tag_copy import create_copy
from snapd.model.domain import Disk
from snapd.model.images import Image, Origin, Pin
from snapd.model.plan import Overlay
from tests.contract.conftest import StartQemu
from tests.lab.images import apply_tag, backing_of, check_image, content, held_open, make_overlay, make_tag, resize, write
from tests.lab.qemu import GuestDisk

SIZE = 4 << 20
DEADLINE_S = 30
NOBODY = 65534
TAG = "before, a=b"

pytestmark = pytest.mark.timeout(60)


@dataclass(frozen=True)
class Held:
    """An image, the raw one that it backs on, and what the internal snapshot in it reads as."""

    image: Path
    base: Path
    content: bytes

    @property
    def pin(self) -> Pin:
        return Pin(str(self.image), TAG)

    @property
    def copy(self) -> Path:
        return self.image.with_name("copy.qcow2")

    def overlay(self, backing: Path | None = None, backing_format: str = "raw") -> Overlay:
        """Describe the copy, on what the image itself backs on if on nothing else."""
        disk = Disk("vda", "vda", "#block1", str(self.image), "qcow2", (), SIZE, writable=True)
        image = Image(str(self.copy), "qcow2", str(backing or self.base), Origin.CREATED, len(self.content))
        return Overlay(disk, "node", image, backing_format, self.pin)

    def overlays(self) -> list[Overlay]:
        """Describe the copy on what the image backs on, on the image, on any other one, and on none."""
        other = self.base.with_name("other.raw")
        other.write_bytes(os.urandom(SIZE // 2))
        alone = self.overlay()
        alone = replace(alone, image=replace(alone.image, backing=None), backing_format="")
        return [self.overlay(), self.overlay(self.image, "qcow2"), self.overlay(other), alone]


class Heard(list[tuple[str, int, int]]):
    """What was reported."""

    def __call__(self, step: str, done_bytes: int, total_bytes: int) -> None:
        self.append((step, done_bytes, total_bytes))


@pytest.fixture
def tool() -> QemuImg:
    return QemuImg()


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """What was written, zeroed or left alone before the internal snapshot was made is changed in every way after it."""
    base = tmp_path / "base.raw"
    base.write_bytes(os.urandom(SIZE))
    image = make_overlay(tmp_path / "image.qcow2", base, "raw")
    write(image, "qcow2", "write -P 1 0 1M", "write -z 1M 512k", "write -P 2 2M 128k", "write -z -u 2560k 256k")
    kept = content(image, "qcow2")
    make_tag(image, TAG)
    write(image, "qcow2", "write -P 3 512k 100k", "discard 640k 128k", "write -z 900k 64k", "discard 2M 64k")
    write(image, "qcow2", "write -P 4 1100k 100k", "discard 1280k 64k", "write -P 5 2600k 5k")
    write(image, "qcow2", "write -P 6 3M 100k", "write -z 3500k 100k", "discard 3840k 64k")
    assert content(image, "qcow2") != kept
    return Held(image, base, kept)


async def _copy_and_compare(tool: QemuImg, held: Held) -> None:
    before = held.image.read_bytes()
    for overlay in held.overlays():
        await create_copy(tool, overlay, held.pin, Heard())

        assert content(held.copy, "qcow2") == held.content
        assert backing_of(held.copy) == (overlay.image.backing or "", overlay.backing_format)
        check_image(held.copy)
        held.copy.unlink()
    assert held.image.read_bytes() == before


async def test_a_copy_reads_as_the_internal_snapshot_wherever_it_backs(tool: QemuImg, held: Held) -> None:
    await _copy_and_compare(tool, held)


async def test_a_copy_out_of_an_image_that_backs_on_nothing(tool: QemuImg, held: Held) -> None:
    image = held.image.with_name("alone.qcow2")
    await tool.create_new(str(image), SIZE)
    write(image, "qcow2", "write -P 1 0 1M", "write -z 1M 512k")
    kept = content(image, "qcow2")
    make_tag(image, TAG)
    write(image, "qcow2", "write -P 2 512k 2M")

    await _copy_and_compare(tool, replace(held, image=image, content=kept))


@pytest.mark.parametrize("size_bytes", [SIZE // 2 + 512, SIZE * 3 // 2 + 4096])
async def test_a_copy_has_the_size_of_then(tool: QemuImg, held: Held, size_bytes: int) -> None:
    resize(held.image, size_bytes)
    write(held.image, "qcow2", "write -P 7 1M 512k", f"write -P 8 {size_bytes - 512} 512")

    await _copy_and_compare(tool, held)


async def test_a_copy_of_what_was_made_after_the_image_had_grown_and_shrunk(tool: QemuImg, held: Held) -> None:
    resize(held.image, 2 * SIZE)
    write(held.image, "qcow2", "write -P 7 6M 512k")
    kept = content(held.image, "qcow2")
    make_tag(held.image, "large")
    apply_tag(held.image, TAG)
    large = replace(held, content=kept)

    for overlay in large.overlays():
        await create_copy(tool, overlay, Pin(str(held.image), "large"), Heard())
        assert content(held.copy, "qcow2") == kept
        held.copy.unlink()


async def test_only_what_the_internal_snapshot_holds_is_copied(tool: QemuImg, held: Held) -> None:
    await create_copy(tool, held.overlay(), held.pin, Heard())

    assert held.copy.stat().st_blocks * 512 < SIZE // 2


async def test_a_copy_takes_the_layout_of_the_disk(tool: QemuImg, held: Held) -> None:
    overlay = held.overlay(held.image, "qcow2")
    overlay = replace(overlay, disk=replace(overlay.disk, cluster_bytes=16 << 10, extended_l2=True))

    await create_copy(tool, overlay, held.pin, Heard())

    info = await tool.info(str(held.copy))
    assert (info.cluster_bytes, info.extended_l2) == (16 << 10, True)
    assert content(held.copy, "qcow2") == held.content


async def test_a_copy_has_the_owner_and_mode_of_the_image_it_comes_from(tool: QemuImg, held: Held) -> None:
    held.image.chmod(0o440)
    if os.geteuid() == 0:
        os.chown(held.image, NOBODY, NOBODY)

    await create_copy(tool, held.overlay(), held.pin, Heard())

    ours, model = held.copy.stat(), held.image.stat()
    assert (ours.st_uid, ours.st_gid, stat.S_IMODE(ours.st_mode)) == (model.st_uid, model.st_gid, 0o640)


async def test_progress_is_reported_in_bytes(tool: QemuImg, held: Held) -> None:
    for overlay in held.overlays():
        heard = Heard()
        await create_copy(tool, overlay, held.pin, heard)
        assert heard == sorted(heard)
        assert {(step, total) for step, _, total in heard} == {(f"copying {TAG}", SIZE)}
        assert heard[-1][1] == SIZE
        held.copy.unlink()


async def test_a_qemu_that_only_reads_the_image_is_not_in_the_way(tool: QemuImg, held: Held, start_qemu: StartQemu) -> None:
    """Neither one that covered it while the guest ran, nor one that was started so."""
    qemu = start_qemu(GuestDisk(held.image, "qcow2"), paused=True)
    with pytest.raises(ImageInUse, match="is open in another process"):
        await create_copy(tool, held.overlay(), held.pin, Heard())
    top = make_overlay(held.image.with_name("top.qcow2"), held.image, "qcow2")
    qemu.control.execute("blockdev-snapshot-sync", device="drive0", snapshot_file=str(top), format="qcow2", mode="existing")
    for command in ("write -P 9 0 64k", "flush"):
        qemu.control.hmp(f'qemu-io drive0 "{command}"')
    assert content(top, "qcow2").startswith(b"\x09" * (64 << 10)), "the guest goes on"
    await _copy_and_compare(tool, held)
    qemu.stop()

    for via in ("drive", "blockdev"):
        qemu = start_qemu(GuestDisk(top, "qcow2", via=via), paused=True)
        await _copy_and_compare(tool, held)
        qemu.stop()


async def test_nothing_is_copied_while_another_process_writes(tool: QemuImg, held: Held) -> None:
    with held_open(held.image):
        for overlay in held.overlays():
            with pytest.raises(ImageInUse) as caught:
                await create_copy(tool, overlay, held.pin, Heard())
            assert caught.value.path == str(held.image)
            assert not held.copy.exists()


async def test_what_is_in_the_way_is_refused_and_untouched(tool: QemuImg, held: Held) -> None:
    held.copy.write_bytes(b"precious")

    with pytest.raises(ImageInUse, match="already exists and is never overwritten"):
        await create_copy(tool, held.overlay(), held.pin, Heard())

    assert held.copy.read_bytes() == b"precious"


async def test_what_cannot_be_copied_is_named_and_leaves_nothing(tool: QemuImg, held: Held) -> None:
    doing = f"copying internal snapshot 'gone' out of {held.image}"
    with pytest.raises(ImageToolFailed) as caught:
        await create_copy(tool, held.overlay(), Pin(str(held.image), "gone"), Heard())
    assert str(caught.value) == f"{doing} failed: there is none of that name."

    with pytest.raises(ImageToolFailed) as caught:
        await create_copy(tool, held.overlay(held.base.with_name("gone.raw")), held.pin, Heard())
    assert str(caught.value).startswith(f"qemu-img rebase {held.copy} failed: ")
    assert "gone.raw" in str(caught.value)

    make_tag(held.image, TAG)
    with pytest.raises(ImageToolFailed, match="failed: 2 have that name"):
        await create_copy(tool, held.overlay(), held.pin, Heard())
    overlay = held.overlay()
    with pytest.raises(ValueError, match="is not given"):
        await create_copy(tool, replace(overlay, image=replace(overlay.image, virtual_size_bytes=0)), held.pin, Heard())
    assert not held.copy.exists()


@pytest.mark.parametrize("hangs", ["convert", "rebase"])
async def test_a_cancelled_copy_is_killed_and_leaves_nothing(tmp_path: Path, held: Held, hangs: str) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\n[ $1 = {hangs} ] || exec qemu-img "$@"\necho $$ > {started}; exec sleep 1000\n')
    program.chmod(0o755)
    copying = asyncio.ensure_future(create_copy(QemuImg(str(program)), held.overlay(held.image, "qcow2"), held.pin, Heard()))
    async with asyncio.timeout(DEADLINE_S):
        pid = int(await asyncio.to_thread(started.read_text))
    assert stat.S_IMODE(held.copy.stat().st_mode) == 0o600

    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying

    assert not held.copy.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
