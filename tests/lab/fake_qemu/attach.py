# SPDX-License-Identifier: MIT
"""Giving a fake QEMU the disks that a real one would have been started with.

Not here: starting a real one (``lab.qemu``), whose ``GuestDisk`` this reads.
"""

import os
from collections.abc import Sequence
from typing import Any

from tests.lab.fake_qemu.nodes import Disk, Graph, Node
from tests.lab.qemu import GuestDisk

_TYPES = {
    "virtio": "virtio-blk-pci",
    "virtio-iothread": "virtio-blk-pci",
    "scsi": "scsi-hd",
    "ide": "ide-hd",
    "cdrom": "ide-cd",
}
_BACKEND = "/virtio-backend"


def attach(graph: Graph, disks: Sequence[GuestDisk]) -> None:
    """Open the images of ``disks`` and put devices on them, named as QEMU names them. Raises: Refused."""
    anonymous = 1 if any(disk.bus == "scsi" for disk in disks) else 0  # the first is the adapter
    entries = []
    roots = _open(graph, disks)
    for index, disk in enumerate(disks):
        root, path = roots.get(index), ""
        if disk.bus != "none":
            path = f"/machine/peripheral/{disk.id}" if disk.id else f"/machine/peripheral-anon/device[{anonymous}]"
            anonymous += not disk.id
        is_drive = disk.via == "drive" and bool(disk.path)
        if is_drive or path:
            entries.append(Disk(f"drive{index}" if is_drive else "", *_names(disk, path), _TYPES.get(disk.bus, ""), root))
    # QEMU lists drives first: they are made before the devices, and the others with theirs.
    graph.disks = sorted(entries, key=lambda entry: not entry.device)
    for index, root in roots.items():
        root.is_owned = disks[index].via == "blockdev"
    graph.settle()


def _open(graph: Graph, disks: Sequence[GuestDisk]) -> dict[int, Node]:
    """Open what the disks have, by their numbers; nodes come before drives, wherever they stand. They are the monitor's."""
    roots = {}
    for index, disk in sorted(enumerate(disks), key=lambda each: each[1].via == "drive"):
        if disk.path:
            root = roots[index] = graph.add(_options(disk, index))
            if root.file and disk.via == "blockdev":
                root.file.is_owned = True
    return roots


def _names(disk: GuestDisk, path: str) -> tuple[str, frozenset[str]]:
    """Return how QEMU shows the device, and all names that ``qom-set`` takes for it."""
    if not path:
        return "", frozenset()
    names = {path, *([disk.id] if disk.id else [])}
    if disk.bus.startswith("virtio"):
        return path + _BACKEND, frozenset({*names, path + _BACKEND})
    return disk.id or path, frozenset(names)


def _options(disk: GuestDisk, index: int) -> dict[str, Any]:
    """Return the options of ``blockdev-add`` that open what the disk describes."""
    given = dict(word.split("=", 1) for word in disk.options.split(",") if word)
    path = os.fspath(disk.path)
    file = {"driver": "file", "filename": path}
    options: dict[str, Any] = {"driver": disk.format, "file": file}
    if disk.via == "blockdev":
        options["node-name"], file["node-name"] = f"node{index}", f"node{index}-file"
    cache = {name: given[f"cache.{name}"] == "on" for name in ("direct", "no-flush") if f"cache.{name}" in given}
    if cache:
        options["cache"] = cache
    if "detect-zeroes" in given:
        options["detect-zeroes"] = given["detect-zeroes"]
    for word in ("readonly", "read-only"):
        if word in given:
            options["read-only"] = given[word] == "on"
    return options
