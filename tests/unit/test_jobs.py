# SPDX-License-Identifier: MIT
"""Jobs: their limits, how often progress is announced, and how long they stay."""

import asyncio
from itertools import pairwise

import pytest

from snapd.errors import Canceled, LimitReached, NoSuchJob
from snapd.model.events import Event, JobAdded, JobChanged, JobEnded, JobRemoved
from snapd.service import jobs as jobs_module
from snapd.service.jobs import Job, Jobs, JobState
from snapd.service.publisher import Publisher

ROOT, SOMEONE = 0, 1000
DEADLINE_S = 5.0


class Heard:
    """Every event, and a way to wait for one."""

    def __init__(self, publisher: Publisher) -> None:
        self.events: list[Event] = []
        self._came = asyncio.Event()
        publisher.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._came.set()

    async def until(self, wanted: Event, count: int = 1) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.events.count(wanted) < count:
                self._came.clear()
                await self._came.wait()


def all_jobs(most_running: int = 200, most_per_caller: int = 10) -> tuple[Jobs, Heard]:
    publisher = Publisher()
    return Jobs(publisher, most_running, most_per_caller), Heard(publisher)


def opened(jobs: Jobs, caller_uid: int = ROOT) -> Job:
    return jobs.open("create", "vm1", "before", caller_uid)


async def test_a_caller_has_so_many_jobs_and_no_more_until_one_ends() -> None:
    jobs, heard = all_jobs(most_per_caller=2)
    first, _ = opened(jobs, SOMEONE), opened(jobs, SOMEONE)
    with pytest.raises(LimitReached, match="No more than 2 jobs of one caller"):
        opened(jobs, SOMEONE)
    assert len(jobs.all()) == 2
    assert len(heard.events) == 2
    opened(jobs, ROOT)
    jobs.end(first, None)
    opened(jobs, SOMEONE)


async def test_there_are_so_many_jobs_in_all_and_no_more() -> None:
    jobs, _ = all_jobs(most_running=2)
    opened(jobs, 1)
    opened(jobs, 2)
    with pytest.raises(LimitReached, match="No more than 2 jobs may run"):
        opened(jobs, 3)


async def test_only_jobs_that_run_are_counted() -> None:
    jobs, _ = all_jobs()
    first, second = opened(jobs), opened(jobs)
    jobs.end(first, None)
    assert jobs.running() == [second]
    assert jobs.all() == [first, second]


async def test_how_a_job_ended_is_known_when_it_is_announced() -> None:
    publisher = Publisher()
    jobs = Jobs(publisher, 200, 10)
    seen: list[tuple[JobState, str]] = []

    def look(event: Event) -> None:
        if isinstance(event, JobEnded):
            job = jobs.get(event.job)
            seen.append((job.state, str(job.error or "")))

    publisher.subscribe(look)
    good, bad = opened(jobs), opened(jobs)
    jobs.end(good, None)
    jobs.end(bad, Canceled("this"))
    assert seen == [(JobState.DONE, ""), (JobState.FAILED, str(Canceled("this")))]
    assert good.ended.is_set()
    assert good.progress == 1.0
    assert bad.progress is None


async def test_what_a_job_has_to_tell_is_known_when_its_end_is_announced() -> None:
    publisher = Publisher()
    jobs = Jobs(publisher, 200, 10)
    seen: list[tuple[str, ...]] = []
    publisher.subscribe(lambda event: seen.append(jobs.get(event.job).notes) if isinstance(event, JobEnded) else None)
    told, silent = opened(jobs), opened(jobs)
    jobs.report(told, "deleting", 1, 2)

    jobs.end(told, None, ("One.", "Two."))
    jobs.end(silent, None)

    assert seen == [("One.", "Two."), ()]
    assert (told.step, told.progress) == ("", 1.0)


@pytest.mark.parametrize(
    ("done_bytes", "total_bytes", "progress"), [(0, 0, None), (5, 0, None), (0, 8, 0.0), (2, 8, 0.25), (9, 8, 1.0)]
)
async def test_progress_is_a_part_of_one_or_not_known(done_bytes: int, total_bytes: int, progress: float | None) -> None:
    jobs, _ = all_jobs()
    job = opened(jobs)
    jobs.report(job, "saving memory", done_bytes, total_bytes)
    assert job.progress == progress


async def test_a_flood_of_progress_is_announced_at_intervals_and_its_last_word_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "PROGRESS_EVERY_S", 0.02)
    publisher = Publisher()
    jobs = Jobs(publisher, 200, 10)
    heard = Heard(publisher)
    told: list[tuple[float, int]] = []
    loop = asyncio.get_running_loop()
    publisher.subscribe(lambda event: told.append((loop.time(), job.done_bytes)) if isinstance(event, JobChanged) else None)
    job = opened(jobs)
    for number in range(1000):
        jobs.report(job, f"step {number % 7}", number, 1000)
        if number % 10 == 0:
            await asyncio.sleep(0)
    await heard.until(JobChanged(job.number), 2)
    assert told[0][1] == 0
    assert told[-1][1] == 999
    assert all(later - sooner >= 0.019 for (sooner, _), (later, _) in pairwise(told))
    # Silence: what has been told is not told again.
    count = len(told)
    other = opened(jobs)
    for _ in range(3):
        jobs.report(other, "waiting", other.done_bytes + 1, 0)
        await heard.until(JobChanged(other.number), 1)
    await heard.until(JobChanged(other.number), 2)
    assert len([each for each in heard.events if each == JobChanged(job.number)]) == count


async def test_nothing_is_announced_of_a_job_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "PROGRESS_EVERY_S", 0.01)
    jobs, heard = all_jobs()
    job = opened(jobs)
    for number in range(3):
        jobs.report(job, "saving memory", number, 3)
    jobs.end(job, None)
    # A later job's delayed announcement comes after that of the first would have come.
    other = opened(jobs)
    for number in range(3):
        jobs.report(other, "saving memory", number, 3)
    await heard.until(JobChanged(other.number), 2)
    assert [each for each in heard.events if each in (JobChanged(1), JobEnded(1))] == [JobChanged(1), JobEnded(1)]


async def test_an_ended_job_stays_for_a_while_and_is_forgotten_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs_module.KEEP_FINISHED_S == 60.0
    monkeypatch.setattr(jobs_module, "KEEP_FINISHED_S", 0.05)
    jobs, heard = all_jobs()
    job = opened(jobs)
    jobs.end(job, None)
    assert jobs.get(job.number) is job
    await heard.until(JobRemoved(job.number))
    assert heard.events == [JobAdded(1), JobEnded(1), JobRemoved(1)]
    with pytest.raises(NoSuchJob):
        jobs.get(job.number)


async def test_no_more_than_so_many_ended_jobs_are_kept_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs_module.MOST_FINISHED == 1000
    monkeypatch.setattr(jobs_module, "MOST_FINISHED", 3)
    jobs, heard = all_jobs()
    running = opened(jobs)
    for _ in range(5):
        jobs.end(opened(jobs), None)
    assert [job.number for job in jobs.all()] == [running.number, 4, 5, 6]
    assert [each for each in heard.events if isinstance(each, JobRemoved)] == [JobRemoved(2), JobRemoved(3)]


async def test_numbers_are_never_used_again() -> None:
    jobs, _ = all_jobs()
    first = opened(jobs)
    jobs.end(first, None)
    assert opened(jobs).number == first.number + 1
