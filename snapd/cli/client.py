# SPDX-License-Identifier: MIT
"""Owns the tool's calls to the service: what to ask, what an error means, and following a job to its end.

It neither prints nor decides how the tool exits.

- Values leave as those of ``values``; no Variant and no object path does.
- A job is never ended by the tool: who stops waiting leaves it to the service.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from snapd.bus import names
from snapd.bus.wire import CallError, Message, Variant, Wire, WireClosed, unwrap
from snapd.cli.options import Options
from snapd.cli.values import Domain, DomainRow, JobEnd, JobProgress, Properties, Snapshot, SnapshotRow, snapshot_name

CALL_TIMEOUT_S = 25.0  # as long as the bus's own clients wait; what takes longer is a job
JOB_TIMEOUT_S = 7 * 86400.0
PARALLEL_CALLS = 32


_SIGNATURES = {bool: "b", str: "s", dict: "a{ss}"}

_STANDARD = "org.freedesktop.DBus.Error."
_DENIED = {
    _STANDARD + "AccessDenied",
    _STANDARD + "AuthFailed",
    _STANDARD + "InteractiveAuthorizationRequired",
}
_ABSENT = {
    _STANDARD + each
    for each in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Timeout", "TimedOut", "Disconnected", "NoServer")
}
_ABSENT_PREFIXES = (_STANDARD + "Spawn.", "org.freedesktop.systemd1.")
_GONE = {_STANDARD + "UnknownObject", names.ERROR_PREFIX + "NoSuchSnapshot"}


class ServiceUnreachable(Exception):
    """Nobody answers; ``name`` is the bus's error name where there is one."""

    def __init__(self, name: str, sentence: str) -> None:
        self.name = name
        super().__init__(sentence)


class CallFailed(Exception):
    """The service refused or failed; ``str()`` is its sentence."""

    def __init__(self, name: str, sentence: str) -> None:
        self.name = name
        super().__init__(sentence)

    @property
    def denied(self) -> bool:
        return self.name in _DENIED


class StoppedWaiting(Exception):
    """The user stopped the tool while a job ran; the job goes on."""


