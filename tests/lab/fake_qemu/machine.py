# SPDX-License-Identifier: MIT
"""The machine of a fake QEMU: whether its guest runs, what it is made of, and the text that stands for the guest's memory.

Not here: its disks (``blocks``), and saving its memory (``migration``, ``snapshots``).
"""

from dataclasses import dataclass
from typing import Any

from tests.lab.fake_qemu.blocks import Blocks
from tests.lab.fake_qemu.nodes import Disk, Graph
from tests.lab.fake_qemu.protocol import Died, Emit, Handler, Refused, Request
from tests.lab.fake_qemu.recording import Recording

NO_UUID = "00000000-0000-0000-0000-000000000000"
_FLUSH = "qemu-io "


@dataclass(frozen=True)
class Identity:
    """What QEMU was told of itself at its start."""

    name: str = ""
    uuid: str = NO_UUID
    memory_bytes: int = 32 << 20


class Machine:
    """``status`` is QEMU's word for the run state; ``memory`` is what a memory state saves and loads, lost with a reset."""

    def __init__(self, identity: Identity, recording: Recording, emit: Emit, *, paused: bool) -> None:
        self._identity, self._recording, self._emit = identity, recording, emit
        self.status = "prelaunch" if paused else "running"
        self.memory = "as booted"
        self.is_quitting = False
        self._ends_on_reset = False

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    def handlers(self) -> dict[str, Handler]:
        answers = self._recording.answers
        return {
            "query-status": lambda _: self._show_status(),
            "query-uuid": lambda _: {"UUID": self._identity.uuid},
            "query-name": lambda _: {"name": self._identity.name} if self._identity.name else {},
            "query-version": lambda _: answers["query-version"],
            "query-cpus-fast": lambda _: answers["query-cpus-fast"],
            "query-memory-size-summary": lambda _: {"base-memory": self._identity.memory_bytes, "plugged-memory": 0},
            "query-command-line-options": lambda _: [],
            "stop": lambda _: self._stop(),
            "cont": lambda _: self.run(),
            "system_reset": lambda _: self._reset(),
            "set-action": self._set_action,
            "quit": lambda _: self._quit(),
        }

    def pause(self, status: str) -> bool:
        """Stop the guest if it runs. Returns: whether it ran."""
        if not self.is_running:
            return False
        self.status = status
        self._emit("STOP")
        return True

    def run(self) -> None:
        """Let the guest run, if it does not."""
        if not self.is_running:
            self.status = "running"
            self._emit("RESUME")

    def pause_for_background(self) -> None:
        """Stop the guest as a background snapshot does. Raises: Died where it never ran since it was started or reset."""
        if not self.pause("paused") and self.status != "paused":
            raise Died(f"invalid runstate transition: '{self.status}' -> 'paused'")

    def _stop(self) -> None:
        self.pause("paused")

    def _quit(self) -> None:
        self.is_quitting = True
        self._emit("SHUTDOWN", guest=False, reason="host-qmp-quit")

    def _set_action(self, request: Request) -> None:
        if "reboot" in request.arguments:
            self._ends_on_reset = request.arguments["reboot"] == "shutdown"

    def _reset(self) -> None:
        if self._ends_on_reset:
            self.is_quitting = True
            self._emit("SHUTDOWN", guest=False, reason="host-qmp-system-reset")
            return
        self.memory = "as booted"
        if not self.is_running:
            self.status = "prelaunch"
        self._emit("RESET", guest=False, reason="host-qmp-system-reset")

    def _show_status(self) -> dict[str, Any]:
        shown = {"status": self.status, "running": self.is_running}
        return shown | ({"singlestep": False} if self._recording.shows_singlestep else {})


class Qom:
    """The object model, as far as it is asked for: the machine's type, the devices, and the drive of each disk."""

    def __init__(self, graph: Graph, blocks: Blocks, recording: Recording) -> None:
        self._graph, self._blocks, self._recording = graph, blocks, recording

    def handlers(self) -> dict[str, Handler]:
        return {
            "qom-get": self._get,
            "qom-set": self._set,
            "qom-list": self._list,
            "human-monitor-command": self._human,
        }

    def _get(self, request: Request) -> str:
        path, name = request.arguments["path"], request.arguments["property"]
        if path == "/machine":
            kind = str(self._recording.answers["machine type"])
            if name != "type":
                raise Refused(f"Property '{kind}.{name}' not found")
            return kind
        disk = self._disk(path)
        if name != "drive":
            raise Refused(f"Property '{disk.type}.{name}' not found")
        return disk.device or (disk.root.name if disk.root else "")

    def _set(self, request: Request) -> None:
        disk, name = self._disk(request.arguments["path"]), request.arguments["property"]
        if name != "drive":
            raise Refused(f"Property '{disk.type}.{name}' not found")
        self._blocks.put(disk, request.arguments["value"])

    def _list(self, request: Request) -> list[dict[str, str]]:
        path = request.arguments["path"]
        if path == "/machine/unattached":
            unattached: list[dict[str, str]] = self._recording.answers[path]
            return unattached
        if path not in ("/machine/peripheral", "/machine/peripheral-anon"):
            raise _not_found(path)
        found = [{"name": "type", "type": "string"}]
        for disk in self._graph.disks:
            under = next((name for name in sorted(disk.names) if name.startswith(f"{path}/")), "")
            if under:
                found.append({"name": under.removeprefix(f"{path}/").split("/")[0], "type": f"child<{disk.type}>"})
        return found

    def _disk(self, path: str) -> Disk:
        for disk in self._graph.disks:
            if path in disk.names:
                return disk
        raise _not_found(path)

    def _human(self, request: Request) -> str:
        """Answer the flush of a node; nothing is ever held back here."""
        line = request.arguments["command-line"]
        if not line.startswith(_FLUSH) or not line.endswith(" flush"):
            raise Refused(f"this fake has no human command {line!r}")
        name = line.removeprefix(_FLUSH).removesuffix(" flush")
        found = self._graph.find(name) or any(disk.device == name for disk in self._graph.disks)
        return "" if found else f"Error: Cannot find device='' nor node-name='{name}'\r\n"


def _not_found(path: str) -> Refused:
    return Refused(f"Device '{path}' not found", "DeviceNotFound")
