# SPDX-License-Identifier: MIT
"""A domain on simulated files, and what has to hold of its image graph after every step.

Each disk and each snapshot is read back and compared with plain tuples of numbers. Not here: the files (``simulated_files``)
and what is done to the domain (``test_image_graph``).
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from snapd.model.domain import Disk, DomainState, Inspection
from snapd.model.images import Collection, Direction, DropTag, Image, ImageGraph, Merge, Origin, Unlink
from snapd.model.plan import Application, CreatePlan, Overlay
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot, SnapshotDisk, SnapshotType
from tests.property.simulated_files import Content, Files

TARGETS = ("vda", "vdb")
FIRST_SIZE, LARGEST_SIZE = 4, 6


class ImageGraphWorld(RuleBasedStateMachine):
    """``present`` and ``past`` are what the disks, and the snapshots of them, must read back as."""

    def __init__(self) -> None:
        super().__init__()
        self.files = Files()
        self.record = DomainRecord("vm1", "u")
        self.present: dict[str, Content] = {}
        self.past: dict[str, dict[str, Content]] = {}
        self.defined: dict[str, str] = {}
        self.foreign: dict[str, dict[int, int]] = {}
        self.count = 0

    @property
    def graph(self) -> ImageGraph:
        return self.record.graph

    # What the domain is like

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
                self.foreign[path] = dict(self.files.by_path[path].blocks)
                backing = path
            self.defined[target] = path = f"/images/{target}"
            self.files.create(path, FIRST_SIZE, backing)
            self.files.by_path[path].blocks = {0: 120}
            self.present[target] = self.files.read(path)
        shown = [self._disk(target, path) for target, path in self.defined.items()]
        self.record = self.record.learn(shown, dict.fromkeys(self.files.by_path, "qcow2"), follows_active=False)

    def _disk(self, target: str, path: str) -> Disk:
        file = self.files.by_path[path]
        chain = tuple(self.files.chain(path))
        return Disk(target, "", "", path, "qcow2", chain, file.size, writable=True, tags=tuple(file.tags))

    def seen(self, *, is_running: bool) -> Inspection:
        return Inspection(
            state=DomainState.RUNNING if is_running else DomainState.SHUTOFF,
            uuid="u",
            machine=None,
            disks=tuple(self._disk(target, path) for target, path in self.graph.active.items()),
            open_images=self.opened(is_running=is_running),
            formats={},
            qemu_version=(7, 2, 0),
        )

    def opened(self, *, is_running: bool) -> dict[str, str]:
        chains = [self.files.chain(path) for path in self.graph.active.values()] if is_running else []
        return {path: f"#{path}" for chain in chains for path in chain}

    def snapshot(self, pick: int) -> str:
        names = sorted(self.past)
        return names[pick % len(names)]

    def check_home(self, target: str, path: str) -> None:
        """A disk is back on the image that it was defined with, unless that has become too large to take it in."""
        home = self.defined[target]
        if path != home:
            assert self.graph.images[path].backing == home, f"{path} cannot be brought home"
            assert self.graph.images[path].virtual_size_bytes < self.graph.images[home].virtual_size_bytes

    def taken(self, plan: CreatePlan) -> Snapshot:
        sizes = tuple(SnapshotDisk(target, "", "", len(content)) for target, content in self.past[plan.name].items())
        return Snapshot(plan.name, self.count, SnapshotType.ANY, plan.state, sizes, left_out=plan.left_out)

    def change(self, snapshot: Snapshot) -> None:
        tree = self.record.tree
        self.record = replace(self.record, tree=replace(tree, snapshots={**tree.snapshots, snapshot.name: snapshot}))

    # What is done to the files

    def make(self, overlay: Overlay) -> None:
        image = overlay.image
        self.files.create(image.path, image.virtual_size_bytes, image.backing)
        if overlay.copy_of:
            self.files.copy_tag(overlay.copy_of.image, overlay.copy_of.tag, image.path)

    def apply(self, each: Application) -> None:
        path = each.image.path
        assert not self.files.backing_on(path), f"others back on {path}"
        assert each.is_active == (self.graph.active[each.disk.target] == path)
        assert bool(each.keep) == each.is_active
        if each.keep:
            self.files.make_tag(path, each.keep)
        self.files.apply_tag(path, each.tag)

    def allocated(self, allocated: Sequence[int]) -> dict[str, int]:
        return {path: allocated[at % len(allocated)] for at, path in enumerate(sorted(self.graph.images))}

    def collect(self, allocated: Sequence[int], stop: int | None, *, is_running: bool) -> None:
        allocated_bytes = self.allocated(allocated)
        opened = self.opened(is_running=is_running)
        steps = self.graph.collect(allocated_bytes, opened)
        for step in steps[:stop]:
            self._take(step, allocated_bytes, opened)
        if stop is None or stop >= len(steps):
            self._check_rest(opened)

    def _take(self, step: Collection, allocated_bytes: Mapping[str, int], opened: Container[str]) -> None:
        self.reads_back()
        expected = {path: self.files.read(path) for path in self.files.by_path}
        match step:
            case Unlink():
                assert self.graph.images[step.path].origin is Origin.CREATED, f"{step.path} is not ours to unlink"
                assert not self.files.backing_on(step.path), f"others back on {step.path}"
                self.files.unlink(step.path)
                del expected[step.path]
            case DropTag():
                assert step.image not in opened or not self.graph.is_frozen(step.image), f"{step.image} is open for reading"
                self.files.drop_tag(step.image, step.tag)
            case Merge():
                self._check_merge(step, allocated_bytes)
                if step.direction is Direction.COMMIT:
                    expected[step.backing] = expected[step.overlay]
                    self.files.commit(step)
                else:
                    self.files.stream(step)
                del expected[step.removed]
        self.record = replace(self.record, graph=self.graph.apply(step))
        assert {path: self.files.read(path) for path in self.files.by_path} == expected, "a content changed that was frozen"
        self.reads_back()

    def _check_merge(self, step: Merge, allocated_bytes: Mapping[str, int]) -> None:
        ends = {step.overlay, step.backing}
        images = self.graph.images
        assert images[step.removed].origin is Origin.CREATED, f"{step.removed} is not ours to unlink"
        assert images[step.kept].origin is not Origin.FOREIGN, f"{step.kept} is foreign and would be written"
        assert self.files.backing_on(step.backing) == [step.overlay], f"others back on {step.backing} too"
        assert step.backing not in self._pinned()
        assert not ends & self._holding_or_below_tags(), "internal snapshots would be destroyed"
        assert step.active == (step.overlay in self.graph.active.values())
        is_free = images[step.backing].origin is Origin.CREATED and not self._would_stay_larger(step)
        if is_free:
            copied, other = (step.overlay, step.backing) if step.removed == step.overlay else (step.backing, step.overlay)
            assert allocated_bytes[copied] <= allocated_bytes[other], "the merge copies more than it has to"

    def _would_stay_larger(self, step: Merge) -> bool:
        images = self.graph.images
        return images[step.overlay].virtual_size_bytes < images[step.backing].virtual_size_bytes

    # What has to hold

    def _pinned(self) -> set[str]:
        return {pin.image for pins in self.graph.pins.values() for pin in pins.values()}

    def _holding_or_below_tags(self) -> set[str]:
        holding = {pin.image for pins in self.graph.pins.values() for pin in pins.values() if pin.tag}
        return {below for path in holding for below in self.files.chain(path)}

    def _check_rest(self, opened: Container[str]) -> None:
        needed = {*self.graph.active.values(), *self._pinned(), *self.foreign, *self._holding_or_below_tags()}
        for path, image in self.graph.images.items():
            above = self.files.backing_on(path)
            is_layer = len(above) > 1 or (len(above) == 1 and self._cannot_take_in(image, above[0]))
            assert path in needed or is_layer, f"{path} stays and nothing needs it"
            assert not image.doomed or (path in opened and self.graph.is_frozen(path)), f"{path} keeps {image.doomed}"
        assert not self.graph.collect({}, opened)

    def _cannot_take_in(self, image: Image, overlay: str) -> bool:
        return image.origin is Origin.DEFINED and self.graph.images[overlay].virtual_size_bytes < image.virtual_size_bytes

    @invariant()
    def reads_back(self) -> None:
        assert self.graph.violations() == []
        seen = {path: file.backing for path, file in self.files.by_path.items()}
        assert {path: image.backing for path, image in self.graph.images.items()} == seen
        for path, blocks in self.foreign.items():
            assert self.files.by_path[path].blocks == blocks, f"{path} is foreign and was written"
        for path in self.defined.values():
            assert self.graph.images[path].origin is Origin.DEFINED
        assert {target: self.files.read(path) for target, path in self.graph.active.items()} == self.present
        assert {name: dict(self._read_pins(name)) for name in self.graph.pins} == self.past
        assert set(self.record.tree.snapshots) == set(self.past)
        for path, file in self.files.by_path.items():
            pinned = [pin.tag for pins in self.graph.pins.values() for pin in pins.values() if pin.tag and pin.image == path]
            assert sorted(file.tags) == sorted([*pinned, *self.graph.images[path].doomed]), f"{path} holds other tags"

    def _read_pins(self, name: str) -> Iterator[tuple[str, Content]]:
        for target, pin in self.graph.pins[name].items():
            yield target, self.files.read_tag(pin.image, pin.tag) if pin.tag else self.files.read(pin.image)
