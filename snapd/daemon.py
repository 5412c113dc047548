# SPDX-License-Identifier: MIT
"""``domsnapd``: builds everything, begins it in order, and ends it in order.

The only module that knows all others. Order of start: configuration, state directory, bus, name, domains, ready. Order of end:
no new work, running jobs to their end, monitors closed; guests keep running.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from snapd import config
from snapd.bus.authorization import Authorization
from snapd.bus.dispatch import Dispatcher
from snapd.bus.manager import ManagerFace
from snapd.bus.names import BUS_NAME
from snapd.bus.objects import Objects
from snapd.bus.signals import Signals
from snapd.bus.verbs import Verbs
from snapd.bus.wire import CallError, NameTaken, Wire, WireClosed
from snapd.errors import ImageToolFailed, StateDamaged
from snapd.images.toolbox import ImageToolbox
from snapd.model.domain import DomainDefinition
from snapd.notify import Notifier
from snapd.qmp.agent import GuestAgent
from snapd.qmp.link import Link
from snapd.qmp.qemu import Qemu
from snapd.service.host import Host
from snapd.service.jobs import Jobs
from snapd.service.mutations import Surroundings
from snapd.service.policy import Policy
from snapd.service.publisher import Publisher
from snapd.state.store import Store

DEFAULT_CONFIG = Path("/etc/domsnapd/domsnapd.yaml")

EXIT_CONFIGURATION = 1
EXIT_NO_BUS = 3
EXIT_STATE = 4

RECEIVE_LIMIT_BYTES = 128 * 1024
"""No call of the contract needs more, and reading this much of the worst shape holds the loop for no more than 50 ms."""

LAST_ANSWERS_TIMEOUT_S = 2.0
"""How long those that waited for a job may take to read how it ended, once the service is to end."""

log = logging.getLogger("snapd")


class HostAdapters:
    """Gives each domain its monitor, its state and the tools for its images."""

    def __init__(self, state_directory: Path, memory_directory: str | None, timeouts: config.Timeouts) -> None:
        self._state_directory, self._memory_directory = state_directory, memory_directory
        self._timeouts = timeouts
        self._opened: dict[str, str] = {}
        self.images = ImageToolbox()

    def connect(
        self,
        definition: DomainDefinition,
        on_up: Callable[[], Awaitable[None]],
        on_down: Callable[[bool, str], Awaitable[None]],
        on_event: Callable[[Mapping[str, Any]], None],
    ) -> tuple[Link, Qemu]:
        link = Link(definition.name, definition.monitor, on_up, on_down, on_event, self._timeouts.monitor_s)
        return link, Qemu(link)

    def agent(self, definition: DomainDefinition) -> GuestAgent | None:
        if not definition.agent:
            return None
        return GuestAgent(definition.name, definition.agent, self._timeouts.agent_s, self._timeouts.freeze_s)

    async def open_store(self, name: str, uuid: str) -> Store:
        owner = self._opened.setdefault(uuid.lower(), name)
        directory = self._state_directory / uuid.lower()
        if owner != name:
            raise StateDamaged(str(directory), 0, f"domain {owner} has the same uuid, give each its own")
        store = await Store.open(directory, name, uuid)
        await asyncio.to_thread(Path(self.memory_directory(uuid)).mkdir, mode=0o700, parents=True, exist_ok=True)
        return store

    def close_store(self, name: str) -> None:
        self._opened = {uuid: owner for uuid, owner in self._opened.items() if owner != name}

    def memory_directory(self, uuid: str) -> str:
        return str(Path(self._memory_directory or self._state_directory) / uuid.lower())


class Service:
    """A running service: owns the task group in which everything happens."""

    def __init__(self, path: Path, settings: config.Config, definitions: list[DomainDefinition], state_directory: Path) -> None:
        self._path, self._settings, self._definitions, self._state_directory = path, settings, definitions, state_directory
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Event()

    def reload(self) -> None:
        """Read the domain files again."""
        self._reloading.set()

    async def _reload_when_told(self, host: Host, notifier: Notifier) -> None:
        while True:
            await self._reloading.wait()
            self._reloading.clear()
            notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            _, definitions, mistakes = await asyncio.to_thread(config.load, self._path)
            for mistake in mistakes:
                log.warning("%s", mistake)
            # A file that cannot be read now must not end the care of a domain that could be read before.
            unreadable = {mistake.path.absolute() for mistake in mistakes}
            known = [each.definition for each in host.domains.values()]
            kept = [each for each in known if unreadable.intersection((Path(each.source), Path(each.source).parent))]
            for name in host.follow([*kept, *definitions]):
                log.warning("domain %s is busy and stays as it was; reload again when its job has ended", name)
            notifier.send("READY=1", f"STATUS=Looking after {len(host.domains)} domains.")

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, bus_address: str) -> None:
        """Serve until told to stop.

        Raises: WireClosed, NameTaken, CallError when the bus cannot be used or goes away.
        """
        notifier = Notifier.from_environment()
        wire = await Wire.connect(bus_address, receive_limit_bytes=RECEIVE_LIMIT_BYTES)
        adapters = HostAdapters(self._state_directory, self._settings.snapshots_directory, self._settings.timeouts)
        publisher = Publisher()
        jobs = Jobs(publisher, self._settings.limits.jobs, self._settings.limits.jobs_per_caller)
        tool_version = await self._image_tool_version(adapters.images)
        try:
            async with asyncio.TaskGroup() as tasks:
                spawn = Tasks(tasks)
                limits = self._settings.limits
                settings = self._settings
                policy = Policy(limits.free_bytes, limits.chain, settings.live, settings.type, settings.quiesce, settings.undo)
                host = Host(Surroundings(adapters, jobs, publisher, spawn, policy))
                authorization = Authorization(wire)
                verbs = Verbs(authorization, policy)
                objects = Objects(host, ManagerFace(host, verbs, version("domsnapd"), tool_version), verbs)
                host.follow(self._definitions)
                publisher.subscribe(Signals(wire, objects, host).announce)
                dispatcher = Dispatcher(wire, objects, authorization, spawn)
                wire.handle(dispatcher.take)
                await wire.request_name(BUS_NAME)
                notifier.send("READY=1", f"STATUS=Looking after {len(self._definitions)} domains.")
                log.info("ready: %d domains, %s on the bus", len(self._definitions), BUS_NAME)
                spawn(self._reload_when_told(host, notifier))
                lost = await self._until_end(wire)
                notifier.send("STOPPING=1")
                wire.handle(lambda _message: False)
                await host.until_idle()
                await dispatcher.until_answered(LAST_ANSWERS_TIMEOUT_S)
                spawn.cancel_all()
        finally:
            wire.close()
        if lost:
            raise WireClosed(lost)

    async def _until_end(self, wire: Wire) -> str:
        """Wait until told to stop, or until the bus is gone. Returns: why the bus is gone, if it is."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        closed = asyncio.ensure_future(wire.wait_closed())
        try:
            await asyncio.wait((stopping, closed), return_when=asyncio.FIRST_COMPLETED)
            return closed.result() if closed.done() else ""
        finally:
            stopping.cancel()
            closed.cancel()

    async def _image_tool_version(self, images: ImageToolbox) -> str:
        try:
            return await images.version()
        except ImageToolFailed as error:
            log.warning("%s Snapshots cannot be taken without it.", error)
            return ""


