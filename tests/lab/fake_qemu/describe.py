# SPDX-License-Identifier: MIT
"""How a fake QEMU shows its block nodes and disks: what ``query-block`` and its kin answer.

Not here: what there is (``nodes``).
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from tests.lab.fake_qemu.nodes import Disk, Graph, Node, Use
from tests.lab.fake_qemu.recording import Recording

_SECTOR_BYTES = 512
_NANOSECONDS = 1_000_000_000
_SHARED = {Use.NONE: ["resize", "write-unchanged", "write", "consistent-read"]}


def full_backing(node: Node) -> str:
    """Return what the image's header says it backs on, as a path from anywhere, or nothing."""
    backing = node.header.backing if node.driver == "qcow2" else ""
    return os.path.join(os.path.dirname(node.storage.path), backing) if backing else ""


def file_name(node: Node) -> str:
    """Return what QEMU calls the image: its path, or all options where a path would not open the same."""
    if node.driver == "file":
        return node.path
    options = _options(node)
    if node.file and node.file.driver == "file" and "backing" not in options:
        return node.file.path
    return f"json:{json.dumps(options)}"


def _options(node: Node) -> dict[str, Any]:
    """Return the options that open the node's image again."""
    if node.driver == "file":
        return {"driver": "file", "filename": node.path}
    if node.driver == "null-co":
        return {key: node.options[key] for key in ("driver", "size", "read-zeroes") if key in node.options}
    assert node.file
    options: dict[str, Any] = {"driver": node.driver, "file": _options(node.file)}
    if (file_name(node.backing) if node.backing else "") != full_backing(node):
        options["backing"] = _options(node.backing) if node.backing else None
    return options


def show_node(node: Node, recording: Recording, *, flat: bool) -> dict[str, Any]:
    """Return a node as ``query-named-block-nodes`` has it; not flat, with the images that it backs on inside."""
    cache = _cache(node)
    shown: dict[str, Any] = {
        **dict.fromkeys(("iops", "iops_rd", "iops_wr", "bps", "bps_rd", "bps_wr", "write_threshold"), 0),
        "detect_zeroes": node.options.get("detect-zeroes", "off"),
        "image": _image(node, recording, flat=flat),
        "ro": node.read_only,
        "node-name": node.name,
        "backing_file_depth": 0 if flat else sum(1 for _ in node.chain()) - 1,
        "drv": node.driver,
        "encrypted": False,
        "cache": {"no-flush": cache.get("no-flush", False), "direct": cache.get("direct", False), "writeback": True},
        "file": file_name(node),
    }
    if node.backing:
        shown["backing_file"] = file_name(node.backing)
    if recording.shows_active:
        shown["active"] = True
    return shown


def _cache(node: Node) -> dict[str, bool]:
    found: dict[str, bool] = node.options.get("cache", {})
    return found


def _image(node: Node, recording: Recording, *, flat: bool) -> dict[str, Any]:
    image: dict[str, Any] = {
        "virtual-size": -(-node.virtual_size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES,
        "filename": file_name(node),
        "format": node.driver,
        "actual-size": os.fstat(node.storage.descriptor).st_blocks * 512 if node.storage.driver == "file" else 0,
    }
    if node.driver != "null-co":
        image["dirty-flag"] = False
    if node.driver == "file" and recording.shows_active:
        image["format-specific"] = {"type": "file", "data": {}}
    if node.driver == "qcow2":
        image |= _qcow2(node)
    if node.driver == "raw" and node.file and node.file.driver == "qcow2":
        image["cluster-size"] = node.file.header.cluster_bytes
    if node.backing and not flat:
        image["backing-image"] = _image(node.backing, recording, flat=False)
    return image


def _qcow2(node: Node) -> dict[str, Any]:
    header = node.header
    shown: dict[str, Any] = {
        "cluster-size": header.cluster_bytes,
        "format-specific": {
            "type": "qcow2",
            "data": {
                "compat": "1.1",
                "compression-type": "zlib",
                "lazy-refcounts": header.lazy_refcounts,
                "refcount-bits": header.refcount_bits,
                "corrupt": False,
                "extended-l2": header.extended_l2,
            },
        },
    }
    if header.backing:
        shown |= {"backing-filename": header.backing, "full-backing-filename": full_backing(node)}
    if header.backing_format:
        shown["backing-filename-format"] = header.backing_format
    if header.tags:
        shown["snapshots"] = [
            {
                "id": tag.id,
                "name": tag.name,
                "vm-state-size": tag.vm_state_bytes,
                "date-sec": tag.date_sec,
                "date-nsec": tag.date_nsec,
                "vm-clock-sec": tag.clock_nsec // _NANOSECONDS,
                "vm-clock-nsec": tag.clock_nsec % _NANOSECONDS,
            }
            for tag in header.tags
        ]
    return shown


def show_disk(disk: Disk, recording: Recording) -> dict[str, Any]:
    """Return a disk as ``query-block`` has it."""
    is_removable = disk.type in ("", "ide-cd")  # nothing is fixed in no device
    shown: dict[str, Any] = {"device": disk.device, "locked": False, "removable": is_removable, "type": "unknown"}
    if disk.qdev:
        shown |= {"io-status": "ok", "qdev": disk.qdev}
    if disk.qdev and is_removable:
        shown["tray_open"] = False
    if disk.root:
        shown["inserted"] = show_node(disk.root, recording, flat=False)
    return shown


def show_graph(graph: Graph) -> dict[str, Any]:
    """Return everything as ``x-debug-query-block-graph`` has it, with what each needs of the other."""
    tops: list[Node | Disk] = [*graph.nodes, *(disk for disk in graph.disks if disk.root)]
    ids = {id(each): number for number, each in enumerate(tops, 1)}
    return {
        "nodes": [
            {"id": ids[id(each)], "name": each.name, "type": "block-driver" if isinstance(each, Node) else "block-backend"}
            for each in tops
        ],
        "edges": [
            {
                "parent": ids[id(parent)],
                "child": ids[id(child)],
                "name": name,
                "perm": {Use.NONE: [], Use.READ: ["consistent-read"], Use.WRITE: ["write", "consistent-read"]}[use],
                "shared-perm": _SHARED.get(use, ["write-unchanged", "consistent-read"]),
            }
            for parent, child, name, use in _edges(graph)
        ],
    }


def _edges(graph: Graph) -> Iterator[tuple[Node | Disk, Node, str, Use]]:
    for node in graph.nodes:
        if node.file:
            on_top = graph.use_of(node) if node.driver == "raw" else Use.READ if node.read_only else Use.WRITE
            yield node, node.file, "file", on_top
        if node.backing:
            yield node, node.backing, "backing", Use.READ
    for disk in graph.disks:
        if disk.root:
            yield disk, disk.root, "root", Use.READ if disk.root.read_only else Use.WRITE
