# SPDX-License-Identifier: MIT
"""The way from a request to create or delete to a plan: pure functions of the domain, its record, and what QEMU shows.

Every refusal that needs no change of the world to be found is made here, before anything is touched. Not here: the values
themselves (``plan``), the way back (``revert_planner``), and how a plan is walked (``engine``).
"""

import posixpath
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from snapd.errors import ImageInUse, NoSuchSnapshot, NotSupported, Protected, SnapshotExists
from snapd.model.disk_choice import DiskChoice, choose_disks
from snapd.model.domain import Disk, DomainDefinition, Inspection
from snapd.model.images import Collection, Image, ImageGraph, Origin
from snapd.model.names import check_name, escape_for_file
from snapd.model.plan import (
    CHAIN_LIMIT,
    OVERLAY_FORMAT,
    CreatePlan,
    CreateRequest,
    DeletePlan,
    DeleteRequest,
    Live,
    MemoryPlan,
    Overlay,
    Parking,
    Quiesce,
    Tag,
)
from snapd.model.record import DomainRecord
from snapd.model.snapshot import SaveMethod, Snapshot

_MEMORY_MARGIN_BYTES = 128 << 20
"""Device state, video memory and firmware come on top of the guest's own memory."""

_PAGE_HEADERS = 256
"""Each page of 4096 bytes is sent with a header of 8 to 16."""

_NEAR_LIMIT = 7 / 8
"""From this part of the longest chain on, whoever creates one more snapshot is told."""


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
    memory = _plan_memory(record, seen, request, memory_directory)
    quiesce = _plan_quiesce(definition, seen, request, memory=memory is not None)
    choice = choose_disks(definition, record, seen, request, memory=memory is not None)
    notes = _check_chains(record, choice, chain_limit)
    taken = set(record.graph.images)
    overlays, linked = [], []
    for index, each in enumerate(choice.external):
        disk = each
        if disk.link:
            disk = replace(each, node=f"domsnap-{token}-r{index}", link="")
            linked.append(Parking(each, disk.node, record.graph.images[disk.image]))
        path = overlay_path(record, disk.target, disk.image, request.name, taken)
        taken.add(path)
        overlays.append(
            Overlay(
                disk=disk,
                node=f"domsnap-{token}-{index}",
                image=Image(path, OVERLAY_FORMAT, disk.image, Origin.CREATED, disk.virtual_size_bytes),
                backing_format=disk.format,
            )
        )
    return CreatePlan(
        name=request.name,
        description=request.description,
        state=seen.state,
        linked=tuple(linked),
        overlays=tuple(overlays),
        tags=tuple(Tag(disk, tag_name(record.graph, disk, request.name)) for disk in choice.internal),
        left_out=choice.left_out,
        memory=memory,
        quiesce=quiesce,
        machine=seen.machine if memory else None,
        follows_active=seen.follows_active,
        notes=notes,
    )


def plan_delete(
    record: DomainRecord, request: DeleteRequest, allocated_bytes: Mapping[str, int], opened: Container[str]
) -> DeletePlan:
    """Return what to remove and to merge so that the snapshots are gone and every other one still reads back.

    Args:
        opened: the images that QEMU has open.

    Raises: NoSuchSnapshot, Protected.
    """
    find_snapshot(record, request.name)
    names = record.tree.scope(request.name, request.scope)
    for name in names:
        if record.tree.snapshots[name].protected:
            raise Protected(name)
    graph = record.graph.unpin(*names)
    memories = [memory.path for name in names if (memory := record.tree.snapshots[name].memory)]
    after = graph.collect(allocated_bytes, opened)
    return DeletePlan(tuple(names), tuple(memories), tuple(after), deferred(graph, after))


def deferred(graph: ImageGraph, steps: Sequence[Collection]) -> tuple[str, ...]:
    """Return a sentence about each internal snapshot that ``steps`` leave doomed in ``graph``."""
    for step in steps:
        graph = graph.apply(step)
    return tuple(
        f"Internal snapshot {tag!r} stays in {path} as long as QEMU has that image open for reading; it goes when the "
        "domain is shut off or reverted."
        for path, image in sorted(graph.images.items())
        for tag in image.doomed
    )


