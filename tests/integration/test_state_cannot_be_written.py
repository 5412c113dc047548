# SPDX-License-Identifier: MIT
"""The state or the memory of a snapshot cannot be written once the guest was stopped: it goes on, on its own disks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from snapd.bus.wire import Variant
from tests.lab.guest import TinyGuest
from tests.lab.scene import DOMAIN, UUID, Scene, scene, short_directory
from tests.lab.small import SmallFileSystem
from tests.lab.untouched import ERROR, assert_same, assert_works, picture, refused, untouched

DIRTYING = TinyGuest.dirtying(8)


async def test_something_is_where_the_snapshot_file_is_to_be() -> None:
    """The guest has run on its overlays by then, and what it wrote to them is kept."""
    async with scene(guest=DIRTYING) as stage:
        await assert_works(stage)
        in_the_way = stage.state / "snapshotdata-s1.libxl-json"
        in_the_way.mkdir()
        for live in ("auto", "no"):
            async with untouched(stage, pauses=True):
                await refused(stage.create("s1", live=Variant("s", live)), f"{ERROR}StateDamaged", str(in_the_way))
        in_the_way.rmdir()
        await assert_works(stage)


async def test_the_file_of_the_domain_was_changed_by_something_else() -> None:
    async with scene(guest=DIRTYING) as stage:
        await stage.create("s1")
        path = stage.state / "domain.libxl-json"
        path.write_bytes(path.read_bytes() + b"\n")
        async with untouched(stage):
            await refused(stage.create("s2"), f"{ERROR}StateDamaged", str(path), "restart")
            await refused(stage.revert("s1"), f"{ERROR}StateDamaged", str(path), "restart")
            await refused(stage.delete("s1"), f"{ERROR}StateDamaged", str(path), "restart")


async def test_the_file_system_of_the_state_is_full_when_it_is_committed() -> None:
    async with _scene_on_small_state() as (stage, small, memory):
        before = await picture(stage)
        pid = stage.daemon.pid
        await _during_pause(
            stage, lambda: small.fill(pid), refused(stage.create("s1"), f"{ERROR}NoSpace", str(small.directory))
        )
        assert_same(before, await picture(stage))
        assert list(memory.rglob("*.qcow2")) == []
        stage.qemu.wait_counting()
        small.empty(pid)
        await assert_works(stage)


async def test_the_file_system_of_the_state_is_read_only_when_it_is_committed() -> None:
    """The intent cannot be removed either, so it stays and says so; guest, images and tree are as before."""
    async with _scene_on_small_state() as (stage, small, memory):
        before = await picture(stage)
        pid = stage.daemon.pid
        refusal = refused(stage.create("s1"), f"{ERROR}UndoFailed", DOMAIN, "Read-only file system", "intent")
        await _during_pause(stage, lambda: small.remount(pid, "ro"), refusal)
        after = await picture(stage)
        intent = f"state/{UUID}/intent.json"
        assert after.files == sorted([*before.files, intent])
        assert (after.tree, after.disks, after.nodes, after.running) == (before.tree, before.disks, before.nodes, True)
        assert "intent.json" in after.domain[2]
        assert list(memory.rglob("*.qcow2")) == []
        stage.qemu.wait_counting()
        await refused(stage.create("s2"), f"{ERROR}Interrupted", DOMAIN, "create s1", "intent.json")


async def test_the_file_system_for_memory_fills_up_while_the_guest_stands_still() -> None:
    """Saved with the guest paused: the disks are covered, and the guest has not run on the overlays when QEMU gives up."""
    with short_directory() as directory:
        small = SmallFileSystem(directory, 256 << 20)
        settings = {"snapshots": {"directory": str(directory)}, "limits": {"free_bytes": "1MiB"}}
        async with scene(guest=DIRTYING, settings=settings, prefix=small.prefix) as stage:
            await asyncio.to_thread(stage.qemu.wait_dirtied)
            await assert_works(stage)
            pid = stage.daemon.pid
            async with untouched(stage, pauses=True):
                create = refused(stage.create("s1", live=Variant("s", "no")), f"{ERROR}QemuFailed", DOMAIN, "snapshot-save")
                await _during_pause(stage, lambda: small.fill(pid), create)
            small.empty(pid)
            assert small.files(pid) == []
            await assert_works(stage)


@contextlib.asynccontextmanager
async def _scene_on_small_state() -> AsyncIterator[tuple[Scene, SmallFileSystem, Path]]:
    """Set a scene whose state lies in a small file system, and memory in the directory that comes with it."""
    with short_directory() as state, short_directory() as memory:
        small = SmallFileSystem(state, 1 << 20)
        settings = {"snapshots": {"directory": str(memory)}}
        async with scene(guest=DIRTYING, settings=settings, prefix=small.prefix, state=state) as stage:
            stage.daemon.state = small.seen_by(stage.daemon.pid)
            await asyncio.to_thread(stage.qemu.wait_dirtied)
            await assert_works(stage)
            yield stage, small, memory


async def _during_pause(stage: Scene, happens: Callable[[], object], call: Coroutine[Any, Any, object]) -> None:
    """Begin ``call``, and let something happen after it has stopped the guest and before QEMU has saved its memory."""
    stage.qemu.control.events.clear()
    begun = asyncio.create_task(call)
    try:
        await asyncio.to_thread(stage.qemu.control.wait_event, "STOP")
        stage.qemu.freeze()
        happens()
    finally:
        stage.qemu.thaw()
        await begun
