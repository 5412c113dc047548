# SPDX-License-Identifier: MIT
"""Memory state: saved live by a background snapshot, saved with the guest paused by a job, and loaded again.

Not here: the file it goes to (``images.vmstate``). Before QEMU 8.2 a background snapshot that fails or is cancelled never lets
go of the guest's memory: so it only ever writes to a file allocated beforehand, and is never cancelled.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snapd.errors import DomainUnreachable, MonitorLost, QemuFailed
from snapd.qmp.jobs import LOOK_EVERY_S, follow
from snapd.qmp.link import EventLog, Link
from snapd.qmp.monitor import Event

LIVE = "background-snapshot"
EVENTS = "events"
DESCRIPTOR_NAME = "domsnap-memory"
CONTAINER_NODE = "domsnap-memory"
OWNER = "domsnapd"
"""Marks the descriptor sets that are ours."""

SAVE_TIMEOUT_S = 3600.0
RESUME_TIMEOUT_S = 60.0
SLOWEST_MEMORY_BYTES_PER_S = 10 << 20
"""A save or load job holds the monitor until it ends; how long that may take grows with the memory."""

FIRST_TO_LEAVE_PAUSED = (8, 0, 0)
"""QEMU before this resumes the guest of a background snapshot itself."""

_LIVE_PARAMETERS = {"max-bandwidth": 0, "tls-creds": ""}
"""A live save goes as fast as the file takes it, and has nobody to shake hands with."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MigrationSettings:
    """What the user had before a live save, as far as it was changed."""

    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]


async def live_blocker(link: Link) -> str:
    """Return why memory cannot be saved while the guest runs, or nothing. Effects: none that last."""
    had = await _capabilities(link)
    if LIVE not in had:
        return "this QEMU has no background snapshots"
    try:
        settings = await _set_exactly(link, had, LIVE, EVENTS)
    except QemuFailed as error:
        return f"QEMU says: {error.text}"
    await _set_capabilities(link, settings)
    return ""


async def memory_blocker(link: Link) -> str:
    """Return why memory cannot be saved at all, or nothing."""
    answer = await link.execute("query-migrate")
    if answer.get("status") in ("setup", "active", "device", "postcopy-active", "pre-switchover", "cancelling"):
        return "a migration of it is going on"
    reasons = answer.get("blocked-reasons", [])
    return f"QEMU says: {reasons[0]}" if reasons else ""


async def arm(link: Link, descriptor: int) -> MigrationSettings:
    """Make the next migration a background snapshot into ``descriptor``. Returns: what ``disarm`` puts back."""
    parameters, capabilities = await asyncio.gather(link.execute("query-migrate-parameters"), _capabilities(link))
    had = {name: parameters[name] for name in _LIVE_PARAMETERS if name in parameters}
    settings = MigrationSettings(await _set_exactly(link, capabilities, LIVE, EVENTS), had)
    try:
        await link.execute_exactly("migrate-set-parameters", {name: _LIVE_PARAMETERS[name] for name in had})
        await link.execute_with_descriptor(descriptor, "getfd", fdname=DESCRIPTOR_NAME)
    except QemuFailed:
        await disarm(link, settings)
        raise
    return settings


async def disarm(link: Link, settings: MigrationSettings) -> None:
    """Put back what ``arm`` has changed, and have QEMU close the descriptor where no migration took it."""
    with contextlib.suppress(QemuFailed):  # it took it
        await link.execute("closefd", fdname=DESCRIPTOR_NAME)
    await _set_capabilities(link, settings.capabilities)
    await link.execute_exactly("migrate-set-parameters", dict(settings.parameters))


async def save_live(link: Link, version: tuple[int, int, int], events: EventLog, report: Any) -> None:
    """Save the memory of the stopped guest; it runs on as soon as QEMU has write-protected it.

    Raises: QemuFailed when the migration is refused or fails; MonitorLost.
    """
    await link.execute("migrate", uri=f"fd:{DESCRIPTOR_NAME}")
    if version < FIRST_TO_LEAVE_PAUSED:
        await events.until(lambda: resumed(events) or _ended(events) is not None, RESUME_TIMEOUT_S)
    else:
        await _resume_when_protected(link)
    while (ended := _ended(events)) is None:
        answer = await link.execute("query-migrate")
        ram = answer.get("ram", {})
        report("saving memory", ram.get("total", 0) - ram.get("remaining", 0), ram.get("total", 0))
        if answer["status"] in ("completed", "failed", "cancelled"):
            ended = str(answer["status"])
            break
        await events.wait(LOOK_EVERY_S)
    if ended != "completed":
        answer = await link.execute("query-migrate")
        raise QemuFailed(link.domain, "migrate", answer.get("error-desc", f"the memory stream {ended}"))


