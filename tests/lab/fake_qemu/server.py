# SPDX-License-Identifier: MIT
"""A fake QEMU: it listens at its monitors, checks all that comes and goes against QEMU's schemas, and fails on demand.

Not here: what the commands do (the modules beside this one) and what fails (``faults``). Invariants:

- each command is checked against every recorded schema, each answer and event against that of the version that is played; what
  does not fit stands in ``complaints``;
- one client at a time has a monitor; the next is accepted when that has gone, and greeted when QEMU is not hung;
- commands are done one after the other, in the order in which they come;
- when the block ends, nothing is open any more.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab.fake_monitor import CommandDecoder
from tests.lab.fake_qemu.attach import attach
from tests.lab.fake_qemu.blocks import Blocks
from tests.lab.fake_qemu.client import Client
from tests.lab.fake_qemu.descriptors import Descriptors
from tests.lab.fake_qemu.faults import Effect, Fault, Faults
from tests.lab.fake_qemu.jobs import Jobs
from tests.lab.fake_qemu.machine import Identity, Machine, Qom
from tests.lab.fake_qemu.merges import Merges
from tests.lab.fake_qemu.migration import Migration
from tests.lab.fake_qemu.nodes import Graph
from tests.lab.fake_qemu.protocol import Died, Handler, Refused, Request
from tests.lab.fake_qemu.recording import CHOSEN_BY_VERSION, VERSIONS, recording
from tests.lab.fake_qemu.schema import Mismatch
from tests.lab.fake_qemu.snapshots import Snapshots
from tests.lab.qemu import GuestDisk

_NEGOTIATE = "qmp_capabilities"

Arguments = dict[str, Any]


class FakeQemu:
    """Plays QEMU while its block runs, in the event loop of who uses it.

    Args:
        monitors: paths of the sockets.
        disks: with the files of their images, which are really opened, locked and changed.
        version: one of ``recording.VERSIONS``.
    """

    def __init__(
        self,
        *monitors: Path,
        disks: Sequence[GuestDisk] = (),
        version: str = VERSIONS[0],
        identity: Identity | None = None,
        paused: bool = False,
        faults: Iterable[Fault] = (),
    ) -> None:
        self._monitors, self._disks = monitors, disks
        self._recording = recording(version)
        self.faults = Faults(faults)
        self.commands: list[tuple[str, Arguments]] = []
        """What came, but ``qmp_capabilities``, in its order."""

        self.complaints: list[str] = []
        self.ended = ""
        """Why QEMU is gone, or nothing."""

        self.machine = Machine(identity or Identity(), self._recording, self._emit, paused=paused)
        self.descriptors = Descriptors(self._recording, lambda: self.machine.is_running)
        self.graph = Graph(self.descriptors)
        self.blocks = Blocks(self.graph, self._recording)
        self.jobs = Jobs(self._emit, self.graph.settle, lambda died: self.end(str(died)))
        self.migration = Migration(self.machine, self.descriptors, self._recording, self._emit)
        self._handlers: dict[str, Handler] = {
            **self.machine.handlers(),
            **self.descriptors.handlers(),
            **self.blocks.handlers(),
            **self.jobs.handlers(),
            **self.migration.handlers(),
            **Merges(self.graph, self.jobs).handlers(),
            **Snapshots(self.graph, self.machine, self.migration, self.jobs).handlers(),
            **Qom(self.graph, self.blocks, self._recording).handlers(),
        }
        self._clients: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._going = asyncio.Event()
        self._going.set()

    @property
    def known_commands(self) -> frozenset[str]:
        return frozenset({*self._handlers, _NEGOTIATE})

    async def __aenter__(self) -> Self:
        try:
            attach(self.graph, self._disks)
            for path in self._monitors:
                path.unlink(missing_ok=True)
                listener = socket.socket(socket.AF_UNIX)
                listener.setblocking(False)
                listener.bind(str(path))
                listener.listen(1)
                self._spawn(self._listen(listener))
        except BaseException:
            self.end("it did not start")
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end("its test has ended")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def end(self, why: str) -> None:
        """Be gone, as after ``kill -9``: the sockets stay and nobody listens."""
        if not self.ended:
            self.ended = why
            self._tasks |= {*self.jobs.close(), *self.migration.close()}
            for task in self._tasks:
                task.cancel()
            self.graph.close()
            self.descriptors.close_all()

    def go_on(self) -> None:
        """End a hang: what waits is done and answered."""
        self._going.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self, listener: socket.socket) -> None:
        with listener:
            while True:
                connected, _ = await asyncio.get_running_loop().sock_accept(listener)
                client = Client(connected)
                with connected, contextlib.suppress(OSError):
                    try:
                        await self._serve(client)
                    finally:
                        self._clients.discard(client)
                        client.drop()

    async def _serve(self, client: Client) -> None:
        await self._going.wait()
        version = self._recording.answers["query-version"]
        client.send({"QMP": {"version": version, "capabilities": ["oob"]}})
        self._clients.add(client)
        writing = self._spawn(client.write())
        try:
            decoder = CommandDecoder()
            while data := await client.receive():
                for message in decoder.feed(data):
                    if not await self._handle(client, message):
                        return
        finally:
            writing.cancel()

    async def _handle(self, client: Client, message: dict[str, Any]) -> bool:
        """Do a command and answer it. Returns: whether the client stays connected."""
        await self._going.wait()
        identifier = {"id": message["id"]} if "id" in message else {}
        name, arguments = str(message.get("execute")), message.get("arguments", {})
        try:
            if name == _NEGOTIATE or not client.is_ready:
                answer: object = _negotiate(client, name)
            else:
                answer = await self._do(client, name, arguments)
        except (Refused, Mismatch) as error:
            client.send({"error": {"class": error.error_class, "desc": str(error)}, **identifier})
        except Died as end:
            self.end(str(end))
            return False
        except _Disconnected:
            await client.flush()
            return False
        except Exception as error:  # noqa: BLE001 - a fake that is wrong must not look like a QEMU that has ended
            self.complaints.append(f"the fake broke at {name}: {error!r}")
            self.end(f"the fake broke: {error!r}")
            return False
        else:
            client.send({"return": answer, **identifier})
        if self.machine.is_quitting:
            await client.flush()
            self.end("it was told to quit")
        return not self.ended

    async def _do(self, client: Client, name: str, arguments: Arguments) -> object:
        self.commands.append((name, arguments))
        fault = self.faults.at(name)
        self._check_command(name, arguments)
        if fault and not fault.after:
            await self._suffer(fault)
        if name not in self._handlers:
            raise Refused(f"this fake has no command {name}")
        answer = self._handlers[name](Request(arguments, client.take_descriptor))
        answer = {} if answer is None else answer
        self._check(f"its answer to {name}", lambda: self._recording.schema.check_answer(name, answer))
        if fault and fault.after:
            await self._suffer(fault)
        return answer

    async def _suffer(self, fault: Fault) -> None:
        match fault.effect:
            case Effect.FAIL:
                raise Refused(fault.text)
            case Effect.HANG:
                self._going.clear()
                await self._going.wait()
            case Effect.DISCONNECT:
                raise _Disconnected
            case Effect.DIE:
                raise Died(fault.text)
            case Effect.FAIL_JOB:
                self.jobs.next_error = fault.text

    def _check_command(self, name: str, arguments: Arguments) -> None:
        """Complain of what a QEMU does not take. Raises: Mismatch where the one that is played does not."""
        refused = None
        for version in VERSIONS:
            try:
                recording(version).schema.check_command(name, arguments)
            except Mismatch as mismatch:
                is_played = version == self._recording.version
                if is_played or (name, mismatch.parameter) not in CHOSEN_BY_VERSION:
                    self.complaints.append(f"QEMU {version} does not take {name} {json.dumps(arguments)}: {mismatch}")
                refused = mismatch if is_played else refused
        if refused:
            raise refused

    def _emit(self, name: str, **data: Any) -> None:
        shown = {key.replace("_", "-"): value for key, value in data.items()}
        self._check(f"the event {name}", lambda: self._recording.schema.check_event(name, shown))
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        stamp = {"seconds": seconds, "microseconds": microseconds}
        for client in self._clients:
            if client.is_ready:
                client.send({"timestamp": stamp, "event": name, **({"data": shown} if shown else {})})

    def _check(self, what: str, check: Callable[[], None]) -> None:
        try:
            check()
        except Mismatch as mismatch:
            self.complaints.append(f"the fake says what QEMU {self._recording.version} does not: {what}: {mismatch}")


class _Disconnected(Exception):
    """The client is to be disconnected."""


def _negotiate(client: Client, name: str) -> dict[str, Any]:
    if name != _NEGOTIATE:
        raise Refused("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
    if client.is_ready:
        raise Refused("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
    client.is_ready = True
    return {}
