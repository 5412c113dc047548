# SPDX-License-Identifier: MIT
"""Collecting: in which order images and state change, and that the intent goes only where the committed state is true.

Not here: what is collected (``test_model_images.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from snapd.engine.merge import commit_and_collect
from snapd.engine.ports import Ports
from snapd.errors import DomainUnreachable, ImageToolFailed, MonitorLost, QemuFailed, SnapdError, StateDamaged
from snapd.model.images import Image, ImageGraph, Merge, Origin, Pin
from snapd.model.record import DomainRecord

BASE, OVERLAY, OLD = "/images/disk.raw", "/images/disk.s1.qcow2", "/images/disk.old.qcow2"
MERGED = ImageGraph(
    {BASE: Image(BASE, "qcow2", None, Origin.DEFINED), OVERLAY: Image(OVERLAY, "qcow2", BASE, Origin.CREATED)}, {"vda": OVERLAY}
)
"""A graph in which the overlay is to be merged."""

AT_REST = MERGED.pin("kept", {"vda": Pin(BASE)})
WITH_OLD = AT_REST.with_images(Image(OLD, "qcow2", BASE, Origin.CREATED))


@dataclass
class World:
    """Store, images and QEMU that keep account; what is in ``fails`` fails, as what it says: ``commit 2`` is the second."""

    graph: ImageGraph = MERGED
    opened: list[str] = field(default_factory=lambda: [BASE, OVERLAY])
    fails: dict[str, SnapdError] = field(default_factory=dict)
    keeps_open: bool = True
    done: list[str] = field(default_factory=list)
    commits: int = 0

    def __post_init__(self) -> None:
        self.committed = DomainRecord("vm1", "u", self.graph)

    def _do(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]
        self.done.append(what)

    # Store

    async def commit(self, after: DomainRecord) -> None:
        self.commits += 1
        self._do(f"commit {self.commits}")
        self.committed = after

    async def step(self, name: str) -> None:
        self._do(f"step {name}")

    async def end(self) -> None:
        self._do("end")

    # Images

    async def allocated_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(paths, 1)

    async def unlink(self, path: str) -> None:
        self._do(f"unlink {path}")

    async def drop_tag(self, path: str, tag: str) -> None:
        self._do(f"drop {tag} in {path}")

    async def repoint(self, path: str, backing: str, backing_format: str) -> None:
        self._do(f"repoint {path} to {backing} ({backing_format})")

    # QEMU

    async def open_images(self) -> dict[str, str]:
        return {path: f"#{path}" for path in self.opened}

    async def close_unused(self, paths: Sequence[str]) -> None:
        self.opened = self.opened if self.keeps_open else [path for path in self.opened if path not in paths]

    async def merge(self, merge: Merge, *_: Any) -> None:
        self._do(f"merge {merge.removed} into {merge.kept}")


class Other(World):
    """The same, to tell who was asked: what a port of its own does is told with its name."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    def _do(self, what: str) -> None:
        self._world._do(f"{self._name}: {what}")


async def _collect(world: World, unneeded: Sequence[str] = ()) -> None:
    ports = Ports(cast("Any", world), cast("Any", Other(world, "tool")), cast("Any", world))
    await commit_and_collect(ports, world.committed, lambda *_: None, unneeded)


# The order


async def test_a_merge_is_committed_before_the_overlay_is_removed() -> None:
    world = World()

    await _collect(world)

    assert world.done == [
        "commit 1",
        f"step commit {OVERLAY}",
        f"merge {OVERLAY} into {BASE}",
        "commit 2",
        f"tool: unlink {OVERLAY}",
    ]
    assert world.committed.graph.active == {"vda": BASE}


async def test_images_that_no_qemu_has_open_are_merged_by_the_tool() -> None:
    pinned = ImageGraph(
        {
            BASE: Image(BASE, "qcow2", None, Origin.DEFINED),
            OLD: Image(OLD, "qcow2", BASE, Origin.CREATED),
            OVERLAY: Image(OVERLAY, "qcow2", OLD, Origin.CREATED),
        },
        {"vda": OVERLAY},
        {"kept": {"vda": Pin(OLD)}},
    )
    world = World(pinned, opened=[])

    await _collect(world)

    assert world.done[2:5] == [
        f"tool: merge {OLD} into {BASE}",
        f"tool: repoint {OVERLAY} to {BASE} (qcow2)",
        "commit 2",
    ]


