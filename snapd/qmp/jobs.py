# SPDX-License-Identifier: MIT
"""QEMU's jobs: started under a name of ours, followed to their end, their verdict read and dismissed.

Not here: what the jobs do. The verdict stands only in ``query-jobs``; events tell when to look.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from snapd.errors import DomainUnreachable, MonitorLost, QemuFailed
from snapd.qmp.link import Link

LOOK_EVERY_S = 0.2
"""How often progress is asked for while no event comes."""

Progress = Callable[[int, int], None]
Act = Callable[[], Awaitable[None]]


async def follow(link: Link, job: str, command: str, progress: Progress, acts: Mapping[str, Act] | None = None) -> None:
    """Wait until ``job`` has concluded and dismiss it.

    Args:
        command: what started it, for the error.
        acts: what to do, once, when the job is first seen in a status, such as completing one that is ``ready``.

    Raises: QemuFailed with the job's own error; MonitorLost.
    """
    left = dict(acts or {})
    with link.watch() as events:
        while True:
            found = await _query(link, job)
            if found is None:
                raise QemuFailed(link.domain, command, "its job is gone")
            progress(found["current-progress"], found["total-progress"])
            if found["status"] == "concluded":
                await link.execute("job-dismiss", id=job)
                if found.get("error"):
                    raise QemuFailed(link.domain, command, found["error"])
                return
            if act := left.pop(found["status"], None):
                await act()
                continue
            await events.wait(LOOK_EVERY_S)


async def _query(link: Link, job: str) -> dict[str, Any] | None:
    try:
        jobs = await link.execute("query-jobs")
    except DomainUnreachable as error:
        raise MonitorLost(link.domain, "a job of QEMU's", error.reason) from error
    return next((each for each in jobs if each["id"] == job), None)
