# SPDX-License-Identifier: MIT
"""A random walk of creates, reverts and deletes over two disks, compared with a model of plain byte arrays. Never weakened.

The guest counts at the start of each disk; the test itself writes patterns elsewhere through QEMU, so that every snapshot has
blocks of its own.
"""

import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from snapd.bus.wire import Variant
from tests.integration.conftest import IS_SOAK
from tests.lab.guest import disk_counter
from tests.lab.images import content, tags
from tests.lab.qemu import GuestDisk
from tests.lab.scene import UUID, Scene, scene

STEPS = 60
WALKS = 20 if IS_SOAK else 1
BLOCK = 4096
DISK_BYTES = 1 << 20
FIRST_BLOCK = 2
"""What lies before is the boot sector and the guest's own counter."""

DISKS = (GuestDisk("disk0.raw", "raw", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", "ide", id="disk1"))

Content = dict[int, bytes]
"""What the test has written, by block; all else is zero."""


@dataclass
class Model:
    """What each disk must read as: now, and in each snapshot."""

    now: dict[str, Content] = field(default_factory=lambda: {"disk0": {}, "disk1": {}})
    snapshots: dict[str, dict[str, Content]] = field(default_factory=dict)
    with_memory: set[str] = field(default_factory=set)
    undo_points: set[str] = field(default_factory=set)
    parents: dict[str, str] = field(default_factory=dict)
    current: str = ""

    def create(self, name: str, *, memory: bool) -> None:
        self.snapshots[name] = self.copy_of_now()
        self.parents[name] = self.current
        self.current = name
        if memory:
            self.with_memory.add(name)

    def revert(self, name: str, undo_point: str = "") -> None:
        """Go back to ``name`` and keep what was there as ``undo_point``; those of earlier reverts end with this one."""
        ended = sorted(self.undo_points)
        now = {target: dict(content) for target, content in self.snapshots[name].items()}
        if undo_point:
            self.create(undo_point, memory=False)
            self.undo_points.add(undo_point)
        self.now, self.current = now, name
        self.remove(ended)

    def copy_of_now(self) -> dict[str, Content]:
        return {target: dict(content) for target, content in self.now.items()}

    def below(self, name: str) -> list[str]:
        """Return ``name`` and all its descendants."""
        found = [name]
        for each in found:
            found += [child for child, parent in self.parents.items() if parent == each]
        return found

    def remove(self, names: list[str]) -> None:
        for name in names:
            parent = self.parents.pop(name)
            self.parents = {child: parent if above == name else above for child, above in self.parents.items()}
            self.current = parent if self.current == name else self.current
            del self.snapshots[name]
            self.with_memory.discard(name)
            self.undo_points.discard(name)


@pytest.mark.parametrize("every_kind", [False, True], ids=["plain", "every-kind"])
async def test_60_random_steps_lose_nothing_and_leave_nothing(accel: str, every_kind: bool) -> None:
    """Plain ones have memory and external snapshots; else disks are internal too, memory is left out, undo points are kept."""
    for walk in range(WALKS):
        seed = random.randrange(1 << 32)
        print(f"walk {walk}: seed {seed}")
        await _walk(random.Random(seed), accel, every_kind=every_kind)


async def _walk(chance: random.Random, accel: str, *, every_kind: bool) -> None:
    model = Model()
    async with scene(DISKS, accel=accel, disk_bytes=DISK_BYTES) as stage:
        for number in range(STEPS):
            await _write(stage, model, chance)
            await _step(stage, model, chance, f"s{number}", every_kind=every_kind)
            if number % 10 == 9:
                await _check(stage, model)
        await _check(stage, model)
        while model.snapshots:
            await _delete(stage, model, chance.choice(sorted(model.snapshots)), "one")
        await _check(stage, model)
        if every_kind:
            # An internal snapshot in an image that QEMU has open for reading only stays until then.
            await stage.shut_off()
            await stage.wait_rest()
            assert not tags(stage.images / "disk1.qcow2")
            await stage.start("running")
        assert stage.files() == _bare_files(), "something is left over"
        disks = {disk["Target"]: Path(disk["Image"]).name for disk in (await stage.properties())["Disks"]}
        assert disks == {"disk0": "disk0.raw", "disk1": "disk1.qcow2"}
        stage.qemu.wait_counting()


def _bare_files() -> list[str]:
    state = f"state/{UUID}"
    return sorted(["images/disk0.raw", "images/disk1.qcow2", *(f"{state}/{name}" for name in _state_files())])


def _state_files() -> list[str]:
    return ["disks.env", "disks/disk0.raw", "disks/disk1.qcow2", "domain.libxl-json"]


async def _step(stage: Scene, model: Model, chance: random.Random, name: str, *, every_kind: bool) -> None:
    kind = chance.choices(["create", "revert", "delete"], [5, 4, 3])[0] if model.snapshots else "create"
    if kind == "create":
        memory = not every_kind or chance.random() < 0.5
        kinds = await _any_kinds(stage, chance) if every_kind else {}
        await stage.create(name, memory=Variant("b", memory), disks=Variant("a{ss}", kinds))
        model.create(name, memory=memory)
    elif kind == "revert":
        chosen = chance.choice(sorted(model.snapshots))
        undo = every_kind and chance.random() < 0.5
        before = {row[1] for row in await stage.snapshots()}
        await stage.revert(chosen, undo=Variant("b", undo))
        made = {row[1] for row in await stage.snapshots()} - before
        assert len(made) == int(undo), made
        model.revert(chosen, *made)
    else:
        scope = chance.choices(["one", "tree", "children"], [8, 1, 1])[0]
        await _delete(stage, model, chance.choice(sorted(model.snapshots)), scope)


async def _any_kinds(stage: Scene, chance: random.Random) -> dict[str, str]:
    """Return a kind for each disk that it can have."""
    shown = (await stage.properties())["Disks"]
    return {disk["Target"]: chance.choice(["external", *(["internal"] if disk["CanInternal"] else [])]) for disk in shown}


async def _delete(stage: Scene, model: Model, name: str, scope: str) -> None:
    await stage.delete(name, scope=Variant("s", scope))
    taken = {"one": [name], "tree": model.below(name), "children": model.below(name)[1:]}[scope]
    model.remove(list(reversed(taken)))


async def _write(stage: Scene, model: Model, chance: random.Random) -> None:
    """Write a few blocks through QEMU, while the guest runs."""
    nodes = {disk["Target"]: disk["Device"] for disk in (await stage.properties())["Disks"]}
    for _ in range(chance.randrange(4)):
        target = chance.choice(("disk0", "disk1"))
        block = chance.randrange(FIRST_BLOCK, DISK_BYTES // BLOCK)
        pattern = chance.randrange(1, 256)
        printed = stage.qemu.control.hmp(f'qemu-io -d {nodes[target]} "write -P {pattern} {block * BLOCK} {BLOCK}"')
        assert not printed, printed  # what it did goes to QEMU's own output; the next check reads it back
        model.now[target][block] = bytes([pattern]) * BLOCK


async def _check(stage: Scene, model: Model) -> None:
    """Compare the tree, every block of every snapshot, the memory's image, and what QEMU has open, with the model."""
    rows = await stage.snapshots()
    assert {row[1]: row[4] for row in rows} == model.parents
    assert [row[1] for row in rows if row[6]] == ([model.current] if model.current else [])
    used: set[str] = set()
    for name, expected in model.snapshots.items():
        shown = await stage.properties(name)
        for disk in shown["Disks"]:
            assert _wrong_blocks(disk, expected[disk["Target"]]) == [], f"{name}: {disk}"
            assert disk_counter(disk["Image"], disk["Format"], disk["Tag"]) >= 0
        assert len(shown["Disks"]) == len(DISKS)
    for disk in (await stage.properties())["Disks"]:
        # QEMU keeps tables of the active image in memory until they are flushed, and we read the file from outside.
        assert not stage.qemu.control.hmp(f"qemu-io -d {disk['Device']} flush")
        assert _wrong_blocks(disk, model.now[disk["Target"]]) == [], f"now: {disk}"
    for each in stage.qemu.control.execute("query-named-block-nodes", flat=True):
        used.add(each["file"])
    images = {str(each) for each in stage.images.iterdir()}
    assert used <= images, f"QEMU still has files open that are gone: {used - images}"
    memories = {each.name for each in stage.state.glob("*.vmstate.qcow2")}
    assert memories == {f"{name}.vmstate.qcow2" for name in model.with_memory}
    for each in stage.images.glob("*.qcow2"):
        subprocess.run(["qemu-img", "check", "-U", "-q", str(each)], check=True)


def _wrong_blocks(disk: dict[str, Any], written: Content) -> list[int]:
    """Return each block of an image that does not read as written; those of the guest's own counter are left out."""
    read = content(disk["Image"], disk["Format"], disk.get("Tag", ""))
    assert len(read) == DISK_BYTES
    return [
        block
        for block in range(FIRST_BLOCK, DISK_BYTES // BLOCK)
        if read[block * BLOCK : (block + 1) * BLOCK] != written.get(block, bytes(BLOCK))
    ]
