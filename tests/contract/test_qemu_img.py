# SPDX-License-Identifier: MIT
"""``QemuImg`` against the real qemu-img, on real images: what it creates, reads and counts."""

import asyncio
import os
import re
import stat
from pathlib import Path

import pytest

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images.header import ImageCheck
from snapd.images.qemu_img import QemuImg
from tests.lab.images import content, held_open, make_tag, write

SIZE = 4 << 20
CLUSTER_BYTES = 64 << 10
NOBODY = 65534

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


async def _overlay(tool: QemuImg, path: Path, backing: Path) -> Path:
    await tool.create_overlay(str(path), str(backing), _format(backing), SIZE)
    return path


async def test_version_is_a_number(tool: QemuImg) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", await tool.version())


async def test_overlay_reads_as_its_backing_and_records_it(tool: QemuImg, base: Path) -> None:
    overlay = await _overlay(tool, base.with_name("overlay.qcow2"), base)

    info = await tool.info(str(overlay), image_format="qcow2")
    assert (info.path, info.format, info.virtual_size_bytes) == (str(overlay), "qcow2", SIZE)
    assert (info.backing, info.backing_format, info.tags) == (str(base), "raw", ())
    assert (info.cluster_bytes, info.extended_l2) == (CLUSTER_BYTES, False)
    assert info.actual_size_bytes == overlay.stat().st_blocks * 512
    assert content(overlay, _format(overlay)) == base.read_bytes()


async def test_overlay_has_its_backings_owner_and_mode(tool: QemuImg, base: Path) -> None:
    base.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(base, NOBODY, NOBODY)

    overlay = await _overlay(tool, base.with_name("overlay.qcow2"), base)

    ours, model = overlay.stat(), base.stat()
    assert (ours.st_uid, ours.st_gid, stat.S_IMODE(ours.st_mode)) == (model.st_uid, model.st_gid, 0o664)


async def test_overlay_of_a_read_only_image_can_be_written(tool: QemuImg, base: Path) -> None:
    base.chmod(0o440)

    overlay = await _overlay(tool, base.with_name("overlay.qcow2"), base)

    assert stat.S_IMODE(overlay.stat().st_mode) == 0o640


@pytest.mark.parametrize(("cluster_bytes", "extended_l2"), [(512, False), (16 << 10, True), (2 << 20, False)])
async def test_overlay_takes_the_layout_that_it_is_given(
    tool: QemuImg, base: Path, cluster_bytes: int, extended_l2: bool
) -> None:
    path = str(base.with_name("overlay.qcow2"))

    await tool.create_overlay(path, str(base), "raw", SIZE, cluster_bytes=cluster_bytes, extended_l2=extended_l2)

    info = await tool.info(path)
    assert (info.cluster_bytes, info.extended_l2) == (cluster_bytes, extended_l2)
    assert content(path, "qcow2") == base.read_bytes()


@pytest.mark.parametrize("name", ["a b,c:d=e%s'.qcow2", "-q.qcow2", "json:{}.qcow2", "ü\n.qcow2"])
async def test_any_name_is_only_a_name(tool: QemuImg, base: Path, name: str) -> None:
    middle = await _overlay(tool, base.with_name(name), base)
    top = await _overlay(tool, base.with_name("top.qcow2"), middle)

    assert (await tool.info(str(top))).backing == str(middle)
    assert content(top, _format(top)) == base.read_bytes()


async def test_what_is_in_the_way_is_refused_and_untouched(tool: QemuImg, base: Path) -> None:
    target = base.with_name("precious")
    target.write_bytes(b"precious")
    link = base.with_name("link")
    link.symlink_to(target)
    dangling = base.with_name("dangling")
    dangling.symlink_to(base.with_name("nothing"))

    for path in (target, link, dangling):
        with pytest.raises(ImageInUse) as caught:
            await tool.create_overlay(str(path), str(base), "raw", SIZE)
        assert str(caught.value) == f"{path} already exists and is never overwritten; move it away."

    assert target.read_bytes() == b"precious"
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert not base.with_name("nothing").exists()


async def test_a_failed_creation_leaves_nothing_and_says_why(tool: QemuImg, base: Path) -> None:
    path = base.with_name("overlay.qcow2")

    with pytest.raises(ImageToolFailed) as caught:
        await tool.create_overlay(str(path), str(base), "no-such-format", SIZE)
    assert str(caught.value).startswith(f"qemu-img create {path} failed: ")
    assert "no-such-format" in str(caught.value)
    with pytest.raises(ImageToolFailed) as caught:
        await tool.create_overlay(str(path), str(base) + ".gone", "raw", SIZE)
    assert str(caught.value) == f"looking at {base}.gone failed: No such file or directory."
    with pytest.raises(ImageToolFailed) as caught:
        await tool.create_overlay(str(base.parent / "gone" / "x.qcow2"), str(base), "raw", SIZE)
    assert str(caught.value) == f"creating {base.parent}/gone/x.qcow2 failed: No such file or directory."

    assert list(base.parent.iterdir()) == [base]


