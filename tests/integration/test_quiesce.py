# SPDX-License-Identifier: MIT
"""Quiesce: file systems frozen by the guest's agent for the instant of a disk-only snapshot, and thawed on every way out."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapd.bus.wire import Variant
from tests.lab.fake_agent import THAW, FakeAgent, React, behave, first, instead, not_done_but_lost
from tests.lab.linux_guest import (
    MEMORY_MIB,
    agent_socket,
    console_count,
    linux_guest,
    linux_guest_arguments,
    make_file_system,
    needs_recovery,
    wait_console_count,
    wait_for_agent,
    written_counts,
)
from tests.lab.qemu import GuestDisk
from tests.lab.scene import Scene, scene, short_directory
from tests.lab.untouched import refused, untouched

NO_MEMORY = Variant("b", False)
REQUIRE, NO = Variant("s", "require"), Variant("s", "no")
FAILED = "org.domsnap1.Error.QuiesceFailed"


@contextlib.asynccontextmanager
async def linux_scene(image_format: str = "qcow2") -> AsyncIterator[tuple[Scene, Path]]:
    """Set a scene with a Linux guest that goes on writing to its file system, and its agent's directory."""
    with short_directory() as directory:
        image = make_file_system(directory / f"root.{image_format}", image_format)
        extra = linux_guest_arguments(directory, linux_guest(), writes=True)
        disk = GuestDisk(image, image_format, id="root")
        define = {"agent": str(agent_socket(directory))}
        async with scene([disk], memory_mib=MEMORY_MIB, extra=extra, define=define, counts=False) as stage:
            await asyncio.to_thread(wait_for_agent, directory)
            yield stage, directory


def kept_image(shown: dict[str, object]) -> tuple[str, str]:
    (disk,) = shown["Disks"]  # type: ignore[misc]
    return disk["Image"], disk["Format"]


@pytest.mark.parametrize("quiesce", [None, REQUIRE], ids=["auto", "require"])
async def test_the_file_system_of_a_snapshot_is_whole(quiesce: Variant | None) -> None:
    async with linux_scene() as (stage, directory):
        before = await asyncio.to_thread(wait_console_count, directory, 3)
        options = {"quiesce": quiesce} if quiesce else {}
        await stage.create("s1", memory=NO_MEMORY, type=Variant("s", "external"), **options)
        shown = await stage.properties("s1")
        assert shown["Consistency"] == "quiesced"
        assert not needs_recovery(*kept_image(shown))
        counts = written_counts(*kept_image(shown))
        assert counts == list(range(1, len(counts) + 1))
        assert len(counts) >= before
        # It was thawed: the guest goes on writing.
        assert await asyncio.to_thread(wait_console_count, directory, console_count(directory) + 2)
        await stage.create("s2", memory=NO_MEMORY, type=Variant("s", "external"), quiesce=NO)
        shown = await stage.properties("s2")
        assert shown["Consistency"] == "crash-consistent"
        assert needs_recovery(*kept_image(shown))


async def test_a_paused_guest_cannot_be_asked() -> None:
    async with linux_scene() as (stage, _):
        stage.qemu.control.execute("stop")
        await stage.wait_state("paused")
        async with untouched(stage):
            why = ("paused",)
            await refused(stage.create("s1", memory=NO_MEMORY, quiesce=REQUIRE), "org.domsnap1.Error.NotSupported", *why)
        await stage.create("s1", memory=NO_MEMORY)
        assert (await stage.properties("s1"))["Consistency"] == "crash-consistent"


async def test_a_service_that_is_killed_leaves_no_guest_frozen() -> None:
    """Killed at the moment of the freeze; the next start thaws."""
    async with linux_scene() as (stage, directory):
        await asyncio.to_thread(wait_console_count, directory, 3)
        agent = str(agent_socket(directory))
        frozen = asyncio.Event()
        # Between service and agent stands somebody who tells us when the freeze has been answered.
        moved = Path(f"{agent}.real")
        os.rename(agent, moved)
        relay = await asyncio.start_unix_server(lambda reader, writer: _relay(reader, writer, moved, frozen), agent)
        async with relay:
            creating = asyncio.ensure_future(stage.create("s1", memory=NO_MEMORY))
            async with asyncio.timeout(30):
                await frozen.wait()
            stage.daemon.stop(signal.SIGKILL)
            creating.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await creating
        os.rename(moved, agent)
        stage.daemon.start()
        assert await asyncio.to_thread(wait_console_count, directory, console_count(directory) + 3)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path, frozen: asyncio.Event) -> None:
    """Pass on both ways until the answer to a freeze, which is kept back."""
    there_reader, there_writer = await asyncio.open_unix_connection(str(path))
    freezing = False

    async def there() -> None:
        nonlocal freezing
        while data := await reader.read(4096):
            freezing = freezing or b"guest-fsfreeze-freeze" in data
            there_writer.write(data)

    async def back() -> None:
        while data := await there_reader.read(4096):
            if freezing:
                frozen.set()
                return
            writer.write(data)

    try:
        await asyncio.gather(there(), back())
    except OSError:
        pass
    finally:
        there_writer.close()
        writer.close()


