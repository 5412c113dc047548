# SPDX-License-Identifier: MIT
"""``QemuImg`` against the real qemu-img, on real images; content is compared byte by byte."""

import asyncio
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images.qemu_img import ImageCheck, QemuImg

SIZE = 4 << 20
CLUSTER_BYTES = 64 << 10
DEADLINE_S = 30
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


async def _three_deep(tool: QemuImg, base: Path) -> tuple[Path, Path, Path]:
    """Return base, middle and top, where each overlay hides part of what is below, also with zeros."""
    middle = await _overlay(tool, base.with_name("middle.qcow2"), base)
    _write(middle, "write -P 0x11 64k 300k", "write -z 1M 128k")
    top = await _overlay(tool, base.with_name("top.qcow2"), middle)
    _write(top, "write -P 0x22 200k 200k", "write -P 0x33 3M 5k", "write -z 70k 10k")
    return base, middle, top


async def test_version_is_a_number(tool: QemuImg) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", await tool.version())


async def test_overlay_reads_as_its_backing_and_records_it(tool: QemuImg, base: Path) -> None:
    overlay = await _overlay(tool, base.with_name("overlay.qcow2"), base)

    info = await tool.info(str(overlay), image_format="qcow2")
    assert (info.path, info.format, info.virtual_size_bytes) == (str(overlay), "qcow2", SIZE)
    assert (info.backing, info.backing_format, info.tags) == (str(base), "raw", ())
    assert info.actual_size_bytes == overlay.stat().st_blocks * 512
    assert _content(overlay) == base.read_bytes()


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
    other = base.with_name("other.qcow2")
    await tool.create_overlay(str(other), str(base), "raw", SIZE, mode=0o660)

    assert stat.S_IMODE(overlay.stat().st_mode) == 0o640
    assert stat.S_IMODE(other.stat().st_mode) == 0o660


@pytest.mark.parametrize("name", ["a b,c:d=e%s'.qcow2", "-q.qcow2", "json:{}.qcow2", "ü\n.qcow2"])
async def test_any_name_is_only_a_name(tool: QemuImg, base: Path, name: str) -> None:
    middle = await _overlay(tool, base.with_name(name), base)
    top = await _overlay(tool, base.with_name("top.qcow2"), middle)

    assert (await tool.info(str(top))).backing == str(middle)
    assert _content(top) == base.read_bytes()


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
    with _held_open(image):
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
    assert _content(overlay) == base.read_bytes()


async def test_chain_lists_every_image_from_the_top(tool: QemuImg, base: Path) -> None:
    _, middle, top = await _three_deep(tool, base)

    found = await tool.chain(str(top))

    assert [each.path for each in found] == [str(top), str(middle), str(base)]
    assert [each.format for each in found] == ["qcow2", "qcow2", "raw"]
    assert [each.backing for each in found] == [str(middle), str(base), None]
    assert [each.backing_format for each in found] == ["qcow2", "raw", None]


async def test_info_lists_tags(tool: QemuImg, base: Path) -> None:
    image = await _overlay(tool, base.with_name("image.qcow2"), base)
    for tag in ("first", "second ünïcode"):
        _command("qemu-img", "snapshot", "-c", tag, str(image))

    assert (await tool.info(str(image))).tags == ("first", "second ünïcode")


async def test_a_header_that_a_guest_wrote_into_a_raw_image_is_not_believed(tool: QemuImg, base: Path) -> None:
    forged = await _overlay(tool, base.with_name("forged.raw"), base)

    info = await tool.info(str(forged), image_format="raw")

    assert (info.format, info.backing) == ("raw", None)


async def test_check_counts_leaks_and_corruptions(tool: QemuImg, base: Path) -> None:
    image = await _overlay(tool, base.with_name("image.qcow2"), base)
    _write(image, "write -P 1 0 1M")
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


async def test_commit_makes_the_backing_read_as_the_overlay_which_keeps_its_data(tool: QemuImg, base: Path) -> None:
    _, middle, top = await _three_deep(tool, base)
    content, below, allocated = _content(top), base.read_bytes(), top.stat().st_blocks

    await tool.commit(str(top), str(middle))

    assert _content(middle) == content
    assert _content(top) == content
    assert top.stat().st_blocks >= allocated, "not emptied"
    assert base.read_bytes() == below
    assert (await tool.check(str(middle))).is_clean
    top.unlink()
    await tool.commit(str(middle), str(base))
    assert base.read_bytes() == content


async def test_commit_into_an_image_that_is_not_below_is_refused(tool: QemuImg, base: Path) -> None:
    _, middle, top = await _three_deep(tool, base)
    other = base.with_name("other.raw")
    other.write_bytes(bytes(SIZE))
    before = _content(middle)

    with pytest.raises(ImageToolFailed) as caught:
        await tool.commit(str(top), str(other))

    assert str(caught.value) == f"qemu-img commit {top} failed: Did not find '{other}' in the backing chain of '{top}'."
    assert _content(middle) == before
    assert not any(other.read_bytes())


