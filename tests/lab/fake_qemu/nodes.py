# SPDX-License-Identifier: MIT
"""The block nodes of a fake QEMU: opening and closing them, what holds them, and the locks on their files.

Not here: what the commands say (``blocks``) and how nodes are shown (``describe``). Invariants:

- a node is there as long as the monitor owns it, another node is on it, a disk is on it, or a job uses it;
- a file is locked as its node is used: for writing, for reading, or not at all;
- a node that cannot be opened leaves nothing behind.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from tests.lab.fake_qemu.image_file import Header, lock, read_header, unlock
from tests.lab.fake_qemu.protocol import Refused

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*$")


class Files(Protocol):
    """Opens and closes files, those among them that were handed over."""

    def open(self, path: str, *, writable: bool) -> int:
        """Return a descriptor. Raises: Refused."""

    def close(self, path: str, descriptor: int) -> None: ...


class Use(IntEnum):
    """What a node's users need of it."""

    NONE = 0
    READ = 1
    WRITE = 2


@dataclass(eq=False)
class Node:
    """A block node: ``path`` is of one whose driver is ``file``, ``size_bytes`` of one that is ``null-co``.

    ``options`` are those that it was added with, ``is_owned`` is whether the monitor owns it, and ``job`` the kind of the block
    job that keeps others off it, or empty; ``is_lent`` is whether a tool is at its file.
    """

    name: str
    driver: str
    read_only: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    file: "Node | None" = None
    backing: "Node | None" = None
    path: str = ""
    size_bytes: int = 0
    is_owned: bool = False
    job: str = ""
    descriptor: int = -1
    locked: Use = Use.NONE
    is_lent: bool = False

    @property
    def storage(self) -> "Node":
        """The lowest node of the image itself, which has the file."""
        return self.file.storage if self.file else self

    @property
    def real_path(self) -> str:
        """Where the file is for other programs, also when it was handed over."""
        return os.readlink(f"/proc/self/fd/{self.storage.descriptor}")

    @property
    def header(self) -> Header:
        return read_header(self.storage.descriptor)

    @property
    def virtual_size_bytes(self) -> int:
        if self.driver == "null-co":
            return self.size_bytes
        if self.driver == "raw" and self.file and self.file.driver != "file":
            return self.file.virtual_size_bytes
        return self.header.virtual_size_bytes if self.driver == "qcow2" else os.fstat(self.storage.descriptor).st_size

    def chain(self) -> "Iterator[Node]":
        """Yield the node and all that it backs on, top first."""
        node: Node | None = self
        while node:
            yield node
            node = node.backing


@dataclass(eq=False)
class Disk:
    """What the guest sees of a node.

    Args:
        device: the name of the drive, or empty for a disk of ``-blockdev``.
        qdev: the device's id, or its path; empty where a drive has no device.
        names: what ``qom-set`` takes for it.
        type: of the device, as QOM has it.
    """

    device: str
    qdev: str
    names: frozenset[str]
    type: str
    root: Node | None

    @property
    def name(self) -> str:
        """What QEMU calls the block device."""
        return self.device or self.qdev


