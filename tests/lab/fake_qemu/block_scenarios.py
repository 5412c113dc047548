# SPDX-License-Identifier: MIT
"""What a real QEMU and a fake one are both told about blocks: nodes, covers and tags, swaps, merges.

Not here: everything else (``scenarios``), where the list of all is.
"""

from pathlib import Path

from tests.lab.fake_qemu.transcript import Transcript
from tests.lab.guest import make_disk
from tests.lab.images import make_overlay


def _image(directory: Path, name: str) -> dict[str, str]:
    return {"driver": "file", "filename": str(directory / name)}


def nodes(talk: Transcript, directory: Path) -> None:
    """Opening, closing, and what stands in the way of both."""
    make_overlay(directory / "over.qcow2", directory / "b.qcow2", "qcow2")
    over = _image(directory, "over.qcow2")
    talk.run("blockdev-add", driver="qcow2", node_name="over", file=_image(directory, "top.qcow2"), backing=None)
    talk.run("blockdev-add", driver="qcow2", node_name="over", file=over, backing=None, discard="unmap", detect_zeroes="on")
    talk.run("query-named-block-nodes", flat=True)
    talk.run("blockdev-add", driver="qcow2", node_name="over", file=over)
    talk.run("blockdev-add", driver="qcow2", node_name="again", read_only=True, file=over, backing=None)
    talk.run("blockdev-add", driver="qcow2", node_name="n", file=_image(directory, "missing"))
    talk.run("blockdev-add", driver="qcow2", node_name="n", file="nobody")
    talk.run("blockdev-add", driver="qcow2", node_name="n", file="node1-file")
    talk.run("blockdev-add", driver="raw", node_name="9n", file=over)
    (directory / "junk").write_bytes(b"x" * 100_000)
    talk.run("blockdev-add", driver="qcow2", node_name="n", file=_image(directory, "junk"))
    for name in ("nobody", "node1", "over", "over"):
        talk.run("blockdev-del", node_name=name)
    make_disk(directory / "other.raw")
    talk.run("blockdev-add", driver="raw", node_name="other", read_only=True, file=_image(directory, "other.raw"))
    cache = {"direct": False, "no-flush": True}
    talk.run("blockdev-add", driver="qcow2", node_name="over", file=over, backing="other", cache=cache)
    talk.run("query-named-block-nodes", flat=True)
    talk.run("blockdev-del", node_name="other")
    talk.run("blockdev-del", node_name="over")
    talk.run("blockdev-add", driver="qcow2", node_name="chained", read_only=True, file=over)
    talk.run("query-named-block-nodes", flat=True)
    talk.run("block_resize", node_name="nobody", size=1 << 20)
    talk.run("block_resize", node_name="node1", size=2 << 20)
    talk.run("query-block")