def plan_memory_file(seen: Inspection, memory_directory: str, name: str, method: SaveMethod, reason: str) -> MemoryPlan:
    """Return the memory file that the snapshot ``name`` needs; there is a guest."""
    memory = seen.machine.memory_bytes if seen.machine else 0
    return MemoryPlan(
        path=posixpath.join(memory_directory, f"{escape_for_file(name)}.vmstate.qcow2"),
        largest_stream_bytes=memory + memory // _PAGE_HEADERS + _MEMORY_MARGIN_BYTES,
        method=method,
        method_reason=reason,
    )


def find_snapshot(record: DomainRecord, name: str) -> Snapshot:
    """Return the snapshot called ``name``. Raises: NoSuchSnapshot."""
    if name not in record.tree:
        raise NoSuchSnapshot(record.name, name)
    return record.tree.snapshots[name]


def overlay_path(record: DomainRecord, target: str, covered: str, snapshot: str, taken: Container[str]) -> str:
    """Return a path beside ``covered`` that no image of the domain has; whether a foreign file is there is seen later."""
    stem = f"{record.stem(target)}.{escape_for_file(snapshot)}"
    number = 1
    while True:
        name = f"{stem}.qcow2" if number == 1 else f"{stem}.{number}.qcow2"
        path = posixpath.join(posixpath.dirname(covered), name)
        if path not in taken:
            return path
        number += 1


def tag_name(graph: ImageGraph, disk: Disk, snapshot: str) -> str:
    """Return the name of the snapshot, or one like it that no internal snapshot in the disk's image has."""
    image = graph.images.get(disk.image)
    taken = {*disk.tags, *(image.doomed if image else ())}
    name, number = snapshot, 1
    while name in taken:
        number += 1
        name = f"{snapshot}~{number}"
    return name


def foreign_file(path: str) -> ImageInUse:
    """Make the refusal to overwrite a file at ``path`` that is not ours."""
    return ImageInUse(
        path, "exists already and does not belong to the domain; it is left as it is: move it away or choose another name"
    )


def _plan_memory(record: DomainRecord, seen: Inspection, request: CreateRequest, memory_directory: str) -> MemoryPlan | None:
    if request.memory is False or (request.memory is None and seen.shut_off):
        return None
    if seen.shut_off:
        raise NotSupported(record.name, "A snapshot with memory", "it is shut off and has none; leave the option out")
    if seen.memory_blocker:
        why = f"{seen.memory_blocker}; a snapshot of the disks alone is possible, with the option memory: false"
        raise NotSupported(record.name, "Saving memory", why)
    method, reason = _choose_method(record, seen, request.live)
    return plan_memory_file(seen, memory_directory, request.name, method, reason)


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


def _plan_quiesce(definition: DomainDefinition, seen: Inspection, request: CreateRequest, *, memory: bool) -> Quiesce:
    """Return what to do about the guest's file systems; only those of a running guest without its memory need anything."""
    if memory or seen.shut_off or request.quiesce is Quiesce.NO:
        return Quiesce.NO
    if request.quiesce is Quiesce.AUTO:
        return Quiesce.AUTO if seen.running and definition.agent else Quiesce.NO
    if not seen.running:
        raise NotSupported(definition.name, "Freezing file systems", "it is paused, and its agent cannot answer; resume it")
    if not definition.agent:
        why = "its definition names no agent; add 'agent:' with the path of its socket"
        raise NotSupported(definition.name, "Freezing file systems", why)
    return Quiesce.REQUIRE


def _check_chains(record: DomainRecord, choice: DiskChoice, limit: int) -> tuple[str, ...]:
    """Refuse a chain that would be too long. Returns: a sentence about each disk that comes near to it."""
    notes = []
    for disk in choice.external:
        depth = len(record.graph.chain(record.graph.active[disk.target])) if disk.target in record.graph.active else 1
        if depth >= limit:
            raise NotSupported(
                record.name, "One more snapshot", f"disk {disk.target} has a chain of {depth} images already; delete some first"
            )
        if depth + 1 > limit * _NEAR_LIMIT:
            oldest = next((f", such as the oldest one, {each.name!r}" for each in record.tree.walk()), "")
            notes.append(
                f"Disk {disk.target} has a chain of {depth + 1} images now, and {limit} are allowed; deleting snapshots merges "
                f"them{oldest}."
            )
    return tuple(notes)
