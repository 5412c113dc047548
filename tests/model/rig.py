# SPDX-License-Identifier: MIT
"""The domain of the model test: a real QEMU and, in this process, the real service that looks after it.

Not here: what should be (``expected``), what a step is made of (``world``) and what is compared (``checks``).

- The service is built of what the daemon builds it of, but for the bus.
- Every wait is bounded; one that ends says what was waited for and what was seen last.
- QEMU and every task of the service have ended when ``close`` returns, however it got there.
"""

import asyncio
import logging
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from snapd.config import Timeouts
from snapd.daemon import HostAdapters
from snapd.model.domain import DomainDefinition, DomainState
from snapd.model.images import Origin
from snapd.model.plan import CHAIN_LIMIT, CreateRequest, DeleteRequest, Live, RevertRequest
from snapd.qmp import link as qmp_link
from snapd.service.jobs import Job, Jobs
from snapd.service.managed_domain import ManagedDomain
from snapd.service.mutations import Surroundings
from snapd.service.policy import Policy
from snapd.service.publisher import Publisher
from tests.lab.qemu import GuestDisk, QemuProcess
from tests.lab.scene import UUID
from tests.model.guest import boot_sector
from tests.model.steps import DISK_BYTES, Setup

DOMAIN = "vm1"
WAIT_TIMEOUT_S = 20.0
JOB_TIMEOUT_S = 120.0
TOOL_TIMEOUT_S = 60.0
MOST_JOBS = 100
RETRY_S = 0.05
"""How soon the link tries again; a walk starts QEMU more often in a minute than an administrator does in a year."""

BUSES = ("virtio", "scsi", "ide")

Request = CreateRequest | RevertRequest | DeleteRequest


