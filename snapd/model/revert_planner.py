# SPDX-License-Identifier: MIT
"""The way from a request to revert to a plan: which images the disks go to, and what is kept of the present.

Every refusal that needs no change of the world to be found is made here. Not here: how a plan is walked (``engine``).

- An internal snapshot is applied in its image only where that is not frozen; else it is copied out to an image of its own.
- What is applied over is kept in an internal snapshot first, so that a failure can be undone where no undo point is wanted too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from snapd.errors import NotSupported
from snapd.model.domain import Disk, DomainState, Inspection, Machine
from snapd.model.images import Image, Origin, Pin
from snapd.model.names import made_up_name
from snapd.model.plan import (
    OVERLAY_FORMAT,
    Application,
    Opening,
    Overlay,
    RevertPlan,
    RevertRequest,
    UndoPoint,
)
from snapd.model.planner import deferred, find_snapshot, overlay_path, plan_memory_file, tag_name
from snapd.model.record import DomainRecord
from snapd.model.snapshot import RevertState, SaveMethod, Snapshot


def plan_revert(
    record: DomainRecord,
    seen: Inspection,
    request: RevertRequest,
    allocated_bytes: Mapping[str, int],
    memory_directory: str,
    stamp: str,
    token: str,
) -> RevertPlan:
    """Return how to bring a domain back to a snapshot: in place where it runs, else by its images alone.

    Args:
        stamp: the time, of which the undo point's name is made.
        token: at most 12 characters that no earlier plan for this QEMU had.

    Raises: NoSuchSnapshot; NotSupported naming what is not as it was when the snapshot was taken.
    """
    snapshot = find_target(record, request.name)
    loads = snapshot.memory is not None and not seen.shut_off
    machine = _check_state(record, seen, snapshot, request, loads=loads)
    disks, notes = _choose_disks(record, seen, snapshot, request, loads=loads)
    undo_name = made_up_name(f"undo-{stamp}", frozenset(record.tree.snapshots)) if request.undo else ""
    ways = _Ways(record, seen, snapshot, token, undo_name)
    for disk in disks:
        ways.add(disk)
    undo = None
    if request.undo and (disks or request.undo_memory):
        undo = _undo_point(record, seen, request, ways, disks, undo_name, memory_directory)
    later = request.state if snapshot.memory and seen.shut_off else None
    ended = [each.name for each in record.tree.walk() if each.undo and not each.protected and not request.keeps_undo_points]
    if later is not None and snapshot.name in ended:
        # Its memory is still to be loaded.
        ended.remove(snapshot.name)
    plan = RevertPlan(
        name=snapshot.name,
        state=seen.state,
        overlays=tuple(ways.overlays),
        openings=tuple(ways.openings),
        backing_nodes=ways.backing_nodes,
        applications=tuple(ways.applications),
        memory_path=snapshot.memory.path if snapshot.memory else "",
        resume=_resumes(seen, snapshot, request.state),
        later=later,
        machine=machine,
        undo=undo,
        dropped=tuple(ended),
        after=(),
        notes=notes,
    )
    graph = plan.graph(record.graph)
    after = graph.collect(allocated_bytes, seen.open_images)
    return replace(plan, after=tuple(after), notes=(*notes, *deferred(graph, after)))


def find_target(record: DomainRecord, name: str) -> Snapshot:
    """Return the snapshot called ``name``, or the undo point of the last revert for the empty name.

    Raises: NoSuchSnapshot; NotSupported where there is no undo point.
    """
    if name:
        return find_snapshot(record, name)
    points = [each for each in record.tree.snapshots.values() if each.undo]
    if not points:
        why = "its last revert kept no undo point, or there was none; name a snapshot"
        raise NotSupported(record.name, "Undoing a revert", why)
    return max(points, key=lambda each: (each.created_usec, each.name))


def _check_state(
    record: DomainRecord, seen: Inspection, snapshot: Snapshot, request: RevertRequest, *, loads: bool
) -> Machine | None:
    """Refuse what the domain's state does not allow. Returns: the machine, where memory is loaded or saved."""
    what = f"Reverting to {snapshot.name!r}"
    if seen.shut_off:
        if request.state is not RevertState.AS_TAKEN and not snapshot.memory:
            why = f"it is shut off and the snapshot has no memory, so that it cannot be {request.state} afterwards"
            raise NotSupported(record.name, what, f"{why}; leave the option state out")
        return None
    if snapshot.state is DomainState.SHUTOFF and not request.force:
        why = "it was taken of the domain shut off, and the guest runs now and would be reset; shut it off first, or use force"
        raise NotSupported(record.name, what, why)
    if loads:
        if snapshot.machine is None or seen.machine is None:
            raise NotSupported(record.name, what, "its file does not say on which machine its memory was saved")
        if difference := snapshot.machine.difference(seen.machine):
            raise NotSupported(record.name, what, f"{difference}; start QEMU as it was then")
    if request.undo_memory and seen.memory_blocker:
        raise NotSupported(record.name, "An undo point with memory", f"{seen.memory_blocker}; keep the disks alone")
    return seen.machine


