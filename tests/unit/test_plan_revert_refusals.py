# SPDX-License-Identifier: MIT
"""Plans to revert that are refused before anything is touched, and what ``force`` leaves as it is instead."""

from dataclasses import replace

import pytest

from snapd.errors import NoSuchSnapshot, NotSupported
from snapd.model.domain import DomainState, Inspection, Machine
from snapd.model.plan import RevertRequest
from snapd.model.planner import find_snapshot
from snapd.model.snapshot import RevertState
from tests.unit.planned_domain import CDROM, FLASH, MACHINE, VDA, VDB, VDC, Domain

RUNNING, PAUSED, SHUTOFF = DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF
MISSING = "its disk vdb is missing; plug it in again as it was"
ADDED = "the snapshot does not include disk vdc, which was added since; unplug it"
FLASHED = (
    "QEMU keeps the content of flash pflash0 in its memory and reads the image only at its start; shut the domain off first, "
    "or use force to leave it as it is"
)
LEAVE = ", or use force to leave it as it is"


def _refused(domain: Domain, request: RevertRequest, **seen: object) -> str:
    with pytest.raises(NotSupported) as refusal:
        domain.plan_revert(request, **seen)
    assert refusal.value.sentence == f"Reverting to 's' is not possible for domain web: {refusal.value.reason}."
    return refusal.value.reason


def _taken(*, memory: bool) -> Domain:
    domain = Domain(VDA, VDB)
    domain.take("s", memory=memory)
    return domain


def test_a_snapshot_that_is_not_there_is_refused() -> None:
    domain = _taken(memory=True)

    with pytest.raises(NoSuchSnapshot, match="Domain web has no snapshot 'x'"):
        domain.plan_revert(RevertRequest("x"))
    assert find_snapshot(domain.record, "s") is domain.record.tree.snapshots["s"]


# The guest


@pytest.mark.parametrize("state", [RUNNING, PAUSED])
def test_one_of_a_domain_that_was_shut_off_needs_force_where_there_is_a_guest(state: DomainState) -> None:
    domain = Domain(VDA)
    domain.looks(SHUTOFF)
    domain.take("s")

    reason = _refused(domain, RevertRequest("s"), state=state, machine=MACHINE)

    assert reason == (
        "it was taken of the domain shut off, and the guest runs now and would be reset; shut it off first, or use force"
    )


@pytest.mark.parametrize("state", [RevertState.RUNNING, RevertState.PAUSED])
def test_a_domain_that_is_shut_off_does_not_run_afterwards(state: RevertState) -> None:
    domain = _taken(memory=False)
    domain.looks(SHUTOFF)

    reason = _refused(domain, RevertRequest("s", state))

    assert reason == (
        f"it is shut off and the snapshot has no memory, so that it cannot be {state} afterwards; leave the option state out"
    )


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (replace(MACHINE, devices=("net0",)), "its device disk0 is missing"),
        (replace(MACHINE, devices=(*MACHINE.devices, "usb0")), "its device usb0 is new"),
        (replace(MACHINE, type="pc-q35-10.0"), "its machine type is pc-q35-10.0 and was pc-q35-7.2"),
        (replace(MACHINE, memory_bytes=2 << 30), "it has 2048 MiB of memory and had 1024 MiB"),
    ],
)
def test_memory_fits_no_other_machine(now: Machine, difference: str, force: bool) -> None:
    domain = _taken(memory=True)

    reason = _refused(domain, RevertRequest("s", force=force), machine=now)

    assert reason == f"{difference}; start QEMU as it was then"


def test_without_memory_any_machine_will_do() -> None:
    domain = _taken(memory=False)

    assert domain.plan_revert(RevertRequest("s"), machine=replace(MACHINE, cpus=64)).memory_path == ""


def test_memory_that_is_loaded_later_is_compared_then() -> None:
    domain = _taken(memory=True)
    domain.looks(SHUTOFF)

    assert domain.plan_revert(RevertRequest("s")).later is RevertState.AS_TAKEN


