# SPDX-License-Identifier: MIT
"""File facts and removal on real file systems, and the toolbox that offers them to the engine."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from snapd.errors import ImageToolFailed
from snapd.images import files
from snapd.images.toolbox import ImageToolbox

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
    images = ImageToolbox()
    base, overlay, flat = (str(tmp_path / name) for name in ("base.raw", "overlay.qcow2", "other.raw"))
    for path in (base, flat):
        Path(path).write_bytes(bytes(MIB))
    assert (await images.version())[0].isdigit()

    await images.create_overlay(overlay, base, "raw", MIB)
    assert (await images.info(overlay)).backing == base
    assert [each.path for each in await images.chain(overlay)] == [overlay, base]
    assert (await images.check(overlay)).is_clean
    assert 0 < await images.allocated_bytes(overlay) < MIB
    await images.commit(overlay, base)
    await images.repoint(overlay, flat, "raw")
    assert (await images.info(overlay)).backing == flat
    await images.rebase_onto(overlay, None, None)
    assert (await images.info(overlay)).backing is None
    await images.unlink(overlay)
    assert not await images.exists(overlay)
    assert await images.free_bytes(str(tmp_path)) > 0
    assert await images.device_of(str(tmp_path)) == tmp_path.stat().st_dev

    memory, empty = str(tmp_path / "memory"), str(tmp_path / "empty")
    memory_file = await images.create_memory_file(memory, MIB)
    os.write(memory_file.fd, b"stream")
    assert await images.finish_memory_file(memory_file) == len(b"stream")
    for descriptor in await images.open_memory_file(memory):
        os.close(descriptor)
    assert (await images.info(memory)).tags == ("memory",)
    await images.discard_memory_file(memory_file)
    assert not await images.exists(memory)
    await images.create_empty_memory_file(empty)
    assert (await images.info(empty)).tags == ()
