# SPDX-License-Identifier: MIT
"""The files of the state: what exactly is written, what libxl alone wrote, what is kept, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from snapd.errors import StateDamaged
from snapd.model.domain import DomainState, Machine
from snapd.model.images import Image, ImageGraph, Origin, Pin
from snapd.model.record import DomainRecord, PendingRevert
from snapd.model.snapshot import MemoryState, RevertState, SaveMethod, Snapshot, SnapshotDisk, SnapshotType
from snapd.model.tree import SnapshotTree
from snapd.state.domain_document import document_of, read_domain, write_domain
from snapd.state.libxl_json import dumps
from snapd.state.snapshot_document import SnapshotDocument, read_snapshot, write_snapshot

OTHER_FLAGS = ("blocked", "paused", "shutdown", "dying")
VECTORS = Path(__file__).parents[1] / "data" / "libxl-json"
UUID = "5c84adcc-bd59-788a-96d2-195f9b599cfe"

SNAPSHOT = Snapshot(
    name="before",
    created_usec=1_404_984_000_123_456,
    type=SnapshotType.EXTERNAL,
    state=DomainState.RUNNING,
    disks=(SnapshotDisk("vda", "/images/a.before.qcow2", "qcow2", 1 << 30),),
    machine=Machine("pc-q35-7.2", 2 << 30, 4, ("virtio-blk-pci@04.0", "VGA@01.0")),
    memory=MemoryState("/state/before.vmstate.qcow2", 12345, SaveMethod.PAUSED, "memory is backed by huge pages"),
    description="Before the upgrade",
    pause_usec=4200,
    parent="root",
)
PINS = {"vda": Pin("/images/a.raw"), "vdb": Pin("/images/b.qcow2", "tag")}

SNAPSHOT_TEXT = """{
    "name": "before",
    "description": "Before the upgrade",
    "creation_time": 1404984000,
    "memory": "/state/before.vmstate.qcow2",
    "type": "external",
    "running": true,
    "disks": [
        {
            "device": "vda",
            "name": "before",
            "file": "/images/a.before.qcow2",
            "format": "qcow2",
            "path": "",
            "type": "external"
        }
    ],
    "domsnap": {
        "version": 1,
        "created_usec": 1404984000123456,
        "parent": "root",
        "pause_usec": 4200,
        "consistency": "full",
        "machine": {
            "type": "pc-q35-7.2",
            "memory_bytes": 2147483648,
            "cpus": 4,
            "devices": [
                "virtio-blk-pci@04.0",
                "VGA@01.0"
            ]
        },
        "memory": {
            "size_bytes": 12345,
            "method": "paused",
            "method_reason": "memory is backed by huge pages"
        },
        "pins": {
            "vda": {
                "image": "/images/a.raw"
            },
            "vdb": {
                "image": "/images/b.qcow2",
                "tag": "tag"
            }
        },
        "virtual_sizes": {
            "vda": 1073741824
        }
    }
}
"""

UNDO = Snapshot(
    name="undo-1",
    created_usec=1_404_984_000_000_000,
    type=SnapshotType.ANY,
    state=DomainState.PAUSED,
    disks=(SnapshotDisk("vda", "", "", 1 << 30), SnapshotDisk("vdb", "/images/b.undo-1.qcow2", "qcow2", 1 << 20)),
    consistency="crash-consistent",
    left_out={"cd": "it is a CD-ROM", "vdc": "the request says 'no' for it"},
    undo=True,
    protected=True,
)
UNDO_PINS = {"vda": Pin("/images/a.qcow2", "undo-1"), "vdb": Pin("/images/b.raw")}

UNDO_TEXT = """{
    "name": "undo-1",
    "description": "",
    "creation_time": 1404984000,
    "memory": "",
    "paused": true,
    "disks": [
        {
            "device": "vda",
            "name": "undo-1",
            "file": "",
            "path": "",
            "type": "internal"
        },
        {
            "device": "vdb",
            "name": "undo-1",
            "file": "/images/b.undo-1.qcow2",
            "format": "qcow2",
            "path": "",
            "type": "external"
        }
    ],
    "domsnap": {
        "version": 1,
        "created_usec": 1404984000000000,
        "consistency": "crash-consistent",
        "pins": {
            "vda": {
                "image": "/images/a.qcow2",
                "tag": "undo-1"
            },
            "vdb": {
                "image": "/images/b.raw"
            }
        },
        "virtual_sizes": {
            "vda": 1073741824,
            "vdb": 1048576
        },
        "left_out": {
            "cd": "it is a CD-ROM",
            "vdc": "the request says 'no' for it"
        },
        "undo": true,
        "protected": true
    }
}
"""

RECORD = DomainRecord(
    "web",
    UUID,
    ImageGraph(
        images={
            "/images/a.raw": Image("/images/a.raw", "raw", None, Origin.DEFINED, 1 << 30),
            "/images/a.s.qcow2": Image("/images/a.s.qcow2", "qcow2", "/images/a.raw", Origin.CREATED, 1 << 30),
        },
        active={"vda": "/images/a.s.qcow2"},
        pins={"s": {"vda": Pin("/images/a.raw")}},
    ),
    SnapshotTree({"s": replace(SNAPSHOT, name="s", parent="")}, "s"),
)

DOMAIN_TEXT = """{
    "c_info": {
        "name": "web",
        "uuid": "5c84adcc-bd59-788a-96d2-195f9b599cfe"
    },
    "disks": [
        {
            "pdev_path": "/images/a.s.qcow2",
            "vdev": "vda",
            "format": "qcow2"
        }
    ],
    "domsnap": {
        "version": 1,
        "current": "s",
        "images": [
            {
                "path": "/images/a.raw",
                "format": "raw",
                "origin": "defined",
                "virtual_size": 1073741824
            },
            {
                "path": "/images/a.s.qcow2",
                "format": "qcow2",
                "origin": "created",
                "backing": "/images/a.raw",
                "virtual_size": 1073741824
            }
        ],
        "active": {
            "vda": "/images/a.s.qcow2"
        },
        "snapshots": [
            {
                "name": "s",
                "pins": {
                    "vda": {
                        "image": "/images/a.raw"
                    }
                }
            }
        ]
    }
}
"""


FULL_RECORD = replace(
    RECORD,
    graph=replace(
        RECORD.graph.with_images(replace(RECORD.graph.images["/images/a.s.qcow2"], doomed=("old", "older"))),
        pins={"s": {"vda": Pin("/images/a.raw")}, "t": {"vda": Pin("/images/a.s.qcow2", "t")}, "u": {}},
    ),
    tree=SnapshotTree(
        {
            "s": replace(SNAPSHOT, name="s", parent=""),
            "t": replace(UNDO, name="t", parent="s"),
            "u": replace(UNDO, name="u", parent="s"),
        },
        "t",
    ),
    pending=PendingRevert("s", RevertState.AS_TAKEN),
    follows_active=True,
)

FULL_DOMAIN_EXTENSION_TEXT = """    "domsnap": {
        "version": 1,
        "current": "t",
        "pending": {
            "name": "s",
            "state": "as-taken"
        },
        "follows_active": true,
        "images": [
            {
                "path": "/images/a.raw",
                "format": "raw",
                "origin": "defined",
                "virtual_size": 1073741824
            },
            {
                "path": "/images/a.s.qcow2",
                "format": "qcow2",
                "origin": "created",
                "backing": "/images/a.raw",
                "virtual_size": 1073741824,
                "doomed": [
                    "old",
                    "older"
                ]
            }
        ],
        "active": {
            "vda": "/images/a.s.qcow2"
        },
        "snapshots": [
            {
                "name": "s",
                "pins": {
                    "vda": {
                        "image": "/images/a.raw"
                    }
                }
            },
            {
                "name": "t",
                "parent": "s",
                "pins": {
                    "vda": {
                        "image": "/images/a.s.qcow2",
                        "tag": "t"
                    }
                }
            },
            {
                "name": "u",
                "parent": "s",
                "pins": {

                }
            }
        ]
    }
}
"""


def changed(text: str, **changes: Any) -> bytes:
    """Return ``text`` with keys under our own key replaced."""
    value = json.loads(text)
    value["domsnap"] |= changes
    return dumps(value)


# A snapshot


@pytest.mark.parametrize(
    ("document", "text"),
    [(SnapshotDocument(SNAPSHOT, PINS), SNAPSHOT_TEXT), (SnapshotDocument(UNDO, UNDO_PINS), UNDO_TEXT)],
    ids=["full", "undo point without memory, of both kinds"],
)
def test_a_snapshot_is_written_as_documented_and_comes_back(document: SnapshotDocument, text: str) -> None:
    assert write_snapshot(document, "f").decode() == text
    assert read_snapshot(text.encode(), "f") == document


@pytest.mark.parametrize("vector", sorted(VECTORS.glob("*.libxl-json")), ids=lambda path: path.name)
def test_what_libxl_alone_wrote_is_read(vector: Path) -> None:
    data = vector.read_bytes()
    if ".escapes." in vector.name:
        with pytest.raises(StateDamaged, match="is not UTF-8"):
            read_snapshot(data, "f")
        return
    read = read_snapshot(data, "f")
    again = read_snapshot(write_snapshot(read, "f"), "f")
    assert again == read
    assert read.pins == {}
    assert read.snapshot.foreign.keys() <= {"disks", "blocked", "paused", "shutdown", "dying"}


def test_a_file_of_libxl_has_sensible_initial_values() -> None:
    snapshot = read_snapshot((VECTORS / "yajl45to420.full.libxl-json").read_bytes(), "f").snapshot
    assert snapshot.created_usec == 1_404_984_000_000_000
    assert snapshot.type is SnapshotType.INTERNAL
    assert snapshot.machine is None
    assert snapshot.memory is not None
    assert (snapshot.memory.method, snapshot.memory.size_bytes) == (SaveMethod.PAUSED, 0)
    assert [(disk.target, bool(disk.overlay), disk.overlay_format) for disk in snapshot.disks] == [
        ("hda", False, "qcow2"),
        ("hdc", True, "qcow2"),
    ]
    assert read_snapshot(b"{}", "f").snapshot == Snapshot(
        "", created_usec=0, type=SnapshotType.ANY, state=DomainState.SHUTOFF, disks=(), consistency="crash-consistent"
    )


def test_what_is_not_known_is_kept_in_its_place() -> None:
    value = json.loads(SNAPSHOT_TEXT)
    value |= {"ssid": [1, {"deep": None}], "shutdown": True}
    value["disks"][0] |= {"discard": True, "path": "/other", "name": "tag"}
    value["domsnap"] |= {"labels": {"a": "b"}}
    read = read_snapshot(dumps(value), "f")
    assert read.snapshot.foreign == {
        "ssid": [1, {"deep": None}],
        "shutdown": True,
        "disks": {"vda": {"name": "tag", "path": "/other", "discard": True}},
        "domsnap": {"labels": {"a": "b"}},
    }
    written = json.loads(write_snapshot(replace(read, snapshot=replace(read.snapshot, description="new")), "f"))
    assert written == value | {"description": "new"}


def test_an_edited_time_counts() -> None:
    text = SNAPSHOT_TEXT.replace('"creation_time": 1404984000', '"creation_time": 1500000000')
    assert read_snapshot(text.encode(), "f").snapshot.created_usec == 1_500_000_000_000_000


@pytest.mark.parametrize(
    ("state", "memory", "flags"),
    [
        (DomainState.RUNNING, SNAPSHOT.memory, {"running": True}),
        (DomainState.PAUSED, SNAPSHOT.memory, {"paused": True}),
        (DomainState.RUNNING, None, {"running": True}),
        (DomainState.PAUSED, None, {"paused": True}),
        (DomainState.SHUTOFF, None, {}),
    ],
)
def test_the_flags_follow_the_guest(state: DomainState, memory: MemoryState | None, flags: dict[str, bool]) -> None:
    document = SnapshotDocument(replace(SNAPSHOT, state=state, memory=memory), {})
    data = write_snapshot(document, "f")
    assert read_snapshot(data, "f") == document
    written = json.loads(data)
    assert {key: written[key] for key in ("running", *OTHER_FLAGS) if key in written} == flags


@pytest.mark.parametrize(
    ("flags", "memory", "state", "kept"),
    [
        ({"running": True, "paused": True}, "/m", DomainState.RUNNING, {"paused": True}),
        ({"running": True, "blocked": True}, "", DomainState.RUNNING, {"blocked": True}),
        ({"paused": True, "dying": True}, "", DomainState.PAUSED, {"dying": True}),
        ({}, "/m", DomainState.PAUSED, {"paused": False}),
        ({"shutdown": True}, "/m", DomainState.PAUSED, {"paused": False, "shutdown": True}),
        ({"shutdown": True}, "", DomainState.SHUTOFF, {"shutdown": True}),
        ({}, "", DomainState.SHUTOFF, {}),
    ],
)
def test_the_flags_that_another_has_written_are_read_and_kept(
    flags: dict[str, bool], memory: str, state: DomainState, kept: dict[str, bool]
) -> None:
    read = read_snapshot(dumps({"name": "s", **flags, "memory": memory}), "f")
    assert (read.snapshot.state, read.snapshot.foreign) == (state, kept)
    written = json.loads(write_snapshot(read, "f"))
    assert {key: written[key] for key in ("running", *OTHER_FLAGS) if key in written} == flags


@pytest.mark.parametrize(
    ("running", "flag"), [(True, "running"), (False, "paused")], ids=["of a running guest", "of a paused guest"]
)
def test_a_file_of_the_first_version_is_read(running: bool, flag: str) -> None:
    # It wrote initial values too, and had no disk-only snapshots.
    text = SNAPSHOT_TEXT.replace('"running": true', f'"{flag}": true').replace('"parent": "root"', '"parent": ""')
    read = read_snapshot(text.encode(), "f").snapshot
    state = DomainState.RUNNING if running else DomainState.PAUSED
    assert read == replace(SNAPSHOT, state=state, parent="")
    assert (read.left_out, read.undo, read.protected) == ({}, False, False)


def test_a_mapping_that_cannot_be_changed_is_written_too() -> None:
    document = SnapshotDocument(replace(UNDO, left_out=MappingProxyType(UNDO.left_out)), MappingProxyType(UNDO_PINS))
    assert write_snapshot(document, "f").decode() == UNDO_TEXT


def test_a_format_that_libxl_has_no_word_for_comes_back() -> None:
    disks = (SnapshotDisk("vda", "/a", "vmdk", 1), SnapshotDisk("vdb", "", "", 2), SnapshotDisk("vdc", "/c", "unknown", 3))
    document = SnapshotDocument(replace(SNAPSHOT, disks=disks), {})
    assert read_snapshot(write_snapshot(document, "f"), "f") == document


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {"type": "pc"}}, "f:24: domsnap.machine: object missing required field `memory_bytes`."),
        ({"pause_usec": -1}, "f:22: domsnap.pause_usec: expected `int` >= 0."),
        ({"pause_usec": "5"}, "f:22: domsnap.pause_usec: expected `int`, got `str`."),
        ({"pins": {"vda": {"image": "a\0b"}}}, "f:38: domsnap.pins[...].image: expected `str` matching"),
        ({"memory": {"size_bytes": 1, "method": "fast"}}, "domsnap.memory.method: invalid enum value 'fast'"),
        ({"left_out": ["vdb"]}, "domsnap.left_out: expected `object`, got `array`."),
        ({"left_out": {"vdb": None}}, "domsnap.left_out[...]: expected `str`, got `null`."),
        ({"undo": 1}, "domsnap.undo: expected `bool`, got `int`."),
        ({"protected": "yes"}, "domsnap.protected: expected `bool`, got `str`."),
        ({"version": 0}, "must have a 'version' of 1 or more"),
    ],
)
def test_a_wrong_shape_is_damage_with_a_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StateDamaged) as caught:
        read_snapshot(changed(SNAPSHOT_TEXT, **change), "f")
    assert said in str(caught.value)


def test_a_disk_that_stands_there_twice_is_damage() -> None:
    value = json.loads(SNAPSHOT_TEXT)
    value["disks"] *= 2
    with pytest.raises(StateDamaged, match="disk 'vda' stands there twice"):
        read_snapshot(dumps(value), "f")


@pytest.mark.parametrize(
    "snapshot",
    [
        replace(SNAPSHOT, description="\udcff"),
        replace(SNAPSHOT, description="a\0b"),
        replace(SNAPSHOT, created_usec=-1),
        replace(SNAPSHOT, pause_usec=-1),
        replace(SNAPSHOT, disks=(SnapshotDisk("vda", "/images/\udcff", "qcow2", 1),)),
        replace(SNAPSHOT, disks=SNAPSHOT.disks * 2),
        replace(SNAPSHOT, memory=MemoryState("", 1, SaveMethod.LIVE)),
        replace(SNAPSHOT, state=DomainState.SHUTOFF),
        replace(SNAPSHOT, state=DomainState.DRIFTED),
        replace(SNAPSHOT, state=DomainState.UNREACHABLE, memory=None),
        replace(SNAPSHOT, left_out={"vdb": "\udcff"}),
        replace(SNAPSHOT, foreign={"odd": float("nan")}),
        replace(SNAPSHOT, foreign={"odd": object()}),
        replace(SNAPSHOT, description="x" * (17 << 20)),
    ],
)
def test_what_no_file_can_hold_is_refused_in_a_sentence(snapshot: Snapshot) -> None:
    with pytest.raises(StateDamaged, match=r"snapshot 'before' (cannot be written down|would not read back)"):
        write_snapshot(SnapshotDocument(snapshot, PINS), "f")


# A domain


@pytest.mark.parametrize(
    ("record", "text"),
    [(RECORD, DOMAIN_TEXT), (FULL_RECORD, DOMAIN_TEXT[: DOMAIN_TEXT.index('    "domsnap"')] + FULL_DOMAIN_EXTENSION_TEXT)],
    ids=["plain", "with everything"],
)
def test_a_domain_is_written_as_documented_and_comes_back(record: DomainRecord, text: str) -> None:
    document = document_of(record, {}, {})
    assert write_domain(document, "f").decode() == text
    read = read_domain(text.encode(), "f")
    assert replace(read, foreign={}) == document
    assert write_domain(read, "f").decode() == text


def test_a_domain_of_the_first_version_is_read() -> None:
    value = json.loads(DOMAIN_TEXT)
    # It wrote initial values too.
    value["domsnap"]["images"][0]["backing"] = None
    value["domsnap"]["snapshots"][0]["parent"] = ""
    read = read_domain(dumps(value), "f")
    assert replace(read, foreign={}) == document_of(RECORD, {}, {})
    assert (read.pending, read.follows_active) == (None, False)
    assert [image.doomed for image in read.graph.images.values()] == [(), ()]


def test_what_no_longer_holds_goes_from_the_file() -> None:
    read = read_domain(write_domain(document_of(FULL_RECORD, {}, {}), "f"), "f")
    assert write_domain(document_of(RECORD, {}, read.foreign), "f").decode() == DOMAIN_TEXT


def test_what_libxl_says_of_a_domain_is_kept() -> None:
    libxl: dict[str, Any] = {
        "c_info": {"type": "hvm", "name": "web", "uuid": UUID, "run_hotplug_scripts": "True"},
        "b_info": {"max_vcpus": 4},
        "disks": [
            {"pdev_path": "/images/a.raw", "vdev": "vda", "format": "raw", "readwrite": 1},
            {"pdev_path": "/images/cd.iso", "vdev": "hdc", "is_cdrom": 1},
        ],
        "on_reboot": "restart",
    }
    read = read_domain(dumps(libxl), "f")
    assert (read.name, read.uuid, read.parents, read.graph) == ("web", UUID, {}, ImageGraph())
    written = json.loads(write_domain(document_of(RECORD, {}, read.foreign), "f"))
    assert written == libxl | {
        "disks": [
            {"pdev_path": "/images/cd.iso", "vdev": "hdc", "is_cdrom": 1},
            {"pdev_path": "/images/a.s.qcow2", "vdev": "vda", "format": "qcow2", "readwrite": 1},
        ],
        "domsnap": json.loads(DOMAIN_TEXT)["domsnap"],
    }


def test_keys_under_ours_that_are_not_known_are_kept() -> None:
    read = read_domain(changed(DOMAIN_TEXT, later=[1, 2]), "f")
    assert json.loads(write_domain(read, "f"))["domsnap"]["later"] == [1, 2]


IMAGE = {"path": "/i", "format": "raw", "origin": "defined", "backing": None, "virtual_size": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "a later version of this service has written it"),
        ({"current": "gone"}, "the current snapshot 'gone' is not in the list"),
        ({"snapshots": [{"name": "a", "parent": "b"}], "current": ""}, "the parent 'b' of snapshot 'a' is not in the list"),
        ({"snapshots": [{"name": "a", "parent": "a"}], "current": ""}, "snapshot 'a' is its own ancestor"),
        (
            {"snapshots": [{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}], "current": ""},
            "is its own ancestor",
        ),
        ({"snapshots": [{"name": "s"}, {"name": "s"}]}, "snapshot 's' stands there twice"),
        ({"snapshots": [{"name": ""}]}, "domsnap.snapshots[0].name: expected `str` of length >= 1"),
        ({"snapshots": [{"name": "s", "pins": {"vda": {"image": "/gone"}}}]}, "snapshot s pins /gone, which is unknown"),
        ({"images": [IMAGE, IMAGE], "active": {}, "snapshots": [], "current": ""}, "image '/i' stands there twice"),
        ({"active": {"vda": "/gone"}}, "the active image /gone of vda is unknown"),
        ({"active": {"vda": "/images/a.raw"}}, "the active image /images/a.raw of vda is frozen"),
        (
            {"images": [IMAGE | {"backing": "/i"}], "active": {}, "snapshots": [], "current": ""},
            "/i backs on itself",
        ),
        ({"images": [IMAGE | {"origin": "stolen"}]}, "domsnap.images[0].origin: invalid enum value 'stolen'"),
        ({"images": 5}, "domsnap.images: expected `array`, got `int`"),
        (
            {
                "images": [IMAGE | {"doomed": ["x", "t"]}],
                "active": {},
                "snapshots": [{"name": "s", "pins": {"vda": {"image": "/i", "tag": "t"}}}],
            },
            "snapshot 's' pins internal snapshot 't' in /i, which is to be deleted",
        ),
        ({"images": [IMAGE | {"doomed": "t"}]}, "domsnap.images[0].doomed: expected `array`, got `str`"),
        ({"images": [IMAGE | {"doomed": [""]}]}, "domsnap.images[0].doomed[0]: expected `str` of length >= 1"),
        ({"pending": {"name": "gone", "state": "running"}}, "the snapshot 'gone' of the pending revert is not in the list"),
        ({"pending": {"name": "s"}}, "domsnap.pending: object missing required field `state`"),
        ({"pending": {"name": "s", "state": "shutoff"}}, "domsnap.pending.state: invalid enum value 'shutoff'"),
        ({"follows_active": 1}, "domsnap.follows_active: expected `bool`, got `int`"),
    ],
)
def test_a_domain_that_breaks_a_rule_is_damage(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StateDamaged) as caught:
        read_domain(changed(DOMAIN_TEXT, **change), "f")
    assert said in str(caught.value)
    assert caught.value.line > 0


@pytest.mark.parametrize("value", [{"c_info": 1}, {"c_info": {"name": 1}}, {"disks": {}}, {"disks": [1]}, {"domsnap": []}])
def test_a_domain_of_another_shape_is_damage(value: dict[str, Any]) -> None:
    with pytest.raises(StateDamaged):
        read_domain(dumps(value), "f")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (replace(RECORD, name="\udcff"), "cannot be written down"),
        (replace(RECORD, tree=SnapshotTree(RECORD.tree.snapshots, "gone")), "the current snapshot 'gone'"),
        (replace(RECORD, pending=PendingRevert("gone", RevertState.PAUSED)), "'gone' of the pending revert is not in the list"),
        (replace(RECORD, pending=PendingRevert("", RevertState.PAUSED)), "cannot be written down"),
        (replace(FULL_RECORD, graph=FULL_RECORD.graph.doom("/images/a.s.qcow2", "t")), "'t' in .* is to be deleted"),
        (replace(RECORD, graph=RECORD.graph.doom("/images/a.s.qcow2", "")), "cannot be written down"),
        (replace(RECORD, tree=SnapshotTree()), "what is pinned for s belongs to no snapshot"),
        (replace(RECORD, graph=replace(RECORD.graph, active={"vda": "/images/a.raw"})), "is frozen"),
    ],
)
def test_a_record_that_would_not_be_read_is_not_written(record: DomainRecord, said: str) -> None:
    with pytest.raises(StateDamaged, match=said):
        write_domain(document_of(record, {}, {}), "f")
