# SPDX-License-Identifier: MIT
"""The way from a request to a plan: pure functions of the domain, its record, and what QEMU shows.

Every refusal that needs no change of the world to be found is made here, before anything is touched. Not here: the values
themselves (``plan``), and how a plan is walked (``engine``).
"""

import posixpath
from collections.abc import Mapping

from snapd.errors import ImageInUse, InvalidOption, NoSuchSnapshot, NotSupported, SnapshotExists
from snapd.model.domain import Disk, DiskPolicy, DomainDefinition, Inspection
from snapd.model.images import Image, Origin
from snapd.model.names import check_name, escape_for_file
from snapd.model.plan import (
    CHAIN_LIMIT,
    OVERLAY_FORMAT,
    CreatePlan,
    CreateRequest,
    DeletePlan,
    DeleteRequest,
    Live,
    Opening,
    Overlay,
    RevertPlan,
    RevertRequest,
    RevertState,
)
from snapd.model.record import DomainRecord
from snapd.model.snapshot import SaveMethod, Snapshot, SnapshotType

_DISK_CHOICES = (DiskPolicy.INTERNAL, DiskPolicy.EXTERNAL, DiskPolicy.NO)

_MEMORY_MARGIN_BYTES = 128 << 20
"""Device state, video memory and firmware come on top of the guest's own memory."""

_PAGE_HEADERS = 256
"""Each page of 4096 bytes is sent with a header of 8 to 16."""


def plan_create(
    definition: DomainDefinition,
    record: DomainRecord,
    seen: Inspection,
    request: CreateRequest,
    memory_directory: str,
    token: str,
    chain_limit: int = CHAIN_LIMIT,
) -> CreatePlan:
    """Return how to take the snapshot that ``request`` describes.

    Args:
        chain_limit: how many images one disk may consist of.
        token: at most 12 characters that no earlier plan for this QEMU had; it makes node names unique.

    Raises: InvalidName, SnapshotExists, InvalidOption, NotSupported.
    """
    check_name("snapshot", request.name)
    if request.name in record.tree:
        raise SnapshotExists(record.name, request.name)
    if request.type is SnapshotType.INTERNAL:
        raise NotSupported(record.name, "An internal snapshot", "this version makes external ones; leave the type out")
    if not request.memory:
        raise NotSupported(record.name, "A snapshot without memory", "this version saves memory always; leave the option out")
    if seen.memory_blocker:
        raise NotSupported(record.name, "Saving memory", seen.memory_blocker)
    method, reason = _choose_method(record, seen, request.live)
    disks = _choose_disks(definition, record, seen, request.disks, chain_limit)
    taken = set(record.graph.images)
    overlays = []
    for index, disk in enumerate(disks):
        path = _overlay_path(record, disk.target, disk.image, request.name, taken)
        taken.add(path)
        overlays.append(
            Overlay(
                disk=disk,
                node=f"domsnap-{token}-{index}",
                image=Image(path, OVERLAY_FORMAT, disk.image, Origin.CREATED, disk.virtual_size_bytes),
                backing_format=disk.format,
            )
        )
    memory = seen.machine.memory_bytes
    return CreatePlan(
        name=request.name,
        description=request.description,
        overlays=tuple(overlays),
        memory_path=posixpath.join(memory_directory, f"{escape_for_file(request.name)}.vmstate.qcow2"),
        largest_stream_bytes=memory + memory // _PAGE_HEADERS + _MEMORY_MARGIN_BYTES,
        method=method,
        method_reason=reason,
        running=seen.running,
        machine=seen.machine,
    )


def plan_revert(
    record: DomainRecord,
    seen: Inspection,
    request: RevertRequest,
    allocated_bytes: Mapping[str, int],
    token: str,
) -> RevertPlan:
    """Return how to bring a running domain back to a snapshot, in place.

    Raises: NoSuchSnapshot, NotSupported naming what differs from the machine the snapshot was taken on.
    """
    snapshot = find_snapshot(record, request.name)
    if snapshot.memory is None or snapshot.machine is None:
        raise NotSupported(record.name, f"Reverting to {snapshot.name}", "it has no memory, which this version needs")
    if difference := snapshot.machine.difference(seen.machine):
        raise NotSupported(record.name, f"Reverting to {snapshot.name}", f"{difference}; start QEMU as it was then")
    pins = record.graph.pins.get(snapshot.name, {})
    present = {disk.target: disk for disk in seen.disks}
    for disk in seen.disks:
        if disk.writable and disk.target not in pins:
            raise NotSupported(
                record.name, f"Reverting to {snapshot.name}", f"the snapshot does not include disk {disk.target}"
            )
    nodes = dict(seen.open_images)
    taken = set(record.graph.images)
    overlays: list[Overlay] = []
    openings: list[Opening] = []
    backing_nodes: dict[str, str] = {}
    for target, pin in sorted(pins.items()):
        if target not in present:
            raise NotSupported(record.name, f"Reverting to {snapshot.name}", f"its disk {target} is missing")
        pinned = record.graph.images[pin.image]
        if pin.tag:
            raise NotSupported(record.name, f"Reverting to {snapshot.name}", f"its disk {target} is internal")
        below = ""
        for image in reversed(record.graph.chain(pin.image)):
            if image.path not in nodes:
                nodes[image.path] = f"domsnap-{token}-b{len(openings)}"
                openings.append(Opening(nodes[image.path], image, below))
            below = nodes[image.path]
        path = _overlay_path(record, target, pin.image, snapshot.name, taken)
        taken.add(path)
        size = next(disk.virtual_size_bytes for disk in snapshot.disks if disk.target == target)
        backing_nodes[target] = below
        overlays.append(
            Overlay(
                disk=present[target],
                node=f"domsnap-{token}-{len(overlays)}",
                image=Image(path, OVERLAY_FORMAT, pin.image, Origin.CREATED, size),
                backing_format=pinned.format,
            )
        )
    plan = RevertPlan(
        name=snapshot.name,
        overlays=tuple(overlays),
        openings=tuple(openings),
        backing_nodes=backing_nodes,
        memory_path=snapshot.memory.path,
        was_running=seen.running,
        resume=snapshot.running if request.state is RevertState.AS_TAKEN else request.state is RevertState.RUNNING,
        after=(),
    )
    after = plan.graph(record.graph).collect(allocated_bytes)
    return RevertPlan(**{**plan.__dict__, "after": tuple(after)})


