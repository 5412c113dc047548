# SPDX-License-Identifier: MIT
"""Plans to revert: which way each disk goes back.

Not here: the guest (``test_plan_revert_guest.py``), what is refused (``test_plan_revert_refusals.py``), and what is kept of the
present (``test_plan_undo.py``).
"""

from dataclasses import replace

import pytest

from snapd.errors import NotSupported
from snapd.model.domain import DomainState
from snapd.model.images import DropTag, Pin, Unlink
from snapd.model.plan import Application, Opening, Overlay, RevertRequest
from snapd.model.snapshot import SnapshotType
from tests.unit.planned_domain import (
    LONGEST_NODE_NAME,
    MACHINE,
    MEMORY_DIRECTORY,
    SIZE,
    TOKEN,
    VDA,
    VDB,
    VDC,
    Domain,
    make_disk,
    overlay_of,
)

INTERNAL = SnapshotType.INTERNAL
BARE = RevertRequest("s", undo=False)
KEPT = f"domsnap-{TOKEN}"


# To a whole image


def test_a_whole_image_gets_a_new_overlay_and_the_old_one_goes() -> None:
    domain = Domain(VDA, VDB)
    domain.take("s")

    plan = domain.plan_revert(BARE)

    vda, vdb = domain.seen.disks
    web, data = overlay_of(VDA.image, "web.s.2.qcow2"), overlay_of(VDB.image, "data.s.2.qcow2")
    assert plan.overlays == (
        Overlay(vda, f"domsnap-{TOKEN}-0", web, "qcow2"),
        Overlay(vdb, f"domsnap-{TOKEN}-1", data, "raw"),
    )
    assert (plan.openings, plan.applications, plan.undo, plan.dropped, plan.notes) == ((), (), None, (), ())
    assert plan.backing_nodes == {"vda": f"#node:{VDA.image}", "vdb": f"#node:{VDB.image}"}
    assert plan.memory_path == f"{MEMORY_DIRECTORY}/s.vmstate.qcow2"
    assert plan.machine == MACHINE
    assert plan.after == (Unlink("/images/data.s.qcow2"), Unlink("/images/web.s.qcow2"))
    assert plan.graph(domain.graph).active == {"vda": web.path, "vdb": data.path}


def test_a_disk_is_as_large_again_as_it_was() -> None:
    domain = Domain(VDA)
    domain.take("s", memory=False)
    grown = replace(domain.seen.disks[0], virtual_size_bytes=2 * SIZE)

    plan = domain.plan_revert(RevertRequest("s"), disks=(grown,))

    assert plan.overlays[0].image.virtual_size_bytes == SIZE
    assert plan.undo is not None
    assert plan.undo.virtual_sizes == {"vda": 2 * SIZE}
    # What a snapshot's file did not say is taken from the image.
    domain.change("s", disks=())
    assert domain.plan_revert(BARE).overlays[0].image.virtual_size_bytes == SIZE


def test_images_of_another_branch_are_opened_from_the_bottom_up() -> None:
    domain = Domain(VDA)
    for name in ("root", "branch", "leaf"):
        domain.take(name)
    domain.revert("root", undo=False)
    branch, leaf = "/images/web.root.qcow2", "/images/web.branch.qcow2"
    assert set(domain.seen.open_images) == {"/images/web.root.2.qcow2", "/images/web.qcow2", "/base/os.raw"}

    plan = domain.plan_revert(RevertRequest("leaf", undo=False))

    lower, upper = f"domsnap-{TOKEN}-b0", f"domsnap-{TOKEN}-b1"
    assert plan.openings == (
        Opening(lower, domain.graph.images[branch], f"#node:{VDA.image}"),
        Opening(upper, domain.graph.images[leaf], lower),
    )
    assert plan.backing_nodes == {"vda": upper}
    assert plan.overlays[0].image.backing == leaf
    assert plan.overlays[0].node not in {lower, upper}
    assert plan.after == (Unlink("/images/web.root.2.qcow2"),)


def test_an_image_that_two_disks_stand_on_is_opened_once() -> None:
    domain = Domain(make_disk("vda", "/a.qcow2", "/base/os.raw"), make_disk("vdb", "/b.qcow2", "/base/os.raw"))
    domain.take("s")

    plan = domain.plan_revert(BARE, open_images={})

    base, first, second = plan.openings
    assert [each.image.path for each in plan.openings] == ["/base/os.raw", "/a.qcow2", "/b.qcow2"]
    assert (base.backing_node, first.backing_node, second.backing_node) == ("", base.node, base.node)
    assert plan.backing_nodes == {"vda": first.node, "vdb": second.node}
    assert len({*(each.node for each in plan.openings), *(each.node for each in plan.overlays)}) == 5
    assert all(len(each.node) <= LONGEST_NODE_NAME for each in plan.openings)


def test_overlays_of_the_same_stem_in_one_directory_are_numbered() -> None:
    domain = Domain(make_disk("vda", "/a/x.qcow2"), make_disk("vdb", "/a/x.raw"))
    domain.take("s")

    overlays = domain.plan_revert(BARE).overlays

    assert [each.image.path for each in overlays] == ["/a/x.s.3.qcow2", "/a/x.s.4.qcow2"]


