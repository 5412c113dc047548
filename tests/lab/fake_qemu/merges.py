# SPDX-License-Identifier: MIT
"""``block-commit`` and ``block-stream`` of a fake QEMU, done to the files with `qemu-img`.

Not here: the life of their jobs (``jobs``). As with a real QEMU, a commit has copied all before it changes which image is read,
and a header is written only then.

Source: QEMU blockdev.c, block/commit.c, block/mirror.c, block/stream.c.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.lab.fake_qemu.blocks import set_read_only
from tests.lab.fake_qemu.image_file import run_tool
from tests.lab.fake_qemu.jobs import Job, Jobs, Work
from tests.lab.fake_qemu.nodes import Graph, Node
from tests.lab.fake_qemu.protocol import Handler, Refused, Request


class Merges:
    """The two kinds of merges, as jobs."""

    def __init__(self, graph: Graph, jobs: Jobs) -> None:
        self._graph, self._jobs = graph, jobs

    def handlers(self) -> dict[str, Handler]:
        return {"block-commit": self._commit, "block-stream": self._stream}

    def _commit(self, request: Request) -> None:
        arguments = request.arguments
        try:
            root = self._graph.get(arguments["device"])
        except Refused as error:
            raise Refused(f"Device '{arguments['device']}' not found", "DeviceNotFound") from error
        top = self._graph.get(arguments["top-node"], shown_as="") if "top-node" in arguments else root
        bottom = list(root.chain())[-1]
        base = self._graph.get(arguments["base-node"], shown_as="") if "base-node" in arguments else bottom
        for above, below in ((root, top), (top, base)):
            if below not in above.chain():
                raise Refused(f"'{below.name}' is not in this backing file chain")
        merged = _between(top, base)
        _refuse_busy([*merged, base])
        if top is base:
            raise Refused("cannot commit an image into itself")
        if top is root and "backing-file" in arguments:
            raise Refused("'backing-file' specified, but 'top' is the active layer")

        def change() -> None:
            if top is root:
                for disk in self._graph.disks_on(root):
                    disk.root = base
                set_read_only(base, False)
            else:
                self._repoint(top, base, arguments.get("backing-file", base.storage.path))

        self._start(
            arguments,
            "commit",
            lambda: self._tool([*merged, base], "commit", "-q", "-f", top.driver, "-d", "-b", base.real_path, top.real_path),
            change,
            [*merged, base, *([] if top is root else [root])],
            needs_complete=top is root,
        )

    def _repoint(self, top: Node, base: Node, name: str) -> None:
        """Let what backs on ``top`` back on ``base``, and say so in its header."""
        for above in self._graph.parents(top):
            if above.backing is top:
                with self._graph.unlocked([above]):
                    _rebase("-u", above, base, name)
                above.backing = base

    def _stream(self, request: Request) -> None:
        arguments = request.arguments
        node = self._graph.get(arguments["device"])
        base = self._graph.get(arguments["base-node"], shown_as="") if "base-node" in arguments else None
        if base and base not in node.chain():
            raise Refused(f"Node '{base.name}' is not a backing image of '{node.name}'")
        streamed = [each for each in _between(node, base) if each is not base]
        _refuse_busy(streamed)

        def change() -> None:
            if node.backing:
                with self._graph.unlocked([node]):
                    _rebase("-q", node, base, arguments.get("backing-file", base.storage.path if base else ""))
                node.backing = base

        self._start(arguments, "stream", _nothing, change, streamed)

    def _start(
        self,
        arguments: Mapping[str, Any],
        kind: str,
        copy: Work,
        change: Callable[[], None],
        holds: list[Node],
        *,
        needs_complete: bool = False,
    ) -> None:
        name = arguments.get("job-id", arguments["device"])
        self._jobs.check_id(name)
        self._jobs.start(
            Job(
                name,
                kind,
                copy,
                change,
                total=holds[0].virtual_size_bytes,
                holds=holds,
                is_block_job=True,
                needs_complete=needs_complete,
                auto_finalize=arguments.get("auto-finalize", True),
                auto_dismiss=arguments.get("auto-dismiss", True),
            )
        )

    async def _tool(self, nodes: list[Node], *arguments: str) -> None:
        with self._graph.unlocked(nodes):
            await asyncio.to_thread(run_tool, "qemu-img", *arguments)


async def _nothing() -> None:
    """Copy nothing before the change: to `qemu-img` both are one."""


def _rebase(option: str, node: Node, base: Node | None, name: str) -> None:
    backing_format = ["-F", base.driver] if base else []
    run_tool("qemu-img", "rebase", option, "-f", "qcow2", "-b", name, *backing_format, node.real_path)


def _between(top: Node, base: Node | None) -> list[Node]:
    """Return the nodes from ``top`` down to the one above ``base``."""
    found = []
    for node in top.chain():
        if node is base:
            break
        found.append(node)
    return found


def _refuse_busy(nodes: Iterable[Node]) -> None:
    for node in nodes:
        if node.job:
            raise Refused(f"Node '{node.name}' is busy: block device is in use by block job: {node.job}")
