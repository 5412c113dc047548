# SPDX-License-Identifier: MIT
"""A fake QEMU in a thread of its own, used as ``lab.qemu.QemuProcess`` is, so that one test can run on both.

Not here: the fake itself (``server``). A test whose loop may serve the fake as well uses that alone.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self, TypeVar

from tests.lab.fake_qemu.recording import VERSIONS
from tests.lab.fake_qemu.server import FakeQemu
from tests.lab.qemu import GuestDisk
from tests.lab.qmp import Qmp

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 90.0
"""More than a tool that is at an image may still take."""

T = TypeVar("T")


class FakeProcess:
    """A fake QEMU that plays from ``start`` until ``stop``, and again after another ``start``.

    Args:
        directory: for sockets; it exists.
    """

    def __init__(
        self, directory: Path, disks: Sequence[GuestDisk] = (), *, version: str = VERSIONS[0], paused: bool = False
    ) -> None:
        self.directory, self.disks = directory, tuple(disks)
        self.monitor = directory / "qmp"
        self._control_path = directory / "ctl"
        self._version, self._paused = version, paused
        self._fake: FakeQemu | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event | None = None
        self._control: Qmp | None = None
        self.complaints: list[str] = []
        """What does not fit the schemas, of all fakes that were started."""

        self._commands: list[str] = []

    @property
    def control(self) -> Qmp:
        """The test's own monitor, beside the one that is tested."""
        if self._control is None:
            raise RuntimeError("the fake QEMU does not run")
        return self._control

    def start(self) -> Self:
        """Start and return when the monitors listen. Raises: Refused where an image cannot be opened."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._play(started)), name="fake QEMU")
        self._thread.start()
        try:
            started.result(START_TIMEOUT_S)
            self._control = Qmp(self._control_path)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End as ``kill -9`` does and wait until it is gone; does nothing where it does not run."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._thread is not None:
            if self._loop and self._ended and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(STOP_TIMEOUT_S)
            self._thread = None

    def ask(self, question: Callable[[FakeQemu], T]) -> T:
        """Return what ``question`` says of the fake, asked in its thread; it may change it."""

        async def answer() -> T:
            assert self._fake
            return question(self._fake)

        if self._loop is None:
            raise RuntimeError("the fake QEMU does not run")
        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(START_TIMEOUT_S)

    def story(self) -> str:
        """Return what came and what did not fit, to show when a test fails."""
        return "\n".join(["a fake QEMU was told", *self._commands, *self.complaints])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _play(self, started: "Future[None]") -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        fake = FakeQemu(self.monitor, self._control_path, disks=self.disks, version=self._version, paused=self._paused)
        try:
            async with fake:
                self._fake = fake
                started.set_result(None)
                await self._ended.wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            self.complaints += fake.complaints
            self._commands += [f"{name} {json.dumps(arguments)}" for name, arguments in fake.commands]
            self._loop = self._fake = None
