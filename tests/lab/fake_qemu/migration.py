# SPDX-License-Identifier: MIT
"""Migration of a fake QEMU: capabilities, parameters, and the background snapshot into a descriptor.

Not here: saving and loading by jobs (``snapshots``). The stream has the magic number and the machine's ``memory``, no more.

Source: QEMU migration/migration.c, migration/options.c.
"""

import asyncio
import json
import os
from typing import Any

from tests.lab.fake_qemu.descriptors import Descriptors
from tests.lab.fake_qemu.machine import Machine
from tests.lab.fake_qemu.protocol import Emit, Handler, Refused, Request
from tests.lab.fake_qemu.recording import Recording

BACKGROUND = "background-snapshot"
STREAM_BYTES = 1 << 16
_MAGIC = b"QEVM\0\0\0\3"
_PARTS = 4
_PAGE_BYTES = 4096


def stream_of(memory: str) -> bytes:
    """Return a memory stream."""
    return (_MAGIC + json.dumps(memory).encode() + b"\0").ljust(STREAM_BYTES, b"\0")


def memory_in(stream: bytes) -> str:
    """Return the memory in a stream. Raises: Refused where it is none."""
    if not stream.startswith(_MAGIC):
        raise Refused("Error -22 while loading VM state")  # what QEMU says of a stream that it does not know
    return str(json.loads(stream[len(_MAGIC) :].split(b"\0", 1)[0]))


class Migration:
    """A test sets why memory cannot be saved (``blocker``), or not while the guest runs (``live_blocker``).

    ``next_error`` is what the next background snapshot fails with.
    """

    def __init__(self, machine: Machine, descriptors: Descriptors, recording: Recording, emit: Emit) -> None:
        self._machine, self._descriptors, self._recording, self._emit = machine, descriptors, recording, emit
        self.capabilities = {
            str(each["capability"]): bool(each["state"]) for each in recording.answers["query-migrate-capabilities"]
        }
        self.parameters: dict[str, Any] = dict(recording.answers["query-migrate-parameters"])
        self.blocker = self.live_blocker = self.next_error = ""
        self._state: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def handlers(self) -> dict[str, Handler]:
        return {
            "query-migrate": lambda _: self._state | ({"blocked-reasons": [self.blocker]} if self.blocker else {}),
            "query-migrate-capabilities": lambda _: [
                {"capability": name, "state": state} for name, state in self.capabilities.items()
            ],
            "query-migrate-parameters": lambda _: self.parameters,
            "migrate-set-capabilities": self._set_capabilities,
            "migrate-set-parameters": self._set_parameters,
            "migrate": self._migrate,
        }

    def close(self) -> "list[asyncio.Task[None]]":
        """Return what is to be cancelled when QEMU ends."""
        return [self._task] if self._task else []

    def tell(self, status: str) -> None:
        """Say how far a migration is, to who has asked for such events."""
        if self.capabilities["events"]:
            self._emit("MIGRATION", status=status)

    def refuse_blocked(self) -> None:
        if self.blocker:
            raise Refused(self.blocker)

    def _set_capabilities(self, request: Request) -> None:
        if self._state.get("status") in ("setup", "active"):
            raise Refused("There's a migration process in progress")
        wanted = self.capabilities | {each["capability"]: each["state"] for each in request.arguments["capabilities"]}
        if wanted[BACKGROUND]:
            for name, text in self._recording.conflicts.items():
                if wanted[name]:
                    raise Refused(text)
            if self.live_blocker:
                raise Refused(self.live_blocker)
        self.capabilities = wanted

    def _set_parameters(self, request: Request) -> None:
        self.parameters |= {name: "" if value is None else value for name, value in request.arguments.items()}

    def _migrate(self, request: Request) -> None:
        self.refuse_blocked()
        kind, _, name = str(request.arguments.get("uri", "")).partition(":")
        if kind != "fd" or not self.capabilities[BACKGROUND]:
            raise Refused("this fake migrates only as a background snapshot into a descriptor")
        try:
            descriptor = self._descriptors.take(name)
        except Refused as error:
            self._set_state("setup")
            self._fail(str(error))
            raise
        try:
            self._machine.pause_for_background()
        except BaseException:
            os.close(descriptor)
            raise
        self._set_state("setup")
        self._task = asyncio.get_running_loop().create_task(self._stream(descriptor))

    async def _stream(self, descriptor: int) -> None:
        stream, error = stream_of(self._machine.memory), self.next_error
        self.next_error = ""
        step = len(stream) // _PARTS
        try:
            self._set_state("active")
            for part in range(_PARTS):
                await asyncio.sleep(0)  # commands come in between
                _write(descriptor, stream[part * step : (part + 1) * step], error)
                if part == 0 and self._recording.resumes_after_arming:
                    self._machine.run()
                self._set_state("active", (part + 1) * step)
        except OSError as failure:
            self._fail(failure.strerror or str(failure))
        else:
            self._set_state("completed", len(stream))
        finally:
            os.close(descriptor)

    def _fail(self, error: str) -> None:
        self._state = {"status": "failed", "error-desc": error}
        self.tell("failed")

    def _set_state(self, status: str, done_bytes: int = 0) -> None:
        if self._state.get("status") != status:
            self.tell(status)
        self._state = {"status": status}
        if status == "setup":
            return
        zero = ("duplicate", "skipped", "dirty-pages-rate", "dirty-sync-count", "dirty-sync-missed-zero-copy", "multifd-bytes")
        counts = (*zero, "pages-per-second", "postcopy-requests", "postcopy-bytes", "precopy-bytes", "downtime-bytes", "mbps")
        self._state |= {
            "total-time": 0,
            "setup-time": 0,
            "ram": {
                **{name: 0 for name in counts if name != "skipped" or self._recording.shows_skipped},
                "page-size": _PAGE_BYTES,
                "total": STREAM_BYTES,
                "remaining": STREAM_BYTES - done_bytes,
                "transferred": done_bytes,
                "normal": done_bytes // _PAGE_BYTES,
                "normal-bytes": done_bytes,
            },
        }
        self._state |= {"downtime": 0} if status == "completed" else {"expected-downtime": 300}


def _write(descriptor: int, part: bytes, error: str) -> None:
    if error:
        raise OSError(error)
    while part:
        part = part[os.write(descriptor, part) :]
