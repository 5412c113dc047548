# SPDX-License-Identifier: MIT
"""A domain's record: what it learns of disks it sees for the first time, and how it notices that a domain has drifted."""

from dataclasses import replace

import pytest

from snapd.model.domain import Disk, DiskDefinition, DomainDefinition, DomainState
from snapd.model.images import Image, Origin, Pin
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.model.tree import SnapshotTree

FORMATS = {"/images/web.qcow2": "qcow2", "/base/os.qcow2": "qcow2", "/base/os.raw": "raw", "/images/data.raw": "raw"}
VDA = Disk(
    target="vda",
    device="/machine/peripheral/disk0",
    node="#block1",
    image="/images/web.qcow2",
    format="qcow2",
    chain=("/images/web.qcow2", "/base/os.qcow2", "/base/os.raw"),
    virtual_size_bytes=10 << 30,
    writable=True,
)
VDB = replace(VDA, target="vdb", node="#block2", image="/images/data.raw", format="raw", chain=("/images/data.raw",))
DEFINITION = DomainDefinition("web", "/run/web.qmp", disks=(DiskDefinition("vda", "/images/web.qcow2", "qcow2"),))


KEPT = Snapshot("kept", 1, SnapshotType.EXTERNAL, DomainState.RUNNING, disks=())


@pytest.fixture
def record() -> DomainRecord:
    """A record that has a snapshot to protect."""
    return replace(
        DomainRecord("web", "1b4e28ba").learn([VDA, VDB], FORMATS, follows_active=False), tree=SnapshotTree().add(KEPT)
    )


def _with_overlay(record: DomainRecord) -> tuple[DomainRecord, Disk]:
    """Cover vda and pin what was covered; return the record, and the disk as QEMU shows it then."""
    overlay = Image("/images/web.s1.qcow2", "qcow2", VDA.image, Origin.CREATED, VDA.virtual_size_bytes)
    graph = record.graph.cover("vda", overlay).pin("s1", {"vda": Pin(VDA.image)})
    return replace(record, graph=graph), replace(VDA, image=overlay.path, chain=(overlay.path, *VDA.chain))


# learn


def test_the_image_a_disk_runs_on_is_the_defined_one_and_those_below_are_foreign(record: DomainRecord) -> None:
    assert record.graph.active == {"vda": "/images/web.qcow2", "vdb": "/images/data.raw"}
    assert record.graph.chain("/images/web.qcow2") == [
        Image("/images/web.qcow2", "qcow2", "/base/os.qcow2", Origin.DEFINED, 10 << 30),
        Image("/base/os.qcow2", "qcow2", "/base/os.raw", Origin.FOREIGN),
        Image("/base/os.raw", "raw", None, Origin.FOREIGN),
    ]
    assert record.graph.chain("/images/data.raw") == [Image("/images/data.raw", "raw", None, Origin.DEFINED, 10 << 30)]
    assert record.graph.violations() == []


def test_a_disk_that_is_known_is_not_learned_again(record: DomainRecord) -> None:
    covered, disk = _with_overlay(record)

    assert covered.learn([disk, VDB], {}, follows_active=False) == covered


@pytest.mark.parametrize("follows_active", [True, False])
def test_whether_qemu_follows_is_what_was_learned_last(record: DomainRecord, follows_active: bool) -> None:
    before = replace(record, follows_active=not follows_active)

    assert before.learn([VDA, VDB], FORMATS, follows_active=follows_active) == replace(record, follows_active=follows_active)


def test_a_disk_that_cannot_take_part_is_not_learned() -> None:
    read_only = replace(VDA, obstacle="it is read-only")

    assert DomainRecord("web", "").learn([read_only], {}, follows_active=False).graph.active == {}


def test_disks_may_share_a_foreign_image(record: DomainRecord) -> None:
    third = replace(VDA, target="vdc", image="/images/c.qcow2", chain=("/images/c.qcow2", "/base/os.qcow2", "/base/os.raw"))

    graph = record.learn([third], {**FORMATS, "/images/c.qcow2": "qcow2"}, follows_active=False).graph

    assert graph.dependents("/base/os.qcow2") == ["/images/c.qcow2", "/images/web.qcow2"]
    assert graph.violations() == []


def test_what_is_known_of_an_image_stays_when_a_later_disk_shares_it(record: DomainRecord) -> None:
    third = replace(VDA, target="vdc", image="/images/c.qcow2", chain=("/images/c.qcow2", "/base/os.qcow2", "/base/os.raw"))
    known = record.graph.images

    formats = {**dict.fromkeys(FORMATS, "wrong"), "/images/c.qcow2": "qcow2"}
    graph = record.learn([third], formats, follows_active=False).graph

    assert {path: image for path, image in graph.images.items() if path in known} == known


