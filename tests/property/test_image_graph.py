# SPDX-License-Identifier: MIT
"""The image graph against simulated files: no sequence of plans loses what a snapshot or a disk holds.

Plans are made by the planner and done to the files as QEMU and its tools would do it, interrupted at times. Not here: what has
to hold after each step (``image_graph_world``), and refusals (``unit``).
"""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from snapd.errors import Protected
from snapd.model.domain import DiskPolicy, DomainDefinition, DomainState
from snapd.model.outcome import record_after_revert
from snapd.model.plan import CreateRequest, DeleteRequest, Quiesce, RevertRequest
from snapd.model.planner import deferred, plan_create, plan_delete
from snapd.model.revert_planner import find_target, plan_revert
from snapd.model.tree import Scope
from tests.property.image_graph_world import LARGEST_SIZE, TARGETS, ImageGraphWorld

MOST_SNAPSHOTS, MANY_SNAPSHOTS = 7, 3
DEFINITION = DomainDefinition("vm1", "/run/vm1.monitor")

disks = st.sampled_from(TARGETS)
picks = st.integers(0, 999)
sizes = st.lists(st.integers(0, 3), min_size=1, max_size=6)
interruptions = st.sampled_from([None, None, None, 0, 1, 2])
letters = st.sampled_from("amz")  # images are looked at in the order of their paths
kinds = st.sampled_from([DiskPolicy.EXTERNAL, DiskPolicy.INTERNAL])
indices, values = st.integers(0, LARGEST_SIZE - 1), st.integers(1, 99)


