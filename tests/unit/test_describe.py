# SPDX-License-Identifier: MIT
"""Plans in words, line by line.

Not here: that the engine does it in that order (``test_describe_order.py``).
"""

from dataclasses import replace

import pytest

from snapd.model.describe import describe
from snapd.model.domain import DomainState
from snapd.model.images import Direction, DropTag, Image, Merge, Origin, Unlink
from snapd.model.plan import CreateRequest, Live, Parking, Quiesce, RevertRequest, TidyPlan
from snapd.model.snapshot import RevertState, SnapshotType
from tests.unit.planned_domain import CDROM, MEMORY_DIRECTORY, TOKEN, UNDO, VDA, VDB, VDC, WITH_AGENT, Domain

RUNNING, PAUSED, SHUTOFF = DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF
INTERNAL = SnapshotType.INTERNAL
MEMORY = f"{MEMORY_DIRECTORY}/s.vmstate.qcow2"
KEPT = f"domsnap-{TOKEN}"


# Create


def test_a_live_snapshot_of_disks_of_both_kinds() -> None:
    domain = Domain(VDA, VDB, CDROM)

    assert describe(domain.plan(CreateRequest("s", disks={"vda": "internal"}))) == [
        "Leave out disk cd: it is a CD-ROM.",
        "Make /images/data.s.qcow2, which will cover /images/data.raw of disk vdb.",
        f"Make {MEMORY} for the memory, with room for 1156 MiB.",
        "Stop the guest.",
        "At one instant: cover disk vdb, make internal snapshot 's' in /images/web.qcow2 of disk vda.",
        "Save memory while the guest goes on.",
        "Write down snapshot 's'.",
    ]


def test_a_snapshot_for_which_the_guest_has_to_wait() -> None:
    plan = Domain(VDA).plan(CreateRequest("s", live=Live.NO))

    assert describe(plan) == [
        f"Make {MEMORY} for the memory, with room for 1156 MiB.",
        "Stop the guest.",
        "At one instant: make internal snapshot 's' in /images/web.qcow2 of disk vda.",
        "Save memory.",
        "Let the guest go on, which waits for its memory because live: no was asked for.",
        "Write down snapshot 's'.",
    ]


def test_a_snapshot_of_a_paused_guest() -> None:
    domain = Domain(VDA)
    domain.looks(PAUSED)

    assert describe(domain.plan(CreateRequest("s"))) == [
        f"Make {MEMORY} for the memory, with room for 1156 MiB.",
        "At one instant: make internal snapshot 's' in /images/web.qcow2 of disk vda.",
        "Save memory.",
        "Write down snapshot 's'.",
    ]


@pytest.mark.parametrize(
    ("quiesce", "frozen"),
    [
        (Quiesce.AUTO, ["Freeze the guest's file systems, if its agent answers."]),
        (Quiesce.REQUIRE, ["Freeze the guest's file systems."]),
        (Quiesce.NO, []),
    ],
)
def test_a_snapshot_of_disks_with_the_file_systems_frozen(quiesce: Quiesce, frozen: list[str]) -> None:
    plan = Domain(VDA, definition=WITH_AGENT).plan(CreateRequest("s", memory=False, quiesce=quiesce))

    assert describe(plan) == [
        *frozen,
        "At one instant: make internal snapshot 's' in /images/web.qcow2 of disk vda.",
        *(["Thaw the file systems."] if frozen else []),
        "Write down snapshot 's'.",
    ]


def test_a_snapshot_of_memory_alone() -> None:
    assert describe(Domain(CDROM).plan(CreateRequest("s"))) == [
        "Leave out disk cd: it is a CD-ROM.",
        f"Make {MEMORY} for the memory, with room for 1156 MiB.",
        "Stop the guest.",
        "Save memory while the guest goes on.",
        "Write down snapshot 's'.",
    ]


def test_a_domain_that_is_shut_off() -> None:
    domain = Domain(VDA, VDB)
    domain.looks(SHUTOFF)

    assert describe(domain.plan(CreateRequest("s"))) == [
        "Make /images/web.s.qcow2, which will cover /images/web.qcow2 of disk vda.",
        "Make /images/data.s.qcow2, which will cover /images/data.raw of disk vdb.",
        "At one instant: cover disk vda, cover disk vdb.",
        "Write down snapshot 's'.",
    ]


def test_images_that_were_opened_through_links() -> None:
    domain = Domain(VDB)
    plan = domain.plan(CreateRequest("s", memory=False))
    linked = tuple(Parking(disk, "n", domain.graph.images[VDB.image]) for disk in (VDA, VDB))

    assert describe(replace(plan, linked=linked)) == [
        "Have QEMU open the images of vda, vdb by their own names and not by links, the guest stopped for a moment.",
        "Make /images/data.s.qcow2, which will cover /images/data.raw of disk vdb.",
        "At one instant: cover disk vdb.",
        "Write down snapshot 's'.",
    ]


def test_notes_come_last() -> None:
    plan = replace(Domain(VDA).plan(CreateRequest("s", memory=False)), notes=("One.", "Two."))

    assert describe(plan)[-3:] == ["Write down snapshot 's'.", "Note: One.", "Note: Two."]


# Revert