def test_without_a_snapshot_other_images_are_no_drift_and_are_learned_instead(record: DomainRecord) -> None:
    free = replace(record, tree=SnapshotTree())
    moved = replace(VDB, image="/elsewhere/data.raw", chain=("/elsewhere/data.raw",))

    assert record.drift(DEFINITION, [VDA, moved])
    assert free.drift(DEFINITION, [VDA, moved]) == ""
    learned = free.learn([VDA, moved], {**FORMATS, "/elsewhere/data.raw": "raw"}, follows_active=False)
    assert learned.graph.active["vdb"] == "/elsewhere/data.raw"


def test_a_layer_of_ours_that_could_not_be_merged_is_protected_without_a_snapshot(record: DomainRecord) -> None:
    covered, _ = _with_overlay(record)
    layered = replace(covered, graph=covered.graph.unpin("s1"), tree=SnapshotTree())

    assert "disk vda should be /images/web.s1.qcow2" in layered.drift(DEFINITION, [VDA, VDB])


def test_the_defined_image_and_the_stem_come_from_below_what_covers_it(record: DomainRecord) -> None:
    covered, _ = _with_overlay(record)

    assert covered.defined_image("vda") == "/images/web.qcow2"
    assert covered.stem("vda") == "web"


@pytest.mark.parametrize("name", ["x" * 200, "é" * 100, "x" + "😀" * 60, "\udc80" + "x" * 60], ids=["plain", "2", "4", "bad"])
def test_a_stem_is_at_most_50_bytes(name: str) -> None:
    path = f"/images/{name}.qcow2"
    disk = replace(VDA, image=path, chain=(path,))
    learned = DomainRecord("web", "").learn([disk], {path: "qcow2"}, follows_active=False)

    stem = learned.stem("vda")

    assert 40 < len(stem.encode()) <= 50
    assert name.replace("\udc80", "").startswith(stem)


# drift


def test_nothing_has_drifted_where_qemu_has_open_what_is_expected(record: DomainRecord) -> None:
    covered, disk = _with_overlay(record)

    assert record.drift(DEFINITION, [VDA, VDB]) == ""
    assert covered.drift(DEFINITION, [disk, VDB]) == ""
    assert DomainRecord("web", "").drift(DEFINITION, [VDA]) == ""


def test_a_frozen_image_opened_is_drift_and_the_sentence_says_which_was_expected(record: DomainRecord) -> None:
    covered, _ = _with_overlay(record)

    reason = covered.drift(DEFINITION, [VDA, VDB])

    assert "disk vda should be /images/web.s1.qcow2 and QEMU has opened /images/web.qcow2" in reason
    assert "disks.env" in reason


def test_a_disk_without_medium_is_drift(record: DomainRecord) -> None:
    reason = record.drift(DEFINITION, [replace(VDA, image="", format="", chain=()), VDB])

    assert "disk vda should be /images/web.qcow2 and QEMU has opened nothing" in reason


def test_an_image_opened_with_another_format_is_drift(record: DomainRecord) -> None:
    reason = record.drift(DEFINITION, [VDA, replace(VDB, format="qcow2")])

    assert "disk vdb should be /images/data.raw (raw) and QEMU has opened it as qcow2" in reason


def test_another_chain_below_the_right_image_is_drift(record: DomainRecord) -> None:
    reason = record.drift(DEFINITION, [replace(VDA, chain=VDA.chain[:2]), VDB])

    assert reason == "disk vda should back on /base/os.qcow2 on /base/os.raw and backs on /base/os.qcow2"


def test_a_chain_where_none_is_expected_is_drift(record: DomainRecord) -> None:
    reason = record.drift(DEFINITION, [VDA, replace(VDB, chain=("/images/data.raw", "/x"))])

    assert reason == "disk vdb should back on nothing and backs on /x"


def test_a_chain_that_ends_early_is_drift(record: DomainRecord) -> None:
    reason = record.drift(DEFINITION, [replace(VDA, chain=VDA.chain[:1]), VDB])

    assert reason == "disk vda should back on /base/os.qcow2 on /base/os.raw and backs on nothing"


def test_a_disk_that_was_unplugged_is_no_drift(record: DomainRecord) -> None:
    covered, _ = _with_overlay(record)
    nothing_defined = replace(DEFINITION, disks=())

    assert record.drift(nothing_defined, [VDB]) == ""
    assert covered.drift(nothing_defined, [VDB]) == ""


def test_a_disk_that_only_the_definition_has_is_drift(record: DomainRecord) -> None:
    reason = DomainRecord("web", "").drift(DEFINITION, [VDB])

    assert reason == "its definition has a disk vda and QEMU has none of that name"


@pytest.mark.parametrize(
    ("disk", "opened"),
    [
        (replace(VDA, image="/images/other.qcow2"), "/images/other.qcow2 (qcow2)"),
        (replace(VDA, format="raw"), "/images/web.qcow2 (raw)"),
        (replace(VDA, image="", format=""), "nothing (no format)"),
    ],
)
def test_a_new_disk_that_is_not_as_defined_is_drift(disk: Disk, opened: str) -> None:
    reason = DomainRecord("web", "").drift(DEFINITION, [disk])

    assert f"disk vda is defined as /images/web.qcow2 (qcow2) and QEMU has opened {opened}" in reason