class Service:
    """The service, as far as the tool uses it. Every method raises CallFailed or ServiceUnreachable."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._followed = ""
        self._job: dict[str, Any] = {}
        self._show: Callable[[JobProgress], None] | None = None
        wire.handle(self._receive)

    async def domains(self) -> list[DomainRow]:
        """List all domains."""
        (rows,) = await self._manager("ListDomains")
        return [DomainRow(name, uuid, state) for name, uuid, state, _path in rows]

    async def domain(self, name: str) -> Domain:
        """Fetch everything about a domain."""
        (path,) = await self._manager("GetDomain", "s", name)
        return Domain.from_properties(await self._properties(path, names.DOMAIN_INTERFACE))

    async def snapshot_rows(self, domain: str) -> list[SnapshotRow]:
        """List names, parents and flags of a domain's snapshots."""
        (rows,) = await self._manager("ListSnapshots", "sa{sv}", domain, {})
        return [SnapshotRow.from_row(row) for row in rows]

    async def snapshots(self, domain: str) -> list[Snapshot]:
        """Fetch everything about a domain's snapshots; one that goes meanwhile is left out."""
        rows = await self.snapshot_rows(domain)
        found: list[Snapshot | None] = []
        for start in range(0, len(rows), PARALLEL_CALLS):
            found += await asyncio.gather(*(self._snapshot(domain, row) for row in rows[start : start + PARALLEL_CALLS]))
        return [each for each in found if each is not None]

    async def snapshot(self, domain: str, name: str) -> Snapshot:
        """Fetch everything about a snapshot."""
        path = await self._snapshot_path(domain, name)
        properties = await self._properties(path, names.SNAPSHOT_INTERFACE)
        flags = next((row.flags for row in await self.snapshot_rows(domain) if row.name == name), ())
        return Snapshot.from_properties(domain, properties, flags)

    async def plan(self, verb: str, domain: str, name: str, options: Options) -> list[str]:
        """Return what ``create``, ``revert`` or ``delete`` would do, a line for each step."""
        (steps,) = await self._domain(domain, "Plan", "ssa{sv}", verb, name, _variants(options))
        return list(steps)

    async def cancel_pending_revert(self, domain: str) -> None:
        """Give up the memory that was to be loaded when the domain runs next."""
        await self._domain(domain, "CancelPendingRevert")

    async def set_protected(self, domain: str, name: str, protected: bool) -> None:
        """Protect a snapshot from being deleted, or take that off."""
        path = await self._snapshot_path(domain, name)
        await self._call(path, names.SNAPSHOT_INTERFACE, "SetProtected", "b", protected)

    async def run_job(self, verb: str, domain: str, name: str, options: Options, show: Callable[[JobProgress], None]) -> JobEnd:
        """Call a verb of the manager and follow its job to the end.

        Args:
            verb: ``CreateSnapshot``, ``RevertSnapshot`` or ``DeleteSnapshot``.
            show: called with the progress at first and whenever it changes.
        Raises: CallFailed with the job's error when it failed.
        Cancellation: raises StoppedWaiting; the job goes on.
        """
        began_s = time.monotonic()
        try:
            (job,) = await self._manager(verb, "ssa{sv}", domain, name, _variants(options))
            snapshot = await self._follow(job, show)
            took_s = time.monotonic() - began_s
            return JobEnd(snapshot, await self._notes(job), took_s)
        except asyncio.CancelledError as stop:
            raise StoppedWaiting(
                f"Stopped waiting; the service goes on with what it has begun. 'domsnap list {domain}' shows what came of it."
            ) from stop
        finally:
            self._followed, self._show = "", None

    async def _follow(self, job: str, show: Callable[[JobProgress], None]) -> str:
        # Match first, then read, then listen: whatever changes in between is in one of the two.
        self._followed = job
        rule = (
            f"type='signal',sender='{names.BUS_NAME}',path='{job}',"
            f"interface='{names.PROPERTIES_INTERFACE}',member='PropertiesChanged'"
        )
        await self._request("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", [rule])
        self._job = dict(await self._properties(job, names.JOB_INTERFACE))
        self._show = show
        show(JobProgress.from_properties(self._job))
        try:
            result, error_name, sentence, snapshot = await self._call(job, names.JOB_INTERFACE, "Wait", timeout_s=JOB_TIMEOUT_S)
        except ServiceUnreachable as error:
            raise ServiceUnreachable(
                error.name, f"The service went away while the job ran, so what came of it is not known. {error}"
            ) from error
        if result != "done":
            raise CallFailed(error_name, sentence or f"The job ended as {result}.")
        return snapshot_name(snapshot)

    async def _notes(self, job: str) -> tuple[str, ...]:
        try:
            return tuple((await self._properties(job, names.JOB_INTERFACE))["Notes"])
        except CallFailed as error:
            if error.name in _GONE:  # the service forgets jobs that have ended, the sooner the more there are
                return ()
            raise

    def _receive(self, message: Message) -> bool:
        if self._show is None or message.member != "PropertiesChanged" or message.path != self._followed:
            return False
        interface, changed, _invalidated = message.body
        if interface == names.JOB_INTERFACE:
            self._job.update(unwrap(changed))
            self._show(JobProgress.from_properties(self._job))
        return True

    async def _snapshot(self, domain: str, row: SnapshotRow) -> Snapshot | None:
        try:
            properties = await self._properties(row.path, names.SNAPSHOT_INTERFACE)
        except CallFailed as error:
            if error.name in _GONE:
                return None
            raise
        return Snapshot.from_properties(domain, properties, row.flags)

    async def _snapshot_path(self, domain: str, name: str) -> str:
        (path,) = await self._domain(domain, "GetSnapshot", "s", name)
        return str(path)

    async def _properties(self, path: str, interface: str) -> Properties:
        (values,) = await self._call(path, names.PROPERTIES_INTERFACE, "GetAll", "s", interface)
        properties: Properties = values
        return properties

    async def _domain(self, domain: str, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        (path,) = await self._manager("GetDomain", "s", domain)
        return await self._call(path, names.DOMAIN_INTERFACE, member, signature, *body)

    async def _manager(self, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        return await self._call(names.ROOT_PATH, names.MANAGER_INTERFACE, member, signature, *body)

    async def _call(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> tuple[Any, ...]:
        return await self._request(names.BUS_NAME, path, interface, member, signature, list(body), timeout_s)

    async def _request(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> tuple[Any, ...]:
        try:
            reply = await self._wire.call(destination, path, interface, member, signature, body, timeout_s=timeout_s)
        except CallError as error:
            if error.name in _ABSENT or error.name.startswith(_ABSENT_PREFIXES):
                raise ServiceUnreachable(error.name, f"The service domsnapd does not answer: {error.text}") from error
            raise CallFailed(error.name, error.text) from error
        except WireClosed as error:
            raise ServiceUnreachable("", f"The connection to the bus has ended: {error}") from error
        except UnicodeEncodeError as error:
            raise CallFailed("", "A name or text that was given is not valid UTF-8.") from error
        return tuple(unwrap(each) for each in reply)


def _variants(options: Options) -> dict[str, Variant]:
    return {key: Variant(_SIGNATURES[type(value)], value) for key, value in options.items()}


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Service]:
    """Connect to the bus at ``system``, ``session`` or a D-Bus address, and disconnect at the end.

    Raises: ServiceUnreachable
    """
    try:
        wire = await Wire.connect(address)
    except (WireClosed, OSError, ValueError) as error:
        raise ServiceUnreachable("", f"Not connected: {error}.") from error
    try:
        yield Service(wire)
    finally:
        wire.close()