def _choose_disks(
    record: DomainRecord, seen: Inspection, snapshot: Snapshot, request: RevertRequest, *, loads: bool
) -> tuple[list[Disk], tuple[str, ...]]:
    """Return the disks that go back, and a sentence about each that ``force`` leaves as it is."""
    what = f"Reverting to {snapshot.name!r}"
    pins = record.graph.pins.get(snapshot.name, {})
    present = {disk.target: disk for disk in seen.disks}
    forced = request.force and not loads
    advice = "" if loads else ", or use force to leave it as it is"
    notes: list[str] = []
    for target in sorted(pins):
        if target not in present:
            if not forced:
                why = f"its disk {target} is missing; plug it in again as it was{advice}"
                raise NotSupported(record.name, what, why)
            notes.append(f"Disk {target} is missing and was left out.")
    chosen = []
    for disk in seen.disks:
        if disk.target not in pins:
            if disk.writable and disk.target not in snapshot.left_out and not forced:
                why = f"the snapshot does not include disk {disk.target}, which was added since; unplug it{advice}"
                raise NotSupported(record.name, what, why)
        elif disk.is_flash and not loads and not seen.shut_off:
            if not forced:
                why = (
                    f"QEMU keeps the content of flash {disk.target} in its memory and reads the image only at its start; shut "
                    "the domain off first, or use force to leave it as it is"
                )
                raise NotSupported(record.name, what, why)
            notes.append(f"Flash {disk.target} was left as it is.")
        else:
            chosen.append(disk)
    return chosen, tuple(notes)


def _resumes(seen: Inspection, snapshot: Snapshot, wanted: RevertState) -> bool:
    if seen.shut_off:
        return False
    if wanted is not RevertState.AS_TAKEN:
        return wanted is RevertState.RUNNING
    return seen.running if snapshot.state is DomainState.SHUTOFF else snapshot.running


def _undo_point(
    record: DomainRecord,
    seen: Inspection,
    request: RevertRequest,
    ways: "_Ways",
    disks: list[Disk],
    name: str,
    memory_directory: str,
) -> UndoPoint:
    """Return what keeps the present: the active image as a whole, or an internal snapshot where one is applied over it."""
    kept = {each.disk.target: each.keep for each in ways.applications if each.keep}
    targets = [disk.target for disk in disks]
    others = [disk for disk in seen.disks if disk.target not in targets]
    memory = None
    if request.undo_memory and not seen.shut_off:
        for disk in others:
            if disk.writable:
                why = f"the revert leaves disk {disk.target} as it is, which would not fit the memory; keep the disks alone"
                raise NotSupported(record.name, "An undo point with memory", why)
        memory = plan_memory_file(
            seen, memory_directory, name, SaveMethod.PAUSED, "the guest stands still for the revert anyway"
        )
    return UndoPoint(
        name=name,
        pins={disk.target: Pin(record.graph.active[disk.target], kept.get(disk.target, "")) for disk in disks},
        virtual_sizes={disk.target: disk.virtual_size_bytes for disk in disks},
        left_out={disk.target: "the revert left it as it was" for disk in others},
        memory=memory,
    )


@dataclass
class _Ways:
    """How each disk goes back, gathered disk by disk."""

    record: DomainRecord
    seen: Inspection
    snapshot: Snapshot
    token: str
    undo_name: str
    overlays: list[Overlay] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    backing_nodes: dict[str, str] = field(default_factory=dict)
    applications: list[Application] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._nodes = dict(self.seen.open_images)
        self._taken = set(self.record.graph.images)

    def add(self, disk: Disk) -> None:
        graph = self.record.graph
        pin = graph.pins[self.snapshot.name][disk.target]
        image = graph.images[pin.image]
        size = next((each.virtual_size_bytes for each in self.snapshot.disks if each.target == disk.target), 0)
        size = size or image.virtual_size_bytes
        if not pin.tag:
            self._cover(disk, image, size, None)
        elif graph.is_frozen(pin.image):
            # Below the image that a domain was defined with there is nothing of ours to come back to by a merge.
            below = image.backing if image.origin is Origin.CREATED else None
            self._cover(disk, graph.images[below] if below else image, size, pin)
        else:
            is_active = disk.image == pin.image
            if is_active and pin.tag not in disk.tags:
                why = f"internal snapshot {pin.tag!r} is not in {pin.image} any more; something else has deleted it"
                raise NotSupported(self.record.name, f"Reverting to {self.snapshot.name!r}", why)
            keep = tag_name(graph, disk, self.undo_name or f"domsnap-{self.token}") if is_active else ""
            self.applications.append(Application(disk, self._next_node(), image, pin.tag, keep, size))

    def _next_node(self) -> str:
        return f"domsnap-{self.token}-{len(self.overlays) + len(self.applications)}"

    def _cover(self, disk: Disk, backing: Image, size_bytes: int, copy_of: Pin | None) -> None:
        path = overlay_path(
            self.record, disk.target, copy_of.image if copy_of else backing.path, self.snapshot.name, self._taken
        )
        self._taken.add(path)
        image = Image(path, OVERLAY_FORMAT, backing.path, Origin.CREATED, size_bytes)
        self.backing_nodes[disk.target] = self._open(backing.path)
        self.overlays.append(Overlay(disk, self._next_node(), image, backing.format, copy_of))

    def _open(self, path: str) -> str:
        """Return the node of an image to back on; what is not open yet is opened, with all that it backs on."""
        below = ""
        for image in reversed(self.record.graph.chain(path)):
            if image.path not in self._nodes:
                self._nodes[image.path] = f"domsnap-{self.token}-b{len(self.openings)}"
                self.openings.append(Opening(self._nodes[image.path], image, below))
            below = self._nodes[image.path]
        return below
