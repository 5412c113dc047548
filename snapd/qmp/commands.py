# SPDX-License-Identifier: MIT
"""Run state, reset and machine: the plain part of QMP's vocabulary.

Not here: blocks (``blocks``), memory (``memory``), jobs (``jobs``).
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from snapd.errors import MonitorLost, QemuFailed
from snapd.model.domain import DomainState, Machine
from snapd.qmp.link import Link

RESET_TIMEOUT_S = 30.0
"""A reset takes QEMU milliseconds; a disk that is slow to end its requests makes it wait."""

_LOOK_EVERY_S = 0.2

_DEVICE_PATHS = ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached")


@dataclass(frozen=True)
class Status:
    """``running`` is whether the guest's processors run; ``name`` is QEMU's word for the run state."""

    running: bool
    name: str

    @property
    def state(self) -> DomainState:
        return DomainState.RUNNING if self.running else DomainState.PAUSED


async def query_status(link: Link) -> Status:
    answer = await link.execute("query-status")
    return Status(answer["running"], answer["status"])


async def query_status_and_uuid(link: Link) -> tuple[Status, str]:
    """Return the run state, and QEMU's own UUID, which is all zero where none was given."""
    status, uuid = await asyncio.gather(query_status(link), link.execute("query-uuid"))
    return status, str(uuid["UUID"])


async def reset(link: Link) -> None:
    """Reset the guest, whether it runs or not, and wait until that is done.

    Raises: QemuFailed when it is not done in time; MonitorLost, also where QEMU ends instead of resetting, as with
    ``-no-reboot``.
    """
    with link.watch() as events:
        await link.execute("system_reset")
        try:
            async with asyncio.timeout(RESET_TIMEOUT_S):
                while not any(each["event"] == "RESET" and not each["data"].get("guest") for each in events.events):
                    if not link.is_up:
                        raise MonitorLost(link.domain, "system_reset", "QEMU ended instead")
                    await events.wait(_LOOK_EVERY_S)
        except TimeoutError as error:
            raise QemuFailed(link.domain, "system_reset", f"it was not done within {RESET_TIMEOUT_S:g} s") from error


async def query_version(link: Link) -> tuple[int, int, int]:
    version = (await link.execute("query-version"))["qemu"]
    return version["major"], version["minor"], version["micro"]


async def query_machine(link: Link) -> Machine:
    """Return what a memory state of this QEMU needs of the QEMU that loads it."""
    kind, memory, cpus, *listings = await asyncio.gather(
        link.execute("qom-get", path="/machine", property="type"),
        link.execute("query-memory-size-summary"),
        link.execute("query-cpus-fast"),
        *(link.execute("qom-list", path=path) for path in _DEVICE_PATHS),
    )
    return Machine(
        type=str(kind).removesuffix("-machine"),
        memory_bytes=memory["base-memory"] + memory.get("plugged-memory", 0),
        cpus=len(cpus),
        devices=tuple(sorted(_devices(listings))),
    )


def _devices(listings: list[list[dict[str, Any]]]) -> list[str]:
    """Return the devices of QOM listings; what else lies beside them (regions, lines) comes and goes while a guest runs."""
    named, anonymous, unattached = listings
    found = [f"{each['name']} ({_kind(each)})" for each in named if _kind(each)]
    for listing in (anonymous, unattached):
        kinds = sorted(_kind(each) for each in listing if each["name"].startswith("device[") and _kind(each))
        found += [f"{kind} #{kinds[:index].count(kind) + 1}" for index, kind in enumerate(kinds)]
    return found


def _kind(entry: dict[str, Any]) -> str:
    kind = str(entry["type"])
    return kind[len("child<") : -1] if kind.startswith("child<") else ""
