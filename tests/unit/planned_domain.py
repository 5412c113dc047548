# SPDX-License-Identifier: MIT
"""A domain made of values, for the tests of plans: what is planned for it is taken as done, at once and in full.

Not here: plans that fit no domain (``lab.domain_values``).
"""

import posixpath
from dataclasses import replace

from snapd.model.domain import Disk, DomainDefinition, DomainState, Inspection, Machine, no_external, no_internal
from snapd.model.images import Collection, DropTag, Image, ImageGraph, Origin
from snapd.model.outcome import record_after_revert
from snapd.model.plan import CreatePlan, CreateRequest, DeletePlan, DeleteRequest, RevertPlan, RevertRequest
from snapd.model.planner import plan_create, plan_delete
from snapd.model.record import DomainRecord
from snapd.model.revert_planner import plan_revert
from snapd.model.snapshot import MemoryState, Snapshot, SnapshotDisk, SnapshotType
from snapd.model.tree import Scope, SnapshotTree

MACHINE = Machine("pc-q35-7.2", 1 << 30, 2, ("disk0", "net0"))
DEFINITION = DomainDefinition("web", "/run/web.qmp")
WITH_AGENT = replace(DEFINITION, agent="/run/web.agent")
MEMORY_DIRECTORY = "/var/lib/domsnapd/1b4e28ba"
TOKEN = "0123456789ab"
STAMP = "2026-01-31T12-00-00"
UNDO = f"undo-{STAMP}"
SIZE = 8 << 20
LONGEST_NODE_NAME = 31


def make_disk(target: str, *chain: str, **changes: object) -> Disk:
    image_format = "raw" if chain[0].endswith(".raw") else "qcow2"
    disk = Disk(target, f"/dev/{target}", f"#{target}", chain[0], image_format, chain, SIZE, writable=True)
    disk = replace(disk, no_internal=no_internal(image_format), no_external=no_external(chain[0]))
    return replace(disk, **changes)  # type: ignore[arg-type]


VDA = make_disk("vda", "/images/web.qcow2", "/base/os.raw")
VDB = make_disk("vdb", "/images/data.raw")
VDC = make_disk("vdc", "/images/log.qcow2")
CDROM = make_disk("cd", "/iso/a.iso", writable=False, obstacle="it is a CD-ROM")
FLASH = make_disk("pflash0", "/images/vars.qcow2", is_flash=True)


def make_seen(*disks: Disk, state: DomainState = DomainState.RUNNING) -> Inspection:
    paths = [path for disk in disks for path in disk.chain]
    return Inspection(
        state=state,
        uuid="1b4e28ba",
        machine=None if state is DomainState.SHUTOFF else MACHINE,
        disks=disks,
        open_images={} if state is DomainState.SHUTOFF else {path: f"#node:{path}" for path in paths},
        formats={path: "raw" if path.endswith(".raw") else "qcow2" for path in paths},
        qemu_version=(10, 0, 2),
    )