class Graph:
    """All nodes and disks."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.nodes: list[Node] = []
        """Newest first, as QEMU lists them."""

        self.disks: list[Disk] = []
        self._generated = itertools.count()

    def find(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)

    def get(self, name: str, shown_as: str | None = None) -> Node:
        """Return the node, or the root of the drive, called ``name``. Raises: Refused."""
        drive = next((disk.root for disk in self.disks if disk.device == name and disk.root), None) if name else None
        if node := drive or self.find(name):
            return node
        raise Refused(f"Cannot find device='{name if shown_as is None else shown_as}' nor node-name='{name}'")

    def parents(self, node: Node) -> list[Node]:
        return [each for each in self.nodes if node in (each.file, each.backing)]

    def disks_on(self, node: Node) -> list[Disk]:
        return [disk for disk in self.disks if disk.root is node]

    def use_of(self, node: Node) -> Use:
        """Return what is needed of a node by all that is on it."""
        uses = [Use.WRITE if disk.qdev and not node.read_only else Use.READ for disk in self.disks_on(node)]
        for parent in self.parents(node):
            if parent.backing is node:
                uses.append(Use.READ)
            elif parent.driver == "raw":
                uses.append(self.use_of(parent))
            else:
                uses.append(Use.READ if parent.read_only else Use.WRITE)
        return max(uses, default=Use.NONE)

    def add(self, options: Mapping[str, Any]) -> Node:
        """Open what ``blockdev-add`` describes; the monitor owns it. Raises: Refused."""
        before = list(self.nodes)
        try:
            node = self._open(options, read_only=bool(options.get("read-only", False)))
            node.is_owned = True
            self.settle()
        except Refused:
            for each in self.nodes:
                if each not in before:
                    self._close(each)
            self.nodes = before
            raise
        return node

    def settle(self) -> None:
        """Close what nothing holds any more, and lock each file as it is used now. Raises: Refused when one cannot be."""
        while unheld := [node for node in self.nodes if not self._is_held(node)]:
            for node in unheld:
                self.nodes.remove(node)
                self._close(node)
        self._lock()

    def _lock(self) -> None:
        for node in self.nodes:
            if node.driver == "file" and not node.is_lent and node.locked != (wanted := self.use_of(node)):
                unlock(node.descriptor)
                node.locked = Use.NONE
                if wanted:
                    lock(node.descriptor, writable=wanted is Use.WRITE)
                    node.locked = wanted

    @contextlib.contextmanager
    def unlocked(self, nodes: Iterable[Node]) -> Iterator[None]:
        """Let a tool at the files of ``nodes`` inside the block."""
        files = [node.storage for node in nodes if node.storage.driver == "file"]
        for file in files:
            unlock(file.descriptor)
            file.locked, file.is_lent = Use.NONE, True
        try:
            yield
        finally:
            for file in files:
                file.is_lent = False
            self.settle()

    def close(self) -> None:
        """Close all, as when QEMU has ended."""
        for node in self.nodes:
            self._close(node)
        self.nodes, self.disks = [], []

    def _is_held(self, node: Node) -> bool:
        return bool(node.is_owned or node.job or self.parents(node) or self.disks_on(node))

    def _open(self, options: Mapping[str, Any], *, read_only: bool) -> Node:
        name = options.get("node-name")
        if name is not None and not _NAME.match(name):
            raise Refused(f"Invalid node-name: '{name}'")
        if name is not None and self.find(name):
            raise Refused(f"Duplicate nodes with node-name='{name}'")
        driver = options["driver"]
        if driver == "file":
            return self._insert(self._open_protocol(options, read_only))
        node = Node("", driver, read_only, options, size_bytes=options.get("size", 1 << 30))
        if driver == "null-co":
            return self._insert(node)
        if driver not in ("raw", "qcow2"):
            raise Refused(f"this fake has no driver {driver}")
        given = options["file"]
        if isinstance(given, str):
            node.file = self._reference(given, node)
        else:
            node.file = self._open({"cache": options.get("cache", {}), **given}, read_only=read_only)
        if driver == "qcow2":
            header = node.header
            self._insert(node)
            node.backing = self._open_backing(node, header)
            return node
        return self._insert(node)

    def _open_protocol(self, options: Mapping[str, Any], read_only: bool) -> Node:
        node = Node("", "file", read_only, options, path=options["filename"])
        node.descriptor = self._files.open(node.path, writable=not read_only)
        return node

    def _open_backing(self, node: Node, header: Header) -> Node | None:
        if "backing" in node.options:
            given = node.options["backing"]
            return self.get(given) if given else None
        if not header.backing:
            return None
        assert node.file
        path = os.path.join(os.path.dirname(node.file.path), header.backing)
        options = {
            "driver": header.backing_format or "raw",
            "file": {"driver": "file", "filename": path},
            "cache": node.options.get("cache", {}),
        }
        try:
            backing = self._open(options, read_only=True)
            self._lock()
        except Refused as error:
            raise Refused(f"Could not open backing file: {error}") from error
        return backing

    def _reference(self, name: str, user: Node) -> Node:
        """Return the node that ``user`` is to be on. Raises: Refused where another writes to it and ``user`` would."""
        node = self.get(name)
        writers = [each for each in self.parents(node) if each.file is node and not each.read_only]
        if writers and user.driver != "raw":
            raise Refused(
                f"Permission conflict on node '{name}': permissions 'write, resize' are both required by node"
                f" '{writers[0].name}' (uses node '{name}' as 'file' child) and unshared by node"
                f" '{user.options['node-name']}' (uses node '{name}' as 'file' child)."
            )
        return node

    def _insert(self, node: Node) -> Node:
        number = next(self._generated)
        node.name = node.options.get("node-name") or f"#block{number}{number * 37 % 100:02d}"
        self.nodes.insert(0, node)
        return node

    def _close(self, node: Node) -> None:
        if node.descriptor >= 0:
            unlock(node.descriptor)
            self._files.close(node.path, node.descriptor)
            node.descriptor = -1
