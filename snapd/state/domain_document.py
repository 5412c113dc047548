# SPDX-License-Identifier: MIT
"""A domain's own file: the image graph, the pins, the shape of the tree, and which snapshots there are.

Not here: the snapshots' own words (``snapshot_document``), and where the files lie (``directory``).

- What this file says of parents and pins holds, whatever a snapshot's file says.
- A graph or a tree that breaks an invariant is neither written nor read; nor is an internal snapshot that is pinned and still
  to be deleted, nor a pending revert to a snapshot that does not exist.
- What libxl has no part in, and keys that are not known, are kept and written again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from snapd.errors import StateDamaged
from snapd.model.images import Image, ImageGraph, Pin
from snapd.model.record import DomainRecord, PendingRevert
from snapd.state.extension import (
    VERSION,
    DomainExtension,
    ImageEntry,
    ListedSnapshot,
    PendingEntry,
    PinEntry,
    read_extension,
)
from snapd.state.libxl_json import EXTENSION_KEY, Document, JsonValue, dumps, parse
from snapd.state.libxl_snapshot import LibxlDiskFormat

_INFO = "c_info"
_DISKS = "disks"
_NAMED_FORMATS = {str(each) for each in LibxlDiskFormat} - {LibxlDiskFormat.UNKNOWN, LibxlDiskFormat.EMPTY}


@dataclass(frozen=True)
class DomainDocument:
    """What the file says. ``parents`` has every snapshot there is, in the order of the file.

    ``revised`` holds, by name, the text that a snapshot's own file is about to have. ``foreign`` is the whole text as it was
    read, for the keys in it that are not ours.
    """

    name: str
    uuid: str
    graph: ImageGraph = field(default_factory=ImageGraph)
    parents: Mapping[str, str] = field(default_factory=dict)
    current: str = ""
    pending: PendingRevert | None = None
    follows_active: bool = False
    revised: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, JsonValue] = field(default_factory=dict)


def document_of(record: DomainRecord, revised: Mapping[str, str], foreign: Mapping[str, JsonValue]) -> DomainDocument:
    """Return what the file has to say of ``record``."""
    parents = {name: snapshot.parent for name, snapshot in record.tree.snapshots.items()}
    return DomainDocument(
        name=record.name,
        uuid=record.uuid,
        graph=record.graph,
        parents=parents,
        current=record.tree.current,
        pending=record.pending,
        follows_active=record.follows_active,
        revised=revised,
        foreign=foreign,
    )


def write_domain(document: DomainDocument, path: str) -> bytes:
    """Return the text of the file.

    Args: ``path`` is for the error only.
    Raises: StateDamaged for what no such file can hold, and for a broken invariant.
    """
    try:
        value = _merged(document)
        data = dumps(value)
        read = _document(Document(path, data.decode(), value))
    except (ValueError, TypeError, StateDamaged) as cause:
        raise StateDamaged(path, 0, f"the state of domain {document.name!r} cannot be written down: {cause}") from cause
    if replace(read, foreign=document.foreign) != document:
        raise StateDamaged(path, 0, f"the state of domain {document.name!r} would not read back as it is")
    return data


def read_domain(data: bytes, path: str) -> DomainDocument:
    """Read a file of ours, or one of libxl, which has no snapshots yet.

    Args: ``path`` is for the error only.
    Raises: StateDamaged, with the line of what is wrong; also for a version after ours, which may mean other things.
    """
    return _document(parse(data, path))


# Reading


def _document(document: Document) -> DomainDocument:
    info = document.value.get(_INFO, {})
    if not isinstance(info, Mapping):
        raise document.damaged(f"{_INFO} must be an object", _INFO)
    for key in ("name", "uuid"):
        if not isinstance(info.get(key, ""), str):
            raise document.damaged(f"{_INFO}.{key} must be a string", _INFO, key)
    disks = document.value.get(_DISKS, [])
    if not isinstance(disks, list | tuple) or not all(isinstance(disk, Mapping) for disk in disks):
        raise document.damaged(f"{_DISKS} must be an array of objects", _DISKS)
    ours, _ = read_extension(document, DomainExtension)
    ours = ours or DomainExtension(VERSION)
    if ours.version != VERSION:
        raise document.damaged(
            f"a later version of this service has written it (version {ours.version}, and {VERSION} is known)",
            EXTENSION_KEY,
            "version",
        )
    parents = _parents(document, ours)
    return DomainDocument(
        name=str(info.get("name", "")),
        uuid=str(info.get("uuid", "")),
        graph=_graph(document, ours),
        parents=parents,
        current=ours.current,
        pending=_pending(document, ours, parents),
        follows_active=ours.follows_active,
        revised={each.name: each.revised for each in ours.snapshots if each.revised},
        foreign=document.value,
    )


def _graph(document: Document, ours: DomainExtension) -> ImageGraph:
    images: dict[str, Image] = {}
    for number, each in enumerate(ours.images):
        if each.path in images:
            raise document.damaged(f"image {each.path!r} stands there twice", EXTENSION_KEY, "images", number)
        images[each.path] = Image(
            each.path, each.format, each.backing, each.origin, each.virtual_size, each.doomed, each.foreign_tags
        )
    pins = {
        each.name: {target: Pin(pin.image, pin.tag) for target, pin in each.pins.items()}
        for each in ours.snapshots
        if each.pins is not None
    }
    graph = ImageGraph(images, ours.active, pins)
    if broken := graph.violations():
        raise document.damaged("; ".join(broken), EXTENSION_KEY)
    for snapshot, by_target in pins.items():
        for pin in by_target.values():
            if pin.tag in images[pin.image].doomed:
                raise document.damaged(
                    f"snapshot {snapshot!r} pins internal snapshot {pin.tag!r} in {pin.image}, which is to be deleted",
                    EXTENSION_KEY,
                    "images",
                    list(images).index(pin.image),
                )
    return graph


def _pending(document: Document, ours: DomainExtension, parents: Mapping[str, str]) -> PendingRevert | None:
    if ours.pending is None:
        return None
    if ours.pending.name not in parents:
        reason = f"the snapshot {ours.pending.name!r} of the pending revert is not in the list"
        raise document.damaged(reason, EXTENSION_KEY, "pending", "name")
    return PendingRevert(ours.pending.name, ours.pending.state)


def _parents(document: Document, ours: DomainExtension) -> dict[str, str]:
    parents: dict[str, str] = {}
    for number, each in enumerate(ours.snapshots):
        if each.name in parents:
            raise document.damaged(f"snapshot {each.name!r} stands there twice", EXTENSION_KEY, "snapshots", number)
        parents[each.name] = each.parent
    for number, (name, parent) in enumerate(parents.items()):
        if parent and parent not in parents:
            place = (EXTENSION_KEY, "snapshots", number, "parent")
            raise document.damaged(f"the parent {parent!r} of snapshot {name!r} is not in the list", *place)
    if ours.current and ours.current not in parents:
        raise document.damaged(f"the current snapshot {ours.current!r} is not in the list", EXTENSION_KEY, "current")
    if circle := _circle(parents):
        raise document.damaged(f"snapshot {circle!r} is its own ancestor", EXTENSION_KEY, "snapshots")
    return parents


def _circle(parents: Mapping[str, str]) -> str:
    """Return a snapshot that is below itself, if there is one."""
    rooted = {""}
    for name in parents:
        way: dict[str, None] = {}
        at = name
        while at not in rooted:
            if at in way:
                return at
            way[at] = None
            at = parents[at]
        rooted.update(way)
    return ""


# Writing


def _merged(document: DomainDocument) -> dict[str, JsonValue]:
    """Return the whole value: our words, and around them what was there."""
    foreign = cast("Mapping[str, Any]", document.foreign)
    ours = _ours(document)
    known = DomainExtension.__struct_fields__
    kept = {key: each for key, each in foreign.get(EXTENSION_KEY, {}).items() if key not in known}
    return {
        **foreign,
        _INFO: {**foreign.get(_INFO, {}), "name": document.name, "uuid": document.uuid},
        _DISKS: _disks(document.graph, foreign.get(_DISKS, [])),
        EXTENSION_KEY: {**ours, **kept},
    }


def _disks(graph: ImageGraph, foreign: list[dict[str, Any]]) -> list[JsonValue]:
    """Return the disks in the words of libxl; one that is not in the graph stays as it is."""
    before = {disk.get("vdev"): disk for disk in foreign}
    disks: list[JsonValue] = [disk for disk in foreign if disk.get("vdev") not in graph.active]
    for target, path in graph.active.items():
        format_name = graph.images[path].format if path in graph.images else ""
        words = {"pdev_path": path, "vdev": target}
        if format_name in _NAMED_FORMATS:
            words["format"] = format_name
        kept = {key: each for key, each in before.get(target, {}).items() if key != "format"}
        disks.append({**kept, **words})
    return disks


def _ours(document: DomainDocument) -> dict[str, Any]:
    graph = document.graph
    images = [
        ImageEntry(each.path, each.format, each.origin, each.backing, each.virtual_size_bytes, each.doomed, each.foreign_tags)
        for each in graph.images.values()
    ]
    if foreign_pins := graph.pins.keys() - document.parents.keys():
        raise ValueError(f"what is pinned for {', '.join(sorted(foreign_pins))} belongs to no snapshot")
    listed = [
        ListedSnapshot(name, parent, _pin_entries(graph.pins.get(name)), document.revised.get(name, ""))
        for name, parent in document.parents.items()
    ]
    pending = document.pending
    extension = DomainExtension(
        version=VERSION,
        current=document.current,
        pending=PendingEntry(pending.name, pending.state) if pending else None,
        follows_active=document.follows_active,
        images=tuple(images),
        active=dict(graph.active),
        snapshots=tuple(listed),
    )
    return cast("dict[str, Any]", msgspec.to_builtins(extension))


def _pin_entries(pins: Mapping[str, Pin] | None) -> dict[str, PinEntry] | None:
    return None if pins is None else {target: PinEntry(pin.image, pin.tag) for target, pin in pins.items()}