class Complaints(logging.Handler):
    """What the service has logged that nobody should have to read."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Rig:
    """One domain in ``directory``, which exists and has a short path."""

    def __init__(self, directory: Path, setup: Setup) -> None:
        self.directory = directory
        self.images = directory / "images"
        self.state = directory / "state" / UUID
        self.targets = tuple(f"disk{index}" for index in range(len(setup.disks)))
        self.complaints = Complaints()
        self.foreign: dict[Path, bytes] = {}
        self.settings: dict[str, Any] = {}
        self.qemu: QemuProcess | None = None
        self.has_stood_still = False
        self._keep: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = asyncio.Event()
        self._retry_s = qmp_link.LONGEST_RETRY_S
        self._defined = self._make_images(setup)

    @property
    def domain(self) -> ManagedDomain:
        return self._domain

    @property
    def running(self) -> QemuProcess:
        """QEMU, which runs."""
        assert self.qemu is not None, "QEMU does not run"
        return self.qemu

    @property
    def defined_paths(self) -> dict[str, str]:
        """The image that each disk is defined with."""
        return {target: str(path) for target, (path, _) in self._defined.items()}

    def _make_images(self, setup: Setup) -> dict[str, tuple[Path, str]]:
        self.images.mkdir()
        made = {}
        for index, (target, kind) in enumerate(zip(self.targets, setup.disks, strict=True)):
            image_format, _, below = kind.partition("-on-")
            content = (boot_sector() if index == 0 else b"").ljust(DISK_BYTES, b"\0")
            if below:
                content = content[: DISK_BYTES // 2] + bytes([200 + index]) * (DISK_BYTES // 4) + content[-DISK_BYTES // 4 :]
            plain = self.images / f"{target}.plain"
            plain.write_bytes(content)
            bottom = self.images / (f"{target}-base.{below}" if below else f"{target}.{image_format}")
            _run("qemu-img", "convert", "-f", "raw", "-O", below or image_format, str(plain), str(bottom))
            plain.unlink()
            path = self.images / f"{target}.{image_format}"
            if below:
                _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", bottom.name, "-F", below, str(path))
                self.foreign[bottom] = bottom.read_bytes()
            made[target] = (path, image_format)
        return made

    async def open(self) -> None:
        """Start QEMU on the images that the domain is defined with, and the service, and wait for both."""
        qmp_link.LONGEST_RETRY_S = RETRY_S
        logging.getLogger("snapd").addHandler(self.complaints)
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # as the daemon does
        self.begin_service()
        self.start_qemu(self._defined, paused=False, memory_mib=16)
        self.settings = self.migration_settings()
        await self.until_state(DomainState.RUNNING)

    async def close(self) -> None:
        """End everything."""
        qmp_link.LONGEST_RETRY_S = self._retry_s
        logging.getLogger("snapd").removeHandler(self.complaints)
        try:
            await self.end_service()
        finally:
            if self.qemu:
                self.qemu.stop()
                self.qemu = None

    # The service

    def begin_service(self) -> None:
        adapters = HostAdapters(self.directory / "state", None, Timeouts())
        publisher = Publisher()
        publisher.subscribe(lambda _event: self._told.set())
        jobs = Jobs(publisher, MOST_JOBS, MOST_JOBS)
        policy = Policy(reserve_bytes=0, chain_limit=CHAIN_LIMIT, live=Live.AUTO)
        around = Surroundings(adapters, jobs, publisher, self._spawn, policy)
        definition = DomainDefinition(DOMAIN, str(self.directory / "qmp"), UUID)
        self._domain = ManagedDomain(definition, around)
        self._keep = asyncio.get_running_loop().create_task(self._domain.keep())

    async def end_service(self) -> None:
        """Let the service end what it does, and end it. Raises: whatever one of its tasks ended with."""
        try:
            await self._until_nothing_is_done()
        finally:
            if self._keep:
                self._keep.cancel()
                await asyncio.wait([self._keep], timeout=WAIT_TIMEOUT_S)
                self._keep = None

    def _spawn(self, work: Awaitable[None]) -> Callable[[], object]:
        async def carry() -> None:
            await work

        task = asyncio.get_running_loop().create_task(carry())
        self._tasks.add(task)
        task.add_done_callback(lambda _task: self._told.set())
        return task.cancel

    async def _until_nothing_is_done(self) -> None:
        while self._tasks:
            done, waiting = await asyncio.wait(self._tasks, timeout=JOB_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            assert done, f"the service goes on with {waiting} after {JOB_TIMEOUT_S} s; it is doing {self.domain.doing!r}"
            self._tasks -= done
            for task in done:
                task.result()

    async def until_state(self, state: DomainState) -> None:
        """Wait until the service sees the domain in ``state`` and has done what it does then by itself."""
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                while True:
                    await self._until_nothing_is_done()
                    if self.domain.state is state and not self.domain.doing:
                        return
                    assert self.domain.state is not DomainState.DRIFTED, self.domain.reason
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            seen = f"{self.domain.state} ({self.domain.reason}), doing {self.domain.doing!r}"
            raise AssertionError(f"the domain should be {state} and is {seen}\n{self._story()}") from None

    async def ask(self, request: Request) -> Job:
        """Make a request and wait until its job has ended. Returns: the job. Raises: the refusal."""
        match request:
            case CreateRequest():
                job = await self.domain.create(request, 0)
            case RevertRequest():
                job = await self.domain.revert(request, 0)
            case DeleteRequest():
                job = await self.domain.delete(request, 0)
        try:
            async with asyncio.timeout(JOB_TIMEOUT_S):
                await job.ended.wait()
        except TimeoutError:
            raise AssertionError(f"{request} still {job.step!r} after {JOB_TIMEOUT_S} s\n{self._story()}") from None
        await self._until_nothing_is_done()
        return job

    # QEMU

    def next_images(self, *, links: bool) -> dict[str, tuple[Path, str]]:
        """Return the image and the format that each disk is to be started with, the image as a link where that is asked for."""
        graph = self.domain.record.graph
        images = {}
        for target, path in graph.active.items():
            image = graph.images[path]
            link = self.state / "disks" / f"{target}.{image.format}"
            # QEMU looks for a backing image with a relative name beside the link, and the images made here have such names.
            is_relative = image.origin is Origin.DEFINED and image.backing is not None
            images[target] = (link if links and not is_relative else Path(path), image.format)
        return images

    def start_qemu(self, images: dict[str, tuple[Path, str]], *, paused: bool, memory_mib: int) -> None:
        """Start QEMU with each disk on an image, given with its format."""
        disks = [
            GuestDisk(path, image_format, self._bus(target), id=target, options="discard=unmap")
            for target, (path, image_format) in images.items()
        ]
        extra = ("-uuid", UUID)
        qemu = QemuProcess(self.directory, disks, paused=paused, memory_mib=memory_mib, extra=extra)
        self.qemu = qemu.start()
        self.has_stood_still = paused

    def end_qemu(self, *, kill: bool) -> None:
        """End QEMU, as its user would or as the kernel would."""
        qemu = self.running
        if kill:
            self.flush()
            qemu.stop()
        else:
            qemu.control.execute("quit")
            qemu.wait_ended()
        self.qemu = None

    def flush(self) -> None:
        """Make QEMU write what it keeps of the disks in memory, so that the files can be read from outside."""
        if self.qemu:
            for target in self.targets:
                self._in_qemu(target, "flush")

    def write(self, target: str, command: str) -> None:
        """Run a command of ``qemu-io`` on a disk, in QEMU or, of a domain that is shut off, on its active image."""
        if self.qemu:
            self._in_qemu(target, command)
            return
        graph = self.domain.record.graph
        image = graph.images[graph.active[target]]
        _run("qemu-io", "-d", "unmap", "-f", image.format, "-c", command, image.path)

    def _in_qemu(self, target: str, command: str) -> None:
        # Of virtio the back end is a child of the device; what it printed itself goes to QEMU's own output.
        device = f"/machine/peripheral/{target}" + ("/virtio-backend" if self._bus(target) == "virtio" else "")
        printed = self.running.control.hmp(f'qemu-io -d {device} "{command}"')
        assert not printed, f"{command}: {printed}"

    def _bus(self, target: str) -> str:
        return BUSES[self.targets.index(target) % len(BUSES)]

    def migration_settings(self) -> dict[str, Any]:
        """Return what the user may have set for migrating this guest some day."""
        control = self.running.control
        capabilities = {each["capability"]: each["state"] for each in control.execute("query-migrate-capabilities")}
        parameters = control.execute("query-migrate-parameters")
        return {**capabilities, "max-bandwidth": parameters["max-bandwidth"]}

    def _story(self) -> str:
        return "\n".join([*self.complaints.lines, self.qemu.story()[-2000:] if self.qemu else ""])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr.strip()} {done.stdout.strip()}"
    return done.stdout
