# SPDX-License-Identifier: MIT
"""Disks and block nodes: what QEMU has open, opening and closing, covering and swapping.

Not here: merges (``merges``). Nodes of a ``-drive`` have generated names, and a disk's root node is another one after every
snapshot and swap: so nodes are asked for each time, and images are known by their paths.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapd.errors import QemuFailed
from snapd.model.domain import Disk
from snapd.model.plan import Opening, Overlay
from snapd.qmp.link import Link

NODE_PREFIX = "domsnap-"
"""Begins the name of every node that we open."""

FORMATS = frozenset({"raw", "qcow2"})
_PROTOCOLS = frozenset({"file", "host_device", "host_cdrom", "nbd", "rbd", "nfs", "iscsi", "http", "https", "ssh", "gluster"})
FLUSH_TIMEOUT_S = 300.0
"""How long a slow disk may take to write down all that the host has cached of an image."""

_CLOSING_ROUNDS = 128
"""More than the longest chain: each round closes at least one node, top first."""


@dataclass(frozen=True)
class BlockView:
    """All that QEMU shows of its blocks.

    ``disks`` are those that the guest can see; ``opened`` has the node and the driver of each image that QEMU has open, and
    ``formats`` the format of each image in the chain of a disk, both by path.
    """

    disks: tuple[Disk, ...]
    opened: Mapping[str, tuple[str, str]]
    formats: Mapping[str, str]


async def query_blocks(link: Link) -> BlockView:
    nodes, blocks = await asyncio.gather(link.execute("query-named-block-nodes", flat=True), link.execute("query-block"))
    by_name = {node["node-name"]: node for node in nodes}
    return BlockView(
        disks=tuple(_disk(block, by_name) for block in blocks if block.get("qdev")),
        opened=_opened(nodes),
        formats=_formats(blocks),
    )


async def query_disks(link: Link) -> tuple[Disk, ...]:
    """Return every disk that the guest can see."""
    return (await query_blocks(link)).disks


async def query_open(link: Link) -> dict[str, tuple[str, str]]:
    """Return the node and the driver of each image that QEMU has open, by path."""
    return _opened(await link.execute("query-named-block-nodes", flat=True))


async def query_formats(link: Link) -> Mapping[str, str]:
    """Return the format of each image in the chain of a disk, by path."""
    return (await query_blocks(link)).formats


def _opened(nodes: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        path: (node["node-name"], node["drv"])
        for node in nodes
        if node["drv"] not in _PROTOCOLS and (path := _path_of(node["file"]))
    }


def _disk(block: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> Disk:
    inserted = block.get("inserted")
    if inserted is None:
        return Disk(_target(block), block["qdev"], "", "", "", (), 0, writable=False, obstacle="it has no medium")
    node = inserted["node-name"]
    path = _path_of(inserted["file"])
    cache = nodes.get(node, {}).get("cache", inserted.get("cache", {}))
    return Disk(
        target=_target(block),
        device=block["qdev"],
        node=node,
        image=path,
        format=inserted["drv"],
        chain=tuple(_chain(inserted["image"])) if path else (),
        virtual_size_bytes=inserted["image"]["virtual-size"],
        writable=not inserted["ro"],
        obstacle=_obstacle(block, path),
        cache_direct=cache.get("direct", False),
        cache_no_flush=cache.get("no-flush", False),
        detect_zeroes=inserted.get("detect_zeroes", "off"),
    )


def _target(block: Mapping[str, Any]) -> str:
    """Return what we call the disk: its device's id, else its drive's id, else where QEMU has put the device.

    Never its node's name, which is another one after every snapshot.
    """
    device = str(block["qdev"])
    if not device.startswith("/"):
        return device
    _, _, kind, name, *_ = device.split("/")
    if kind == "peripheral":
        return name
    return str(block.get("device") or name)


def _obstacle(block: Mapping[str, Any], path: str) -> str:
    inserted = block["inserted"]
    if block.get("removable"):
        return "it is a CD-ROM or floppy"
    if inserted["ro"]:
        return "it is read-only"
    if inserted["drv"] not in FORMATS:
        return f"its format {inserted['drv']} has no external snapshots here; raw and qcow2 have"
    if not path:
        return f"it is not a whole file on this host ({inserted['file']})"
    if not path.startswith("/"):
        return f"its path {path} is relative to QEMU's own directory; start QEMU with an absolute path"
    if path.startswith("/dev/"):
        return f"it lies on the block device {path}, beside which no overlay can lie"
    return ""


def _chain(image: Mapping[str, Any] | None) -> Iterable[str]:
    while image:
        yield _path_of(image["filename"])
        image = image.get("backing-image")


def _path_of(name: str) -> str:
    """Return the path in a file name as QEMU prints it, or nothing when it is not a file or only a part of one."""
    if name.startswith("json:"):
        options = json.loads(name.removeprefix("json:"))
        while isinstance(options.get("file"), dict):
            if "offset" in options or "size" in options:
                return ""
            options = options["file"]
        return str(options.get("filename", ""))
    scheme = name.split(":", 1)[0]
    if scheme == "file":
        return name.removeprefix("file:")
    return "" if ":" in name and scheme in _PROTOCOLS else name


def _formats(blocks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the format of each image in the chain of a disk, by path."""
    found: dict[str, str] = {}
    for block in blocks:
        image = block.get("inserted", {}).get("image")
        while image:
            found[_path_of(image["filename"])] = image["format"]
            image = image.get("backing-image")
    return found


