# SPDX-License-Identifier: MIT
"""Internal snapshots by the real qemu-img: content is compared byte by byte, names are any that a snapshot may have."""

import asyncio
import os
from pathlib import Path

import pytest

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images.qemu_img import QemuImg
from snapd.images.tags import LONGEST_TAG_BYTES, apply_tag, drop_tag, make_tag
from tests.contract.conftest import StartQemu
from tests.lab import images
from tests.lab.images import content, make_overlay, tags, write
from tests.lab.qemu import GuestDisk

SIZE = 4 << 20
DEADLINE_S = 30
NAMES = [
    "a b,c:d=e%s'\"",
    "-c",
    "--help",
    "snapshot.id=1",
    "id=1,,name=x",
    "on",
    "ünïcode ✓",
    "\\back",
    "x" * LONGEST_TAG_BYTES,
]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def tool() -> QemuImg:
    return QemuImg()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 image on random bytes."""
    base = tmp_path / "base.raw"
    base.write_bytes(os.urandom(SIZE))
    return make_overlay(tmp_path / "image.qcow2", base, "raw")


async def test_what_is_applied_reads_as_it_did_and_stays(tool: QemuImg, image: Path) -> None:
    write(image, "qcow2", "write -P 1 0 200k", "write -z 1M 64k")
    first = content(image, "qcow2")
    await make_tag(tool, str(image), "first")
    write(image, "qcow2", "write -P 2 100k 1M", "discard 0 64k", "write -z 3M 100k")
    second = content(image, "qcow2")
    await make_tag(tool, str(image), "second")
    write(image, "qcow2", "write -P 3 0 4M")

    for tag, expected in (("first", first), ("second", second), ("first", first)):
        await apply_tag(tool, str(image), tag)
        assert content(image, "qcow2") == expected
    assert tags(image) == ["first", "second"]
    await drop_tag(tool, str(image), "first")
    await drop_tag(tool, str(image), "first")
    assert tags(image) == ["second"]
    assert content(image, "qcow2") == first
    assert content(image, "qcow2", "second") == second
    assert (await tool.check(str(image))).is_clean


async def test_the_size_is_applied_too(tool: QemuImg, image: Path) -> None:
    write(image, "qcow2", "write -P 1 3M 1M")
    small = content(image, "qcow2")
    await make_tag(tool, str(image), "small")
    images.resize(image, 2 * SIZE)
    write(image, "qcow2", "write -P 2 5M 1M")
    large = content(image, "qcow2")
    await make_tag(tool, str(image), "large")

    for tag, expected in (("small", small), ("large", large), ("small", small)):
        await apply_tag(tool, str(image), tag)
        assert content(image, "qcow2") == expected
        assert (await tool.info(str(image))).virtual_size_bytes == len(expected)


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_is_only_a_name(tool: QemuImg, image: Path, name: str) -> None:
    await make_tag(tool, str(image), "other")
    await make_tag(tool, str(image), name)
    kept = content(image, "qcow2")
    write(image, "qcow2", "write -P 1 0 200k")

    assert tags(image) == ["other", name]
    await apply_tag(tool, str(image), name)
    assert content(image, "qcow2") == kept
    await drop_tag(tool, str(image), name)
    assert tags(image) == ["other"]


@pytest.mark.parametrize("name", ["", "x" * (LONGEST_TAG_BYTES + 1), "ü" * 128])
async def test_a_name_that_qemu_would_change_is_refused(tool: QemuImg, image: Path, name: str) -> None:
    with pytest.raises(ImageToolFailed) as caught:
        await make_tag(tool, str(image), name)

    size = len(name.encode())
    assert str(caught.value) == (
        f"making internal snapshot {name!r} in {image} failed: its name takes {size} bytes and must take 1 to 255."
    )
    assert tags(image) == []


async def test_one_that_is_there_is_not_made_again(tool: QemuImg, image: Path) -> None:
    await make_tag(tool, str(image), "one")
    before = image.read_bytes()

    with pytest.raises(ImageInUse) as caught:
        await make_tag(tool, str(image), "one")

    assert str(caught.value) == (
        f"{image} has an internal snapshot 'one' already; choose another name or delete that one first."
    )
    assert image.read_bytes() == before


async def test_one_that_is_not_there_cannot_be_applied(tool: QemuImg, image: Path) -> None:
    await make_tag(tool, str(image), "one")
    before = image.read_bytes()

    for name in ("two", "1", ""):
        with pytest.raises(ImageToolFailed) as caught:
            await apply_tag(tool, str(image), name)
        assert str(caught.value) == f"applying internal snapshot {name!r} in {image} failed: there is none of that name."
        await drop_tag(tool, str(image), name)
    assert image.read_bytes() == before


async def test_what_could_be_another_one_is_not_applied(tool: QemuImg, image: Path) -> None:
    """QEMU looks up what it is to apply by id first, and deletes by name alone."""
    for name in ("2", "one"):
        await make_tag(tool, str(image), name)
    before = image.read_bytes()

    with pytest.raises(ImageToolFailed) as caught:
        await apply_tag(tool, str(image), "2")

    assert str(caught.value) == (
        f"applying internal snapshot '2' in {image} failed: another one has that name as its id, and QEMU would take that one."
    )
    assert image.read_bytes() == before
    await drop_tag(tool, str(image), "2")
    assert tags(image) == ["one"]


async def test_one_whose_own_id_is_its_name_is_applied(tool: QemuImg, image: Path) -> None:
    await make_tag(tool, str(image), "1")
    kept = content(image, "qcow2")
    write(image, "qcow2", "write -P 1 0 200k")

    await apply_tag(tool, str(image), "1")

    assert content(image, "qcow2") == kept


async def test_of_two_with_one_name_none_is_touched(tool: QemuImg, image: Path) -> None:
    for _ in range(2):
        images.make_tag(image, "twin")
    assert tags(image) == ["twin", "twin"]
    before = image.read_bytes()

    for verb, doing in ((apply_tag, "applying"), (drop_tag, "deleting")):
        with pytest.raises(ImageToolFailed) as caught:
            await verb(tool, str(image), "twin")
        assert str(caught.value) == f"{doing} internal snapshot 'twin' in {image} failed: 2 have that name."
    assert image.read_bytes() == before


async def test_an_image_that_qemu_writes_is_left_alone(tool: QemuImg, image: Path, start_qemu: StartQemu) -> None:
    await make_tag(tool, str(image), "one")
    start_qemu(GuestDisk(image, "qcow2"), paused=True)
    before = image.read_bytes()

    for refused in (
        make_tag(tool, str(image), "two"),
        apply_tag(tool, str(image), "one"),
        drop_tag(tool, str(image), "one"),
        drop_tag(tool, str(image), "two"),
    ):
        with pytest.raises(ImageInUse) as caught:
            await refused
        assert str(caught.value) == f"{image} is open in another process, most likely QEMU; shut the domain off first."
    assert image.read_bytes() == before


async def test_a_change_that_is_cancelled_in_its_midst_comes_to_its_end(tmp_path: Path, image: Path) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go-on"
    for each in (started, go_on):
        os.mkfifo(each)
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\n[ $1 = info ] || {{ echo > {started}; cat {go_on}; }}\nexec qemu-img "$@"\n')
    program.chmod(0o755)
    making = asyncio.ensure_future(make_tag(QemuImg(str(program)), str(image), "one"))
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.to_thread(started.read_text)

        for _ in range(3):
            making.cancel()
            await asyncio.wait([making], timeout=0)
            assert not making.done()
        await asyncio.to_thread(go_on.write_text, "")

        with pytest.raises(asyncio.CancelledError):
            await making
    assert tags(image) == ["one"]


async def test_a_cancelled_change_that_fails_is_cancelled(tmp_path: Path, image: Path) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go-on"
    for each in (started, go_on):
        os.mkfifo(each)
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\n[ $1 = info ] && exec qemu-img "$@"\necho > {started}; cat {go_on}; exit 1\n')
    program.chmod(0o755)
    making = asyncio.ensure_future(make_tag(QemuImg(str(program)), str(image), "one"))
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.to_thread(started.read_text)
        making.cancel()
        await asyncio.to_thread(go_on.write_text, "")

        with pytest.raises(asyncio.CancelledError):
            await making
    assert tags(image) == []