class ImageGraphMachine(ImageGraphWorld):
    """Everything that may happen to a domain, in any order."""

    # What the guest does

    @rule(disk=disks, index=indices, value=values)
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
            self.files.grow(path, self.files.by_path[path].size + 1)
            self.present[disk] = (*self.present[disk], 0)

    # The verbs

    @precondition(lambda self: len(self.past) < MOST_SNAPSHOTS)
    @rule(
        chosen=st.dictionaries(disks, kinds, min_size=1),
        written=st.lists(st.tuples(disks, indices, values), max_size=3),
        grown=st.lists(disks, max_size=1),
        letter=letters,
        is_running=st.booleans(),
    )
    def create(
        self,
        chosen: dict[str, DiskPolicy],
        written: list[tuple[str, int, int]],
        grown: list[str],
        letter: str,
        is_running: bool,
    ) -> None:
        for disk in grown:
            self.grow(disk)
        for disk, index, value in written:
            self.write(disk, index, value)
        self.count += 1
        parts = {target: chosen.get(target, DiskPolicy.NO).value for target in TARGETS}
        request = CreateRequest(f"{letter}{self.count}", memory=False, disks=parts, quiesce=Quiesce.NO)

        plan = plan_create(DEFINITION, self.record, self.seen(is_running=is_running), request, "/memory", f"t{self.count}")

        for tag in plan.tags:
            self.files.make_tag(tag.disk.image, tag.name)
        for overlay in plan.overlays:
            self.make(overlay)
        self.past[plan.name] = {target: self.present[target] for target in chosen}
        tree = self.record.tree.add(self.taken(plan))
        self.record = replace(self.record, graph=plan.graph(self.graph), tree=tree)

    @precondition(lambda self: self.past)
    @rule(
        pick=picks,
        undo=st.booleans(),
        back=st.booleans(),
        letter=letters,
        is_running=st.booleans(),
        allocated=sizes,
        stop=interruptions,
    )
    def revert(
        self, pick: int, undo: bool, back: bool, letter: str, is_running: bool, allocated: list[int], stop: int | None
    ) -> None:
        self.count += 1
        points = [each for each in self.record.tree.snapshots.values() if each.undo]
        name = "" if back and points else self.snapshot(pick)
        # Only to one that was taken of the domain shut off, as the guest is reset for it.
        is_reset = find_target(self.record, name).state is DomainState.SHUTOFF
        request = RevertRequest(name, undo=undo, force=is_reset and is_running)
        seen = self.seen(is_running=is_running)
        stamp = f"{letter}{self.count}"

        plan = plan_revert(self.record, seen, request, self.allocated(allocated), "/memory", stamp, f"t{self.count}")

        assert (plan.undo is not None) == undo
        for overlay in plan.overlays:
            self.make(overlay)
        for each in plan.applications:
            self.apply(each)
        if plan.undo:
            self.past[plan.undo.name] = {target: self.present[target] for target in plan.undo.pins}
        self.present.update(self.past[plan.name])
        for dropped in plan.dropped:
            del self.past[dropped]
        allocated_bytes = self.allocated(allocated)
        self.record = record_after_revert(self.record, plan, None, self.count)
        assert plan.after == tuple(self.graph.collect(allocated_bytes, seen.open_images))
        # By now QEMU has closed what the disks left.
        self.collect(allocated, stop, is_running=is_running)
        left = [each.name for each in self.record.tree.snapshots.values() if each.undo and not each.protected]
        assert left == ([plan.undo.name] if plan.undo else [])

    @precondition(lambda self: any(each.undo for each in self.record.tree.snapshots.values()))
    @rule(pick=picks, protected=st.booleans())
    def protect(self, pick: int, protected: bool) -> None:
        points = [each for each in self.record.tree.walk() if each.undo]
        self.change(replace(points[pick % len(points)], protected=protected))

    @precondition(lambda self: len(self.past) > 1)
    @rule(pick=picks, scope=st.sampled_from(Scope), is_running=st.booleans(), allocated=sizes, stop=interruptions)
    def delete(self, pick: int, scope: Scope, is_running: bool, allocated: list[int], stop: int | None) -> None:
        request = DeleteRequest(self.snapshot(pick), scope)
        opened = self.opened(is_running=is_running)
        names = self.record.tree.scope(request.name, scope)
        if any(self.record.tree.snapshots[name].protected for name in names):
            with pytest.raises(Protected):
                plan_delete(self.record, request, {}, opened)
            return

        plan = plan_delete(self.record, request, self.allocated(allocated), opened)

        assert list(plan.names) == names
        graph = self.graph.unpin(*plan.names)
        assert plan.after == tuple(graph.collect(self.allocated(allocated), opened))
        assert plan.notes == deferred(graph, plan.after)
        for name in plan.names:
            del self.past[name]
        self.record = replace(self.record, graph=graph, tree=self.record.tree.remove(plan.names))
        self.collect(allocated, stop, is_running=is_running)

    @rule(is_running=st.booleans(), allocated=sizes)
    def tidy(self, is_running: bool, allocated: list[int]) -> None:
        self.collect(allocated, None, is_running=is_running)

    @precondition(lambda self: len(self.past) > MANY_SNAPSHOTS)
    @rule(
        order=st.lists(st.tuples(picks, st.booleans()), min_size=MOST_SNAPSHOTS + 2, max_size=MOST_SNAPSHOTS + 2),
        allocated=sizes,
    )
    def delete_every_snapshot(self, order: list[tuple[int, bool]], allocated: list[int]) -> None:
        for name in self.past:
            self.change(replace(self.record.tree.snapshots[name], protected=False))
        while self.past:
            pick, is_running = order[len(self.past) % len(order)]
            self.delete(pick, Scope.ONE, is_running, allocated, None)
        self.tidy(False, allocated)
        assert not any(file.tags for file in self.files.by_path.values())
        for target, path in self.graph.active.items():
            self.check_home(target, path)
        assert set(self.graph.images) == {*self.defined.values(), *self.foreign, *self.graph.active.values()}


TestImageGraph = ImageGraphMachine.TestCase
TestImageGraph.settings = settings(max_examples=1000, stateful_step_count=40, deadline=None)