# Agents that do not behave; the guest is the tiny one, as only what they answer matters

DISKS = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"),)
WAITS = {"timeouts": {"agent": "1s", "freeze": "2s"}}


@contextlib.asynccontextmanager
async def fake_scene(react: React = behave, *, file_systems: int = 1) -> AsyncIterator[tuple[Scene, FakeAgent]]:
    with short_directory() as directory:
        path = directory / "agent"
        async with (
            FakeAgent(path, react, file_systems=file_systems) as agent,
            scene(DISKS, define={"agent": str(path)}, settings=WAITS) as stage,
        ):
            yield stage, agent


async def test_an_agent_that_is_not_there_is_passed_over_or_refused() -> None:
    async with scene(DISKS, define={"agent": "/nonexistent/agent"}) as stage:
        await stage.create("s1", memory=NO_MEMORY)
        assert (await stage.properties("s1"))["Consistency"] == "crash-consistent"
        (ended,) = await stage.wait_signal("Completed")
        (note,) = (await stage.job(ended.path))["Notes"]
        assert "were not frozen" in note
        async with untouched(stage):
            await refused(stage.create("s2", memory=NO_MEMORY, quiesce=REQUIRE), FAILED, "agent")


async def test_no_agent_in_the_definition() -> None:
    async with scene(DISKS) as stage, untouched(stage):
        await refused(stage.create("s2", memory=NO_MEMORY, quiesce=REQUIRE), "org.domsnap1.Error.NotSupported", "agent:")


async def test_nothing_to_freeze() -> None:
    async with fake_scene(file_systems=0) as (stage, agent):
        await stage.create("s1", memory=NO_MEMORY)
        assert (await stage.properties("s1"))["Consistency"] == "crash-consistent"
        async with untouched(stage):
            await refused(stage.create("s2", memory=NO_MEMORY, quiesce=REQUIRE), FAILED, "no file system")
        assert not agent.is_frozen


async def test_a_freeze_that_is_not_ours_is_left() -> None:
    async with fake_scene() as (stage, agent):
        agent.is_frozen = True
        await stage.create("s1", memory=NO_MEMORY)
        assert agent.is_frozen
        async with untouched(stage):
            await refused(stage.create("s2", memory=NO_MEMORY, quiesce=REQUIRE), FAILED, "frozen already")
        assert agent.is_frozen


async def test_a_thaw_that_is_lost_is_tried_again() -> None:
    async with fake_scene(instead(THAW, first(2, not_done_but_lost))) as (stage, agent):
        await stage.create("s1", memory=NO_MEMORY, quiesce=REQUIRE)
        assert (await stage.properties("s1"))["Consistency"] == "quiesced"
        assert not agent.is_frozen


async def test_an_agent_that_never_thaws_is_named() -> None:
    async with fake_scene(instead(THAW, not_done_but_lost)) as (stage, _):
        text = await refused(stage.create("s1", memory=NO_MEMORY), "org.domsnap1.Error.UndoFailed", "may be frozen", "thaw")
        assert "vm1" in text
        assert await stage.snapshots() == []
        stage.qemu.wait_counting()


async def test_a_failure_while_frozen_thaws() -> None:
    async with fake_scene() as (stage, agent):
        node = stage.qemu.control.execute("query-block")[0]["inserted"]["node-name"]
        # A job holds the disk, so that it cannot be covered.
        stage.qemu.control.execute("blockdev-add", driver="null-co", node_name="sink", size=1 << 20)
        stage.qemu.control.execute("blockdev-mirror", job_id="holder", device=node, target="sink", sync="none")
        await refused(stage.create("s1", memory=NO_MEMORY, quiesce=REQUIRE), "org.domsnap1.Error.QemuFailed", "disk0")
        assert not agent.is_frozen
        assert "guest-fsfreeze-freeze" in agent.commands
        assert await stage.snapshots() == []
