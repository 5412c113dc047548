# SPDX-License-Identifier: MIT
"""Jobs: what is being done for whom, how far it is, and how it ended.

Not here: what a job does (``managed_domain``). Invariants: a job's end is announced once, after what it did is durable; its
progress at most five times a second, and the last of it always; a finished job stays for a while, and never more of them
than ``MOST_FINISHED``.
"""

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum

from snapd.errors import LimitReached, NoSuchJob, SnapdError
from snapd.model.events import JobAdded, JobChanged, JobEnded, JobRemoved
from snapd.service.publisher import Publisher

KEEP_FINISHED_S = 60.0
MOST_FINISHED = 1000
PROGRESS_EVERY_S = 0.2


class JobState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass
class Job:
    """``started_usec`` is since the epoch; ``done_bytes`` and ``total_bytes`` belong to the present step.

    ``notes`` are sentences for whoever began it, once it is done.
    """

    number: int
    operation: str
    domain: str
    snapshot: str
    caller_uid: int
    started_usec: int
    state: JobState = JobState.RUNNING
    step: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    error: SnapdError | None = None
    notes: tuple[str, ...] = ()
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def progress(self) -> float | None:
        """How much of the present step is done, 0 to 1; None where that is not known."""
        if self.state is JobState.DONE:
            return 1.0
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else None


class Jobs:
    """All jobs of the service."""

    def __init__(self, publisher: Publisher, most_running: int, most_per_caller: int) -> None:
        self._publisher = publisher
        self._most_running, self._most_per_caller = most_running, most_per_caller
        self._jobs: dict[int, Job] = {}
        self._next = 1
        self._pacing: dict[int, asyncio.TimerHandle] = {}
        self._untold: set[int] = set()

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def get(self, number: int) -> Job:
        """Return a job that is running or has ended not long ago. Raises: NoSuchJob."""
        if number not in self._jobs:
            raise NoSuchJob(str(number))
        return self._jobs[number]

    def running(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state is JobState.RUNNING]

    def _admit(self, caller_uid: int) -> None:
        running = self.running()
        if len(running) >= self._most_running:
            raise LimitReached("jobs may run at once", self._most_running)
        if sum(job.caller_uid == caller_uid for job in running) >= self._most_per_caller:
            raise LimitReached("jobs of one caller may run at once", self._most_per_caller)

    def open(self, operation: str, domain: str, snapshot: str, caller_uid: int) -> Job:
        """Begin a job. Raises: LimitReached when there is no room for one more."""
        self._admit(caller_uid)
        job = Job(self._next, operation, domain, snapshot, caller_uid, time.time_ns() // 1000)
        self._next += 1
        self._jobs[job.number] = job
        self._publisher.publish(JobAdded(job.number))
        return job

    def report(self, job: Job, step: str, done_bytes: int, total_bytes: int) -> None:
        """Take note of progress; what comes too soon after the last announcement is announced later, if it still holds."""
        job.step, job.done_bytes, job.total_bytes = step, done_bytes, total_bytes
        if job.number in self._pacing:
            self._untold.add(job.number)
        else:
            self._tell(job.number)

    def _tell(self, number: int) -> None:
        self._untold.discard(number)
        self._pacing[number] = asyncio.get_running_loop().call_later(PROGRESS_EVERY_S, self._tell_rest, number)
        self._publisher.publish(JobChanged(number))

    def _tell_rest(self, number: int) -> None:
        del self._pacing[number]
        if number in self._untold:
            self._tell(number)

    def end(self, job: Job, error: SnapdError | None, notes: tuple[str, ...] = ()) -> None:
        """Announce how the job ended, and forget it after a while."""
        job.state = JobState.FAILED if error else JobState.DONE
        job.error, job.notes = error, notes
        job.step = ""
        if job.number in self._pacing:
            self._pacing.pop(job.number).cancel()
            self._untold.discard(job.number)
        job.ended.set()
        self._publisher.publish(JobEnded(job.number))
        asyncio.get_running_loop().call_later(KEEP_FINISHED_S, self._forget, job.number)
        finished = [each.number for each in self._jobs.values() if each.state is not JobState.RUNNING]
        for number in finished[: max(0, len(finished) - MOST_FINISHED)]:
            self._forget(number)

    def _forget(self, number: int) -> None:
        if self._jobs.pop(number, None):
            self._publisher.publish(JobRemoved(number))