def covers_and_tags(talk: Transcript, directory: Path) -> None:
    def cover(node: str, overlay: str) -> dict[str, object]:
        return {"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}}

    def tag(device: str, name: str) -> dict[str, object]:
        return {"type": "blockdev-snapshot-internal-sync", "data": {"device": device, "name": name}}

    drive = talk.root("drive0")
    make_overlay(directory / "over.qcow2", directory / "b.qcow2", "qcow2")
    talk.run("blockdev-add", driver="qcow2", node_name="over", file=_image(directory, "over.qcow2"), backing=None)
    for actions in (
        [cover("nobody", "over")],
        [cover("node1", "nobody")],
        [tag("nobody", "t")],
        [tag("node1", "")],
        [tag("node1", "t"), cover("node1", "nobody")],
        [cover("node1", "over"), tag(drive, "t"), cover(drive, "over")],
    ):
        talk.run("transaction", actions=actions)
    talk.run("query-block")
    talk.run("transaction", actions=[cover("node1", "over"), tag(drive, "t")])
    talk.run("query-block")
    talk.run("query-named-block-nodes", flat=True)
    for actions in ([cover("node1", "over")], [tag("node1", "t")], [tag(drive, "t")], [tag(talk.root("drive3"), "t")]):
        talk.run("transaction", actions=actions)
    talk.run("blockdev-del", node_name="over")
    for device, name in ((drive, "t"), (drive, "t"), ("nobody", "t"), ("node1", "t"), (talk.root("drive3"), "t")):
        talk.run("blockdev-snapshot-delete-internal-sync", device=device, name=name)
    talk.run("query-block")


def swaps(talk: Transcript, directory: Path) -> None:
    """A disk goes to another node, is held meanwhile, and goes to an empty one."""
    drive, device = talk.root("drive0"), "/machine/peripheral-anon/device[0]/virtio-backend"
    make_overlay(directory / "new.qcow2", directory / "base.raw", "raw")
    talk.run("blockdev-add", driver="qcow2", node_name="new", file=_image(directory, "new.qcow2"))
    talk.run("blockdev-add", driver="raw", node_name="held", read_only=True, file=drive)
    talk.run("blockdev-snapshot-delete-internal-sync", device=drive, name="t")
    talk.run("qom-set", path=device, property="drive", value="nobody")
    talk.run("qom-set", path=device, property="drive", value="new")
    talk.run("query-named-block-nodes", flat=True)
    talk.run("query-block")
    talk.run("qom-set", path="b", property="drive", value="new")
    talk.run("blockdev-del", node_name="held")
    talk.run("query-named-block-nodes", flat=True)
    talk.run("blockdev-add", driver="null-co", node_name="parked", size=1 << 20, read_zeroes=True)
    talk.run("qom-set", path="b", property="drive", value="parked")
    talk.run("query-block")
    for name in ("node1", "node1-file", "node1-file", "new"):
        talk.run("blockdev-del", node_name=name)
    talk.run("blockdev-add", driver="qcow2", node_name="b-again", read_only=True, file=_image(directory, "b.qcow2"))
    talk.run("qom-set", path="b", property="drive", value="b-again")
    talk.run("blockdev-del", node_name="b-again")
    talk.run("blockdev-add", driver="qcow2", node_name="b-again", file=_image(directory, "b.qcow2"))
    talk.run("qom-set", path="b", property="drive", value="b-again")
    talk.run("blockdev-del", node_name="parked")
    talk.run("query-block")


def merges(talk: Transcript, directory: Path) -> None:
    below, name = "node1", "b.qcow2"
    for number in range(1, 5):
        over = f"o{number}"
        make_overlay(directory / f"{over}.qcow2", directory / name, "qcow2")
        talk.run("blockdev-add", driver="qcow2", node_name=over, file=_image(directory, f"{over}.qcow2"), backing=None)
        talk.run("blockdev-snapshot", node=below, overlay=over)
        below, name = over, f"{over}.qcow2"
    talk.run("block-commit", job_id="j", device="nobody", auto_dismiss=False)
    talk.run("block-commit", job_id="j", device="o4", top_node="o4", base_node="nobody")
    talk.run("block-commit", job_id="j", device="o4", top_node="node1", base_node="o4")
    talk.run("block-commit", job_id="j", device="o4", top_node="o4", base_node="o4")
    talk.run("block-stream", job_id="j", device="nobody")
    talk.run("block-stream", job_id="9", device="o4")
    for verb in ("complete", "finalize", "dismiss"):
        talk.run(f"job-{verb}", id="nobody")

    waits = {"auto_dismiss": False, "auto_finalize": False}
    path = str(directory / "o1.qcow2")
    talk.run("block-commit", job_id="c", device="o4", top_node="o2", base_node="o1", backing_file=path, **waits)
    talk.wait_job("c", "pending")
    talk.run("job-complete", id="c")
    talk.run("job-dismiss", id="c")
    talk.run("job-finalize", id="c")
    talk.wait_job("c", "concluded")
    talk.run("job-finalize", id="c")
    for node in ("o1", "o2", "o4"):
        talk.run("block-stream", job_id="c", device=node, **waits)
    talk.run("blockdev-snapshot", node="o4", overlay="nobody")
    talk.run("job-dismiss", id="c")
    talk.run("blockdev-del", node_name="o2")
    talk.run("query-named-block-nodes", flat=True)

    talk.run("block-stream", job_id="s", device="o4", base_node="o1", backing_file=path, **waits)
    talk.wait_job("s", "pending")
    talk.run("job-finalize", id="s")
    talk.wait_job("s", "concluded")
    for node in ("o1", "o3", "o4"):
        talk.run("block-stream", job_id="s", device=node, **waits)
    talk.run("blockdev-snapshot", node="o4", overlay="nobody")
    talk.run("job-dismiss", id="s")
    talk.run("query-named-block-nodes", flat=True)
    talk.run("blockdev-del", node_name="o3")

    talk.run("block-commit", job_id="a", device="o4", top_node="o4", base_node="o1", auto_dismiss=False)
    talk.wait_job("a", "ready")
    talk.run("blockdev-del", node_name="o4")
    talk.run("blockdev-snapshot", node="o4", overlay="nobody")
    talk.run("job-cancel", id="a")
    talk.wait_job("a", "concluded")
    for node in ("o1", "o4"):
        talk.run("block-stream", job_id="a", device=node, **waits)
    talk.run("job-dismiss", id="a")
    talk.run("block-commit", job_id="a", device="o4", top_node="o4", base_node="o1", auto_dismiss=False)
    talk.wait_job("a", "ready")
    talk.run("job-complete", id="a")
    talk.wait_job("a", "concluded")
    talk.run("job-dismiss", id="a")
    talk.run("query-block")
    talk.run("blockdev-snapshot", node="o1", overlay="o4")
    talk.run("blockdev-del", node_name="o4")
    talk.run("block-stream", job_id="f", device="o1", **waits)
    talk.wait_job("f", "pending")
    talk.run("job-finalize", id="f")
    talk.wait_job("f", "concluded")
    talk.run("job-dismiss", id="f")
    talk.run("query-block")
    talk.run("query-named-block-nodes", flat=True)