async def test_relative_paths_are_refused(tool: QemuImg, base: Path) -> None:
    for path, backing in (("overlay.qcow2", str(base)), (str(base.with_name("x.qcow2")), "base.raw")):
        with pytest.raises(ValueError, match="is not absolute"):
            await tool.create_overlay(path, backing, "raw", SIZE)
    assert list(base.parent.iterdir()) == [base]


async def test_many_overlays_are_created_at_once(tool: QemuImg, base: Path) -> None:
    paths = [base.with_name(f"overlay{number}.qcow2") for number in range(8)]

    await asyncio.gather(*(_overlay(tool, path, base) for path in paths))

    for path in paths:
        assert (await tool.info(str(path))).backing == str(base)


async def test_an_image_open_elsewhere_can_be_covered_and_read_but_not_changed(tool: QemuImg, base: Path) -> None:
    image = await _overlay(tool, base.with_name("active.qcow2"), base)
    with held_open(image):
        overlay = await _overlay(tool, base.with_name("overlay.qcow2"), image)
        assert (await tool.info(str(image), force_share=True)).backing == str(base)
        assert len(await tool.chain(str(overlay), force_share=True)) == 3
        assert (await tool.check(str(image), force_share=True)).is_clean
        for refused in (
            tool.info(str(image)),
            tool.commit(str(image), str(base)),
            tool.rebase_onto(str(image), None, None),
            tool.repoint(str(image), None, None),
        ):
            with pytest.raises(ImageInUse) as caught:
                await refused
            assert str(caught.value) == f"{image} is open in another process, most likely QEMU; shut the domain off first."
    assert content(overlay, _format(overlay)) == base.read_bytes()


async def test_chain_lists_every_image_from_the_top(tool: QemuImg, base: Path) -> None:
    middle = await _overlay(tool, base.with_name("middle.qcow2"), base)
    top = await _overlay(tool, base.with_name("top.qcow2"), middle)

    found = await tool.chain(str(top))

    assert [each.path for each in found] == [str(top), str(middle), str(base)]
    assert [each.format for each in found] == ["qcow2", "qcow2", "raw"]
    assert [each.backing for each in found] == [str(middle), str(base), None]
    assert [each.backing_format for each in found] == ["qcow2", "raw", None]


async def test_info_lists_tags(tool: QemuImg, base: Path) -> None:
    image = await _overlay(tool, base.with_name("image.qcow2"), base)
    for tag in ("first", "second ünïcode"):
        make_tag(image, tag)

    assert (await tool.info(str(image))).tags == ("first", "second ünïcode")


async def test_a_header_that_a_guest_wrote_into_a_raw_image_is_not_believed(tool: QemuImg, base: Path) -> None:
    forged = await _overlay(tool, base.with_name("forged.raw"), base)

    info = await tool.info(str(forged), image_format="raw")

    assert (info.format, info.backing, info.cluster_bytes) == ("raw", None, 0)


async def test_check_counts_leaks_and_corruptions(tool: QemuImg, base: Path) -> None:
    image = await _overlay(tool, base.with_name("image.qcow2"), base)
    write(image, _format(image), "write -P 1 0 1M")
    assert await tool.check(str(image)) == ImageCheck(0, 0, 0)

    content = bytearray(image.read_bytes())
    table = int.from_bytes(content[48:56], "big")
    block = int.from_bytes(content[table : table + 8], "big")
    image.write_bytes(content[:block] + bytes(2 * 4) + content[block + 8 :])
    damaged = await tool.check(str(image))
    assert damaged.corruptions > 0
    assert not damaged.is_clean

    unused = -(-len(content) // CLUSTER_BYTES)
    content[block + 2 * unused + 1] = 1
    image.write_bytes(content)
    os.truncate(image, (unused + 1) * CLUSTER_BYTES)
    leaking = await tool.check(str(image))
    assert (leaking.corruptions, leaking.leaks) == (0, 1)
    assert not leaking.is_clean


async def test_check_of_what_is_no_qcow2_image_fails(tool: QemuImg, base: Path) -> None:
    with pytest.raises(ImageToolFailed) as caught:
        await tool.check(str(base))
    assert str(caught.value) == f"qemu-img check {base} failed: Could not open '{base}': Image is not in qcow2 format."


async def test_a_missing_image_is_named(tool: QemuImg, tmp_path: Path) -> None:
    path = tmp_path / "gone.qcow2"
    with pytest.raises(ImageToolFailed) as caught:
        await tool.info(str(path))
    assert str(caught.value) == (
        f"qemu-img info {path} failed: Could not open '{path}': Could not open '{path}': No such file or directory."
    )


def _format(path: Path) -> str:
    return "raw" if path.suffix == ".raw" else "qcow2"
