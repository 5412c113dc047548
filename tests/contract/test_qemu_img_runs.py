# SPDX-License-Identifier: MIT
"""How a run of qemu-img ends that does not end well: programs that are missing, say nonsense, hang, or are cancelled."""

import asyncio
import os
from pathlib import Path

import pytest

from snapd.errors import ImageToolFailed
from snapd.images.program import run_program
from snapd.images.qemu_img import QemuImg

SIZE = 4 << 20
DEADLINE_S = 30

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    path.write_bytes(bytes(SIZE))
    return path


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


async def test_progress_is_heard_however_it_comes(tmp_path: Path) -> None:
    """In pieces, many at once, among other words, and more of it than a pipe holds."""
    pieces = (r"\r    (0.00/1", r"00%%)\r  (12", r".5/100%%)\r (13/100%%)\rwords (x/100%%) (1/99%%)", r"\n(100.00/100%%)\r\n")
    said = "; ".join(f"printf '{piece}'" for piece in pieces)
    program = _program(tmp_path, f"{said}; head -c 100000 /dev/zero; printf '(100/100%%)'; echo trouble >&2; exit 3")
    told: list[float] = []

    with pytest.raises(ImageToolFailed) as caught:
        await run_program(program, "convert", about="/image", timeout_s=DEADLINE_S, told=told.append)

    assert str(caught.value) == "qemu-img convert /image failed: trouble."
    assert told == [0.0, 12.5, 13.0, 100.0, 100.0]


async def test_a_listener_that_fails_ends_the_run(tmp_path: Path) -> None:
    program = _program(tmp_path, "echo $$ > " + str(tmp_path / "pid") + "; printf '(1.00/100%%)\\r'; exec sleep 1000")

    def fail(_percent: float) -> None:
        raise ImageToolFailed("listening", "no more")

    with pytest.raises(ImageToolFailed, match="listening failed: no more"):
        await run_program(program, "convert", about="/image", timeout_s=DEADLINE_S, told=fail)
    _assert_gone(int((tmp_path / "pid").read_text()))


async def test_descriptors_are_called_what_they_stand_for(tmp_path: Path, base: Path) -> None:
    with base.open("rb") as file:
        fd = file.fileno()
        program = _program(
            tmp_path,
            f"cat /proc/self/fd/{fd} > {tmp_path}/seen; echo 'bad: /proc/self/fd/{fd}, /proc/self/fd/{fd}0' >&2; exit 1",
        )
        with pytest.raises(ImageToolFailed) as caught:
            await run_program(program, "create", about="/image", timeout_s=DEADLINE_S, passed={fd: r"/a\1"})

    assert str(caught.value) == rf"qemu-img create /image failed: bad: /a\1, /proc/self/fd/{fd}0."
    assert (tmp_path / "seen").read_bytes() == base.read_bytes()


def _program(directory: Path, body: str) -> str:
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def _assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
