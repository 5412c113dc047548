# SPDX-License-Identifier: MIT
"""Which disks take part in a snapshot, which kind each one's is, and what is refused with the disk's name."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from snapd.errors import InvalidOption, NotSupported
from snapd.model.disk_choice import DiskChoice, choose_disks, default_kind
from snapd.model.domain import Disk, DiskDefinition, DiskPolicy
from snapd.model.images import Pin
from snapd.model.plan import CreateRequest
from snapd.model.snapshot import SnapshotType
from tests.unit.planned_domain import CDROM, DEFINITION, VDA, VDB, VDC, Domain, make_disk

ANY, INTERNAL, EXTERNAL, NO = DiskPolicy.ANY, DiskPolicy.INTERNAL, DiskPolicy.EXTERNAL, DiskPolicy.NO
NOT_RAW = "its format raw has no internal snapshots"
BLOCK = make_disk("vdd", "/dev/vg/web")
NOT_BLOCK = "it lies on the block device /dev/vg/web, beside which no overlay can lie"
NEITHER = replace(BLOCK, format="raw", no_internal=NOT_RAW)
NBD = make_disk("vde", "/nbd.qcow2", obstacle="its protocol is nbd")


def _choose(
    *disks: Disk,
    wanted: Mapping[str, str] | None = None,
    policies: Mapping[str, DiskPolicy] | None = None,
    type: SnapshotType = SnapshotType.ANY,  # noqa: A002  as the request calls it
    memory: bool = False,
    follows_active: bool = False,
) -> DiskChoice:
    domain = Domain(*disks)
    defined = [DiskDefinition(disk.target, disk.image, disk.format) for disk in disks]
    definition = replace(
        DEFINITION, disks=tuple(replace(each, policy=(policies or {}).get(each.target, ANY)) for each in defined)
    )
    request = CreateRequest("s", disks=wanted or {}, type=type)
    seen = replace(domain.seen, follows_active=follows_active)
    return choose_disks(definition, domain.record, seen, request, memory=memory)


def _kinds(choice: DiskChoice) -> dict[str, str]:
    return {
        **{disk.target: "internal" for disk in choice.internal},
        **{disk.target: "external" for disk in choice.external},
        **{target: f"no: {reason}" for target, reason in choice.left_out.items()},
    }


# The default


@pytest.mark.parametrize(
    ("disks", "follows_active", "kind"),
    [
        ((VDA, VDC), False, INTERNAL),
        ((VDA, VDC), True, EXTERNAL),
        ((VDA, VDB), False, EXTERNAL),
        ((VDB,), False, EXTERNAL),
        # What takes no part has no say.
        ((VDA, replace(CDROM, format="raw", no_internal=NOT_RAW)), False, INTERNAL),
        ((VDA, replace(VDB, obstacle="its protocol is nbd")), False, INTERNAL),
        ((VDA, replace(VDB, writable=False)), False, INTERNAL),
        ((VDA, BLOCK), False, INTERNAL),
        ((VDA, NEITHER), False, INTERNAL),
    ],
)
def test_the_default_kind_is_what_suits_how_the_domain_is_started(
    disks: tuple[Disk, ...], follows_active: bool, kind: DiskPolicy
) -> None:
    domain = Domain(*disks)

    assert default_kind(domain.record, replace(domain.seen, follows_active=follows_active)) is kind


def test_a_domain_that_followed_when_it_was_last_started_gets_external_ones() -> None:
    domain = Domain(VDA)

    assert default_kind(replace(domain.record, follows_active=True), domain.seen) is EXTERNAL


@pytest.mark.parametrize(("tag", "kind"), [("", EXTERNAL), ("s", INTERNAL)])
def test_the_kind_that_is_in_use_stays(tag: str, kind: DiskPolicy) -> None:
    domain = Domain(VDA)
    record = replace(domain.record, graph=domain.graph.pin("old", {"vda": Pin("/base/os.raw", tag)}))

    assert default_kind(record, domain.seen) is kind


# Who decides: the request for the disk, its definition, the request for all, the default


@pytest.mark.parametrize(
    ("wanted", "policy", "type_for_all", "follows_active", "kind"),
    [
        ("", ANY, SnapshotType.ANY, False, "internal"),
        ("", ANY, SnapshotType.ANY, True, "external"),
        ("", ANY, SnapshotType.EXTERNAL, False, "external"),
        ("", ANY, SnapshotType.INTERNAL, True, "internal"),
        ("", EXTERNAL, SnapshotType.ANY, False, "external"),
        ("", INTERNAL, SnapshotType.ANY, True, "internal"),
        ("", EXTERNAL, SnapshotType.INTERNAL, False, "external"),
        ("", INTERNAL, SnapshotType.EXTERNAL, False, "internal"),
        ("internal", EXTERNAL, SnapshotType.EXTERNAL, True, "internal"),
        ("external", INTERNAL, SnapshotType.INTERNAL, False, "external"),
        ("internal", NO, SnapshotType.ANY, True, "internal"),
        ("external", NO, SnapshotType.ANY, False, "external"),
        ("internal", ANY, SnapshotType.ANY, True, "internal"),
        ("external", ANY, SnapshotType.INTERNAL, False, "external"),
        ("no", ANY, SnapshotType.ANY, False, "no: the request says 'no' for it"),
        ("no", EXTERNAL, SnapshotType.EXTERNAL, False, "no: the request says 'no' for it"),
        ("no", NO, SnapshotType.ANY, False, "no: the request says 'no' for it"),
        ("", NO, SnapshotType.ANY, False, "no: its definition says 'snapshot: no'"),
    ],
)
def test_who_says_it_for_the_disk_itself_is_heard_first(
    wanted: str, policy: DiskPolicy, type_for_all: SnapshotType, follows_active: bool, kind: str
) -> None:
    choice = _choose(
        VDA,
        VDC,
        wanted={"vda": wanted, "vdc": "external"} if wanted else {"vdc": "external"},
        policies={"vda": policy},
        type=type_for_all,
        follows_active=follows_active,
    )

    assert _kinds(choice) == {"vda": kind, "vdc": "external"}


@pytest.mark.parametrize(
    ("disks", "follows_active", "kinds"),
    [
        ((VDA, VDB), False, {"vda": "external", "vdb": "external"}),
        # Nobody said which: what is possible is taken.
        ((VDA, BLOCK), True, {"vda": "external", "vdd": "internal"}),
        ((VDA, replace(VDB, writable=False)), False, {"vda": "internal", "vdb": "external"}),
        ((VDA, CDROM), False, {"vda": "internal", "cd": "no: it is a CD-ROM"}),
        ((VDA, NBD), True, {"vda": "external", "vde": "no: its protocol is nbd"}),
        ((VDA, NEITHER), True, {"vda": "external", "vdd": f"no: {NOT_BLOCK}, and {NOT_RAW}"}),
    ],
)
def test_where_nobody_says_it_each_disk_gets_what_it_can_have(
    disks: tuple[Disk, ...], follows_active: bool, kinds: Mapping[str, str]
) -> None:
    assert _kinds(_choose(*disks, follows_active=follows_active)) == kinds


# What is refused


@pytest.mark.parametrize(
    ("disk", "wanted", "policy", "type_for_all", "what", "reason"),
    [
        (VDB, "internal", ANY, SnapshotType.ANY, "An internal snapshot of disk vdb", NOT_RAW),
        (BLOCK, "external", ANY, SnapshotType.ANY, "An external snapshot of disk vdd", NOT_BLOCK),
        (NBD, "external", ANY, SnapshotType.ANY, "An external snapshot of disk vde", "its protocol is nbd"),
        (CDROM, "internal", NO, SnapshotType.ANY, "An internal snapshot of disk cd", "it is a CD-ROM"),
        (NEITHER, "internal", ANY, SnapshotType.ANY, "An internal snapshot of disk vdd", f"{NOT_BLOCK}, and {NOT_RAW}"),
        (VDB, "", ANY, SnapshotType.INTERNAL, "An internal snapshot of disk vdb", f"{NOT_RAW}; leave that disk out"),
        (BLOCK, "", ANY, SnapshotType.EXTERNAL, "An external snapshot of disk vdd", f"{NOT_BLOCK}; leave that disk out"),
        (
            VDB,
            "",
            INTERNAL,
            SnapshotType.EXTERNAL,
            "An external snapshot of disk vdb",
            f"its definition says 'snapshot: internal', and {NOT_RAW}; leave that disk out",
        ),
        (
            VDB,
            "",
            NO,
            SnapshotType.EXTERNAL,
            "An external snapshot of disk vdb",
            "its definition says 'snapshot: no'; leave that disk out",
        ),
    ],
)
def test_a_disk_that_would_have_to_take_part_and_cannot_is_refused(
    disk: Disk, wanted: str, policy: DiskPolicy, type_for_all: SnapshotType, what: str, reason: str
) -> None:
    asked = {disk.target: wanted} if wanted else {}

    with pytest.raises(NotSupported) as refusal:
        _choose(VDA, disk, wanted=asked, policies={disk.target: policy, "vda": ANY}, type=type_for_all)

    # The disk that can take part comes first and is not what it is about.
    assert refusal.value.sentence == f"{what} is not possible for domain web: {reason}."


@pytest.mark.parametrize(
    ("disk", "wanted", "policy", "reason"),
    [
        (VDC, "no", ANY, "the request says 'no' for it"),
        (VDC, "", NO, "its definition says 'snapshot: no'"),
        (NBD, "", ANY, "its protocol is nbd"),
        (NBD, "external", ANY, "its protocol is nbd"),
        (VDB, "internal", ANY, NOT_RAW),
        (VDB, "", INTERNAL, f"its definition says 'snapshot: internal', and {NOT_RAW}"),
        (BLOCK, "", EXTERNAL, f"its definition says 'snapshot: external', and {NOT_BLOCK}"),
        (NEITHER, "", ANY, f"{NOT_BLOCK}, and {NOT_RAW}"),
    ],
)
def test_with_memory_no_disk_that_the_guest_writes_to_is_left_out(
    disk: Disk, wanted: str, policy: DiskPolicy, reason: str
) -> None:
    asked = {disk.target: wanted} if wanted else {}

    with pytest.raises(NotSupported) as refusal:
        _choose(VDA, disk, wanted=asked, policies={disk.target: policy}, memory=True)

    assert refusal.value.sentence == (
        f"A snapshot with memory is not possible for domain web: the guest can write to disk {disk.target}, "
        f"which would have to be left out because {reason}."
    )


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("type_for_all", SnapshotType)
def test_a_disk_that_the_guest_only_reads_is_left_out_unless_it_was_named(type_for_all: SnapshotType, memory: bool) -> None:
    choice = _choose(VDA, CDROM, type=type_for_all, memory=memory)

    assert choice.left_out == {"cd": "it is a CD-ROM"}
    assert [disk.target for disk in (*choice.internal, *choice.external)] == ["vda"]
    with pytest.raises(NotSupported, match="An external snapshot of disk cd is not possible for domain web: it is a CD-ROM"):
        _choose(VDA, CDROM, wanted={"cd": "external"}, memory=memory)


@pytest.mark.parametrize("policy", [ANY, NO])
def test_a_type_for_all_says_nothing_about_a_disk_that_the_request_leaves_out(policy: DiskPolicy) -> None:
    choice = _choose(VDA, VDB, wanted={"vdb": "no"}, policies={"vdb": policy}, type=SnapshotType.INTERNAL)

    assert _kinds(choice) == {"vda": "internal", "vdb": "no: the request says 'no' for it"}


@pytest.mark.parametrize(
    ("disks", "wanted", "reason"),
    [
        ((), {}, "none of them can take part (it has none)"),
        ((CDROM,), {}, "none of them can take part (cd: it is a CD-ROM)"),
        (
            (VDA, CDROM),
            {"vda": "no"},
            "none of them can take part (vda: the request says 'no' for it; cd: it is a CD-ROM)",
        ),
    ],
)
def test_a_snapshot_of_nothing_is_refused_with_every_reason(
    disks: tuple[Disk, ...], wanted: Mapping[str, str], reason: str
) -> None:
    with pytest.raises(NotSupported) as refusal:
        _choose(*disks, wanted=wanted)

    assert refusal.value.sentence == f"A snapshot of the disks is not possible for domain web: {reason}."


def test_memory_alone_is_a_snapshot_of_a_guest_without_disks() -> None:
    assert _choose(CDROM, memory=True) == DiskChoice(left_out={"cd": "it is a CD-ROM"})


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"vdx": "external"}, "names vdx, and domain web has vda, vdb"),
        ({"vda": "both"}, "says 'both' for disk vda, and can say internal, external, no"),
        ({"vda": "any"}, "says 'any' for disk vda, and can say internal, external, no"),
        ({"vda": ""}, "says '' for disk vda, and can say internal, external, no"),
    ],
)
def test_a_request_for_a_disk_or_a_kind_that_there_is_not_is_refused(wanted: Mapping[str, str], reason: str) -> None:
    with pytest.raises(InvalidOption) as refusal:
        _choose(VDA, VDB, wanted=wanted)

    assert refusal.value.reason == reason


def test_a_domain_without_disks_says_so() -> None:
    with pytest.raises(InvalidOption, match="names vda, and domain web has no disk"):
        _choose(wanted={"vda": "external"})