async def open_overlay(link: Link, overlay: Overlay, backing_node: str) -> None:
    """Open an overlay with the cache and zero-detection modes of the disk it is for; QMP does not show the others."""
    disk = overlay.disk
    await link.execute_exactly(
        "blockdev-add",
        {
            "driver": overlay.image.format,
            "node-name": overlay.node,
            "file": {"driver": "file", "filename": overlay.image.path},
            "backing": backing_node or None,
            "cache": {"direct": disk.cache_direct, "no-flush": disk.cache_no_flush},
            "detect-zeroes": disk.detect_zeroes,
            "discard": "unmap",
        },
    )


async def open_image(link: Link, opening: Opening) -> None:
    """Open an image that others will back on, for reading."""
    options: dict[str, Any] = {
        "driver": opening.image.format,
        "node-name": opening.node,
        "read-only": True,
        "file": {"driver": "file", "filename": opening.image.path},
    }
    if opening.image.format != "raw":
        options["backing"] = opening.backing_node or None
    await link.execute_exactly("blockdev-add", options)


async def cover(link: Link, overlays: Sequence[Overlay]) -> None:
    """Cover all disks in one transaction. Raises: QemuFailed naming the disk; QEMU has rolled all of them back."""
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": overlay.disk.node, "overlay": overlay.node}} for overlay in overlays
    ]
    try:
        if actions:
            await link.execute("transaction", actions=actions)
    except QemuFailed as error:
        # QEMU knows the disk by a name that it made up, or by that of our overlay.
        disk = next((each.disk.target for each in overlays if {each.disk.node, each.node} & set(error.text.split("'"))), "")
        text = f"{error.text.rstrip('.')} (disk {disk})" if disk else error.text
        raise QemuFailed(error.domain, error.command, text) from error


async def hold(link: Link, disk: Disk, node: str) -> bool:
    """Open ``node`` on top of the disk's root, if that belongs to its device alone, as that of a ``-drive`` does.

    Such a node has a made-up name and ends when it is swapped; one with a name of its own stays until it is closed.
    """
    if not disk.node.startswith("#"):
        return False
    await link.execute("blockdev-add", driver="raw", node_name=node, read_only=True, file=disk.node)
    return True


async def swap(link: Link, disk: Disk, node: str) -> None:
    await link.execute("qom-set", path=disk.device, property="drive", value=node)


async def flush(link: Link, node: str) -> None:
    """Have QEMU write down what it keeps back of an image. Raises: QemuFailed when the image cannot be written."""
    said = await link.execute("human-monitor-command", FLUSH_TIMEOUT_S, command_line=f"qemu-io {node} flush")
    if said.strip():
        raise QemuFailed(link.domain, "flush", said.strip())


async def close_nodes(link: Link, names: Iterable[str]) -> None:
    """Close nodes top first: one that another still backs on is refused, and tried again after the others.

    Raises: QemuFailed when the rest are all in use.
    """
    waiting = list(names)
    for _ in range(_CLOSING_ROUNDS):
        failures = await asyncio.gather(*(_try_to_close(link, name) for name in waiting))
        refused = [failure for failure in failures if failure]
        if not refused:
            return
        if len(refused) == len(waiting):
            raise refused[0]
        waiting = [name for name, failure in zip(waiting, failures, strict=True) if failure]


async def _try_to_close(link: Link, name: str) -> QemuFailed | None:
    """Close a node. Returns: why it is still there, if it is."""
    try:
        await link.execute("blockdev-del", node_name=name)
    except QemuFailed as error:
        if "Failed to find node" not in error.text and "Cannot find device" not in error.text:
            return error
    return None


async def close_unused(link: Link, images: Iterable[str], ours: str) -> None:
    """Close the nodes on ``images``, and every node whose name begins with ``ours``, that no disk has in its chain."""
    wanted = set(images)
    view = await query_blocks(link)
    in_use = {path for disk in view.disks for path in disk.chain}
    unused = [
        node
        for path, (node, _) in view.opened.items()
        if path not in in_use and not node.startswith("#") and (path in wanted or node.startswith(ours))
    ]
    await close_nodes(link, unused)