async def test_files_that_nothing_needs_are_removed_once_the_state_does_not_name_them() -> None:
    world = World(WITH_OLD)

    await _collect(world, ["/memory/s"])

    assert world.done == ["commit 1", "tool: unlink /memory/s", f"tool: unlink {OLD}"]
    assert world.committed.graph == AT_REST


# Internal snapshots


async def test_internal_snapshots_are_deleted_after_one_commit_and_forgotten_with_the_next() -> None:
    world = World(AT_REST.doom(OVERLAY, "s").doom(OVERLAY, "t"))

    await _collect(world, ["/memory/s"])

    assert world.done == [
        "commit 1",
        "tool: unlink /memory/s",
        f"drop s in {OVERLAY}",
        f"drop t in {OVERLAY}",
        "commit 2",
    ]
    assert world.committed.graph == AT_REST


@pytest.mark.parametrize(
    ("opened", "keeps_open", "by"),
    [([OVERLAY], True, ""), ([OVERLAY], False, "tool: "), ([], True, "tool: ")],
)
async def test_qemu_deletes_in_what_it_has_open_and_the_tool_in_the_rest(opened: list[str], keeps_open: bool, by: str) -> None:
    world = World(AT_REST.doom(OVERLAY, "s"), opened=opened, keeps_open=keeps_open)

    await _collect(world)

    assert world.done == ["commit 1", f"{by}drop s in {OVERLAY}", "commit 2"]


async def test_one_in_an_image_that_is_open_for_reading_is_left_to_another_time() -> None:
    world = World(AT_REST.doom(BASE, "s"))

    await _collect(world)

    assert world.done == ["commit 1"]
    assert world.committed.graph.images[BASE].doomed == ("s",)


# Failures


async def test_a_merge_that_could_not_be_committed_keeps_its_intent_and_every_file() -> None:
    world = World(fails={"commit 2": StateDamaged("/state", 0, "it cannot be written")})

    with pytest.raises(StateDamaged):
        await _collect(world)

    assert "end" not in world.done
    assert not any("unlink" in each for each in world.done)


async def test_a_state_that_could_not_be_committed_at_first_keeps_its_intent_and_every_file() -> None:
    world = World(WITH_OLD, fails={"commit 1": StateDamaged("/state", 0, "it cannot be written")})

    with pytest.raises(StateDamaged):
        await _collect(world)

    assert world.done == []


@pytest.mark.parametrize(
    ("graph", "step", "error"),
    [
        (MERGED, f"merge {OVERLAY} into {BASE}", QemuFailed("vm1", "block-commit", "no room")),
        (AT_REST.doom(OVERLAY, "s"), f"drop s in {OVERLAY}", QemuFailed("vm1", "snapshot-delete", "no room")),
        (AT_REST.doom(OVERLAY, "r").doom(OVERLAY, "s"), f"drop s in {OVERLAY}", ImageToolFailed("qemu-img", "no room")),
    ],
)
async def test_a_step_that_failed_leaves_a_true_graph_and_no_intent(graph: ImageGraph, step: str, error: SnapdError) -> None:
    world = World(graph, fails={step: error})

    with pytest.raises(type(error)):
        await _collect(world)

    assert world.done[-1] == "end"
    assert not any("unlink" in each for each in world.done)
    # The next collection goes on from there, also with what was deleted already.
    assert world.committed.graph == graph


@pytest.mark.parametrize("error", [MonitorLost("vm1", "block-commit", "end of file"), DomainUnreachable("vm1", "end of file")])
async def test_a_monitor_that_is_lost_keeps_the_intent(error: SnapdError) -> None:
    world = World(fails={f"merge {OVERLAY} into {BASE}": error})

    with pytest.raises(MonitorLost):
        await _collect(world)

    assert "end" not in world.done