@pytest.mark.parametrize("onto_base", [True, False])
async def test_rebase_keeps_the_content_without_the_images_left_out(tool: QemuImg, base: Path, onto_base: bool) -> None:
    _, middle, top = await _three_deep(tool, base)
    content, below = _content(top), base.read_bytes()

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
    assert _content(top) == content
    assert (await tool.check(str(top))).is_clean


async def test_repoint_changes_the_header_only(tool: QemuImg, base: Path) -> None:
    _, middle, top = await _three_deep(tool, base)
    content, allocated = _content(top), top.stat().st_blocks
    await tool.commit(str(middle), str(base))

    await tool.repoint(str(top), str(base), "raw")
    middle.unlink()

    assert _content(top) == content
    assert top.stat().st_blocks == allocated
    await tool.repoint(str(top), None, None)
    assert (await tool.info(str(top))).backing is None


async def test_a_backing_without_its_format_is_refused(tool: QemuImg, base: Path) -> None:
    top = await _overlay(tool, base.with_name("top.qcow2"), base)
    for verb in (tool.rebase_onto, tool.repoint):
        with pytest.raises(ValueError, match="is not given"):
            await verb(str(top), str(base), None)


async def test_a_missing_image_is_named(tool: QemuImg, tmp_path: Path) -> None:
    path = tmp_path / "gone.qcow2"
    with pytest.raises(ImageToolFailed) as caught:
        await tool.info(str(path))
    assert str(caught.value) == (
        f"qemu-img info {path} failed: Could not open '{path}': Could not open '{path}': No such file or directory."
    )


async def test_a_missing_program_is_named(base: Path) -> None:
    overlay = base.with_name("overlay.qcow2")
    with pytest.raises(ImageToolFailed) as caught:
        await QemuImg("/nonexistent/qemu-img").create_overlay(str(overlay), str(base), "raw", SIZE)
    assert str(caught.value) == (
        f"qemu-img create {overlay} failed: /nonexistent/qemu-img cannot be run: No such file or directory."
    )
    assert not overlay.exists()


async def test_an_answer_that_is_none_is_an_error(tmp_path: Path, base: Path) -> None:
    tool = QemuImg(_program(tmp_path, "echo '[{}]'"))
    for answer in (tool.info(str(base)), tool.chain(str(base)), tool.check(str(base))):
        with pytest.raises(ImageToolFailed, match="its answer cannot be read"):
            await answer
    with pytest.raises(ImageToolFailed, match="the answer names no version"):
        await tool.version()
    with pytest.raises(ImageToolFailed, match="it ended with status 7 and said nothing"):
        await QemuImg(_program(tmp_path, "exit 7")).info(str(base))


async def test_a_run_out_of_time_is_killed_and_leaves_nothing(tmp_path: Path, base: Path) -> None:
    tool = QemuImg(_program(tmp_path, "exec sleep 1000"), quick_timeout_s=0.2)
    overlay = base.with_name("overlay.qcow2")

    with pytest.raises(ImageToolFailed) as caught:
        await tool.create_overlay(str(overlay), str(base), "raw", SIZE)

    assert str(caught.value) == f"qemu-img create {overlay} failed: it did not end within 0.2 s and was killed."
    assert not overlay.exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def test_a_cancelled_run_is_killed_and_leaves_nothing(tmp_path: Path, base: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    tool = QemuImg(_program(tmp_path, f"echo $$ > {started}; exec sleep 1000"))
    overlay = base.with_name("overlay.qcow2")
    creation = asyncio.ensure_future(tool.create_overlay(str(overlay), str(base), "raw", SIZE))
    async with asyncio.timeout(DEADLINE_S):
        pid = int(await asyncio.to_thread(started.read_text))

    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation

    assert not overlay.exists()
    _assert_gone(pid)


def _format(path: Path) -> str:
    return "raw" if path.suffix == ".raw" else "qcow2"


def _command(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True, timeout=DEADLINE_S)


def _write(image: Path, *commands: str) -> None:
    _command("qemu-io", "-f", _format(image), *(part for command in commands for part in ("-c", command)), str(image))


def _content(image: Path) -> bytes:
    """Return what a guest would read from the image."""
    flat = image.with_name("flat")
    _command("qemu-img", "convert", "-f", _format(image), "-O", "raw", str(image), str(flat))
    try:
        return flat.read_bytes()
    finally:
        flat.unlink()


def _program(directory: Path, body: str) -> str:
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def _assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@contextmanager
def _held_open(image: Path) -> Iterator[None]:
    """Keep the image open for writing in another process, as QEMU does."""
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as holder:
        try:
            assert holder.stdout is not None
            prompt = b""
            while not prompt.endswith(b"qemu-io> "):
                more = os.read(holder.stdout.fileno(), 64)
                assert more, f"qemu-io ended: {prompt!r}"
                prompt += more
            yield
        finally:
            holder.kill()
