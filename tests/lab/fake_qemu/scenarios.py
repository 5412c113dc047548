# SPDX-License-Identifier: MIT
"""What a real QEMU and a fake one are both told, subject by subject: all that is sent to a QEMU here, rightly and wrongly.

Not here: blocks (``block_scenarios``), and comparing what comes of it (``transcript`` and the tests). Each begins
with a guest that waits, on ``disks_in``.
"""

from collections.abc import Callable
from pathlib import Path

from tests.lab.fake_qemu.block_scenarios import covers_and_tags, merges, nodes, swaps
from tests.lab.fake_qemu.transcript import Transcript
from tests.lab.guest import make_disk
from tests.lab.images import make_overlay
from tests.lab.qemu import GuestDisk

Scenario = Callable[[Transcript, Path], None]


def disks_in(directory: Path) -> list[GuestDisk]:
    """Make a disk of each kind that differs in how it is shown."""
    base = make_disk(directory / "base.raw")
    return [
        GuestDisk(make_overlay(directory / "top.qcow2", base, "raw"), "qcow2"),
        GuestDisk(make_disk(directory / "b.qcow2", "qcow2"), "qcow2", "ide", "blockdev", id="b"),
        GuestDisk(bus="cdrom", id="cd"),
        GuestDisk(make_disk(directory / "unused.raw"), bus="none"),
    ]


def looking(talk: Transcript, _: Path) -> None:
    for command in (
        *("query-status", "query-uuid", "query-version", "query-name", "query-cpus-fast", "query-memory-size-summary"),
        *("query-block", "query-named-block-nodes", "query-block-exports", "query-jobs", "query-fdsets"),
        *("query-migrate", "query-migrate-capabilities", "query-migrate-parameters"),
    ):
        talk.run(command)
    talk.run("query-named-block-nodes", flat=True)
    for path in ("/machine/unattached", "/machine/peripheral-anon", "/nobody"):
        talk.run("qom-list", path=path)
    talk.run("qom-get", path="/machine", property="type")
    talk.run("qom-get", path="/machine", property="nothing")
    talk.run("qom-get", path="b", property="drive")
    talk.run("qom-get", path="/machine/peripheral-anon/device[0]/virtio-backend", property="drive")


def wrong_commands(talk: Transcript, directory: Path) -> None:
    """What the schema forbids is refused in the same words."""
    talk.run("nosuch")
    talk.run("qmp_capabilities")
    talk.run("stop", now=True)
    talk.run("blockdev-del")
    talk.run("blockdev-del", node_name=3)
    talk.run("job-dismiss", id=None)
    talk.run("set-action", reboot="nosuch")
    talk.run("query-named-block-nodes", flat=1)
    talk.run("blockdev-add", driver="qcow2", node_name="n")
    talk.run("blockdev-add", driver="nosuch", node_name="n")
    talk.run("blockdev-add", driver="null-co", node_name="n", size="1M")
    talk.run("blockdev-add", driver="qcow2", node_name="n", file={"driver": "file"})
    file = {"driver": "file", "filename": str(directory / "base.raw")}
    talk.run("blockdev-add", driver="raw", node_name="n", file=file, backing=None)
    talk.run("blockdev-add", driver="qcow2", node_name="n", file=file | {"aio": "quick"})
    talk.run("transaction", actions=[{"type": "nosuch", "data": {}}])
    talk.run("transaction", actions=[{"type": "blockdev-snapshot", "data": {"node": "node1"}}])
    talk.run("migrate-set-capabilities", capabilities=[{"capability": "nosuch", "state": True}])
    talk.run("migrate-set-capabilities", capabilities=["events"])
    talk.run("migrate-set-parameters", nosuch=1)
    talk.run("qom-set", path="b", property="nosuch", value="x")
    talk.run("qom-set", path="nobody", property="drive", value="x")
    talk.run("human-monitor-command", command_line="qemu-io nobody flush")
    talk.run("human-monitor-command", command_line="qemu-io node1 flush")


def run_states(talk: Transcript, _: Path) -> None:
    for command in ("cont", "cont", "stop", "stop", "query-status", "system_reset", "query-status", "cont", "query-status"):
        talk.run(command)
    for action in ("shutdown", "reset"):
        talk.run("set-action", reboot=action)
    talk.run("system_reset")


