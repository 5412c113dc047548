# SPDX-License-Identifier: MIT
"""File facts and removal on real file systems, and the toolbox that offers them to the engine."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images import files
from snapd.images.qemu_img import QemuImg
from snapd.images.toolbox import ImageToolbox
from snapd.model.domain import Disk
from snapd.model.images import Direction, Image, ImageFacts, Merge, Origin, Pin
from snapd.model.plan import Overlay
from tests.contract.conftest import StartQemu
from tests.lab.guest import make_disk
from tests.lab.images import content, tags, write
from tests.lab.qemu import GuestDisk

MIB = 1 << 20
DEADLINE_S = 30

pytestmark = pytest.mark.timeout(60)


async def test_free_bytes_is_what_the_file_system_says(tmp_path: Path) -> None:
    reported = await files.free_bytes(str(tmp_path))

    facts = os.statvfs(tmp_path)
    assert 0 < reported <= facts.f_blocks * facts.f_frsize


async def test_directories_of_one_file_system_have_one_device(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    assert await files.device_of(str(tmp_path)) == await files.device_of(str(tmp_path / "a"))
    assert await files.device_of(str(tmp_path)) != await files.device_of("/proc")


async def test_holes_are_not_allocated(tmp_path: Path) -> None:
    sparse, full, link = tmp_path / "sparse", tmp_path / "full", tmp_path / "link"
    with sparse.open("wb") as file:
        file.truncate(100 * MIB)
    with full.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, MIB)
    link.symlink_to(full)

    assert await files.allocated_bytes(str(sparse)) < MIB
    assert await files.allocated_bytes(str(full)) >= MIB
    assert await files.allocated_bytes(str(link)) == await files.allocated_bytes(str(full))


async def test_a_link_that_leads_nowhere_does_not_exist(tmp_path: Path) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    link.symlink_to(image)

    assert not await files.exists(str(image))
    assert not await files.exists(str(link))
    image.touch()
    assert await files.exists(str(image))
    assert await files.exists(str(link))


async def test_unlinking_removes_the_name_only_and_may_be_repeated(tmp_path: Path) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    image.touch()
    link.symlink_to(image)

    await files.unlink_created(str(link))
    await files.unlink_created(str(link))
    assert list(tmp_path.iterdir()) == [image]
    await files.unlink_created(str(image))
    assert list(tmp_path.iterdir()) == []
    await files.unlink_created(str(tmp_path / "no-directory" / "image"))


async def test_what_cannot_be_done_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    gone = str(tmp_path / "gone")

    for attempt, doing in (
        (files.free_bytes(gone), "asking for the free space of"),
        (files.device_of(gone), "looking at"),
        (files.allocated_bytes(gone), "looking at"),
    ):
        with pytest.raises(ImageToolFailed) as caught:
            await attempt
        assert str(caught.value) == f"{doing} {gone} failed: No such file or directory."
    with pytest.raises(ImageToolFailed) as caught:
        await files.unlink_created(str(directory))
    assert str(caught.value) == f"removing {directory} failed: Is a directory."
    assert directory.is_dir()


async def test_cancelled_work_runs_to_its_end_and_is_taken_back() -> None:
    begun, go_on, undone = threading.Event(), threading.Event(), list[str]()

    def work() -> str:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        return "result"

    waiting = asyncio.ensure_future(files.run_to_end(work, undo=undone.append))
    assert await asyncio.to_thread(begun.wait, DEADLINE_S)
    for _ in range(3):
        waiting.cancel()
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done(), "a cancellation does not cut the work short"
        assert undone == []
    go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, DEADLINE_S)
    assert undone == ["result"]


async def test_cancelled_work_that_fails_has_nothing_to_take_back() -> None:
    begun, go_on, undone = threading.Event(), threading.Event(), list[None]()

    def work() -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        raise OSError("no")

    waiting = asyncio.ensure_future(files.run_to_end(work, undo=undone.append))
    assert await asyncio.to_thread(begun.wait, DEADLINE_S)
    waiting.cancel()
    go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, DEADLINE_S)
    assert undone == []


async def test_the_toolbox_offers_the_life_of_an_overlay_and_of_a_memory_file(tmp_path: Path) -> None:
    images, tool = ImageToolbox(), QemuImg()
    base, path = str(tmp_path / "base.raw"), str(tmp_path / "overlay.qcow2")
    Path(base).write_bytes(bytes(MIB))
    disk = Disk("vda", "vda", "#block1", base, "raw", (base,), MIB, writable=True)
    assert (await images.version())[0].isdigit()

    await images.create_overlay(Overlay(disk, "node", Image(path, "qcow2", base, Origin.CREATED, MIB), "raw"), ignore)
    assert [each.path for each in await tool.chain(path)] == [path, base]
    assert (await tool.check(path)).is_clean
    sizes = await images.allocated_bytes([path, base, str(tmp_path / "missing")])
    assert set(sizes) == {path, base}
    assert 0 < sizes[path] < MIB
    await images.merge(Merge(Direction.COMMIT, path, base, None, active=False), "")
    other = Path(tmp_path, "other.raw")
    other.write_bytes(bytes(MIB))
    await images.repoint(path, str(other), "raw")
    assert (await tool.info(path)).backing == str(other)
    await images.merge(Merge(Direction.STREAM, path, str(other), None, active=False), "")
    assert (await tool.info(path)).backing is None
    await images.unlink(path)
    assert not await images.exists(path)
    file_system, free = await images.free_bytes(str(tmp_path))
    assert file_system == tmp_path.stat().st_dev
    assert free > 0


async def test_the_toolbox_covers_with_what_the_disk_is_like(tmp_path: Path) -> None:
    images = ImageToolbox()
    base, path = str(tmp_path / "base.raw"), str(tmp_path / "overlay.qcow2")
    Path(base).write_bytes(bytes(MIB))
    disk = Disk("vda", "vda", "#block1", base, "raw", (), MIB, writable=True, cluster_bytes=32 << 10, extended_l2=True)

    await images.create_overlay(Overlay(disk, "node", Image(path, "qcow2", base, Origin.CREATED, MIB), "raw"), ignore)

    assert await images.look(path, "qcow2") == ImageFacts(MIB, (), 32 << 10, extended_l2=True)


async def test_the_toolbox_offers_internal_snapshots(tmp_path: Path) -> None:
    images, tool = ImageToolbox(), QemuImg()
    path, copy = str(tmp_path / "image.qcow2"), str(tmp_path / "copy.qcow2")
    await tool.create_new(path, MIB)
    await images.make_tag(path, "one")
    write(path, "qcow2", "write -P 1 0 64k")
    await images.make_tag(path, "two")
    assert await images.look(path, "qcow2") == ImageFacts(MIB, ("one", "two"), 64 << 10, extended_l2=False)

    disk = Disk("vda", "vda", "#block1", path, "qcow2", (path,), MIB, writable=True)
    image = Image(copy, "qcow2", path, Origin.CREATED, MIB)
    heard: list[int] = []
    overlay = Overlay(disk, "node", image, "qcow2", Pin(path, "one"))
    await images.create_overlay(overlay, lambda _step, done, _total: heard.append(done))
    assert heard[-1] == MIB
    assert content(copy, "qcow2") == bytes(MIB)
    await images.apply_tag(path, "one")
    assert content(path, "qcow2") == bytes(MIB)
    for _ in range(2):
        await images.drop_tag(path, "one")
    assert tags(path) == ["two"]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_the_toolbox_does_not_look_into_what_qemu_writes(
    tmp_path: Path, start_qemu: StartQemu, image_format: str
) -> None:
    images = ImageToolbox()
    path = make_disk(tmp_path / f"disk.{image_format}", image_format)
    facts = await images.look(str(path), image_format)
    assert facts == ImageFacts(MIB, (), 64 << 10 if image_format == "qcow2" else 0)
    qemu = start_qemu(GuestDisk(path, image_format), paused=True)

    with pytest.raises(ImageInUse) as caught:
        await images.look(str(path), image_format)

    assert str(caught.value) == f"{path} is open in another process, most likely QEMU; shut the domain off first."
    qemu.stop()
    assert await images.look(str(path), image_format) == facts


async def test_looking_at_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageToolFailed, match="No such file or directory"):
        await ImageToolbox().look(str(tmp_path / "gone.qcow2"), "qcow2")


async def test_link_targets_are_those_of_links_alone(tmp_path: Path) -> None:
    image, absolute, relative, dangling = (tmp_path / name for name in ("image", "absolute", "relative", "dangling"))
    image.touch()
    absolute.symlink_to(image)
    relative.symlink_to("absolute")
    dangling.symlink_to(tmp_path / "nothing")
    asked = [str(each) for each in (image, absolute, relative, dangling, tmp_path / "gone")]

    found = await ImageToolbox().link_targets(asked)

    assert found == {str(absolute): str(image), str(relative): str(absolute), str(dangling): str(tmp_path / "nothing")}


async def test_the_toolbox_makes_containers_of_memory_files(tmp_path: Path) -> None:
    images, tool = ImageToolbox(), QemuImg()
    path, empty = str(tmp_path / "memory"), str(tmp_path / "empty")

    memory = await images.create_memory(path, MIB)
    os.write(memory.descriptor, b"stream")
    assert await memory.finish() == len(b"stream")
    images.close_descriptors(*await images.open_container(path))
    assert (await tool.info(path)).tags == ("memory",)
    await memory.discard()
    assert not await images.exists(path)
    await images.create_container(empty)
    assert await images.sync_container(empty) > 0
    assert (await tool.info(empty)).tags == ()


def ignore(_step: str, _done: int, _total: int) -> None:
    """Hear a report."""