class Domain:
    """A domain whose plans are carried out at once and in full; QEMU has open only what its disks stand on.

    ``request`` and ``seen`` are as ``plan_create`` and ``plan_revert`` take them; keyword arguments change what is seen.
    """

    def __init__(self, *disks: Disk, definition: DomainDefinition = DEFINITION) -> None:
        self.definition = definition
        self.seen = make_seen(*disks)
        self.record = DomainRecord("web", "1b4e28ba").learn(disks, self.seen.formats, follows_active=False)
        self._tags = {disk.image: list(disk.tags) for disk in disks}

    @property
    def graph(self) -> ImageGraph:
        return self.record.graph

    def looks(self, state: DomainState) -> None:
        """Start it, pause it or shut it off."""
        self.seen = make_seen(*self.seen.disks, state=state)

    # Create

    def plan(self, request: CreateRequest, **seen: object) -> CreatePlan:
        looked = replace(self.seen, **seen)  # type: ignore[arg-type]
        return plan_create(self.definition, self.record, looked, request, MEMORY_DIRECTORY, TOKEN)

    def take(self, name: str, kind: SnapshotType = SnapshotType.EXTERNAL, *, memory: bool | None = None) -> CreatePlan:
        plan = self.plan(CreateRequest(name, type=kind, memory=memory))
        sizes = [(each.disk, each.image.path, "qcow2") for each in plan.overlays] + [(tag.disk, "", "") for tag in plan.tags]
        for tag in plan.tags:
            self._tags.setdefault(tag.disk.image, []).append(tag.name)
        snapshot = Snapshot(
            name=name,
            created_usec=len(self.record.tree),
            type=kind,
            state=plan.state,
            disks=tuple(SnapshotDisk(disk.target, path, its, disk.virtual_size_bytes) for disk, path, its in sizes),
            machine=plan.machine,
            memory=MemoryState(plan.memory.path, 1, plan.memory.method) if plan.memory else None,
            left_out=plan.left_out,
        )
        self._became(plan.graph(self.graph), self.record.tree.add(snapshot))
        return plan

    # Revert

    def plan_revert(self, request: RevertRequest, **seen: object) -> RevertPlan:
        looked = replace(self.seen, **seen)  # type: ignore[arg-type]
        return plan_revert(self.record, looked, request, {}, MEMORY_DIRECTORY, STAMP, TOKEN)

    def revert(self, name: str, **options: object) -> RevertPlan:
        plan = self.plan_revert(RevertRequest(name, **options))  # type: ignore[arg-type]
        kept = plan.undo.memory if plan.undo else None
        memory = MemoryState(kept.path, 1, kept.method) if kept else None
        after = record_after_revert(self.record, plan, memory, len(self.record.tree))
        for each in plan.applications:
            if each.keep:
                self._tags.setdefault(each.image.path, []).append(each.keep)
        self._became(after.graph, after.tree, plan.after)
        return plan

    # Delete

    def plan_delete(self, name: str, scope: Scope = Scope.ONE) -> DeletePlan:
        return plan_delete(self.record, DeleteRequest(name, scope), {}, self.seen.open_images)

    def delete(self, name: str, scope: Scope = Scope.ONE) -> DeletePlan:
        plan = self.plan_delete(name, scope)
        self._became(self.graph.unpin(*plan.names), self.record.tree.remove(plan.names), plan.after)
        return plan

    # What a test knows better

    def change(self, name: str, **changes: object) -> None:
        """Change what is known of snapshot ``name``."""
        changed = replace(self.record.tree.snapshots[name], **changes)  # type: ignore[arg-type]
        tree = replace(self.record.tree, snapshots={**self.record.tree.snapshots, name: changed})
        self.record = replace(self.record, tree=tree)

    def _became(self, graph: ImageGraph, tree: SnapshotTree, steps: tuple[Collection, ...] = ()) -> None:
        for step in steps:
            graph = graph.apply(step)
            if isinstance(step, DropTag):
                self._tags[step.image].remove(step.tag)
        assert graph.violations() == []
        self.record = replace(self.record, graph=graph, tree=tree)
        self.seen = make_seen(*(self._shown(disk) for disk in self.seen.disks), state=self.seen.state)

    def _shown(self, disk: Disk) -> Disk:
        if disk.target not in self.graph.active:
            return disk
        chain = tuple(image.path for image in self.graph.chain(self.graph.active[disk.target]))
        tags = tuple(self._tags.get(chain[0], ()))
        return make_disk(disk.target, *chain, writable=disk.writable, is_flash=disk.is_flash, tags=tags)


def overlay_of(covered: str, name: str, size_bytes: int = SIZE, directory: str = "/images") -> Image:
    """Return the image called ``name`` that covers ``covered``."""
    return Image(posixpath.join(directory, name), "qcow2", covered, Origin.CREATED, size_bytes)
