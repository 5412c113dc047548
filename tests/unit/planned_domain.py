# SPDX-License-Identifier: MIT
"""A domain made of values, for the tests of plans: what is planned for it is taken as done, at once and in full."""

from dataclasses import replace

from snapd.model.domain import Disk, DomainDefinition, Inspection, Machine
from snapd.model.plan import CreatePlan, CreateRequest, RevertRequest
from snapd.model.planner import plan_create, plan_revert
from snapd.model.record import DomainRecord
from snapd.model.snapshot import MemoryState, Snapshot, SnapshotDisk, SnapshotType

MACHINE = Machine("pc-q35-7.2", 1 << 30, 2, ("disk0", "net0"))
DEFINITION = DomainDefinition("web", "/run/web.qmp")
MEMORY_DIRECTORY = "/var/lib/domsnapd/1b4e28ba"
TOKEN = "0123456789ab"
SIZE = 8 << 20
LONGEST_NODE_NAME = 31


def make_disk(target: str, *chain: str, writable: bool = True, obstacle: str = "") -> Disk:
    format_ = "raw" if chain[0].endswith(".raw") else "qcow2"
    return Disk(target, f"/dev/{target}", f"#{target}", chain[0], format_, chain, SIZE, writable, obstacle)


VDA = make_disk("vda", "/images/web.qcow2", "/base/os.raw")
VDB = make_disk("vdb", "/images/data.raw")
CDROM = make_disk("cd", "/iso/a.iso", writable=False, obstacle="it is a CD-ROM")


def make_seen(*disks: Disk) -> Inspection:
    paths = [path for disk in disks for path in disk.chain]
    return Inspection(
        running=True,
        uuid="1b4e28ba",
        machine=MACHINE,
        disks=disks,
        open_images={path: f"#node:{path}" for path in paths},
        formats={path: "raw" if path.endswith(".raw") else "qcow2" for path in paths},
        qemu_version=(10, 0, 2),
    )


class Domain:
    """A domain whose plans are carried out at once and in full; QEMU has open only what its disks stand on."""

    def __init__(self, *disks: Disk) -> None:
        self.seen = make_seen(*disks)
        self.record = DomainRecord("web", "1b4e28ba").learn(disks, self.seen.formats)

    def plan(self, request: CreateRequest, **seen: object) -> CreatePlan:
        return plan_create(DEFINITION, self.record, replace(self.seen, **seen), request, MEMORY_DIRECTORY, TOKEN)  # type: ignore[arg-type]

    def take(self, name: str, *, running: bool = True) -> None:
        plan = self.plan(CreateRequest(name), running=running)
        snapshot = Snapshot(
            name=name,
            created_usec=len(self.record.tree),
            type=SnapshotType.EXTERNAL,
            running=plan.running,
            disks=tuple(SnapshotDisk(each.disk.target, each.image.path, "qcow2", SIZE) for each in plan.overlays),
            machine=plan.machine,
            memory=MemoryState(plan.memory_path, 1, plan.method),
        )
        self.record = replace(self.record, graph=plan.graph(self.record.graph), tree=self.record.tree.add(snapshot))
        self._show()

    def revert(self, name: str) -> None:
        plan = plan_revert(self.record, self.seen, RevertRequest(name), {}, TOKEN)
        graph = plan.graph(self.record.graph)
        for step in plan.after:
            graph = graph.apply(step)
        self.record = replace(self.record, graph=graph, tree=self.record.tree.revert_to(name))
        self._show()

    def change(self, name: str, **changes: object) -> None:
        """Change what is known of snapshot ``name``."""
        changed = replace(self.record.tree.snapshots[name], **changes)  # type: ignore[arg-type]
        tree = replace(self.record.tree, snapshots={**self.record.tree.snapshots, name: changed})
        self.record = replace(self.record, tree=tree)

    def _show(self) -> None:
        assert self.record.graph.violations() == []
        chains = {
            target: tuple(image.path for image in self.record.graph.chain(path))
            for target, path in self.record.graph.active.items()
        }
        self.seen = make_seen(*(make_disk(each.target, *chains[each.target]) for each in self.seen.disks))
