# SPDX-License-Identifier: MIT
"""The jobs of a fake QEMU: their life from created to dismissed, and what they say on the way.

Not here: what they do (``merges``, ``snapshots``). A job works in a task of its own.

Source: QEMU job.c, its two tables of states and verbs.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.lab.fake_qemu.nodes import Node
from tests.lab.fake_qemu.protocol import Died, Emit, Handler, Refused, Request

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*$")
_VERBS = {
    "complete": ("ready",),
    "finalize": ("pending",),
    "dismiss": ("concluded",),
    "cancel": ("created", "running", "ready", "waiting", "pending"),
}

Work = Callable[[], Awaitable[None]]


@dataclass(eq=False)
class Job:
    """A job: first it does ``copy``, then, once it is completed and finalized as far as it asks for that, ``change``.

    ``total`` is what it counts its progress up to, ``holds`` are the nodes that it keeps others off.
    """

    id: str
    type: str
    copy: Work
    change: Callable[[], None] = lambda: None
    total: int = 1
    holds: Sequence[Node] = ()
    is_block_job: bool = False
    needs_complete: bool = False
    auto_finalize: bool = True
    auto_dismiss: bool = False
    status: str = "created"
    done: int = 0
    error: str = ""
    completed: asyncio.Event = field(default_factory=asyncio.Event)
    finalized: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


class Jobs:
    """All jobs that are not dismissed, newest first, as QEMU lists them.

    Args:
        settle: called when a job has changed its nodes, or has let go of them.
        died: told when a job has ended QEMU.
    """

    def __init__(self, emit: Emit, settle: Callable[[], None], died: Callable[[Died], None]) -> None:
        self._emit, self._settle, self._died = emit, settle, died
        self._jobs: list[Job] = []
        self.next_error = ""
        """What the next job fails with, instead of doing anything."""

    def handlers(self) -> dict[str, Handler]:
        return {
            "query-jobs": lambda _: [_show(job) for job in self._jobs],
            "job-complete": lambda request: self._named(request, "complete").completed.set(),
            "job-finalize": lambda request: self._named(request, "finalize").finalized.set(),
            "job-dismiss": lambda request: self._dismiss(self._named(request, "dismiss")),
            "job-cancel": lambda request: self._cancel(self._named(request, "cancel")),
        }

    def check_id(self, name: str) -> None:
        """Raise Refused unless a new job may have that id."""
        if not _ID.match(name):
            raise Refused(f"Invalid job ID '{name}'")
        if any(job.id == name for job in self._jobs):
            raise Refused(f"Job ID '{name}' already in use")

    def start(self, job: Job) -> None:
        """Start a job whose id is checked; it goes on after this has returned."""
        self._jobs.insert(0, job)
        for node in job.holds:
            node.job = job.type
        error, self.next_error = self.next_error, ""
        self._tell(job, "created")
        self._tell(job, "running")
        job.task = asyncio.get_running_loop().create_task(self._run(job, error))

    def close(self) -> "list[asyncio.Task[None]]":
        """Forget all jobs, as when QEMU ends. Returns: what is to be cancelled."""
        working = [job.task for job in self._jobs if job.task]
        self._jobs = []
        return working

    async def _run(self, job: Job, error: str) -> None:
        try:
            await (_refuse(error) if error else job.copy())
            job.done = job.total
            if job.needs_complete:
                self._tell(job, "ready")
                self._emit("BLOCK_JOB_READY", **_block_data(job))
                await job.completed.wait()
            self._tell(job, "waiting")
            self._tell(job, "pending")
            if not job.auto_finalize:
                if job.is_block_job:
                    self._emit("BLOCK_JOB_PENDING", type=job.type, id=job.id)
                await job.finalized.wait()
            self._let_go(job, is_over=False)
            job.change()
            self._settle()
        except Refused as refused:
            self._fail(job, str(refused))
        except Died as end:
            self._died(end)
        else:
            if job.is_block_job:
                self._emit("BLOCK_JOB_COMPLETED", **_block_data(job))
            self._conclude(job)

    def _fail(self, job: Job, error: str) -> None:
        job.error, job.done = error, job.done if job.is_block_job else job.total
        self._let_go(job, is_over=False)
        self._tell(job, "aborting")
        if job.is_block_job:
            self._emit("BLOCK_JOB_COMPLETED", **_block_data(job), error=error)
        self._conclude(job)

    def _cancel(self, job: Job) -> None:
        if job.task:
            job.task.cancel()
        job.error = "Operation canceled"
        self._let_go(job, is_over=False)
        self._tell(job, "aborting")
        if job.is_block_job:
            self._emit("BLOCK_JOB_CANCELLED", **_block_data(job))
        self._conclude(job)

    def _conclude(self, job: Job) -> None:
        self._tell(job, "concluded")
        if job.auto_dismiss:
            self._dismiss(job)

    def _dismiss(self, job: Job) -> None:
        self._jobs.remove(job)
        self._let_go(job, is_over=True)
        self._tell(job, "null")

    def _let_go(self, job: Job, *, is_over: bool) -> None:
        """Let go of the nodes at the job's end, or when all is over with it: QEMU's mirror alone does so early."""
        if is_over or job.needs_complete:
            for node in job.holds:
                node.job = ""
            self._settle()

    def _tell(self, job: Job, status: str) -> None:
        job.status = status
        self._emit("JOB_STATUS_CHANGE", status=status, id=job.id)

    def _named(self, request: Request, verb: str) -> Job:
        """Return the job that a command is for. Raises: Refused where there is none, or it is not the time for ``verb``."""
        name = request.arguments["id"]
        job = next((job for job in self._jobs if job.id == name), None)
        if job is None:
            raise Refused("Job not found")
        if job.status not in _VERBS[verb]:
            raise Refused(f"Job '{name}' in state '{job.status}' cannot accept command verb '{verb}'")
        return job


async def _refuse(error: str) -> None:
    raise Refused(error)


def _show(job: Job) -> dict[str, Any]:
    shown = {
        "id": job.id,
        "type": job.type,
        "status": job.status,
        "current-progress": job.done,
        "total-progress": job.total,
    }
    return shown | ({"error": job.error} if job.error else {})


def _block_data(job: Job) -> dict[str, Any]:
    return {"device": job.id, "len": job.total, "offset": job.done, "speed": 0, "type": job.type}
