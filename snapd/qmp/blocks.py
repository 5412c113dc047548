# SPDX-License-Identifier: MIT
"""Disks and block nodes: what QEMU has open, opening and closing, covering and tagging, swapping.

Not here: merges (``merges``), parking (``internal``), and what a disk is made of (``disks``). Nodes of a ``-drive`` have
generated names, and a disk's root node is another one after every snapshot and swap: so nodes are asked for each time, and
images are known by their paths.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snapd.errors import QemuFailed
from snapd.model.domain import Disk
from snapd.model.images import Image
from snapd.model.links import renamed_disk
from snapd.model.plan import Opening, Overlay, Tag
from snapd.qmp import process
from snapd.qmp.disks import Surroundings, disk_of, formats_of
from snapd.qmp.file_names import PROTOCOLS, path_of
from snapd.qmp.link import COMMAND_TIMEOUT_S, Link

NODE_PREFIX = "domsnap-"
"""Begins the name of every node that we open."""

FLUSH_TIMEOUT_S = 300.0
"""How long a slow disk may take to write down all that the host has cached of an image."""

TAGS_TIMEOUT_S = 300.0
"""How long a slow disk may take to count every cluster of an image once more, or once less, for an internal snapshot."""

RESIZE_TIMEOUT_S = 60.0
"""How long a slow disk may take to write a header."""

_CLOSING_ROUNDS = 128
"""More than the longest chain: each round closes at least one node, top first."""


@dataclass(frozen=True)
class BlockView:
    """All that QEMU shows of its blocks.

    ``disks`` are those that the guest can see; ``opened`` has a node and the driver of each image that QEMU has open, and
    ``formats`` the format of each image in the chain of a disk, both by path. ``files`` has the path, or nothing, of each node,
    by name, and ``below`` the names of those that are below a format. An image may have more than one node. ``process`` is how
    QEMU was started.
    """

    disks: tuple[Disk, ...]
    opened: Mapping[str, tuple[str, str]]
    formats: Mapping[str, str]
    files: Mapping[str, str]
    below: frozenset[str]
    process: process.Process


async def query_blocks(link: Link) -> BlockView:
    nodes, blocks, writers, started = await asyncio.gather(
        _nodes(link), link.execute("query-block"), _writers(link), process.look(link)
    )
    around = Surroundings({node["node-name"]: node for node in nodes}, started.command_line, writers)
    view = BlockView(
        disks=tuple(disk_of(block, around) for block in blocks if block.get("qdev")),
        opened=_opened(nodes),
        formats=formats_of(blocks),
        files={node["node-name"]: path_of(node["file"]) for node in nodes},
        below=frozenset(node["node-name"] for node in nodes if node["drv"] in PROTOCOLS),
        process=started,
    )
    return _renamed(view, link.names) if link.names else view


def _renamed(view: BlockView, names: Mapping[str, str]) -> BlockView:
    """Return the view with images under other names than QEMU's."""
    return replace(
        view,
        disks=tuple(renamed_disk(disk, names) for disk in view.disks),
        opened={names.get(path, path): node for path, node in view.opened.items()},
        formats={names.get(path, path): each for path, each in view.formats.items()},
        files={node: names.get(path, path) for node, path in view.files.items()},
    )


async def query_disks(link: Link) -> tuple[Disk, ...]:
    """Return every disk that the guest can see."""
    return (await query_blocks(link)).disks


async def query_open(link: Link) -> dict[str, tuple[str, str]]:
    """Return the node and the driver of each image that QEMU has open, by path."""
    return {link.names.get(path, path): node for path, node in _opened(await _nodes(link)).items()}


async def query_formats(link: Link) -> Mapping[str, str]:
    """Return the format of each image in the chain of a disk, by path."""
    return (await query_blocks(link)).formats


async def _nodes(link: Link) -> Sequence[Mapping[str, Any]]:
    nodes: Sequence[Mapping[str, Any]] = await link.execute("query-named-block-nodes", flat=True)
    return nodes


async def _writers(link: Link) -> Mapping[str, str]:
    """Return the exports that may write to the node that they offer, in words, by its name.

    QEMU lets one write to the node of a device only where the device shares it, and does not list who writes. So that is looked
    up in the graph of permissions, which is for debugging: without it each export counts as one that writes.
    """
    try:
        exports = await link.execute("query-block-exports")
    except QemuFailed:
        return {}  # before 5.2
    if not exports:
        return {}
    offered = {each["node-name"]: f"the {each['type']} export {each['id']}" for each in exports}
    try:
        graph = await link.execute("x-debug-query-block-graph")
    except QemuFailed:
        return offered
    names = {each["id"]: each["name"] for each in graph["nodes"]}
    unnamed = {each["id"] for each in graph["nodes"] if each["type"] == "block-backend" and not each["name"]}
    written = {names[each["child"]] for each in graph["edges"] if each["parent"] in unnamed and "write" in each["perm"]}
    return {node: text for node, text in offered.items() if node in written}