def test_a_revert_to_a_whole_image_with_its_memory() -> None:
    domain = Domain(VDB)
    domain.take("s")

    assert describe(domain.plan_revert(RevertRequest("s", undo_memory=True))) == [
        "Make /images/data.s.2.qcow2 on /images/data.raw for disk vdb.",
        "Stop the guest.",
        f"Save the memory of now in {MEMORY_DIRECTORY}/{UNDO}.vmstate.qcow2.",
        "Put disk vdb on /images/data.s.2.qcow2.",
        f"Load the memory from {MEMORY}.",
        "Let the guest go on.",
        f"Write down undo point '{UNDO}', which holds what was there before.",
        "Make 's' the current snapshot.",
    ]


def test_a_revert_that_keeps_nothing() -> None:
    domain = Domain(VDB)
    domain.take("s")

    assert describe(domain.plan_revert(RevertRequest("s", RevertState.PAUSED, undo=False))) == [
        "Make /images/data.s.2.qcow2 on /images/data.raw for disk vdb.",
        "Stop the guest.",
        "Put disk vdb on /images/data.s.2.qcow2.",
        f"Load the memory from {MEMORY}.",
        "Make 's' the current snapshot.",
        "Remove /images/data.s.qcow2.",
    ]


def test_a_revert_to_internal_snapshots_by_applying_and_by_copying() -> None:
    domain = Domain(VDA, VDC)
    domain.take("s", INTERNAL, memory=False)
    over = Image("/images/log.over.qcow2", "qcow2", VDC.image, Origin.CREATED)
    domain.record = replace(domain.record, graph=domain.graph.cover("vdc", over))
    disks = (domain.seen.disks[0], replace(VDC, image=over.path, chain=(over.path, VDC.image)))

    assert describe(domain.plan_revert(RevertRequest("s", undo=False), disks=disks)) == [
        "Copy internal snapshot 's' out of /images/log.qcow2, which others need, to /images/log.s.qcow2.",
        "Stop the guest.",
        "Put disk vdc on /images/log.s.qcow2.",
        f"Keep what /images/web.qcow2 holds now as internal snapshot '{KEPT}'.",
        "Apply internal snapshot 's' in /images/web.qcow2 of disk vda.",
        "Reset the guest.",
        "Let the guest go on.",
        "Make 's' the current snapshot.",
        "Remove /images/log.over.qcow2.",
        f"Delete internal snapshot '{KEPT}' in /images/web.qcow2.",
    ]


def test_a_revert_of_a_paused_guest_neither_stops_it_nor_lets_it_go_on() -> None:
    domain = Domain(VDA)
    domain.looks(PAUSED)
    domain.take("s", INTERNAL, memory=False)

    assert describe(domain.plan_revert(RevertRequest("s"))) == [
        f"Keep what /images/web.qcow2 holds now as internal snapshot '{UNDO}'.",
        "Apply internal snapshot 's' in /images/web.qcow2 of disk vda.",
        "Reset the guest.",
        f"Write down undo point '{UNDO}', which holds what was there before.",
        "Make 's' the current snapshot.",
    ]


@pytest.mark.parametrize("memory", [True, False])
def test_a_revert_of_a_domain_that_is_shut_off(memory: bool) -> None:
    domain = Domain(VDB)
    domain.take("s", memory=memory)
    domain.looks(SHUTOFF)

    assert describe(domain.plan_revert(RevertRequest("s"))) == [
        "Make /images/data.s.2.qcow2 on /images/data.raw for disk vdb.",
        "Put disk vdb on /images/data.s.2.qcow2.",
        *([f"Load the memory from {MEMORY} when the domain runs again."] if memory else []),
        f"Write down undo point '{UNDO}', which holds what was there before.",
        "Make 's' the current snapshot.",
    ]


def test_a_revert_that_leaves_a_disk_as_it_is() -> None:
    domain = Domain(VDA, VDB)
    domain.take("s", memory=False)

    lines = describe(domain.plan_revert(RevertRequest("s", undo=False, force=True), disks=domain.seen.disks[:1]))

    assert lines[-1] == "Note: Disk vdb is missing and was left out."
    assert not any("disk vdb" in line for line in lines)


# Delete and tidy


def test_a_delete() -> None:
    domain = Domain(VDB)
    domain.take("old")
    domain.take("s")

    assert describe(domain.plan_delete("s")) == [
        "Forget snapshot 's'.",
        f"Remove {MEMORY}.",
        "Merge /images/data.s.qcow2 into /images/data.old.qcow2 and remove it.",
    ]


def test_a_delete_that_has_to_leave_something() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL, memory=False)
    domain.take("above")

    assert describe(domain.plan_delete("s")) == [
        "Forget snapshot 's'.",
        "Note: Internal snapshot 's' stays in /images/web.qcow2 as long as QEMU has that image open for reading; it goes when "
        "the domain is shut off or reverted.",
    ]


def test_what_is_collected() -> None:
    steps = (
        Unlink("/a"),
        DropTag("/b", "t"),
        Merge(Direction.COMMIT, "/over", "/under", None, active=True),
        Merge(Direction.STREAM, "/over", "/under", "/below", active=False),
    )

    assert describe(TidyPlan(steps)) == [
        "Remove /a.",
        "Delete internal snapshot 't' in /b.",
        "Merge /over into /under and remove it.",
        "Merge /under into /over and remove it.",
    ]


def test_nothing_to_tidy_takes_no_words() -> None:
    assert describe(TidyPlan(())) == []
