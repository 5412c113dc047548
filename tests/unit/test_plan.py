# SPDX-License-Identifier: MIT
"""Plans to create: what is refused before anything is touched, and what will be done otherwise.

Not here: plans to revert and to delete (``test_plan_revert.py``).
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from snapd.errors import ImageInUse, InvalidName, InvalidOption, NotSupported, Refused, SnapshotExists
from snapd.model.domain import DiskDefinition, DiskPolicy
from snapd.model.images import Image, Origin, Pin
from snapd.model.names import escape_for_file
from snapd.model.plan import CHAIN_LIMIT, CreateRequest, Live
from snapd.model.planner import foreign_file, plan_create
from snapd.model.snapshot import SaveMethod, SnapshotType
from tests.unit.planned_domain import (
    CDROM,
    DEFINITION,
    LONGEST_NODE_NAME,
    MACHINE,
    MEMORY_DIRECTORY,
    SIZE,
    TOKEN,
    VDA,
    VDB,
    Domain,
    make_disk,
)

LONGEST_FILE_NAME_BYTES = 255


# What is refused


@pytest.mark.parametrize(
    ("request_", "error", "culprit"),
    [
        (CreateRequest("a/b"), InvalidName, "'a/b' cannot be the name of a snapshot: it has a '/'"),
        (CreateRequest("7"), InvalidName, "'7' cannot be"),
        (CreateRequest("first"), SnapshotExists, "Domain web already has a snapshot 'first'"),
        (CreateRequest("new", type=SnapshotType.INTERNAL), NotSupported, "An internal snapshot is not possible for domain web"),
        (CreateRequest("new", memory=False), NotSupported, "A snapshot without memory is not possible for domain web"),
        (CreateRequest("new", disks={"vdx": "external"}), InvalidOption, "names vdx, and domain web has only vda, vdb"),
        (CreateRequest("new", disks={"vda": "both"}), InvalidOption, "says 'both' for disk vda"),
        (
            CreateRequest("new", disks={"vdb": "no"}),
            NotSupported,
            "domain web: the guest can write to disk vdb, which would have to be left out because the request says 'no'",
        ),
        (
            CreateRequest("new", disks={"vda": "internal"}),
            NotSupported,
            "disk vda, which would have to be left out because this version",
        ),
    ],
)
def test_a_request_is_refused(request_: CreateRequest, error: type[Refused], culprit: str) -> None:
    domain = Domain(VDA, VDB)
    domain.take("first")

    with pytest.raises(error) as refusal:
        domain.plan(request_)

    assert culprit in refusal.value.sentence


def test_memory_that_cannot_be_saved_is_refused_with_the_device() -> None:
    with pytest.raises(NotSupported, match="Saving memory is not possible for domain web: device hostdev0 blocks it"):
        Domain(VDA).plan(CreateRequest("new"), memory_blocker="device hostdev0 blocks it")


def test_a_writable_disk_that_cannot_take_part_is_refused_by_name() -> None:
    with pytest.raises(NotSupported, match=r"domain web: the guest can write to disk vdb, .* because its protocol is nbd"):
        Domain(VDA, replace(VDB, obstacle="its protocol is nbd")).plan(CreateRequest("new"))


@pytest.mark.parametrize("policy", [DiskPolicy.NO, DiskPolicy.INTERNAL])
def test_a_disk_that_its_definition_keeps_out_is_refused_by_name(policy: DiskPolicy) -> None:
    domain = Domain(VDA, VDB)
    definition = replace(DEFINITION, disks=(DiskDefinition("vdb", VDB.image, VDB.format, policy),))

    with pytest.raises(NotSupported, match=f"to disk vdb, .* because its definition says 'snapshot: {policy}'"):
        plan_create(definition, domain.record, domain.seen, CreateRequest("new"), MEMORY_DIRECTORY, TOKEN)


def test_a_disk_without_obstacle_is_included_whether_named_or_not() -> None:
    plan = Domain(VDA, VDB).plan(CreateRequest("new", disks={"vda": "external"}))

    assert [overlay.disk.target for overlay in plan.overlays] == ["vda", "vdb"]


@pytest.mark.parametrize("disks", [{}, {"cd": "no"}])
def test_a_read_only_disk_is_left_out(disks: Mapping[str, str]) -> None:
    plan = Domain(VDA, CDROM).plan(CreateRequest("new", disks=disks))

    assert [overlay.disk.target for overlay in plan.overlays] == ["vda"]


def test_a_read_only_disk_that_was_named_is_refused() -> None:
    with pytest.raises(NotSupported, match="disk cd is not possible for domain web: it is a CD-ROM"):
        Domain(VDA, CDROM).plan(CreateRequest("new", disks={"cd": "external"}))


def test_a_chain_grows_to_the_limit_and_not_beyond() -> None:
    domain = Domain(VDB, VDA)
    for number in range(CHAIN_LIMIT - 2):
        domain.take(f"s{number}")
    assert {len(disk.chain) for disk in domain.seen.disks} == {CHAIN_LIMIT, CHAIN_LIMIT - 1}

    with pytest.raises(NotSupported, match=f"disk vda has a chain of {CHAIN_LIMIT} images already"):
        domain.plan(CreateRequest("new"))


# What will be done


def test_an_overlay_is_made_for_each_disk_beside_what_it_covers() -> None:
    domain = Domain(VDA, VDB)

    plan = domain.plan(CreateRequest("before update", description="why"))

    assert (plan.name, plan.description) == ("before update", "why")
    assert [(each.image, each.backing_format) for each in plan.overlays] == [
        (Image("/images/web.before%20update.qcow2", "qcow2", "/images/web.qcow2", Origin.CREATED, SIZE), "qcow2"),
        (Image("/images/data.before%20update.qcow2", "qcow2", "/images/data.raw", Origin.CREATED, SIZE), "raw"),
    ]
    assert plan.memory_path == f"{MEMORY_DIRECTORY}/before%20update.vmstate.qcow2"
    assert plan.machine == MACHINE
    assert plan.largest_stream_bytes > MACHINE.memory_bytes + MACHINE.memory_bytes // 4096 * 16
    after = plan.graph(domain.record.graph)
    assert after.violations() == []
    assert after.active == {each.disk.target: each.image.path for each in plan.overlays}
    assert after.pins["before update"] == {"vda": Pin("/images/web.qcow2"), "vdb": Pin("/images/data.raw")}


def test_node_names_are_distinct_and_fit_qemu() -> None:
    many = [make_disk(f"vd{number}", f"/images/{number}.qcow2") for number in range(100)]

    nodes = [overlay.node for overlay in Domain(*many).plan(CreateRequest("s")).overlays]

    assert len(set(nodes)) == 100
    assert all(TOKEN in node and len(node) <= LONGEST_NODE_NAME for node in nodes)


def test_disks_of_the_same_stem_in_one_directory_are_numbered() -> None:
    domain = Domain(
        make_disk("vda", "/a/x.qcow2"),
        make_disk("vdb", "/a/x.raw"),
        make_disk("vdc", "/a/x.img"),
        make_disk("vdd", "/b/x.qcow2"),
    )

    paths = [overlay.image.path for overlay in domain.plan(CreateRequest("s")).overlays]

    assert paths == ["/a/x.s.qcow2", "/a/x.s.2.qcow2", "/a/x.s.3.qcow2", "/b/x.s.qcow2"]


def test_overlays_are_named_after_the_defined_image_however_deep() -> None:
    domain = Domain(VDA)
    domain.take("one")

    (overlay,) = domain.plan(CreateRequest("two")).overlays

    assert overlay.image.path == "/images/web.two.qcow2"
    assert overlay.image.backing == "/images/web.one.qcow2"


def test_a_path_that_another_image_of_the_domain_has_is_not_taken_again() -> None:
    domain = Domain(make_disk("vda", "/images/web.qcow2", "/images/web.s.qcow2"))

    (overlay,) = domain.plan(CreateRequest("s")).overlays

    assert overlay.image.path == "/images/web.s.2.qcow2"


@pytest.mark.parametrize("name", ["s" * 200, "é" * 100, "😀" * 50])
@pytest.mark.parametrize("stem", ["x" * 240, "é" * 120, "日" * 80])
def test_the_longest_names_fit_a_file_name(name: str, stem: str) -> None:
    plan = Domain(make_disk("vda", f"/images/{stem}.qcow2")).plan(CreateRequest(name))

    for path in (plan.overlays[0].image.path, plan.memory_path):
        assert len(path.rsplit("/", 1)[1].encode()) <= LONGEST_FILE_NAME_BYTES
        assert escape_for_file(name) in path


@pytest.mark.parametrize(
    ("live", "running", "blocker", "method", "reason"),
    [
        (Live.AUTO, True, "", SaveMethod.LIVE, ""),
        (Live.REQUIRE, True, "", SaveMethod.LIVE, ""),
        (Live.AUTO, True, "huge pages", SaveMethod.PAUSED, "huge pages"),
        (Live.NO, True, "", SaveMethod.PAUSED, "live: no was asked for"),
        (Live.AUTO, False, "huge pages", SaveMethod.PAUSED, "the domain is paused anyway"),
        (Live.REQUIRE, False, "", SaveMethod.PAUSED, "the domain is paused anyway"),
    ],
)
def test_the_method_and_why_it_is_not_live(live: Live, running: bool, blocker: str, method: SaveMethod, reason: str) -> None:
    plan = Domain(VDA).plan(CreateRequest("s", live=live), running=running, live_blocker=blocker)

    assert (plan.method, plan.method_reason, plan.running) == (method, reason, running)


def test_live_that_is_required_and_not_possible_is_refused_with_the_reason() -> None:
    with pytest.raises(NotSupported, match="A live snapshot is not possible for domain web: huge pages"):
        Domain(VDA).plan(CreateRequest("s", live=Live.REQUIRE), live_blocker="huge pages")


def test_a_foreign_file_in_the_way_is_named() -> None:
    refusal = foreign_file("/images/web.s.qcow2")

    assert isinstance(refusal, ImageInUse)
    assert refusal.sentence.startswith("/images/web.s.qcow2 exists already")