def saves_and_loads(talk: Transcript, _: Path) -> None:
    drive = talk.root("drive0")

    def run(command: str, tag: str, *names: str) -> None:
        talk.run(command, job_id="m", tag=tag, vmstate=names[0], devices=list(names))
        talk.wait_job("m", "concluded")
        talk.run("job-dismiss", id="m")
        talk.run("query-status")

    talk.run("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    run("snapshot-save", "t", "nobody")
    run("snapshot-save", "t", "node1")
    run("snapshot-save", "t", "node1")
    run("snapshot-load", "nothing", "node1")
    run("snapshot-load", "t", "node1")
    run("snapshot-save", "both", "node1", drive)
    talk.run("snapshot-save", job_id="9", tag="t", vmstate="node1", devices=["node1"])
    talk.run("query-block")
    talk.run("cont")
    run("snapshot-save", "running", "node1")
    run("snapshot-load", "running", "node1")
    run("snapshot-load", "nothing", "node1")


def capabilities_in_conflict(talk: Transcript, _: Path) -> None:
    names = [each["capability"] for each in talk.run("query-migrate-capabilities")]
    for name in names:
        if name != "background-snapshot":
            states = {"background-snapshot": True, name: True}
            listed = [{"capability": each, "state": state} for each, state in states.items()]
            talk.run("migrate-set-capabilities", capabilities=listed)
            listed = [{"capability": each, "state": False} for each in states]
            talk.run("migrate-set-capabilities", capabilities=listed)
    talk.run("migrate-set-parameters", max_bandwidth=0, tls_creds="")
    talk.run("migrate-set-parameters", tls_creds=None)
    talk.run("query-migrate-parameters")


def background_snapshot(talk: Transcript, directory: Path) -> None:
    talk.run("cont")
    for name in ("background-snapshot", "events"):
        talk.run("migrate-set-capabilities", capabilities=[{"capability": name, "state": True}])
    talk.run("migrate", uri="fd:nobody")
    talk.run("closefd", fdname="nobody")
    with (directory / "memory").open("wb", buffering=0) as file:
        talk.run("getfd", file.fileno(), fdname="memory")
        talk.run("stop")
        talk.run("query-status")
        talk.run("migrate", uri="fd:memory")
        talk.wait_migrated()
        talk.run("query-migrate")
        talk.run("closefd", fdname="memory")
        talk.run("cont")
        talk.run("query-status")
        assert file.tell() > 0
    assert (directory / "memory").read_bytes().startswith(b"QEVM")


def descriptors(talk: Transcript, directory: Path) -> None:
    make_disk(directory / "handed.qcow2", "qcow2")
    talk.run("getfd", fdname="nothing")
    talk.run("add-fd", opaque="x")
    talk.run("remove-fd", fdset_id=77)
    with (directory / "handed.qcow2").open("rb+") as both, (directory / "handed.qcow2").open("rb") as one:
        talk.run("getfd", both.fileno(), fdname="9")
        talk.run("getfd", both.fileno(), fdname="named")
        talk.run("closefd", fdname="named")
        talk.run("closefd", fdname="named")
        added = talk.run("add-fd", both.fileno(), opaque="ours")
        talk.run("add-fd", one.fileno(), fdset_id=added["fdset-id"], opaque="ours")
        other = talk.run("add-fd", one.fileno())
    talk.run("query-fdsets")
    talk.run(
        "blockdev-add", driver="qcow2", node_name="n", file={"driver": "file", "filename": f"/dev/fdset/{added['fdset-id']}"}
    )
    talk.run("query-named-block-nodes", flat=True)
    talk.run("cont")
    for number in (added["fdset-id"], other["fdset-id"]):
        talk.run("remove-fd", fdset_id=number)
    talk.run("blockdev-del", node_name="n")
    talk.run("query-fdsets")
    talk.run("stop")
    with (directory / "handed.qcow2").open("rb") as one:
        added = talk.run("add-fd", one.fileno(), opaque="ours")
    talk.run("remove-fd", fdset_id=added["fdset-id"])
    talk.run("query-fdsets")


SCENARIOS: list[Scenario] = [
    *(looking, wrong_commands, run_states, nodes, covers_and_tags, swaps, merges),
    *(saves_and_loads, capabilities_in_conflict, background_snapshot, descriptors),
]