def _opened(nodes: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        path: (node["node-name"], node["drv"])
        for node in nodes
        if node["drv"] not in PROTOCOLS and (path := path_of(node["file"]))
    }


async def open_overlay(link: Link, overlay: Overlay, backing_node: str) -> None:
    """Open an overlay with the modes of the disk that it is for."""
    await open_for(link, overlay.disk, overlay.node, overlay.image, backing=backing_node or None)


async def open_for(link: Link, disk: Disk, node: str, image: Image, **backing: str | None) -> None:
    """Open an image for a disk to write to, in the modes of the disk; ``discard`` where that is not known.

    Args:
        backing: the node it backs on, or None for nothing; without it, QEMU opens what the image says.
    """
    file = {"driver": "file", "filename": image.path}
    if disk.aio and (disk.aio != "native" or disk.cache_direct):  # QEMU refuses native for what goes through the host's cache
        file["aio"] = disk.aio
    options = {
        "driver": image.format,
        "node-name": node,
        "file": file,
        "cache": {"direct": disk.cache_direct, "no-flush": disk.cache_no_flush},
        "detect-zeroes": disk.detect_zeroes,
        "discard": disk.discard or "unmap",
    }
    await link.execute_exactly("blockdev-add", options | backing)


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


async def take(link: Link, overlays: Sequence[Overlay], tags: Sequence[Tag]) -> None:
    """Cover and tag disks in one transaction. Raises: QemuFailed naming the disk; QEMU has rolled all of it back."""
    actions: list[dict[str, Any]] = [
        {"type": "blockdev-snapshot", "data": {"node": each.disk.node, "overlay": each.node}} for each in overlays
    ]
    actions += [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": each.disk.node, "name": each.name}} for each in tags
    ]
    try:
        if actions:
            await link.execute("transaction", TAGS_TIMEOUT_S if tags else COMMAND_TIMEOUT_S, actions=actions)
    except QemuFailed as error:
        # QEMU knows the disk by a name that it made up, or by that of our overlay.
        names = {each.node: each.disk.target for each in overlays}
        disks = [each.disk for each in overlays] + [each.disk for each in tags]
        names |= {disk.node: disk.target for disk in disks}
        target = next(
            (names[word] for word in error.text.split("'") if word in names), " or ".join(disk.target for disk in disks)
        )
        text = f"{error.text.rstrip('.')} (disk {target})" if target else error.text
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
    """Put the disk's device on a node, unless it is on that, and let it see the size of that."""
    blocks, nodes = await asyncio.gather(link.execute("query-block"), _nodes(link))
    before = next((each["inserted"] for each in blocks if each.get("qdev") == disk.device and "inserted" in each), None)
    if before and before["node-name"] == node:
        return  # QEMU aborts when a device is put on the node that it is on
    size = next((each["image"]["virtual-size"] for each in nodes if each["node-name"] == node), disk.virtual_size_bytes)
    before_size = before["image"]["virtual-size"] if before else size
    await swap_to_new(link, replace(disk, virtual_size_bytes=before_size), node, size)


async def swap_to_new(link: Link, disk: Disk, node: str, size_bytes: int) -> None:
    """Put the disk's device on a node of ``size_bytes`` that it is not on, and let it see that size."""
    await link.execute("qom-set", path=disk.device, property="drive", value=node)
    if size_bytes != disk.virtual_size_bytes:
        # IDE asks for the size once, and again only when it is told of a change: as by a node being resized to what it has.
        await link.execute("block_resize", RESIZE_TIMEOUT_S, node_name=node, size=size_bytes)


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
    nodes = {name: path for name, path in view.files.items() if name not in view.below and path}
    named = {name: path for name, path in nodes.items() if not name.startswith("#")}
    unused = [name for name, path in named.items() if path not in in_use and (path in wanted or name.startswith(ours))]
    # Of several nodes on one image QEMU does not show which one a disk uses, but it keeps that one open.
    paths = list(nodes.values())
    doubtful = [name for name, path in named.items() if path in in_use and name.startswith(ours) and paths.count(path) > 1]
    await close_nodes(link, unused)
    await asyncio.gather(*(_try_to_close(link, name) for name in doubtful))


async def chain_nodes(link: Link, view: BlockView, disk: Disk) -> dict[str, str]:
    """Return the node of each image in the chain of a disk, by path.

    An image that two disks, or two openings of ours, have in common has more than one node. Which one is in the chain is shown
    only by the graph for debugging; without it, any is taken.
    """
    found = {path: node for path, (node, _) in view.opened.items()}
    try:
        graph = await link.execute("x-debug-query-block-graph")
    except QemuFailed:
        return found
    names = {each["id"]: each["name"] for each in graph["nodes"]}
    backing = {names[each["parent"]]: names[each["child"]] for each in graph["edges"] if each["name"] == "backing"}
    node: str | None = disk.node
    for _ in disk.chain:
        if node is None:
            break
        if path := view.files.get(node, ""):
            found[path] = node
        node = backing.get(node)
    return found
