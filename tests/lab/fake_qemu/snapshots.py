# SPDX-License-Identifier: MIT
"""``snapshot-save`` and ``snapshot-load`` of a fake QEMU, done to the files with `qemu-img` and `qemu-io`.

Not here: what is saved (``migration``). The guest's processors stand still meanwhile, and the verdict is in the job.

Source: QEMU migration/savevm.c, block/snapshot.c.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.fake_qemu.image_file import read_vm_state, run_tool, set_vm_state_bytes
from tests.lab.fake_qemu.jobs import Job, Jobs
from tests.lab.fake_qemu.machine import Machine
from tests.lab.fake_qemu.migration import STREAM_BYTES, Migration, memory_in, stream_of
from tests.lab.fake_qemu.nodes import Graph, Node
from tests.lab.fake_qemu.protocol import Handler, Refused, Request


@dataclass(frozen=True)
class Asked:
    """What a save or load is of: the tag, the node with the memory, and all nodes that have the tag."""

    tag: str
    memory: Node
    nodes: list[Node]

    def holders(self) -> list[Node]:
        """Return the nodes that have the tag already."""
        return [node for node in self.nodes if any(tag.name == self.tag for tag in node.header.tags)]


class Snapshots:
    """Saves and loads of memory and disks together, as jobs."""

    def __init__(self, graph: Graph, machine: Machine, migration: Migration, jobs: Jobs) -> None:
        self._graph, self._machine, self._migration, self._jobs = graph, machine, migration, jobs

    def handlers(self) -> dict[str, Handler]:
        return {
            "snapshot-save": lambda request: self._start(request, "snapshot-save", self._save),
            "snapshot-load": lambda request: self._start(request, "snapshot-load", self._load),
        }

    def _start(self, request: Request, kind: str, work: Callable[[Asked], None]) -> None:
        arguments = request.arguments
        self._jobs.check_id(arguments["job-id"])

        async def copy() -> None:
            nodes = [self._node(name) for name in arguments["devices"]]
            work(Asked(arguments["tag"], self._node(arguments["vmstate"]), nodes))

        self._jobs.start(Job(arguments["job-id"], kind, copy))

    def _node(self, name: str) -> Node:
        node = self._graph.find(name)
        if node is None:
            raise Refused(f"No block device node '{name}'")
        if node.driver != "qcow2" and not node.read_only:
            raise Refused(f"Device '{name}' is writable but does not support snapshots")
        return node

    def _save(self, asked: Asked) -> None:
        self._migration.refuse_blocked()
        if asked.holders():
            raise Refused(f"Snapshot '{asked.tag}' already exists in one or more devices")
        was_running = self._machine.pause("save-vm")
        for status in ("setup", "completed"):
            self._migration.tell(status)
        try:
            with self._graph.unlocked(asked.nodes):
                _write_memory(asked.memory, self._machine.memory)
                for node in asked.nodes:
                    run_tool("qemu-img", "snapshot", "-q", "-c", asked.tag, node.real_path)
                tag = next(each for each in asked.memory.header.tags if each.name == asked.tag)
                set_vm_state_bytes(asked.memory.real_path, tag, STREAM_BYTES)
        finally:
            if was_running:
                self._machine.run()

    def _load(self, asked: Asked) -> None:
        was_running = self._machine.pause("restore-vm")
        if asked.holders() != asked.nodes:
            raise Refused(f"Snapshot '{asked.tag}' does not exist in one or more devices")
        header = asked.memory.header
        tag = next(each for each in header.tags if each.name == asked.tag)
        if not tag.vm_state_bytes:
            raise Refused("This is a disk-only snapshot. Revert to it offline using qemu-img")
        self._machine.memory = memory_in(read_vm_state(asked.memory.storage.descriptor, header, tag, STREAM_BYTES))
        with self._graph.unlocked(asked.nodes):
            for node in asked.nodes:
                run_tool("qemu-img", "snapshot", "-q", "-a", asked.tag, node.real_path)
        if was_running:
            self._machine.run()


def _write_memory(node: Node, memory: str) -> None:
    with tempfile.NamedTemporaryFile(prefix="memory-") as source:
        source.write(stream_of(memory))
        source.flush()
        run_tool("qemu-io", "-f", "qcow2", "-c", f"write -q -b -s {source.name} 0 {STREAM_BYTES}", node.real_path)
