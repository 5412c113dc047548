# SPDX-License-Identifier: MIT
"""The state or the memory of a snapshot cannot be written once the guest was stopped: it goes on, on its own disks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from snapd.bus.names import BUS_NAME, SNAPSHOT_INTERFACE, snapshot_path
from snapd.bus.wire import Variant
from tests.lab.guest import TinyGuest
from tests.lab.images import tags
from tests.lab.marks import kept_marks, mark_all
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, TWO_DISKS, UUID, Scene, scene, short_directory
from tests.lab.small import SmallFileSystem
from tests.lab.untouched import ERROR, assert_same, assert_works, picture, refused, untouched

DIRTYING = TinyGuest.dirtying(8)
INTERNAL = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), TWO_DISKS[1])


@pytest.mark.parametrize("disks", [TWO_DISKS, INTERNAL], ids=["external", "internal"])
async def test_something_is_where_the_snapshot_file_is_to_be(disks: tuple[GuestDisk, ...]) -> None:
    """The guest has run on its overlays by then, and what it wrote to them is kept."""
    async with scene(disks, guest=DIRTYING) as stage:
        await assert_works(stage)
        in_the_way = stage.state / "snapshotdata-s1.libxl-json"
        in_the_way.mkdir()
        for live in ("auto", "no"):
            async with untouched(stage, pauses=True):
                await refused(stage.create("s1", live=Variant("s", live)), f"{ERROR}StateDamaged", str(in_the_way))
        # To take an overlay down, a merge ends with the guest stopped for a moment.
        async with untouched(stage, pauses=disks is TWO_DISKS):
            await refused(stage.create("s1", memory=Variant("b", False)), f"{ERROR}StateDamaged", str(in_the_way))
        assert all(tags(disk["Image"]) == [] for disk in (await stage.properties())["Disks"] if disk["Format"] == "qcow2")
        files = stage.files()
        await stage.shut_off()
        await refused(stage.create("s1"), f"{ERROR}StateDamaged", str(in_the_way))
        assert stage.files() == files
        assert all(tags(disk["Image"]) == [] for disk in (await stage.properties())["Disks"] if disk["Format"] == "qcow2")
        await stage.start("running")
        stage.qemu.wait_counting()
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
            protect = (BUS_NAME, snapshot_path(DOMAIN, "s1"), SNAPSHOT_INTERFACE, "SetProtected", "b", (True,))
            await refused(stage.wire.call(*protect), f"{ERROR}StateDamaged", str(path), "restart")
            assert (await stage.properties("s1"))["Protected"] is False


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


async def test_a_revert_whose_outcome_cannot_be_written_says_so_and_loses_nothing() -> None:
    """The guest is on the snapshot by then and goes on there, so the state is behind and the domain is not changed any more."""
    async with _scene_on_small_state() as (stage, small, _):
        await mark_all(stage, 1)
        await stage.create("s1")
        await mark_all(stage, 2)
        pid = stage.daemon.pid
        before = await picture(stage)
        refusal = refused(stage.revert("s1", undo=Variant("b", True)), f"{ERROR}StateDamaged", "Read-only file system")
        await _during_pause(stage, lambda: small.remount(pid, "ro"), refusal)
        shown = await stage.properties()
        assert "revert s1" in shown["Interrupted"]
        assert await stage.snapshots() == before.tree
        assert await kept_marks(stage, "s1") == {"disk0": 1, "disk1": 1}
        assert set(before.files) < set(stage.files())
        stage.qemu.wait_counting()
        await refused(stage.create("s2"), f"{ERROR}Interrupted", DOMAIN, "revert s1", "intent.json")
        await refused(stage.revert("s1"), f"{ERROR}Interrupted", DOMAIN, "revert s1", "intent.json")


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
