# SPDX-License-Identifier: MIT
"""QEMU's jobs: started under a name of ours, followed to their end, their verdict read and dismissed.

Not here: what the jobs do. The verdict stands only in ``query-jobs``; events tell when to look.
"""

from collections.abc import Callable
from typing import Any

from snapd.errors import QemuFailed
from snapd.qmp.link import Link

LOOK_EVERY_S = 0.2
"""How often progress is asked for while no event comes."""

Progress = Callable[[int, int], None]


async def follow(link: Link, job: str, command: str, progress: Progress, complete_when_ready: bool = False) -> None:
    """Wait until ``job`` has concluded and dismiss it.

    Args:
        command: what started it, for the error.
        complete_when_ready: tell a job that is ready to complete, as an active commit wants.

    Raises: QemuFailed with the job's own error; MonitorLost.
    """
    completed = False
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
            if found["status"] == "ready" and complete_when_ready and not completed:
                await link.execute("job-complete", id=job)
                completed = True
                continue
            await events.wait(LOOK_EVERY_S)


async def _query(link: Link, job: str) -> dict[str, Any] | None:
    return next((each for each in await link.execute("query-jobs") if each["id"] == job), None)
