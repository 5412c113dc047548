# SPDX-License-Identifier: MIT
"""A disk as we know it, made of what QEMU shows: its name, its chain, its modes, and why it cannot take part.

Not here: asking QEMU (``blocks``). Nothing here waits or raises.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from snapd.model.domain import Disk, no_external, no_internal
from snapd.qmp.command_line import CommandLine
from snapd.qmp.file_names import path_of

FORMATS = frozenset({"raw", "qcow2"})
_FLASH = re.compile(r"/machine/[^/]+\.flash(\d+)$")

Block = Mapping[str, Any]
"""An entry of ``query-block``."""


@dataclass(frozen=True)
class Surroundings:
    """What else there is to know for a disk.

    ``nodes`` are all nodes by name, and ``written_by`` has what writes to a node beside the guest, by the node's name.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    command_line: CommandLine
    written_by: Mapping[str, str]


def disk_of(block: Block, around: Surroundings) -> Disk:
    """Return the disk that a block with a guest device is."""
    target, device = _target(block), str(block["qdev"])
    is_flash = _FLASH.match(device) is not None
    inserted = block.get("inserted")
    if inserted is None:
        return Disk(target, device, "", "", "", (), 0, writable=False, obstacle="it has no medium", is_flash=is_flash)
    node, image = inserted["node-name"], inserted["image"]
    path = path_of(inserted["file"])
    chain = tuple(_chain(image)) if path else ()
    cache = around.nodes.get(node, {}).get("cache", inserted.get("cache", {}))
    details = image.get("format-specific", {}).get("data", {})
    drive = around.command_line.drive(target, (str(block.get("device", "")), node), chain)
    return Disk(
        target=target,
        device=device,
        node=node,
        image=path,
        format=inserted["drv"],
        chain=chain,
        virtual_size_bytes=image["virtual-size"],
        writable=not inserted["ro"],
        obstacle=_obstacle(block, path) or _writer(chain, node, around),
        no_internal=_no_internal(inserted["drv"], details),
        no_external=_no_external(path, around),
        tags=tuple(str(each["name"]) for each in image.get("snapshots", ())),
        is_flash=is_flash,
        cluster_bytes=image.get("cluster-size", 0) if inserted["drv"] == "qcow2" else 0,
        extended_l2=details.get("extended-l2", False),
        aio=drive.aio,
        discard=drive.discard,
        cache_direct=cache.get("direct", False),
        cache_no_flush=cache.get("no-flush", False),
        detect_zeroes=inserted.get("detect_zeroes", "off"),
    )


def formats_of(blocks: Iterable[Block]) -> dict[str, str]:
    """Return the format of each image in the chain of a block, by path."""
    found: dict[str, str] = {}
    for block in blocks:
        image = block.get("inserted", {}).get("image")
        while image:
            found[path_of(image["filename"])] = image["format"]
            image = image.get("backing-image")
    return found


def _target(block: Block) -> str:
    """Return what we call the disk: its device's id, else its drive's id, else where QEMU has put the device.

    Never its node's name, which is another one after every snapshot. A flash has no device with an id: ``pflash1`` is what
    QEMU calls the drive of the second one, and the machine's property for its node.
    """
    device = str(block["qdev"])
    if not device.startswith("/"):
        return device
    drive = str(block.get("device") or "")
    if flash := _FLASH.match(device):
        return drive or f"pflash{flash[1]}"
    parts = device.strip("/").split("/")
    name = parts[min(2, len(parts) - 1)]
    return name if parts[1:2] == ["peripheral"] else drive or name


def _obstacle(block: Block, path: str) -> str:
    inserted = block["inserted"]
    if block.get("removable"):
        return "it is a CD-ROM or floppy"
    if inserted["ro"]:
        return "it is read-only"
    if inserted["drv"] not in FORMATS:
        return f"its format {inserted['drv']} has no snapshots here; raw and qcow2 have"
    if not path:
        return f"it is not a whole file on this host ({inserted['file']})"
    if not path.startswith("/"):
        return f"its path {path} is relative to QEMU's own directory; start QEMU with an absolute path"
    return ""


def _writer(chain: Iterable[str], root: str, around: Surroundings) -> str:
    """Return what writes to a node of the chain without the guest, as an obstacle."""
    images = set(chain)
    for name, writer in around.written_by.items():
        if name == root or path_of(around.nodes.get(name, {}).get("file", "")) in images:
            return f"{writer} writes to its node {name}; end that first"
    return ""


def _no_internal(image_format: str, details: Mapping[str, Any]) -> str:
    if "data-file" in details:
        return f"its content lies in the data file {details['data-file']}, which has no internal snapshots"
    return no_internal(image_format)


def _no_external(path: str, around: Surroundings) -> str:
    """Return why the disk cannot be covered, also where the path is a link to a block device."""
    if any(node["drv"] == "host_device" and path_of(node["file"]) == path for node in around.nodes.values()):
        return f"it lies on the block device {path}, beside which no overlay can lie"
    return no_external(path)


def _chain(image: Mapping[str, Any] | None) -> Iterable[str]:
    while image:
        yield path_of(image["filename"])
        image = image.get("backing-image")
