# SPDX-License-Identifier: MIT
"""Merges by the real qemu-img: content is compared byte by byte, with and without internal snapshots in the images."""

import os
from pathlib import Path

import pytest

from snapd.errors import ImageToolFailed
from snapd.images.qemu_img import QemuImg
from snapd.images.tags import apply_tag, drop_tag
from tests.lab.images import content, make_overlay, make_tag, write

SIZE = 4 << 20

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def tool() -> QemuImg:
    return QemuImg()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A raw image that is full of random bytes."""
    path = tmp_path / "base.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


async def test_commit_makes_the_backing_read_as_the_overlay_which_keeps_its_data(tool: QemuImg, base: Path) -> None:
    _, middle, top = _three_deep(base)
    expected, below, allocated = content(top, _format(top)), base.read_bytes(), top.stat().st_blocks

    await tool.commit(str(top), str(middle))

    assert content(middle, _format(middle)) == expected
    assert content(top, _format(top)) == expected
    assert top.stat().st_blocks >= allocated, "not emptied"
    assert base.read_bytes() == below
    assert (await tool.check(str(middle))).is_clean
    top.unlink()
    await tool.commit(str(middle), str(base))
    assert base.read_bytes() == expected


async def test_commit_into_an_image_that_is_not_below_is_refused(tool: QemuImg, base: Path) -> None:
    _, middle, top = _three_deep(base)
    other = base.with_name("other.raw")
    other.write_bytes(bytes(SIZE))
    before = content(middle, _format(middle))

    with pytest.raises(ImageToolFailed) as caught:
        await tool.commit(str(top), str(other))

    assert str(caught.value) == f"qemu-img commit {top} failed: Did not find '{other}' in the backing chain of '{top}'."
    assert content(middle, _format(middle)) == before
    assert not any(other.read_bytes())


@pytest.mark.parametrize("onto_base", [True, False])
async def test_rebase_keeps_the_content_without_the_images_left_out(tool: QemuImg, base: Path, onto_base: bool) -> None:
    _, middle, top = _three_deep(base)
    expected, below = content(top, _format(top)), base.read_bytes()

    if onto_base:
        await tool.rebase_onto(str(top), str(base), "raw")
    else:
        await tool.rebase_onto(str(top), None, None)

    middle.unlink()
    assert base.read_bytes() == below
    info = await tool.info(str(top))
    assert (info.backing, info.backing_format) == ((str(base), "raw") if onto_base else (None, None))
    if not onto_base:
        base.unlink()
    assert content(top, _format(top)) == expected
    assert (await tool.check(str(top))).is_clean


async def test_repoint_changes_the_header_only(tool: QemuImg, base: Path) -> None:
    _, middle, top = _three_deep(base)
    expected, allocated = content(top, _format(top)), top.stat().st_blocks
    await tool.commit(str(middle), str(base))

    await tool.repoint(str(top), str(base), "raw")
    middle.unlink()

    assert content(top, _format(top)) == expected
    assert top.stat().st_blocks == allocated
    await tool.repoint(str(top), None, None)
    assert (await tool.info(str(top))).backing is None


async def test_a_backing_without_its_format_is_refused(tool: QemuImg, base: Path) -> None:
    top = make_overlay(base.with_name("top.qcow2"), base, "raw")
    for verb in (tool.rebase_onto, tool.repoint):
        with pytest.raises(ValueError, match="is not given"):
            await verb(str(top), str(base), None)


async def test_rebase_keeps_the_content_of_an_image_larger_than_what_it_leaves(tool: QemuImg, base: Path) -> None:
    middle = make_overlay(base.with_name("middle.qcow2"), base, "raw")
    top = base.with_name("top.qcow2")
    await tool.create_overlay(str(top), str(middle), "qcow2", 2 * SIZE)
    write(middle, "qcow2", "write -P 0x11 64k 300k")
    write(top, "qcow2", f"write -P 0x22 {SIZE + 4096} 200k")
    expected = content(top, "qcow2")

    await tool.rebase_onto(str(top), str(base), "raw")

    middle.unlink()
    assert content(top, "qcow2") == expected


@pytest.mark.parametrize("size_bytes", [SIZE, 2 * SIZE])
async def test_commit_goes_into_an_image_that_holds_an_internal_snapshot(tool: QemuImg, base: Path, size_bytes: int) -> None:
    """As one that is to be deleted does until it is; what it holds stays, also where the image grows."""
    middle = make_overlay(base.with_name("middle.qcow2"), base, "raw")
    write(middle, "qcow2", "write -P 0x11 64k 300k")
    held = content(middle, "qcow2")
    make_tag(middle, "doomed")
    write(middle, "qcow2", "write -P 0x44 100k 100k")
    top = base.with_name("top.qcow2")
    await tool.create_overlay(str(top), str(middle), "qcow2", size_bytes)
    write(top, "qcow2", "write -P 0x22 200k 200k", "write -z 64k 64k", f"write -P 0x33 {size_bytes - 4096} 4096")
    expected = content(top, "qcow2")

    await tool.commit(str(top), str(middle))

    assert content(middle, "qcow2") == expected
    assert content(middle, "qcow2", "doomed")[:SIZE] == held
    assert (await tool.check(str(middle))).is_clean
    await apply_tag(tool, str(middle), "doomed")
    assert content(middle, "qcow2") == held
    await drop_tag(tool, str(middle), "doomed")
    assert (await tool.check(str(middle))).is_clean


async def test_an_old_image_that_holds_an_internal_snapshot_cannot_grow(tool: QemuImg, base: Path) -> None:
    """Without a size of its own for each internal snapshot, as before version 3 of the format, QEMU refuses to."""
    middle = base.with_name("middle.qcow2")
    await tool.create_new(str(middle), SIZE, "-o", "compat=0.10")
    make_tag(middle, "doomed")
    top = base.with_name("top.qcow2")
    await tool.create_overlay(str(top), str(middle), "qcow2", 2 * SIZE)
    before = middle.read_bytes()

    with pytest.raises(ImageToolFailed, match=r"^qemu-img commit .* failed: "):
        await tool.commit(str(top), str(middle))

    assert middle.read_bytes() == before


async def test_rebase_loses_what_internal_snapshots_read_from_below(tool: QemuImg, base: Path) -> None:
    """Which is why an image with internal snapshots is not merged while something needs them."""
    top = make_overlay(base.with_name("top.qcow2"), base, "raw")
    make_tag(top, "held")
    write(top, "qcow2", "write -P 0x22 0 1M")
    expected = content(top, "qcow2")

    await tool.rebase_onto(str(top), None, None)

    assert content(top, "qcow2") == expected
    assert content(top, "qcow2", "held") == bytes(SIZE)


def _three_deep(base: Path) -> tuple[Path, Path, Path]:
    """Return base, middle and top, where each overlay hides part of what is below, also with zeros."""
    middle = make_overlay(base.with_name("middle.qcow2"), base, "raw")
    write(middle, "qcow2", "write -P 0x11 64k 300k", "write -z 1M 128k")
    top = make_overlay(base.with_name("top.qcow2"), middle, "qcow2")
    write(top, "qcow2", "write -P 0x22 200k 200k", "write -P 0x33 3M 5k", "write -z 70k 10k")
    return base, middle, top


def _format(path: Path) -> str:
    return "raw" if path.suffix == ".raw" else "qcow2"
