# SPDX-License-Identifier: MIT
"""The block commands of a fake QEMU: opening, closing, resizing, covering, tagging and swapping.

Not here: the nodes (``nodes``), how they are shown (``describe``), and merges (``merges``). Each refuses in QEMU's words and in
its order of checking.

Source: QEMU blockdev.c.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.lab.fake_qemu.describe import show_disk, show_graph, show_node
from tests.lab.fake_qemu.image_file import TagEntry, run_tool
from tests.lab.fake_qemu.nodes import Disk, Graph, Node
from tests.lab.fake_qemu.protocol import Died, Handler, Refused, Request
from tests.lab.fake_qemu.recording import Recording

Undo = Callable[[], None]


class Blocks:
    """``exports`` is what ``query-block-exports`` answers; a test fills it in."""

    def __init__(self, graph: Graph, recording: Recording) -> None:
        self._graph, self._recording = graph, recording
        self.exports: list[dict[str, Any]] = []

    def handlers(self) -> dict[str, Handler]:
        return {
            "query-block": lambda _: [show_disk(disk, self._recording) for disk in self._graph.disks],
            "query-named-block-nodes": self._query_nodes,
            "query-block-exports": lambda _: self.exports,
            "x-debug-query-block-graph": lambda _: show_graph(self._graph),
            "blockdev-add": self._add,
            "blockdev-del": self._delete,
            "block_resize": self._resize,
            "blockdev-snapshot": lambda request: self._alone("blockdev-snapshot", request),
            "blockdev-snapshot-internal-sync": lambda request: self._alone("blockdev-snapshot-internal-sync", request),
            "blockdev-snapshot-delete-internal-sync": self._drop_tag,
            "transaction": self._transaction,
        }

    def put(self, disk: Disk, name: object) -> None:
        """Put a disk on another node. Raises: Refused; Died where it is on it already."""
        if not isinstance(name, str):
            raise Refused("Invalid parameter type for 'drive', expected: string")
        node = self._graph.find(name)
        if node is None:
            raise Refused(f"Cannot find device='' nor node-name='{name}'")
        if node is disk.root:
            raise Died("bdrv_replace_child_noperm: Assertion `old_bs != new_bs' failed.")
        if node.read_only:
            raise Refused("Block node is read-only")
        _refuse_busy(disk.root)
        self._refuse_shared(disk, node)
        before, disk.root = disk.root, node
        try:
            self._graph.settle()
        except Refused:
            disk.root = before
            raise

    def _refuse_shared(self, disk: Disk, node: Node) -> None:
        other = next(iter(self._graph.disks_on(node)), None)
        user = f"block device '{other.name}'" if other else "an unnamed block device" if node.job else ""
        if user:
            uses = f"(uses node '{node.name}' as 'root' child)"
            raise Refused(
                f"Permission conflict on node '{node.name}': permissions 'write' are both required by {user} {uses}"
                f" and unshared by block device '{disk.name}' {uses}."
            )

    def _query_nodes(self, request: Request) -> list[dict[str, Any]]:
        flat = request.arguments.get("flat", False)
        return [show_node(node, self._recording, flat=flat) for node in self._graph.nodes]

    def _add(self, request: Request) -> None:
        self._graph.add(request.arguments)

    def _delete(self, request: Request) -> None:
        name = request.arguments["node-name"]
        node = self._graph.find(name)
        if node is None:
            raise Refused(f"Failed to find node with node-name='{name}'")
        if not node.job and self._graph.disks_on(node):
            raise Refused(f"Node {name} is in use")
        self._refuse_blocked(node)
        if not node.is_owned:
            raise Refused(f"Node {name} is not owned by the monitor")
        if self._graph.parents(node):
            raise Refused(f"Block device {name} is in use")
        node.is_owned = False
        self._graph.settle()

    def _refuse_blocked(self, node: Node) -> None:
        """Refuse what QEMU does not let be done to a node that another backs on, or that a job has."""
        _refuse_busy(node)
        for parent in self._graph.parents(node):
            if parent.backing is node:
                raise Refused(f"Node '{node.name}' is busy: node is used as backing hd of '{parent.name}'")

    def _resize(self, request: Request) -> None:
        node = self._graph.get(request.arguments["node-name"], shown_as="")
        _refuse_busy(node)
        if (size := request.arguments["size"]) != node.virtual_size_bytes:
            if node.driver == "null-co":
                raise Refused("Image format driver does not support resize")
            with self._graph.unlocked([node]):
                run_tool("qemu-img", "resize", "-q", "--shrink", "-f", node.driver, node.real_path, str(size))

    def _alone(self, kind: str, request: Request) -> None:
        self._do_all([{"type": kind, "data": request.arguments}])

    def _transaction(self, request: Request) -> None:
        self._do_all(request.arguments["actions"])

    def _do_all(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Do all actions, or none."""
        undone: list[Undo] = []
        known = {"blockdev-snapshot": self._cover, "blockdev-snapshot-internal-sync": self._tag}
        try:
            for action in actions:
                do = known.get(action["type"], _unknown)
                undone.append(do(action["data"]))
        except Refused:
            for undo in reversed(undone):
                undo()
            raise

    def _cover(self, data: Mapping[str, Any]) -> Undo:
        below = self._graph.get(data["node"])
        self._refuse_blocked(below)
        overlay = self._graph.get(data["overlay"])
        if self._graph.disks_on(overlay) or self._graph.parents(overlay):
            raise Refused("The overlay is already in use")
        _refuse_busy(overlay)
        if overlay.backing:
            raise Refused("The overlay already has a backing image")
        if overlay.driver != "qcow2":
            raise Refused("The overlay does not support backing images")
        disks, was_read_only = self._graph.disks_on(below), below.read_only

        def undo() -> None:
            overlay.backing = None
            for disk in disks:
                disk.root = below
            set_read_only(below, was_read_only)
            self._graph.settle()

        overlay.backing = below
        for disk in disks:
            disk.root = overlay
        set_read_only(below, True)
        try:
            self._graph.settle()
        except Refused:
            undo()
            raise
        return undo

    def _root(self, name: str) -> Node:
        """Return a node that no other node is on. Raises: Refused."""
        node = self._graph.get(name)
        if node.job or self._graph.parents(node):
            raise Refused("Need a root block node")
        return node

    def _tag(self, data: Mapping[str, Any]) -> Undo:
        device, name = data["device"], data["name"]
        node = self._root(device)
        if node.read_only:
            raise Refused(f"Device '{device}' is read only")
        if node.driver != "qcow2":
            raise Refused(f"Block format '{node.driver}' used by device '{device}' does not support internal snapshots")
        if not name:
            raise Refused("Name is empty")
        if _find_tag(node, name):
            raise Refused(f"Snapshot with name '{name}' already exists on device '{device}'")
        self._change_tags(node, "-c", name)
        return lambda: self._change_tags(node, "-d", name)

    def _drop_tag(self, request: Request) -> dict[str, Any]:
        device, name = request.arguments["device"], request.arguments.get("name")
        node = self._root(device)
        if node.driver != "qcow2":
            raise Refused("Failed to get a snapshot list: Operation not supported")
        if not _find_tag(node, name):
            raise Refused(f"Snapshot with id 'null' and name '{name}' does not exist on device '{device}'")
        shown = show_node(node, self._recording, flat=True)["image"]["snapshots"]
        self._change_tags(node, "-d", str(name))
        answer: dict[str, Any] = next(each for each in shown if each["name"] == name)
        return answer

    def _change_tags(self, node: Node, what: str, name: str) -> None:
        with self._graph.unlocked([node]):
            run_tool("qemu-img", "snapshot", "-q", what, name, node.real_path)


def _unknown(_: Mapping[str, Any]) -> Undo:
    raise Refused("this fake has no such action of a transaction")


def set_read_only(node: Node, read_only: bool) -> None:
    """Reopen a node, and with it the file that was opened for it."""
    node.read_only = read_only
    if node.file and not node.file.is_owned:
        node.file.read_only = read_only


def _refuse_busy(node: Node | None) -> None:
    if node and node.job:
        raise Refused(f"Node '{node.name}' is busy: block device is in use by block job: {node.job}")


def _find_tag(node: Node, name: object) -> TagEntry | None:
    return next((tag for tag in node.header.tags if tag.name == name), None)