def plan_delete(record: DomainRecord, request: DeleteRequest, allocated_bytes: Mapping[str, int]) -> DeletePlan:
    """Return what to remove and to merge so that the snapshots are gone and every other one still reads back.

    Raises: NoSuchSnapshot.
    """
    find_snapshot(record, request.name)
    names = record.tree.scope(request.name, request.scope)
    graph = record.graph
    for name in names:
        graph = graph.unpin(name)
    memories = [memory.path for name in names if (memory := record.tree.snapshots[name].memory)]
    return DeletePlan(tuple(names), tuple(memories), tuple(graph.collect(allocated_bytes)))


def find_snapshot(record: DomainRecord, name: str) -> Snapshot:
    """Return the snapshot called ``name``. Raises: NoSuchSnapshot."""
    if name not in record.tree:
        raise NoSuchSnapshot(record.name, name)
    return record.tree.snapshots[name]


def _choose_method(record: DomainRecord, seen: Inspection, live: Live) -> tuple[SaveMethod, str]:
    """Return how memory is saved and, if the guest has to stand still for it, why."""
    if live is Live.NO:
        return SaveMethod.PAUSED, "live: no was asked for"
    if not seen.running:
        return SaveMethod.PAUSED, "the domain is paused anyway"
    if not seen.live_blocker:
        return SaveMethod.LIVE, ""
    if live is Live.REQUIRE:
        raise NotSupported(record.name, "A live snapshot", seen.live_blocker)
    return SaveMethod.PAUSED, seen.live_blocker


def _choose_disks(
    definition: DomainDefinition, record: DomainRecord, seen: Inspection, chosen: Mapping[str, str], chain_limit: int
) -> list[Disk]:
    """Return the disks that take part; one that the guest writes to and that cannot take part is refused by name."""
    policies = {disk.target: disk.policy for disk in definition.disks}
    by_target = {disk.target: disk for disk in seen.disks}
    for target, wanted in chosen.items():
        if target not in by_target:
            raise InvalidOption("disks", f"names {target}, and domain {record.name} has only {', '.join(by_target) or 'none'}")
        if wanted not in _DISK_CHOICES:
            raise InvalidOption("disks", f"says {wanted!r} for disk {target}, and can say {', '.join(_DISK_CHOICES)}")
    part: list[Disk] = []
    for disk in seen.disks:
        wanted = chosen.get(disk.target, "")
        obstacle = disk.obstacle or _policy_obstacle(policies.get(disk.target, DiskPolicy.ANY), wanted)
        if obstacle and disk.writable:
            reason = f"the guest can write to disk {disk.target}, which would have to be left out because {obstacle}"
            raise NotSupported(record.name, "A snapshot with memory", reason)
        if obstacle and wanted not in ("", DiskPolicy.NO):
            raise NotSupported(record.name, f"A snapshot of disk {disk.target}", obstacle)
        if obstacle:
            continue
        depth = len(record.graph.chain(record.graph.active[disk.target])) if disk.target in record.graph.active else 1
        if depth >= chain_limit:
            raise NotSupported(
                record.name, "One more snapshot", f"disk {disk.target} has a chain of {depth} images already; delete some first"
            )
        part.append(disk)
    return part


def _policy_obstacle(policy: DiskPolicy, wanted: str) -> str:
    if wanted == DiskPolicy.NO:
        return "the request says 'no' for it"
    if wanted == DiskPolicy.INTERNAL:
        return "this version makes external snapshots only"
    if policy is DiskPolicy.NO:
        return "its definition says 'snapshot: no'"
    if policy is DiskPolicy.INTERNAL:
        return "its definition says 'snapshot: internal', and this version makes external ones only"
    return ""


def _overlay_path(record: DomainRecord, target: str, covered: str, snapshot: str, taken: set[str]) -> str:
    """Return a path beside ``covered`` that no image of the domain has; whether a foreign file is there is seen later."""
    stem = f"{record.stem(target)}.{escape_for_file(snapshot)}"
    number = 1
    while True:
        name = f"{stem}.qcow2" if number == 1 else f"{stem}.{number}.qcow2"
        path = posixpath.join(posixpath.dirname(covered), name)
        if path not in taken:
            return path
        number += 1


def foreign_file(path: str) -> ImageInUse:
    """Make the refusal to overwrite a file at ``path`` that is not ours."""
    return ImageInUse(
        path, "exists already and does not belong to the domain; it is left as it is: move it away or choose another name"
    )
