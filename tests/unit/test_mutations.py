# SPDX-License-Identifier: MIT
"""Mutations: one at a time, from the first look to its end, which is announced once what they did is durable."""

import asyncio
import logging
from dataclasses import replace

import pytest

from snapd.engine.ports import Ports, Report
from snapd.errors import Internal
from snapd.model.events import (
    DomainChanged,
    JobAdded,
    JobChanged,
    JobEnded,
    SnapshotChanged,
    SnapshotCreated,
    SnapshotDeleted,
    SnapshotReverted,
)
from snapd.service.jobs import JobState
from tests.unit.mutated_domain import (
    DEADLINE_S,
    FAILURE,
    SOMEONE,
    Service,
    assert_idle,
    nothing,
    prepared,
)

# From the first look to the end


async def test_a_mutation_is_prepared_with_the_ports_and_carried_out_as_a_job_of_its_caller() -> None:
    service = Service()
    looks: list[Ports] = []
    goes_on = asyncio.Event()

    async def carry_out(report: Report) -> tuple[str, ...]:
        report("deleting", 1, 4)
        await goes_on.wait()
        return ("One image stays.",)

    job = await service.begin(prepared(carry_out, looks=looks))

    assert job is not None
    assert looks == [service.ports]
    assert (job.operation, job.domain, job.snapshot, job.caller_uid) == ("delete", "web", "a", SOMEONE)
    assert (service.mutations.doing, service.mutations.job) == ("delete a", job)
    assert not service.mutations.idle.is_set()
    goes_on.set()
    async with asyncio.timeout(DEADLINE_S):
        await service.mutations.idle.wait()
        await job.ended.wait()
    assert (job.state, job.error, job.notes) == (JobState.DONE, None, ("One image stays.",))
    assert_idle(service)
    number = job.number
    assert service.told == [
        JobAdded(number),
        DomainChanged("web"),
        JobChanged(number),
        JobEnded(number),
        DomainChanged("web"),
    ]
    assert service.seen == ["ready to delete a", "ended while delete a"]


async def test_what_is_committed_is_announced_before_the_end_of_the_job() -> None:
    service = Service()
    service.add("a", "b")

    async def carry_out(_report: Report) -> tuple[str, ...]:
        service.record = replace(service.record, tree=service.record.tree.remove(["a"]))
        service.add("c")
        return ()

    job = await service.finish(carry_out)

    assert service.told == [
        JobAdded(job.number),
        DomainChanged("web"),
        SnapshotDeleted("web", "a"),
        SnapshotCreated("web", "c"),
        SnapshotChanged("web", "b"),
        JobEnded(job.number),
        DomainChanged("web"),
    ]


async def test_the_next_may_begin_when_the_end_is_announced() -> None:
    service = Service()
    doing: list[tuple[str, bool]] = []

    async def carry_out(_report: Report) -> tuple[str, ...]:
        service.add("a")
        doing.append((service.mutations.doing, service.mutations.idle.is_set()))
        return ()

    await service.finish(carry_out)
    again = await service.finish(nothing)

    assert doing == [("delete a", False)]
    assert again.state is JobState.DONE


# Failures


@pytest.mark.parametrize("is_changed", [True, False])
async def test_a_failure_ends_the_job_and_what_is_committed_is_announced_all_the_same(is_changed: bool) -> None:
    service = Service()

    async def carry_out(_report: Report) -> tuple[str, ...]:
        if is_changed:
            service.add("half")
        raise FAILURE

    job = await service.finish(carry_out)

    assert (job.state, job.error, job.notes) == (JobState.FAILED, FAILURE, ())
    created = [SnapshotCreated("web", "half")] if is_changed else []
    assert service.told[2:] == [*created, JobEnded(job.number), DomainChanged("web")]
    assert_idle(service)


async def test_a_fault_of_ours_is_told_by_a_reference_that_the_log_explains(caplog: pytest.LogCaptureFixture) -> None:
    async def carry_out(_report: Report) -> tuple[str, ...]:
        raise ZeroDivisionError

    service = Service()
    with caplog.at_level(logging.ERROR):
        job = await service.finish(carry_out)

    assert isinstance(job.error, Internal)
    (record,) = caplog.records
    assert record.exc_info is not None
    reference = record.getMessage().rsplit(" ", 1)[1]
    assert reference in job.error.sentence
    assert len(reference) == 8
    assert_idle(service)


@pytest.mark.parametrize(
    ("operation", "fails", "is_changed", "is_told"),
    [
        ("revert", False, True, True),
        ("revert", False, False, True),
        # The disks went back, and what came after failed.
        ("revert", True, True, True),
        ("revert", True, False, False),
        ("create", False, True, False),
        ("delete", False, True, False),
    ],
)
async def test_a_revert_is_announced_where_the_disks_went_back(
    operation: str, fails: bool, is_changed: bool, is_told: bool
) -> None:
    service = Service()

    async def carry_out(_report: Report) -> tuple[str, ...]:
        if is_changed:
            service.change_graph()
        if fails:
            raise FAILURE
        return ()

    job = await service.finish(carry_out, operation)

    reverted = [SnapshotReverted("web", "a")] if is_told else []
    assert service.told[2:] == [*reverted, JobEnded(job.number), DomainChanged("web")]
