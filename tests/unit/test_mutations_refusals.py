# SPDX-License-Identifier: MIT
"""Mutations that are refused, before anything is touched or because another one runs."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from snapd.engine.ports import Ports, Report
from snapd.errors import DomainBusy, DomainDrifted, LimitReached, NotSupported, QemuFailed
from snapd.model.plan import TidyPlan
from snapd.service.jobs import JobState
from snapd.service.verbs import Prepare, Prepared
from tests.unit.mutated_domain import (
    DEADLINE_S,
    FAILURE,
    PLAN,
    ROOT,
    Service,
    assert_idle,
    faulty,
    not_needed,
    nothing,
    prepared,
    refused,
)

# Refusals


@pytest.mark.parametrize(("prepare", "error"), [(refused, NotSupported), (faulty, ZeroDivisionError)])
async def test_what_is_refused_leaves_the_domain_to_others_and_nothing_is_announced(
    prepare: Prepare, error: type[Exception]
) -> None:
    service = Service()

    with pytest.raises(error):
        await service.begin(prepare)
    with pytest.raises(error):
        await service.mutations.plan("delete", "a", prepare)

    assert_idle(service)
    assert (service.told, service.jobs.all(), service.tasks) == ([], [], [])


async def test_who_is_cancelled_while_it_looks_leaves_the_domain_to_others() -> None:
    service = Service()
    looks = asyncio.Event()

    async def prepare(_ports: Ports) -> Prepared:
        looks.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(service.begin(prepare))
    async with asyncio.timeout(DEADLINE_S):
        await looks.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert_idle(service)
    assert (await service.finish(nothing)).state is JobState.DONE


async def test_a_state_that_allows_none_refuses_before_anyone_looks() -> None:
    looks: list[Ports] = []
    service = Service(refusal=DomainDrifted("web", "it runs on other images"))

    with pytest.raises(DomainDrifted):
        await service.begin(prepared(nothing, looks=looks))

    assert looks == []
    assert_idle(service)


async def test_where_there_is_nothing_to_do_there_is_no_job() -> None:
    service = Service()

    assert await service.begin(not_needed, "tidy") is None
    assert await service.mutations.plan("tidy", "", not_needed) == []

    assert (service.told, service.jobs.all()) == ([], [])
    assert_idle(service)


async def test_where_there_is_no_room_for_a_job_nothing_is_begun() -> None:
    service = Service(most_jobs=1)
    running = service.jobs.open("create", "other", "s", ROOT)

    with pytest.raises(LimitReached):
        await service.begin(prepared(nothing))

    assert service.tasks == []
    assert_idle(service)
    service.jobs.end(running, None)
    assert (await service.finish(nothing)).state is JobState.DONE


# One at a time


async def test_while_one_runs_every_other_is_refused_with_what_it_does() -> None:
    service = Service()
    goes_on = asyncio.Event()
    asked: list[str] = []

    async def carry_out(_report: Report) -> tuple[str, ...]:
        await goes_on.wait()
        return ()

    async def work() -> None:
        asked.append("work")

    job = await service.begin(prepared(carry_out))
    assert job is not None
    others: list[Callable[[], Awaitable[object]]] = [
        lambda: service.begin(prepared(nothing), "create"),
        lambda: service.mutations.plan("create", "b", prepared(nothing)),
        lambda: service.mutations.alone("protecting b", work),
    ]
    for other in others:
        with pytest.raises(DomainBusy) as refusal:
            await other()
        assert refusal.value.doing == "delete a"
    assert (service.mutations.doing, asked) == ("delete a", [])
    goes_on.set()
    async with asyncio.timeout(DEADLINE_S):
        await job.ended.wait()

    for other in others:
        await other()
        await asyncio.gather(*service.tasks)
    assert asked == ["work"]


async def test_while_one_looks_every_other_is_refused() -> None:
    service = Service()
    looks, goes_on = asyncio.Event(), asyncio.Event()

    async def prepare(_ports: Ports) -> Prepared:
        looks.set()
        await goes_on.wait()
        return Prepared("a", PLAN, nothing)

    planning = asyncio.create_task(service.mutations.plan("delete", "a", prepare))
    async with asyncio.timeout(DEADLINE_S):
        await looks.wait()
    with pytest.raises(DomainBusy, match="Domain web is busy with delete a"):
        await service.begin(prepared(nothing))
    goes_on.set()

    assert await planning == ["Forget snapshot 'a'.", "Remove /memory/a."]
    assert_idle(service)
    assert service.told == []


async def test_what_has_no_subject_is_named_by_its_operation() -> None:
    service = Service()
    named: list[str] = []

    async def prepare(_ports: Ports) -> Prepared:
        named.append(service.mutations.doing)
        return Prepared("", TidyPlan(()), nothing)

    assert await service.mutations.plan("tidy", "", prepare) == []
    assert named == ["tidy"]


@pytest.mark.parametrize("fails", [True, False])
async def test_something_short_is_done_alone(fails: bool) -> None:
    service = Service()
    during: list[tuple[str, bool]] = []

    async def work() -> None:
        during.append((service.mutations.doing, service.mutations.idle.is_set()))
        with pytest.raises(DomainBusy, match="busy with protecting a"):
            await service.begin(prepared(nothing))
        if fails:
            raise FAILURE

    if fails:
        with pytest.raises(QemuFailed):
            await service.mutations.alone("protecting a", work)
    else:
        await service.mutations.alone("protecting a", work)

    assert during == [("protecting a", False)]
    assert_idle(service)
