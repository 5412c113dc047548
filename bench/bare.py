# SPDX-License-Identifier: MIT
"""The limit that the service is measured against: a script that sends the same QMP commands and does nothing else.

It makes the same files as durably, because without them there is nothing to go back to; it has no bus, no state, no plan, no
check and no way back from an error.
"""

import asyncio
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapd.images import vmstate
from snapd.qmp.memory import FIRST_TO_LEAVE_PAUSED
from tests.lab.qmp import Qmp

_MARGIN_BYTES = 128 << 20
_POLL_S = 0.001


@dataclass
class Taken:
    """A snapshot of the bare script: the container, and what each device's disk was."""

    memory: Path
    pinned: dict[str, tuple[str, str, int]]


@dataclass
class BareScript:
    qmp: Qmp
    directory: Path
    memory_bytes: int
    taken: dict[str, Taken] = field(default_factory=dict)
    _overlays: int = 0

    def create(self, name: str) -> tuple[float, float]:
        """Take a snapshot. Returns: pause and total in milliseconds."""
        begun = time.perf_counter()
        pinned, actions = {}, []
        for device, (node, path, image_format, size) in self._disks().items():
            pinned[device] = (path, image_format, size)
            overlay = self._overlay(path, image_format, size)
            self._add(overlay, None)
            actions.append({"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay.stem}})
        memory_path = self.directory / f"{name}.memory"
        memory = asyncio.run(vmstate.create_memory_file(str(memory_path), self.memory_bytes + _MARGIN_BYTES))
        self._capabilities(True)
        self.qmp.execute("migrate-set-parameters", **{"max-bandwidth": 0})
        self.qmp.execute("getfd", descriptor=memory.fd, fdname="memory")
        self.qmp.events.clear()  # of an earlier revert
        self.qmp.execute("stop")
        self.qmp.execute("transaction", actions=actions)
        self.qmp.execute("migrate", uri="fd:memory")
        stopped = self.qmp.wait_event("STOP")
        self._resume_when_protected()
        resumed = self.qmp.wait_event("RESUME")
        while self.qmp.wait_event("MIGRATION")["data"]["status"] != "completed":
            pass
        asyncio.run(vmstate.finish(memory))
        self._capabilities(False)
        self.taken[name] = Taken(memory_path, pinned)
        return _pause_ms(stopped, resumed), (time.perf_counter() - begun) * 1000

    def revert(self, name: str) -> float:
        """Go back to a snapshot. Returns: the total in milliseconds."""
        begun = time.perf_counter()
        taken = self.taken[name]
        before = self._disks()
        nodes = {each["file"]: each["node-name"] for each in self._nodes() if each["drv"] != "file"}
        overlays = {}
        for device, (path, image_format, size) in taken.pinned.items():
            overlays[device] = self._overlay(path, image_format, size)
            self._add(overlays[device], nodes[path])
        numbers = self.qmp.execute("add-fd", descriptor=os.open(taken.memory, os.O_RDWR), opaque="bare")
        self.qmp.execute(
            "add-fd", descriptor=os.open(taken.memory, os.O_RDONLY), **{"fdset-id": numbers["fdset-id"]}, opaque="bare"
        )
        file = {"driver": "file", "filename": f"/dev/fdset/{numbers['fdset-id']}"}
        self.qmp.execute("blockdev-add", driver="qcow2", **{"node-name": "bare-memory"}, file=file)
        self.qmp.execute("stop")
        for device, overlay in overlays.items():
            self.qmp.execute("qom-set", path=device, property="drive", value=overlay.stem)
        arguments = {"job-id": "bare-load", "tag": vmstate.MEMORY_TAG, "vmstate": "bare-memory", "devices": ["bare-memory"]}
        self.qmp.execute("snapshot-load", **arguments)
        while self.qmp.execute("query-jobs")[0]["status"] != "concluded":
            time.sleep(_POLL_S)
        self.qmp.execute("job-dismiss", id="bare-load")
        self.qmp.execute("blockdev-del", **{"node-name": "bare-memory"})
        self.qmp.execute("cont")
        self.qmp.execute("remove-fd", **{"fdset-id": numbers["fdset-id"]})
        for node, path, _, _ in before.values():
            self.qmp.execute("blockdev-del", **{"node-name": node})
            Path(path).unlink()
        return (time.perf_counter() - begun) * 1000

    def _resume_when_protected(self) -> None:
        """Let the guest run on, which QEMU from version 8 on leaves to us."""
        if self.qmp.execute("query-version")["qemu"]["major"] < FIRST_TO_LEAVE_PAUSED[0]:
            return
        while True:
            ram = self.qmp.execute("query-migrate").get("ram", {})
            if ram.get("duplicate", 0) + ram.get("normal", 0) > 0:
                break
        self.qmp.execute("cont")

    def _disks(self) -> dict[str, tuple[str, str, str, int]]:
        return {
            block["qdev"]: (
                block["inserted"]["node-name"],
                block["inserted"]["file"],
                block["inserted"]["drv"],
                block["inserted"]["image"]["virtual-size"],
            )
            for block in self.qmp.execute("query-block")
        }

    def _nodes(self) -> list[dict[str, Any]]:
        return list(self.qmp.execute("query-named-block-nodes", flat=True))

    def _overlay(self, path: str, image_format: str, size: int) -> Path:
        self._overlays += 1
        overlay = self.directory / f"bare-{self._overlays}.qcow2"
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", image_format, "-u", str(overlay), str(size)]
        subprocess.run(words, check=True)
        with overlay.open("rb") as made:
            os.fsync(made.fileno())
        return overlay

    def _add(self, overlay: Path, backing: str | None) -> None:
        file = {"driver": "file", "filename": str(overlay)}
        self.qmp.execute("blockdev-add", driver="qcow2", **{"node-name": overlay.stem}, file=file, backing=backing)

    def _capabilities(self, on: bool) -> None:
        states = [{"capability": each, "state": on} for each in ("background-snapshot", "events")]
        self.qmp.execute("migrate-set-capabilities", capabilities=states)


def _pause_ms(stopped: dict[str, Any], resumed: dict[str, Any]) -> float:
    first, last = (each["timestamp"]["seconds"] * 1e6 + each["timestamp"]["microseconds"] for each in (stopped, resumed))
    return (last - first) / 1000