async def _resume_when_protected(link: Link) -> None:
    """Resume once the first page is saved: before write protection is on, the guest would run ahead of the disks.

    Raises: QemuFailed when no page is saved in time.
    """
    try:
        async with asyncio.timeout(RESUME_TIMEOUT_S):
            while not await _is_protected(link):
                pass
    except TimeoutError as error:
        raise QemuFailed(link.domain, "migrate", f"no page was saved within {RESUME_TIMEOUT_S:g} s") from error
    if not (await link.execute("query-status"))["running"]:
        await link.execute("cont")


async def _is_protected(link: Link) -> bool:
    """Tell whether a page has been saved, or the migration has ended without one."""
    answer = await link.execute("query-migrate")
    ram = answer.get("ram", {})
    saved = ram.get("duplicate", 0) + ram.get("normal", 0)
    return saved > 0 or answer["status"] in ("completed", "failed", "cancelled")


def resumed(events: EventLog) -> bool:
    """Whether the last change of the run state was that the guest runs."""
    last = events.last("STOP", "RESUME")
    return last is not None and last["event"] == "RESUME"


def _ended(events: EventLog) -> str | None:
    last = events.last("MIGRATION")
    status = last["data"]["status"] if last else ""
    return status if status in ("completed", "failed", "cancelled") else None


def timestamp_usec(event: Event) -> int:
    """Return when an event happened, in microseconds since the epoch, by the clock of QEMU's host."""
    stamp = event["timestamp"]
    return int(stamp["seconds"]) * 1_000_000 + int(stamp["microseconds"])


async def attach(link: Link, read_write: int, read_only: int) -> None:
    """Open the container handed over by two descriptors as node ``CONTAINER_NODE``."""
    added = await link.execute_with_descriptor(read_write, "add-fd", opaque=OWNER)
    number = added["fdset-id"]
    try:
        await link.execute_with_descriptor(read_only, "add-fd", fdset_id=number, opaque=OWNER)
        await link.execute(
            "blockdev-add",
            driver="qcow2",
            node_name=CONTAINER_NODE,
            file={"driver": "file", "filename": f"/dev/fdset/{number}"},
            cache={"direct": False, "no-flush": True},
        )
    except QemuFailed:
        await drop_descriptors(link)
        raise


async def detach(link: Link) -> bool:
    """Close the container, if it is open, and drop its descriptors.

    Returns: whether they are gone. QEMU 7.2 lets go of descriptors only while the guest runs: those of a guest that stays
        paused go with the next ones.
    """
    try:
        await link.execute("blockdev-del", node_name=CONTAINER_NODE)
    except QemuFailed as error:
        if "Failed to find node" not in error.text and "Cannot find device" not in error.text:
            raise
    return await drop_descriptors(link)


async def drop_descriptors(link: Link) -> bool:
    """Drop all descriptor sets that are ours. Returns: whether they are gone."""
    ours = await _our_sets(link)
    for number in ours:
        await link.execute("remove-fd", fdset_id=number)
    return not ours or not await _our_sets(link)


async def _our_sets(link: Link) -> list[int]:
    sets = await link.execute("query-fdsets")
    return [each["fdset-id"] for each in sets if any(one.get("opaque") == OWNER for one in each["fds"])]


async def save_paused(link: Link, job: str, tag: str, expected_bytes: int) -> None:
    await _run_job(link, "snapshot-save", job, tag, expected_bytes)


async def load(link: Link, job: str, tag: str, expected_bytes: int) -> None:
    await _run_job(link, "snapshot-load", job, tag, expected_bytes)


async def _run_job(link: Link, command: str, job: str, tag: str, expected_bytes: int) -> None:
    timeout_s = RESUME_TIMEOUT_S + expected_bytes / SLOWEST_MEMORY_BYTES_PER_S
    had = await _set_exactly(link, await _capabilities(link))
    try:
        await link.execute(command, timeout_s, job_id=job, tag=tag, vmstate=CONTAINER_NODE, devices=[CONTAINER_NODE])
        await follow(link, job, command, lambda done, total: None)
    finally:
        with contextlib.suppress(MonitorLost, DomainUnreachable):
            await _set_capabilities(link, had)


async def _capabilities(link: Link) -> dict[str, bool]:
    return {each["capability"]: each["state"] for each in await link.execute("query-migrate-capabilities")}


async def _set_exactly(link: Link, had: Mapping[str, bool], *wanted: str) -> dict[str, bool]:
    """Turn on the ``wanted`` capabilities and every other one off. Returns: what the changed ones were. Raises: QemuFailed.

    The others are for migrations. Where they do not refuse each other, ``multifd`` ends a QEMU that saves into a snapshot,
    ``block`` hangs it, and ``x-ignore-shared`` leaves out memory that is shared (7.2 and 10.0).
    """
    changed = {name: state for name, state in had.items() if state != (name in wanted)}
    await _set_capabilities(link, {name: not state for name, state in changed.items()})
    return changed


async def _set_capabilities(link: Link, states: Mapping[str, bool]) -> None:
    if states:
        await link.execute(
            "migrate-set-capabilities", capabilities=[{"capability": name, "state": state} for name, state in states.items()]
        )
