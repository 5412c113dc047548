# SPDX-License-Identifier: MIT
"""Plans to create: the overlays and the internal snapshots that are made, and how they are called.

Not here: which disks take part (``test_disk_choice.py``), and memory, file systems and refusals (``test_plan.py``).
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from snapd.errors import ImageInUse
from snapd.model.images import Pin
from snapd.model.names import escape_for_file
from snapd.model.plan import CreateRequest, Overlay, Parking, Tag
from snapd.model.planner import foreign_file, tag_name
from snapd.model.snapshot import SnapshotType
from tests.unit.planned_domain import (
    CDROM,
    LONGEST_NODE_NAME,
    TOKEN,
    VDA,
    VDB,
    VDC,
    Domain,
    make_disk,
    overlay_of,
)

EXTERNAL, INTERNAL = SnapshotType.EXTERNAL, SnapshotType.INTERNAL
LONGEST_FILE_NAME_BYTES = 255


# External ones


def test_an_overlay_is_made_for_each_disk_beside_what_it_covers() -> None:
    domain = Domain(VDA, VDB)

    plan = domain.plan(CreateRequest("before update", description="why"), follows_active=True)

    assert (plan.name, plan.description, plan.follows_active) == ("before update", "why", True)
    node = f"domsnap-{TOKEN}"
    web = overlay_of("/images/web.qcow2", "web.before%20update.qcow2")
    data = overlay_of("/images/data.raw", "data.before%20update.qcow2")
    assert plan.overlays == (Overlay(VDA, f"{node}-0", web, "qcow2"), Overlay(VDB, f"{node}-1", data, "raw"))
    assert plan.tags == ()
    after = plan.graph(domain.graph)
    assert after.violations() == []
    assert after.active == {"vda": web.path, "vdb": data.path}
    assert after.pins["before update"] == {"vda": Pin("/images/web.qcow2"), "vdb": Pin("/images/data.raw")}


def test_node_names_are_distinct_and_fit_qemu() -> None:
    many = [make_disk(f"vd{number}", f"/images/{number}.qcow2") for number in range(100)]

    overlays = Domain(*many).plan(CreateRequest("s", type=EXTERNAL)).overlays

    names = [name for overlay in overlays for name in (overlay.node, overlay.held)]
    assert len(set(names)) == 200
    assert all(TOKEN in name and len(name) <= LONGEST_NODE_NAME for name in names)


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

    (overlay,) = domain.plan(CreateRequest("s", type=EXTERNAL)).overlays

    assert overlay.image.path == "/images/web.s.2.qcow2"


@pytest.mark.parametrize("name", ["s" * 200, "é" * 100, "😀" * 50])
@pytest.mark.parametrize("stem", ["x" * 240, "é" * 120, "日" * 80])
def test_the_longest_names_fit_a_file_name(name: str, stem: str) -> None:
    plan = Domain(make_disk("vda", f"/images/{stem}.qcow2")).plan(CreateRequest(name, type=EXTERNAL))

    assert plan.memory is not None
    for path in (plan.overlays[0].image.path, plan.memory.path):
        assert len(path.rsplit("/", 1)[1].encode()) <= LONGEST_FILE_NAME_BYTES
        assert escape_for_file(name) in path


def test_a_foreign_file_in_the_way_is_named() -> None:
    refusal = foreign_file("/images/web.s.qcow2")

    assert isinstance(refusal, ImageInUse)
    assert refusal.sentence.startswith("/images/web.s.qcow2 exists already")


# Internal ones, and both


def test_an_internal_snapshot_is_made_in_the_active_image() -> None:
    domain = Domain(VDA, VDC)

    plan = domain.plan(CreateRequest("s"))

    assert plan.overlays == ()
    assert plan.tags == (Tag(VDA, "s"), Tag(VDC, "s"))
    after = plan.graph(domain.graph)
    assert after.active == domain.graph.active
    assert after.pins["s"] == {"vda": Pin(VDA.image, "s"), "vdc": Pin(VDC.image, "s")}


def test_one_snapshot_may_have_disks_of_both_kinds_and_without_any() -> None:
    domain = Domain(VDA, VDB, VDC, CDROM)
    parts: Mapping[str, str] = {"vda": "internal", "vdb": "external", "vdc": "no"}

    plan = domain.plan(CreateRequest("s", memory=False, disks=parts))

    assert [(tag.disk.target, tag.name) for tag in plan.tags] == [("vda", "s")]
    assert [overlay.disk.target for overlay in plan.overlays] == ["vdb"]
    assert plan.left_out == {"vdc": "the request says 'no' for it", "cd": "it is a CD-ROM"}
    assert plan.graph(domain.graph).pins["s"] == {"vda": Pin(VDA.image, "s"), "vdb": Pin(VDB.image)}


@pytest.mark.parametrize(
    ("tags", "doomed", "name"),
    [
        ((), (), "s"),
        (("t", "s2"), (), "s"),
        (("s",), (), "s~2"),
        ((), ("s",), "s~2"),
        (("s", "s~3"), ("s~2",), "s~4"),
    ],
)
def test_an_internal_snapshot_has_a_name_that_no_other_in_its_image_has(
    tags: tuple[str, ...], doomed: tuple[str, ...], name: str
) -> None:
    domain = Domain(replace(VDA, tags=tags), VDC)
    graph = domain.graph
    for tag in doomed:
        graph = graph.doom(VDA.image, tag)
    domain.record = replace(domain.record, graph=graph)

    plan = domain.plan(CreateRequest("s"))

    assert [(tag.disk.target, tag.name) for tag in plan.tags] == [("vda", name), ("vdc", "s")]
    assert plan.graph(graph).pins["s"] == {"vda": Pin(VDA.image, name), "vdc": Pin(VDC.image, "s")}


def test_the_name_of_a_tag_in_an_image_that_is_not_known_yet_is_plain() -> None:
    assert tag_name(Domain(VDA).graph, VDC, "s") == "s"


# Images that were opened through links


def test_an_image_that_was_opened_through_a_link_is_opened_by_its_own_name_before_it_is_covered() -> None:
    domain = Domain(replace(VDA, link="/state/disks/vda.qcow2"), VDB)

    plan = domain.plan(CreateRequest("s", type=EXTERNAL))

    node = f"domsnap-{TOKEN}-r0"
    own = replace(domain.seen.disks[0], node=node, link="")
    assert plan.linked == (Parking(domain.seen.disks[0], node, domain.graph.images[VDA.image]),)
    assert [overlay.disk for overlay in plan.overlays] == [own, VDB]
    assert len({node, *(overlay.node for overlay in plan.overlays)}) == 3
    assert domain.plan(CreateRequest("s", disks={"vda": "internal"})).linked == ()