# To an internal snapshot


def test_an_internal_snapshot_in_the_active_image_is_applied_over_what_is_kept() -> None:
    domain = Domain(VDA, VDC)
    domain.take("s", INTERNAL)

    plan = domain.plan_revert(BARE)

    vda, vdc = domain.seen.disks
    images = domain.graph.images
    assert plan.applications == (
        Application(vda, f"domsnap-{TOKEN}-0", images[VDA.image], "s", KEPT, SIZE),
        Application(vdc, f"domsnap-{TOKEN}-1", images[VDC.image], "s", KEPT, SIZE),
    )
    assert all(each.is_active for each in plan.applications)
    assert (plan.overlays, plan.openings, plan.backing_nodes) == ((), (), {})
    # Kept only in case of a failure.
    assert plan.after == (DropTag(VDC.image, KEPT), DropTag(VDA.image, KEPT))
    assert plan.graph(domain.graph).pins == domain.graph.pins


@pytest.mark.parametrize("undo", [True, False])
def test_what_is_kept_is_called_as_no_other_internal_snapshot_of_the_image(undo: bool) -> None:
    domain = Domain(replace(VDA, tags=(KEPT, "undo-2026-01-31T12-00-00")))
    domain.take("s", INTERNAL)

    (application,) = domain.plan_revert(replace(BARE, undo=undo)).applications

    assert application.keep == ("undo-2026-01-31T12-00-00~2" if undo else f"{KEPT}~2")


def test_one_that_somebody_else_has_deleted_is_refused_by_name() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)
    domain.seen = replace(domain.seen, disks=tuple(replace(disk, tags=()) for disk in domain.seen.disks))

    with pytest.raises(NotSupported, match=r"internal snapshot 's' is not in .*web\.qcow2 any more"):
        domain.plan_revert(BARE)


def test_an_internal_snapshot_in_an_image_that_the_disk_has_left_is_applied_there() -> None:
    domain = Domain(VDA)
    domain.take("root")
    domain.take("s", INTERNAL)
    left = "/images/web.root.qcow2"
    domain.revert("root", undo=False)
    assert not domain.graph.is_frozen(left)

    plan = domain.plan_revert(BARE)

    (application,) = plan.applications
    assert application == Application(domain.seen.disks[0], f"domsnap-{TOKEN}-0", domain.graph.images[left], "s", "", SIZE)
    assert not application.is_active
    assert plan.graph(domain.graph).active == {"vda": left}
    assert plan.after == (Unlink("/images/web.root.2.qcow2"),)


@pytest.mark.parametrize("frozen_by", ["an overlay", "a pin"])
def test_an_internal_snapshot_in_a_frozen_image_is_copied_out_beside_it(frozen_by: str) -> None:
    domain = Domain(VDA)
    domain.take("root")
    domain.take("s", INTERNAL)
    held = "/images/web.root.qcow2"
    if frozen_by == "an overlay":
        domain.take("above")
    else:
        domain.revert("root", undo=True)
        assert domain.graph.dependents(held) == []

    plan = domain.plan_revert(BARE)

    # What is like the image below need not be copied.
    (overlay,) = plan.overlays
    assert overlay.image == overlay_of(VDA.image, overlay.image.path)
    assert overlay.image.path not in domain.graph.images
    assert (overlay.backing_format, overlay.copy_of) == ("qcow2", Pin(held, "s"))
    assert plan.backing_nodes == {"vda": f"#node:{VDA.image}"}
    assert plan.applications == ()
    assert plan.graph(domain.graph).images[held] == domain.graph.images[held]


def test_one_in_the_defined_image_is_copied_onto_that_so_that_it_can_be_merged_home() -> None:
    domain = Domain(VDA)
    domain.take("s", INTERNAL)
    domain.take("above")

    plan = domain.plan_revert(BARE)

    (overlay,) = plan.overlays
    assert overlay.image == overlay_of(VDA.image, "web.s.qcow2")
    assert overlay.copy_of == Pin(VDA.image, "s")
    domain.revert("s", undo=False)
    domain.delete("above")
    domain.looks(DomainState.SHUTOFF)
    domain.delete("s")
    assert domain.graph.active == {"vda": VDA.image}
    assert domain.graph.images[VDA.image].doomed == ()


def test_each_disk_goes_its_own_way_and_every_node_has_its_own_name() -> None:
    domain = Domain(VDA, VDB, VDC)
    domain.take("external")
    domain.take("s", INTERNAL)
    domain.take("above")
    mixed = {"vda": Pin(VDA.image), "vdb": domain.graph.pins["s"]["vdb"], "vdc": Pin("/images/log.above.qcow2", "s")}
    domain.record = replace(domain.record, graph=domain.graph.pin("s", mixed))
    domain.seen = replace(domain.seen, disks=tuple(replace(disk, tags=("s",)) for disk in domain.seen.disks))

    plan = domain.plan_revert(BARE)

    assert [(each.disk.target, each.copy_of) for each in plan.overlays] == [("vda", None), ("vdb", mixed["vdb"])]
    assert [each.disk.target for each in plan.applications] == ["vdc"]
    assert len({*(each.node for each in plan.overlays), *(each.node for each in plan.applications)}) == 3