def test_memory_of_an_unknown_machine_is_refused() -> None:
    domain = _taken(memory=True)
    domain.change("s", machine=None)

    assert _refused(domain, RevertRequest("s")) == "its file does not say on which machine its memory was saved"


# Disks that came and went


@pytest.mark.parametrize("force", [True, False])
def test_with_memory_every_disk_has_to_be_there_as_it_was(force: bool) -> None:
    domain = _taken(memory=True)
    request = RevertRequest("s", force=force)

    assert _refused(domain, request, disks=domain.seen.disks[:1]) == MISSING
    assert _refused(domain, request, disks=(*domain.seen.disks, VDC)) == ADDED


def test_without_memory_force_leaves_them_as_they_are() -> None:
    domain = _taken(memory=False)
    fewer, more = domain.seen.disks[:1], (*domain.seen.disks, VDC)

    assert _refused(domain, RevertRequest("s"), disks=fewer) == MISSING + LEAVE
    assert _refused(domain, RevertRequest("s"), disks=more) == ADDED + LEAVE
    without = domain.plan_revert(RevertRequest("s", force=True), disks=fewer)
    assert [each.disk.target for each in without.overlays] == ["vda"]
    assert without.notes == ("Disk vdb is missing and was left out.",)
    assert without.undo is not None
    assert set(without.undo.pins) == {"vda"}
    beside = domain.plan_revert(RevertRequest("s", force=True), disks=more)
    assert [each.disk.target for each in beside.overlays] == ["vda", "vdb"]
    assert beside.undo is not None
    assert set(beside.undo.pins) == {"vda", "vdb"}


@pytest.mark.parametrize("memory", [True, False])
def test_a_disk_that_was_left_out_is_no_new_one(memory: bool) -> None:
    domain = _taken(memory=memory)
    domain.change("s", left_out={"vdc": "its definition says 'snapshot: no'"})

    plan = domain.plan_revert(RevertRequest("s"), disks=(*domain.seen.disks, VDC))

    assert [each.disk.target for each in plan.overlays] == ["vda", "vdb"]


@pytest.mark.parametrize("memory", [True, False])
def test_a_disk_that_the_guest_only_reads_may_have_come_or_gone(memory: bool) -> None:
    domain = _taken(memory=memory)

    plan = domain.plan_revert(RevertRequest("s"), disks=(*domain.seen.disks, CDROM))

    assert ([each.disk.target for each in plan.overlays], plan.notes) == (["vda", "vdb"], ())


# Flash


def _with_flash(*, memory: bool) -> Domain:
    domain = Domain(VDA, FLASH)
    domain.take("s", memory=memory)
    return domain


@pytest.mark.parametrize("state", [RUNNING, PAUSED])
def test_a_flash_cannot_go_back_under_a_guest_that_keeps_its_memory_of_it(state: DomainState) -> None:
    domain = _with_flash(memory=False)
    domain.looks(state)

    assert _refused(domain, RevertRequest("s")) == FLASHED
    plan = domain.plan_revert(RevertRequest("s", force=True))
    assert [each.disk.target for each in plan.overlays] == ["vda"]
    assert plan.notes == ("Flash pflash0 was left as it is.",)
    assert plan.undo is not None
    assert set(plan.undo.pins) == {"vda"}


@pytest.mark.parametrize(("memory", "state"), [(True, RUNNING), (True, PAUSED), (True, SHUTOFF), (False, SHUTOFF)])
def test_a_flash_goes_back_with_the_memory_or_while_the_domain_is_shut_off(memory: bool, state: DomainState) -> None:
    domain = _with_flash(memory=memory)
    domain.looks(state)

    plan = domain.plan_revert(RevertRequest("s"))

    assert ([each.disk.target for each in plan.overlays], plan.notes) == (["vda", "pflash0"], ())


def test_a_flash_that_was_added_since_counts_as_a_disk() -> None:
    domain = Domain(VDA)
    domain.take("s")
    seen: Inspection = replace(domain.seen, disks=(*domain.seen.disks, FLASH))

    assert _refused(domain, RevertRequest("s"), disks=seen.disks) == (
        "the snapshot does not include disk pflash0, which was added since; unplug it"
    )