class Tasks:
    """Begins tasks in the daemon's group, and can end them."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Task[None]] = set()

    def __call__(self, work: Awaitable[None]) -> Callable[[], object]:
        task = self._group.create_task(_as_coroutine(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task.cancel

    def cancel_all(self) -> None:
        for task in self._running:
            task.cancel()


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="The configuration file.")
@click.option("--bus", default="system", show_default=True, help="system, session, or a D-Bus address.")
@click.option("--state-directory", type=click.Path(path_type=Path), help="Where snapshots are kept.")
@click.option("--runtime-directory", type=click.Path(path_type=Path), help="Where run-time files go.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True)
@click.option("--check", is_flag=True, help="Read the configuration, print each mistake, and end.")
@click.version_option(version("domsnapd"), prog_name="domsnapd")
def main(
    config_file: Path | None,
    bus: str,
    state_directory: Path | None,
    runtime_directory: Path | None,
    log_level: str,
    check: bool,
) -> None:
    """Snapshots of QEMU virtual machines as a system service."""
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    path = config_file or DEFAULT_CONFIG
    settings, definitions, mistakes = config.load(path, required=config_file is not None)
    for mistake in mistakes:
        click.echo(str(mistake), err=not check)
    if check:
        sys.exit(EXIT_CONFIGURATION if mistakes else 0)
    if any(mistake.path == path for mistake in mistakes):
        sys.exit(EXIT_CONFIGURATION)
    state = _state_directory(state_directory)
    sys.exit(asyncio.run(_serve(Service(path, settings, definitions, state), bus)))


def _state_directory(given: Path | None) -> Path:
    """Return the state directory, made if it was missing; ends the program when it cannot be used."""
    directory = given or Path(os.environ.get("STATE_DIRECTORY", "/var/lib/domsnapd").split(":")[0])
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"the service may not write to {directory}")
    except OSError as error:
        click.echo(f"domsnapd: the state directory {directory} cannot be used: {error}", err=True)
        sys.exit(EXIT_STATE)
    return directory.resolve()


async def _serve(service: Service, bus: str) -> int:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, service.stop)
    failure: BaseException | None = None
    try:
        await service.run(bus)
    except* (WireClosed, NameTaken, CallError, ValueError) as group:
        failure = group.exceptions[0]
    if failure:
        click.echo(f"domsnapd: the bus cannot be used: {failure}", err=True)
    return EXIT_NO_BUS if failure else 0


if __name__ == "__main__":
    main()
