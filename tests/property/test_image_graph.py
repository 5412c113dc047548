# SPDX-License-Identifier: MIT
"""The image graph against simulated files: no sequence of operations loses what a snapshot or a disk holds.

A file has blocks of its own and falls through to its backing file, as qcow2 does; an internal snapshot is a copy of the blocks
of one file. Each step that the graph proposes is done to the files as the tools would do it, interrupted at times, and after
each one every disk and every snapshot is read back and compared with plain tuples of numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapd.model.images import Collection, Direction, Image, ImageGraph, Merge, Origin, Pin, Unlink, graph_of_chain
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.model.tree import Scope, SnapshotTree

TARGETS = ("vda", "vdb")
MOST_SNAPSHOTS = 7
FIRST_SIZE, LARGEST_SIZE = 4, 6

Content = tuple[int, ...]

disks = st.sampled_from(TARGETS)
picks = st.integers(0, 999)
sizes = st.lists(st.integers(0, 3), min_size=1, max_size=6)
interruptions = st.sampled_from([None, None, None, 0, 1, 2])
letters = st.sampled_from("amz")  # images are looked at in the order of their paths


@dataclass
class File:
    """An image file: ``blocks`` that it holds itself, and ``tags``, each with the size and the blocks at its instant."""

    size: int
    backing: str | None
    blocks: dict[int, int] = field(default_factory=dict)
    tags: dict[str, tuple[int, dict[int, int]]] = field(default_factory=dict)


class Files:
    """The image files of a host, and what the tools do to them."""

    def __init__(self) -> None:
        self.by_path: dict[str, File] = {}

    def read(self, path: str) -> Content:
        return self._fall_through(self.by_path[path].size, self.by_path[path].blocks, path)

    def read_tag(self, path: str, tag: str) -> Content:
        size, blocks = self.by_path[path].tags[tag]
        return self._fall_through(size, blocks, path)

    def _fall_through(self, size: int, blocks: dict[int, int], path: str) -> Content:
        backing = self.by_path[path].backing
        return tuple(blocks[index] if index in blocks else self._block(backing, index) for index in range(size))

    def _block(self, path: str | None, index: int) -> int:
        while path is not None and index < self.by_path[path].size:
            if index in self.by_path[path].blocks:
                return self.by_path[path].blocks[index]
            path = self.by_path[path].backing
        return 0

    def chain(self, path: str) -> list[str]:
        found: list[str] = []
        at: str | None = path
        while at is not None:
            found.append(at)
            at = self.by_path[at].backing
        return found

    def backing_on(self, path: str) -> list[str]:
        return [each for each, file in self.by_path.items() if file.backing == path]

    def holding_or_below_tags(self) -> set[str]:
        return {below for path, file in self.by_path.items() if file.tags for below in self.chain(path)}

    def create(self, path: str, size: int, backing: str | None) -> None:
        assert path not in self.by_path
        self.by_path[path] = File(size, backing)

    def unlink(self, path: str) -> None:
        del self.by_path[path]

    def commit(self, step: Merge) -> None:
        overlay, backing = self.by_path[step.overlay], self.by_path[step.backing]
        backing.blocks.update(overlay.blocks)
        backing.size = max(backing.size, overlay.size)
        for path in step.repoint:
            self.by_path[path].backing = step.backing
        self.unlink(step.overlay)

    def stream(self, step: Merge) -> None:
        overlay, backing = self.by_path[step.overlay], self.by_path[step.backing]
        overlay.blocks = {**backing.blocks, **overlay.blocks}
        overlay.backing = step.below
        self.unlink(step.backing)


class ImageGraphMachine(RuleBasedStateMachine):
    """``present`` and ``past`` are what the disks, and the snapshots of them, must read back as."""

    def __init__(self) -> None:
        super().__init__()
        self.files = Files()
        self.graph = ImageGraph()
        self.tree = SnapshotTree()
        self.present: dict[str, Content] = {}
        self.past: dict[str, dict[str, Content]] = {}
        self.defined: dict[str, str] = {}
        self.foreign: dict[str, dict[int, int]] = {}
        self.count = 0

    # Operations

    @initialize(foreign=st.tuples(st.integers(0, 2), st.integers(0, 2)), shared=st.booleans())
    def define(self, foreign: tuple[int, int], shared: bool) -> None:
        for target, below in zip(TARGETS, foreign, strict=True):
            owner = "shared" if shared else target
            backing: str | None = None
            for depth in range(below):
                path = f"/base/{owner}-{depth}"
                if path not in self.files.by_path:
                    self.files.create(path, FIRST_SIZE, backing)
                    self.files.by_path[path].blocks = {depth: 100 + depth, 3: 110 + depth}
                    self.graph = self.graph.with_images(Image(path, "qcow2", backing, Origin.FOREIGN))
                self.foreign[path] = dict(self.files.by_path[path].blocks)
                backing = path
            path = f"/images/{target}"
            self.files.create(path, FIRST_SIZE, backing)
            self.files.by_path[path].blocks = {0: 120}
            chain = (Image(path, "qcow2", backing, Origin.DEFINED, FIRST_SIZE), *(self.graph.chain(backing) if backing else ()))
            one = graph_of_chain(target, chain)
            self.graph = replace(self.graph.with_images(*one.images.values()), active={**self.graph.active, **one.active})
            self.defined[target] = path
            self.present[target] = self.files.read(path)

    @rule(disk=disks, index=st.integers(0, LARGEST_SIZE - 1), value=st.integers(1, 99))
    def write(self, disk: str, index: int, value: int) -> None:
        file = self.files.by_path[self.graph.active[disk]]
        index %= file.size
        file.blocks[index] = value
        was = self.present[disk]
        self.present[disk] = (*was[:index], value, *was[index + 1 :])

    @rule(disk=disks)
    def grow(self, disk: str) -> None:
        path = self.graph.active[disk]
        if self.files.by_path[path].size < LARGEST_SIZE:
            self.files.by_path[path].size += 1
            self.graph = self.graph.with_images(
                replace(self.graph.images[path], virtual_size_bytes=self.files.by_path[path].size)
            )
            self.present[disk] = (*self.present[disk], 0)

    @precondition(lambda self: len(self.past) < MOST_SNAPSHOTS)
    @rule(kinds=st.dictionaries(disks, st.sampled_from(["external", "external", "internal"]), min_size=1), letter=letters)
    def create(self, kinds: dict[str, str], letter: str) -> None:
        self.count += 1
        name = f"s{self.count}"
        pins = {}
        for target, kind in kinds.items():
            covered = self.graph.active[target]
            if kind == "external":
                pins[target] = Pin(covered)
                self._cover(target, covered, letter)
            else:
                pins[target] = Pin(covered, name)
                file = self.files.by_path[covered]
                file.tags[name] = (file.size, dict(file.blocks))
        self.graph = self.graph.pin(name, pins)
        self.past[name] = {target: self.present[target] for target in kinds}
        self.tree = self.tree.add(Snapshot(name, self.count, SnapshotType.EXTERNAL, True, ()))

    @precondition(lambda self: self.past)
    @rule(pick=picks, letter=letters, allocated=sizes, stop=interruptions)
    def revert(self, pick: int, letter: str, allocated: list[int], stop: int | None) -> None:
        name = self._snapshot(pick)
        pins = self.graph.pins[name]
        if any(pin.tag and self.graph.is_frozen(pin.image) for pin in pins.values()):
            return
        for target, pin in pins.items():
            if pin.tag:
                file = self.files.by_path[pin.image]
                file.size, file.blocks = file.tags[pin.tag][0], dict(file.tags[pin.tag][1])
                applied = replace(self.graph.images[pin.image], virtual_size_bytes=file.size)
                self.graph = replace(self.graph.with_images(applied), active={**self.graph.active, target: pin.image})
            else:
                self._cover(target, pin.image, letter)
        self.present.update(self.past[name])
        self.tree = self.tree.revert_to(name)
        self._collect(allocated, stop)

    @precondition(lambda self: self.past)
    @rule(pick=picks, scope=st.sampled_from(Scope), allocated=sizes, stop=interruptions)
    def delete(self, pick: int, scope: Scope, allocated: list[int], stop: int | None) -> None:
        names = self.tree.scope(self._snapshot(pick), scope)
        for name in names:
            for pin in self.graph.pins[name].values():
                if pin.tag:
                    del self.files.by_path[pin.image].tags[pin.tag]
            self.graph = self.graph.unpin(name)
            del self.past[name]
        self.tree = self.tree.remove(names)
        self._collect(allocated, stop)

    @precondition(lambda self: self.past)
    @rule(order=st.lists(picks, min_size=MOST_SNAPSHOTS, max_size=MOST_SNAPSHOTS), allocated=sizes)
    def delete_every_snapshot(self, order: list[int], allocated: list[int]) -> None:
        for pick in order[: len(self.past)]:
            self.delete(pick, Scope.ONE, allocated, None)
        assert not self.past
        assert self.graph.active == self.defined, "a disk is not back on the image it was defined with"
        assert set(self.graph.images) == {*self.defined.values(), *self.foreign}

    def _snapshot(self, pick: int) -> str:
        names = sorted(self.past)
        return names[pick % len(names)]

    def _cover(self, target: str, covered: str, letter: str) -> None:
        self.count += 1
        path = f"/images/{letter}{self.count}"
        size = self.files.by_path[covered].size
        self.files.create(path, size, covered)
        self.graph = self.graph.cover(target, Image(path, "qcow2", covered, Origin.CREATED, size))

    # Collection, step by step

    def _collect(self, allocated: Sequence[int], stop: int | None) -> None:
        allocated_bytes = {path: allocated[at % len(allocated)] for at, path in enumerate(sorted(self.graph.images))}
        steps = self.graph.collect(allocated_bytes)
        for step in steps[:stop]:
            self._take(step, allocated_bytes)
        if stop is None or stop >= len(steps):
            self._check_rest()

    def _take(self, step: Collection, allocated_bytes: dict[str, int]) -> None:
        self.reads_back()
        expected = {path: self.files.read(path) for path in self.files.by_path}
        removed = step.path if isinstance(step, Unlink) else step.removed
        assert self.graph.images[removed].origin is Origin.CREATED, f"{removed} is not ours to unlink"
        if isinstance(step, Merge):
            self._check_merge(step, allocated_bytes)
            if step.direction is Direction.COMMIT:
                expected[step.backing] = expected[step.overlay]
                self.files.commit(step)
            else:
                self.files.stream(step)
        else:
            self.files.unlink(step.path)
        del expected[removed]
        self.graph = self.graph.apply(step)
        assert not self.files.backing_on(removed)
        assert {path: self.files.read(path) for path in self.files.by_path} == expected, "a content changed that was frozen"
        self.reads_back()

    def _check_merge(self, step: Merge, allocated_bytes: dict[str, int]) -> None:
        ends = {step.overlay, step.backing}
        assert self.graph.images[step.kept].origin is not Origin.FOREIGN, f"{step.kept} is foreign and would be written"
        assert self.files.backing_on(step.backing) == [step.overlay], f"others back on {step.backing} too"
        assert step.backing not in {pin.image for pins in self.graph.pins.values() for pin in pins.values()}
        assert not ends & self.files.holding_or_below_tags(), "tags would be destroyed"
        assert step.active == (step.overlay in self.graph.active.values())
        if Origin.DEFINED not in {self.graph.images[path].origin for path in ends}:
            copied, other = (step.overlay, step.backing) if step.removed == step.overlay else (step.backing, step.overlay)
            assert allocated_bytes[copied] <= allocated_bytes[other], "the merge copies more than it has to"

    def _check_rest(self) -> None:
        pinned = {pin.image for pins in self.graph.pins.values() for pin in pins.values()}
        needed = {*self.graph.active.values(), *pinned, *self.foreign, *self.files.holding_or_below_tags()}
        for path in self.files.by_path:
            assert path in needed or len(self.files.backing_on(path)) > 1, f"{path} stays and nothing needs it"
        assert not self.graph.collect({})

    @invariant()
    def reads_back(self) -> None:
        assert self.graph.violations() == []
        seen = {path: (file.backing, file.size) for path, file in self.files.by_path.items() if path not in self.foreign}
        known = {path: (image.backing, image.virtual_size_bytes) for path, image in self.graph.images.items()}
        assert {path: each for path, each in known.items() if path not in self.foreign} == seen
        for path, blocks in self.foreign.items():
            assert self.files.by_path[path].blocks == blocks, f"{path} is foreign and was written"
        for path in self.defined.values():
            assert self.graph.images[path].origin is Origin.DEFINED
        assert {target: self.files.read(path) for target, path in self.graph.active.items()} == self.present
        assert {name: dict(self._read_pins(name)) for name in self.graph.pins} == self.past
        assert set(self.tree.snapshots) == set(self.past)

    def _read_pins(self, name: str) -> Iterator[tuple[str, Content]]:
        for target, pin in self.graph.pins[name].items():
            yield target, self.files.read_tag(pin.image, pin.tag) if pin.tag else self.files.read(pin.image)


TestImageGraph = ImageGraphMachine.TestCase
TestImageGraph.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)
