# SPDX-License-Identifier: MIT
"""What we send fits the QMP schema of every recorded QEMU: the checker itself, and the whole port driven against it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapd.images.toolbox import ImageToolbox
from snapd.images.vmstate import MEMORY_TAG
from snapd.model.domain import Disk
from snapd.model.images import Direction, Image, Merge, Origin
from snapd.model.plan import Opening, Parking, Tag
from snapd.qmp.qemu import NODE_PREFIX, Qemu
from tests.contract.disks import overlay_for
from tests.lab.fake_qemu.recording import VERSIONS, recording
from tests.lab.fake_qemu.schema import Mismatch, Schema
from tests.lab.fake_qemu.server import FakeQemu
from tests.lab.guest import make_disk
from tests.lab.images import check_image
from tests.lab.linked import connected
from tests.lab.qemu import DEFAULT_MEMORY_MIB, GuestDisk
from tests.lab.record_schema import COMMANDS, EVENTS, reachable

MEMORY_BYTES = DEFAULT_MEMORY_MIB << 20
LARGEST_STREAM_BYTES = MEMORY_BYTES + (128 << 20)
TOOLBOX = ImageToolbox()

FILE = {"driver": "file", "filename": "/a"}

RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("stop", {}),
    ("query-named-block-nodes", {}),
    ("query-named-block-nodes", {"flat": True}),
    ("add-fd", {"fdset-id": 3, "opaque": "x"}),
    ("qom-set", {"path": "a", "property": "drive", "value": [{"anything": None}]}),
    ("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 40, "read-zeroes": True}),
    ("blockdev-add", {"driver": "raw", "file": "a-node"}),
    ("blockdev-add", {"driver": "qcow2", "file": FILE, "backing": None, "cache": {"direct": True}}),
    ("blockdev-add", {"driver": "qcow2", "file": FILE | {"aio": "io_uring"}, "backing": {"driver": "raw", "file": FILE}}),
    ("transaction", {"actions": []}),
    ("transaction", {"actions": [{"type": "blockdev-snapshot", "data": {"node": "a", "overlay": "b"}}]}),
    ("migrate-set-parameters", {"tls-creds": None, "max-bandwidth": 0}),
]

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("nosuch", {}, "The command nosuch has not been found"),
    ("STOP", {}, "The command STOP has not been found"),
    ("stop", {"now": True}, "Parameter 'now' is unexpected"),
    ("qom-get", {"path": "a"}, "Parameter 'property' is missing"),
    ("qom-get", {"path": None, "property": "b"}, "Invalid parameter type for 'path', expected: string"),
    ("add-fd", {"fdset-id": True}, "Invalid parameter type for 'fdset-id', expected: integer"),
    ("add-fd", {"fdset-id": 1.5}, "Invalid parameter type for 'fdset-id', expected: integer"),
    ("query-named-block-nodes", {"flat": 1}, "Invalid parameter type for 'flat', expected: boolean"),
    ("transaction", {"actions": {}}, "Invalid parameter type for 'actions', expected: array"),
    ("transaction", {"actions": ["x"]}, "Invalid parameter type for 'actions[0]', expected: object"),
    ("transaction", {"actions": [{"type": "nosuch", "data": {}}]}, "Parameter 'type' does not accept value 'nosuch'"),
    (
        "transaction",
        {"actions": [{"type": "blockdev-snapshot", "data": {"node": "a"}}]},
        "Parameter 'actions[0].data.overlay' is missing",
    ),
    (
        "transaction",
        {"actions": [{"type": "blockdev-snapshot", "data": {"node": "a", "overlay": "b", "more": 1}}]},
        "Parameter 'actions[0].data.more' is unexpected",
    ),
    ("blockdev-add", {"node-name": "n"}, "Parameter 'driver' is missing"),
    ("blockdev-add", {"driver": "nosuch"}, "Parameter 'driver' does not accept value 'nosuch'"),
    ("blockdev-add", {"driver": 3}, "Invalid parameter type for 'driver', expected: string"),
    ("blockdev-add", {"driver": "qcow2"}, "Parameter 'file' is missing"),
    ("blockdev-add", {"driver": "qcow2", "file": 3}, "Invalid parameter type for 'file', expected: one of several types"),
    ("blockdev-add", {"driver": "qcow2", "file": {"driver": "file"}}, "Parameter 'file.filename' is missing"),
    ("blockdev-add", {"driver": "raw", "file": FILE, "backing": None}, "Parameter 'backing' is unexpected"),
    ("blockdev-add", {"driver": "qcow2", "file": FILE | {"aio": "fast"}}, "Parameter 'aio' does not accept value 'fast'"),
    ("blockdev-add", {"driver": "qcow2", "file": FILE | {"offset": 1}}, "Parameter 'file.offset' is unexpected"),
    ("blockdev-add", {"driver": "null-co", "size": "1M"}, "Invalid parameter type for 'size', expected: integer"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("command", "arguments"), RIGHT)
def test_right_arguments_pass(version: str, command: str, arguments: dict[str, Any]) -> None:
    schema = recording(version).schema
    schema.check_command(command, arguments)
    assert command in schema.names("command")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("command", "arguments", "text"), WRONG)
def test_wrong_arguments_are_named(version: str, command: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(Mismatch) as caught:
        recording(version).schema.check_command(command, arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize("arguments", [None, [], "x"])
def test_arguments_are_an_object(arguments: object) -> None:
    with pytest.raises(Mismatch, match="'arguments' must be an object"):
        recording("7.2").schema.check_command("stop", arguments)


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_and_events_are_checked(version: str) -> None:
    schema = recording(version).schema
    schema.check_answer("qom-list", [{"name": "a", "type": "b"}])
    schema.check_event("JOB_STATUS_CHANGE", {"id": "a", "status": "ready"})
    with pytest.raises(Mismatch, match=r"'\[0\].type' is missing"):
        schema.check_answer("qom-list", [{"name": "a"}])
    with pytest.raises(Mismatch, match="has not been found"):
        schema.check_answer("nosuch", {})
    with pytest.raises(Mismatch, match="'status' does not accept value 'well'"):
        schema.check_event("JOB_STATUS_CHANGE", {"id": "a", "status": "well"})
    with pytest.raises(Mismatch, match="There is no event stop"):
        schema.check_event("stop", {})


def test_versions_differ() -> None:
    """What one QEMU takes and the other does not is told apart."""
    states = [{"capability": "compress", "state": True}]
    recording("7.2").schema.check_command("migrate-set-capabilities", {"capabilities": states})
    with pytest.raises(Mismatch) as caught:
        recording("10.0").schema.check_command("migrate-set-capabilities", {"capabilities": states})
    assert caught.value.parameter == "capability"


@pytest.mark.parametrize("version", VERSIONS)
def test_recording_is_whole(version: str) -> None:
    schema = recording(version).schema
    assert schema.names("command") == set(COMMANDS)
    assert schema.names("event") == set(EVENTS)
    assert FakeQemu(version=version).known_commands == set(COMMANDS)


def test_only_what_is_reached_is_recorded() -> None:
    infos: list[dict[str, Any]] = [
        {"name": "0", "meta-type": "object", "members": [{"name": "a", "type": "1"}], "tag": "a", "variants": [{"type": "2"}]},
        {"name": "1", "meta-type": "array", "element-type": "3"},
        {"name": "2", "meta-type": "alternate", "members": [{"type": "2"}, {"type": "3"}]},
        {"name": "3", "meta-type": "enum", "members": [{"name": "x"}]},
        {"name": "4", "meta-type": "enum", "members": []},
        {"name": "go", "meta-type": "command", "arg-type": "0", "ret-type": "3"},
        {"name": "no", "meta-type": "command", "arg-type": "4", "ret-type": "4"},
    ]
    assert [info["name"] for info in reachable(infos, ["go"])] == ["0", "1", "2", "3", "go"]
    assert Schema(infos).names("command") == {"go", "no"}


class Port:
    """The port to a fake QEMU, driven through all that it can do; ``called`` has the methods that were."""

    def __init__(self, qemu: Qemu, fake: FakeQemu, directory: Path) -> None:
        self._qemu, self._fake, self._directory = qemu, fake, directory
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.called.add(name)
        method: Callable[..., Any] = getattr(self._qemu, name)
        return method

    async def disk(self, target: str) -> Disk:
        found: Disk = next(disk for disk in await self.disks() if disk.target == target)
        return found

    async def save_live(self) -> str:
        """Take a live checkpoint: ``a`` gets an overlay, ``b`` a tag. Returns: the container."""
        path = str(self._directory / "live.qcow2")
        memory = await TOOLBOX.create_memory(path, LARGEST_STREAM_BYTES)
        first, second = await self.disk("a"), await self.disk("b")
        overlay = overlay_for(first, self._directory / "a1.qcow2")
        await self.arm_live_save(memory.descriptor)
        await self.stop()
        await self.open_overlay(overlay, "")
        await self.take([overlay], [Tag(second, "t1")])
        self._fake.machine.memory = "at the checkpoint"
        reported: list[tuple[str, int, int]] = []
        await self._call("save_live", lambda *progress: reported.append(progress))
        assert await self.has_run()
        assert await self.pause_usec() > 0
        await memory.finish()
        await self.disarm_live_save()
        assert (await self.disk("b")).tags == ("t1",)
        return path

    async def save_paused(self) -> str:
        """Save the memory of the paused guest. Returns: the container."""
        path = str(self._directory / "paused.qcow2")
        await TOOLBOX.create_container(path)
        await self.stop()
        self._fake.machine.memory = "at the pause"
        await self.attach(path)
        await self._call("save_paused", MEMORY_TAG, MEMORY_BYTES)
        await self.detach_memory()
        await self.resume()
        return path

    async def revert(self, container: str) -> None:
        """Put ``a`` on a new overlay of what it first had, and load memory."""
        first = await self.disk("a")
        base = Image(str(self._directory / "other.raw"), "raw", None, Origin.CREATED)
        await self.open_image(Opening(f"{NODE_PREFIX}base", base, ""))
        overlay = overlay_for(first, self._directory / "a2.qcow2", base.path, "raw")
        await self.stop()
        await self.open_overlay(overlay, f"{NODE_PREFIX}base")
        await self.hold(first, overlay.held)
        await self.swap(overlay)
        await self.swap_back(first)
        await self.swap(overlay)
        await self.close_nodes([overlay.held])
        await self.attach(container)
        await self.load(MEMORY_TAG, MEMORY_BYTES)
        await self.detach_memory()
        await self.close_unused([first.image])
        assert await self.open_images() == {
            overlay.image.path: overlay.node,
            base.path: f"{NODE_PREFIX}base",
            str(self._directory / "b.qcow2"): "node1",
        }

    async def park_and_return(self) -> None:
        """Let another program at the image of ``b``."""
        disk = await self.disk("b")
        parking = Parking(disk, f"{NODE_PREFIX}again", Image(disk.image, "qcow2", None, Origin.DEFINED))
        await self.park(parking)
        await TOOLBOX.apply_tag(disk.image, "t1")
        await self.unpark(parking)
        assert (await self.disk("b")).node == parking.node

    async def merge_both_ways(self) -> None:
        """Cover ``b`` three times, and merge what is there again."""
        paths = [(await self.disk("b")).image]
        for number in range(3):
            overlay = overlay_for(await self.disk("b"), self._directory / f"b{number}.qcow2")
            await self.open_overlay(overlay, "")
            await self.take([overlay], [])
            paths.append(overlay.image.path)
        base, low, middle, top = paths
        for merge in (
            Merge(Direction.COMMIT, middle, low, base, active=False, repoint=(top,)),
            Merge(Direction.STREAM, top, low, base, active=True),
            Merge(Direction.COMMIT, top, base, None, active=True),
        ):
            await self.merge(merge, lambda *_: None)
            await self.close_unused([merge.removed])
        assert (await self.disk("b")).chain == (base,)

    async def attach(self, path: str) -> None:
        descriptors = await TOOLBOX.open_container(path)
        try:
            await self.attach_memory(*descriptors)
        finally:
            TOOLBOX.close_descriptors(*descriptors)

    async def _call(self, name: str, *arguments: object) -> None:
        """Call a method that has the name of one of ours."""
        self.called.add(name)
        await getattr(self._qemu, name)(*arguments)


@pytest.mark.parametrize("version", VERSIONS)
async def test_whole_port_fits_every_schema(tmp_path: Path, version: str) -> None:
    """Everything that the engine can ask of a QEMU is sent as each recorded QEMU takes it, and does what it says."""
    disks = [
        GuestDisk(make_disk(tmp_path / "a.raw"), id="a"),
        GuestDisk(make_disk(tmp_path / "b.qcow2", "qcow2"), "qcow2", "ide", "blockdev", id="b"),
    ]
    make_disk(tmp_path / "other.raw")
    async with FakeQemu(tmp_path / "qmp", disks=disks, version=version) as fake, connected(tmp_path / "qmp") as link:
        port = Port(Qemu(link), fake, tmp_path)
        seen = await port.inspect(for_saving=True)
        assert (seen.running, seen.qemu_version, seen.live_blocker, seen.memory_blocker) == (
            True,
            recording(version).number,
            "",
            "",
        )
        port.rename({})
        live, paused = await port.save_live(), await port.save_paused()
        await port.revert(live)
        assert fake.machine.memory == "at the checkpoint"
        await port.park_and_return()
        await port.reset()
        assert fake.machine.memory == "as booted"
        await port.attach(paused)
        await port.make_loadable()
        await port.load(MEMORY_TAG, MEMORY_BYTES)
        await port.detach_memory()
        assert fake.machine.memory == "at the pause"
        await port.resume()
        await port.drop_tag(str(tmp_path / "b.qcow2"), "t1")
        await port.merge_both_ways()
        assert not fake.complaints
        assert {name for name, _ in fake.commands} <= recording(version).schema.names("command")
        assert port.called == {name for name in vars(Qemu) if not name.startswith("_")}
    for container in (live, paused):
        await TOOLBOX.check_container(container)
        check_image(container)
