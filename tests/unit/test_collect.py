# SPDX-License-Identifier: MIT
"""When a collection fails: the intent goes only where the committed state is true."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from snapd.engine.merge import commit_and_collect
from snapd.engine.ports import Ports
from snapd.errors import QemuFailed, SnapdError, StateDamaged
from snapd.model.images import Image, ImageGraph, Origin
from snapd.model.record import DomainRecord

BASE, OVERLAY = "/images/disk.raw", "/images/disk.s1.qcow2"
GRAPH = ImageGraph(
    {BASE: Image(BASE, "raw", None, Origin.DEFINED), OVERLAY: Image(OVERLAY, "qcow2", BASE, Origin.CREATED)}, {"vda": OVERLAY}
)


@dataclass
class World:
    """Store, images and QEMU that keep account; the commit of number ``fails_at`` fails, and the merge if ``no_merge``."""

    committed: DomainRecord = field(default_factory=lambda: DomainRecord("vm1", "u", GRAPH))
    fails_at: int = 0
    no_merge: bool = False
    commits: int = 0
    ended: bool = False
    unlinked: list[str] = field(default_factory=list)

    async def commit(self, after: DomainRecord) -> None:
        self.commits += 1
        if self.commits == self.fails_at:
            raise StateDamaged("/state", 0, "it cannot be written")
        self.committed = after

    async def step(self, _name: str) -> None: ...

    async def end(self) -> None:
        self.ended = True

    async def allocated_bytes(self, _paths: list[str]) -> dict[str, int]:
        return {}

    async def unlink(self, path: str) -> None:
        self.unlinked.append(path)

    async def open_images(self) -> dict[str, str]:
        return {BASE: "a", OVERLAY: "b"}

    async def close_unused(self, _paths: list[str]) -> None: ...

    async def merge(self, *_: Any) -> None:
        if self.no_merge:
            raise QemuFailed("vm1", "block-commit", "no room")


async def _collect(world: World) -> None:
    ports = Ports(cast("Any", world), cast("Any", world), cast("Any", world))
    await commit_and_collect(ports, world.committed, lambda *_: None)


async def test_a_merge_that_could_not_be_committed_keeps_its_intent_and_every_file() -> None:
    world = World(fails_at=2)

    with pytest.raises(StateDamaged):
        await _collect(world)

    assert not world.ended
    assert world.unlinked == []


async def test_a_merge_that_failed_leaves_a_true_graph_and_no_intent() -> None:
    world = World(no_merge=True)

    with pytest.raises(SnapdError):
        await _collect(world)

    assert world.ended
    assert world.unlinked == []
    assert world.committed.graph == GRAPH


async def test_a_merge_that_was_committed_removes_the_overlay() -> None:
    world = World()

    await _collect(world)

    assert world.unlinked == [OVERLAY]
    assert world.committed.graph.active == {"vda": BASE}
