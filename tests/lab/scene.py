# SPDX-License-Identifier: MIT
"""A whole scene: a private bus, a QEMU with the tiny guest, the daemon that looks after it, and a client on the bus.

Not here: its parts (``bus``, ``qemu``, ``daemon``). It knows nothing of pytest.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snapd.bus.names import (
    BUS_NAME,
    DOMAIN_INTERFACE,
    JOB_INTERFACE,
    MANAGER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
    SNAPSHOT_INTERFACE,
    domain_path,
    snapshot_path,
)
from snapd.bus.wire import Message, MessageType, Variant, Wire, unwrap
from tests.lab.bus import private_bus
from tests.lab.daemon import DaemonProcess
from tests.lab.guest import COUNTS_ON_TWO, TinyGuest, make_disk
from tests.lab.qemu import GuestDisk, QemuProcess

DOMAIN = "vm1"
UUID = "a4eb4367-b880-3b11-d1e8-d5d2b2c1a3aa"
JOB_TIMEOUT_S = 120.0
STATE_TIMEOUT_S = 60.0


@dataclass
class Scene:
    """``signals`` holds every signal of the service that the client has seen, oldest first."""

    directory: Path
    qemu: QemuProcess
    daemon: DaemonProcess
    wire: Wire
    signals: list[Message] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def bus_address(self) -> str:
        """The address of the bus."""
        return self.daemon.bus_address

    @property
    def images(self) -> Path:
        return self.directory / "images"

    @property
    def state(self) -> Path:
        return self.daemon.state / UUID

    async def manager(self, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        return await self.wire.call(BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, member, signature, body, timeout_s=JOB_TIMEOUT_S)

    async def create(self, name: str, **options: Variant) -> None:
        """Take a snapshot and wait until it is done. Raises: CallError."""
        await self.manager("CreateSnapshot", "ssa{sv}", DOMAIN, name, {**options, "wait": Variant("b", True)})

    async def revert(self, name: str, **options: Variant) -> None:
        """Go back to a snapshot and wait until it is done; it keeps an undo point only if ``undo`` says so."""
        options = {"undo": Variant("b", False), **{key.replace("_", "-"): value for key, value in options.items()}}
        await self.manager("RevertSnapshot", "ssa{sv}", DOMAIN, name, {**options, "wait": Variant("b", True)})

    async def revert_paused(self, name: str) -> None:
        """Go back to a snapshot and leave the guest paused there."""
        await self.revert(name, state=Variant("s", "paused"))

    async def delete(self, name: str, **options: Variant) -> None:
        await self.manager("DeleteSnapshot", "ssa{sv}", DOMAIN, name, {**options, "wait": Variant("b", True)})

    async def snapshots(self) -> list[tuple[Any, ...]]:
        """Return the rows of ListSnapshots."""
        (rows,) = await self.manager("ListSnapshots", "sa{sv}", DOMAIN, {})
        return list(rows)

    async def properties(self, snapshot: str = "") -> dict[str, Any]:
        """Return the properties of the domain, or of one of its snapshots, without their types."""
        path, interface = domain_path(DOMAIN), DOMAIN_INTERFACE
        if snapshot:
            path, interface = snapshot_path(DOMAIN, snapshot), SNAPSHOT_INTERFACE
        (values,) = await self.wire.call(BUS_NAME, path, PROPERTIES_INTERFACE, "GetAll", "s", (interface,))
        return {name: unwrap(value) for name, value in values.items()}

    async def job(self, path: str) -> dict[str, Any]:
        """Return the properties of a job."""
        (values,) = await self.wire.call(BUS_NAME, path, PROPERTIES_INTERFACE, "GetAll", "s", (JOB_INTERFACE,))
        return {name: unwrap(value) for name, value in values.items()}

    async def wait_rest(self, timeout_s: float = STATE_TIMEOUT_S) -> None:
        """Wait until the service has nothing left to do for the domain, of what it does by itself."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._arrived.clear()
                    (jobs,) = await self.manager("ListJobs")
                    if all(job[2] != "running" for job in jobs) and not await self._waits():
                        return
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"something is left to do: {(self.state / 'domain.libxl-json').read_text()}") from None

    async def _waits(self) -> bool:
        """Whether the state names something that is to be collected once it can be."""
        return '"doomed"' in (self.state / "domain.libxl-json").read_text()

    async def wait_state(self, *states: str, timeout_s: float = STATE_TIMEOUT_S) -> dict[str, Any]:
        """Wait for signals until the domain is in one of ``states``. Returns: its properties."""
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._arrived.clear()
                    seen = await self.properties()
                    if seen["State"] in states:
                        return seen
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"the domain is {seen.get('State')} ({seen.get('StateReason')}), not {states}") from None

    async def wait_property(self, name: str, timeout_s: float = STATE_TIMEOUT_S) -> dict[str, Any]:
        """Wait for signals until a property of the domain is neither empty nor zero. Returns: all properties."""
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while not seen.get(name):
                    self._arrived.clear()
                    seen = await self.properties()
                    if not seen[name]:
                        await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{name} stays {seen.get(name)!r}; the properties are {seen}") from None
        return seen

    async def wait_signal(self, member: str, count: int = 1, timeout_s: float = STATE_TIMEOUT_S) -> list[Message]:
        """Wait until ``count`` signals called ``member`` have come, and return them."""
        found: list[Message] = []
        try:
            async with asyncio.timeout(timeout_s):
                while len(found) < count:
                    self._arrived.clear()
                    found = [each for each in self.signals if each.member == member]
                    if len(found) < count:
                        await self._arrived.wait()
        except TimeoutError:
            seen = [each.member for each in self.signals]
            raise AssertionError(f"{len(found)} signals {member} came and not {count}; there came {seen}") from None
        return found

    async def wait_any(self, timeout_s: float = 0.1) -> None:
        """Wait for the next signal, and no longer than ``timeout_s``."""
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()

    def files(self) -> list[str]:
        """Return the names of all files below images and state, for seeing that nothing is left over."""
        roots = {"images": self.images, f"state/{UUID}": self.state}
        return sorted(
            f"{name}/{each.relative_to(root)}" for name, root in roots.items() for each in root.rglob("*") if not each.is_dir()
        )

    def hear(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL:
            self.signals.append(message)
            self._arrived.set()
        return False

    async def domain(self, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        path = domain_path(DOMAIN)
        return await self.wire.call(BUS_NAME, path, DOMAIN_INTERFACE, member, signature, body, timeout_s=JOB_TIMEOUT_S)

    async def plan(self, verb: str, name: str, **options: Variant) -> list[str]:
        """Return what a verb would do, in words. Raises: CallError."""
        (steps,) = await self.domain("Plan", "ssa{sv}", verb, name, options)
        return list(steps)

    async def shut_off(self, *, kill: bool = False) -> None:
        """End QEMU and wait until the service knows."""
        if kill:
            self.qemu.stop()
        else:
            self.qemu.control.execute("quit")
            self.qemu.wait_ended()
        await self.wait_state("shutoff")

    async def start(self, *states: str) -> None:
        """Start QEMU on the active images, as a unit does that reads ``disks.env``, and wait until the domain is there."""
        active = self.active_images()
        self.qemu.disks = tuple(
            replace(disk, path=active[disk.id][0], format=active[disk.id][1]) if disk.id in active else disk
            for disk in self.qemu.disks
        )
        self.qemu.start()
        await self.wait_state(*(states or ("running", "paused")))

    def active_images(self) -> dict[str, tuple[str, str]]:
        """Return path and format of each disk's active image, as ``disks.env`` tells them."""
        found: dict[str, str] = {}
        for line in (self.state / "disks.env").read_text().splitlines():
            if line.startswith("DOMSNAP_"):
                name, _, value = line.removeprefix("DOMSNAP_").partition("=")
                found[name] = value.strip('"')
        targets = {disk.id: disk.id.upper() for disk in self.qemu.disks if f"{disk.id.upper()}_FILE" in found}
        return {target: (found[f"{stem}_FILE"], found[f"{stem}_FORMAT"]) for target, stem in targets.items()}

    async def restart_daemon(self, signal_number: int) -> None:
        """End the daemon with a signal and start it again."""
        self.daemon.stop(signal_number)
        self.daemon.start()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Make a directory whose path leaves room for the name of a socket."""
    directory = Path(tempfile.mkdtemp(prefix="domsnap-", dir=os.environ.get("DOMSNAPD_TEST_DIRECTORY")))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


TWO_DISKS = (GuestDisk("disk0.raw", "raw", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", id="disk1"))


@contextlib.asynccontextmanager
async def scene(
    disks: Sequence[GuestDisk] = TWO_DISKS,
    *,
    guest: TinyGuest = COUNTS_ON_TWO,
    accel: str = "tcg",
    memory_mib: int = 32,
    disk_bytes: int = 1 << 20,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
    define: Mapping[str, Any] | None = None,
    paused: bool = False,
    counts: bool = True,
    uuid: str = UUID,
    states: Sequence[str] = ("running", "paused"),
    policies: tuple[Path, ...] = (),
    prefix: Sequence[str] = (),
    state: Path | None = None,
) -> AsyncIterator[Scene]:
    """Set a scene and wait until the domain is running and its guest counts.

    Args:
        disks: their relative paths lie in the scene's ``images``; those that do not exist are made.
        counts: whether the guest is the tiny one, which counts.
        define: more keys of the domain's definition.
        uuid: in the domain's definition; empty for none.
        states: in one of these the domain is when the scene is set.
        policies: as for ``private_bus``.
        prefix, state: as for ``DaemonProcess``.
    """
    with short_directory() as directory:
        images = directory / "images"
        images.mkdir()
        placed = [_placed(disk, images, guest, disk_bytes) for disk in disks]
        with (
            private_bus(directory, policies=policies) as bus,
            QemuProcess(directory, placed, accel=accel, memory_mib=memory_mib, extra=extra, paused=paused) as qemu,
        ):
            daemon = DaemonProcess(
                directory, bus.address, settings=settings, environment=environment, prefix=prefix, state=state
            )
            daemon.define(DOMAIN, uuid, qemu.monitor, **(define or {}))
            with daemon:
                wire = await Wire.connect(bus.address)
                made = Scene(directory, qemu, daemon, wire)
                try:
                    wire.handle(made.hear)
                    match = f"type='signal',sender='{BUS_NAME}'"
                    await wire.call(
                        "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", (match,)
                    )
                    await made.wait_state(*states)
                    if counts and not paused:
                        await asyncio.to_thread(qemu.wait_counting)
                    yield made
                except BaseException:
                    print(daemon.log[-8000:])
                    print(qemu.story()[-2000:])
                    raise
                finally:
                    wire.close()


def _placed(disk: GuestDisk, images: Path, guest: TinyGuest, disk_bytes: int) -> GuestDisk:
    """Return the disk with its path in ``images``, where its image is made unless it is there."""
    if not disk.path:
        return disk
    path = images / disk.path
    if not path.exists():
        make_disk(path, disk.format, disk_bytes, guest)
    return GuestDisk(path, disk.format, disk.bus, disk.via, disk.id, disk.options)
