# SPDX-License-Identifier: MIT
"""Create, revert and delete for every kind of disk, for paused domains, and for guests that cannot be saved live.

Whatever is done, memory and disks of each snapshot are of one instant, and nothing is left over in the end.
"""

import asyncio
import itertools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from snapd.bus.wire import CallError, Variant
from tests.lab.consistency import disk_counters, revert_and_compare
from tests.lab.guest import TinyGuest, disk_counter, make_disk
from tests.lab.images import tags
from tests.lab.qemu import GuestDisk
from tests.lab.scene import TWO_DISKS, Scene, scene

BUSES = ("virtio", "virtio-iothread", "scsi", "ide")
ERROR = "org.domsnap1.Error."
TARGET_TIMEOUT_S = 20.0

Kind = tuple[str, str, str]
"""Bus, way of definition, format."""

KINDS: list[Kind] = list(itertools.product(BUSES, ("drive", "blockdev"), ("raw", "qcow2")))
PAIRS = list(zip(KINDS[:8], reversed(KINDS[8:]), strict=True))
"""Each kind once, beside one that differs from it in everything."""

_QCOW2 = [kind for kind in KINDS if kind[2] == "qcow2"]
PAIRS_OF_QCOW2 = list(zip(_QCOW2[:4:3], _QCOW2[4::3], strict=True))

EXTERNAL, INTERNAL = Variant("s", "external"), Variant("s", "internal")
NO_MEMORY = Variant("b", False)
TWO_QCOW2 = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), TWO_DISKS[1])


def _disk(index: int, kind: Kind, options: str = "") -> GuestDisk:
    bus, via, image_format = kind
    return GuestDisk(f"disk{index}.{image_format}", image_format, bus, via, f"disk{index}", options)


def _words(kinds: Sequence[Kind]) -> str:
    return "+".join("-".join(kind) for kind in kinds)


@pytest.mark.parametrize("kinds", [*PAIRS, (KINDS[0],), (KINDS[7],), (KINDS[9],), (KINDS[14],)], ids=_words)
async def test_back_and_forth_and_down_to_nothing(kinds: Sequence[Kind]) -> None:
    disks = [_disk(index, kind) for index, kind in enumerate(kinds)]
    async with scene(disks, guest=TinyGuest(disks=len(disks))) as stage:
        pid = stage.qemu.pid
        for name in ("older", "newer"):
            await stage.create(name, type=EXTERNAL)
            stage.qemu.wait_counting()
        for name in ("older", "newer", "older"):
            await revert_and_compare(stage, name, len(disks))
        assert {(await stage.properties(name))["Method"] for name in ("older", "newer")} == {"live"}
        for name in ("older", "newer"):
            await stage.delete(name)
            stage.qemu.wait_counting()
        await _assert_bare(stage, disks)
        assert stage.qemu.pid == pid


@pytest.mark.parametrize("kinds", [PAIRS_OF_QCOW2[0], PAIRS_OF_QCOW2[1], (KINDS[5],), (KINDS[7],)], ids=_words)
async def test_internal_back_and_forth_and_down_to_nothing(kinds: Sequence[Kind]) -> None:
    disks = [_disk(index, kind) for index, kind in enumerate(kinds)]
    async with scene(disks, guest=TinyGuest(disks=len(disks))) as stage:
        for name in ("older", "newer"):
            await stage.create(name, type=INTERNAL, live=Variant("s", "require"))
            stage.qemu.wait_counting()
        for name in ("older", "newer", "older"):
            await revert_and_compare(stage, name, len(disks))
        for name in ("older", "newer"):
            await stage.delete(name)
            stage.qemu.wait_counting()
        await _assert_bare(stage, disks, reopened=True)


@pytest.mark.parametrize("kinds", PAIRS, ids=_words)
async def test_disks_alone_are_of_one_instant_and_go_back_with_a_reset(kinds: Sequence[Kind]) -> None:
    """Each qcow2 disk has an internal snapshot, and each raw one an external."""
    disks = [_disk(index, kind) for index, kind in enumerate(kinds)]
    wanted = {disk.id: "internal" if disk.format == "qcow2" else "external" for disk in disks}
    async with scene(disks) as stage:
        pid = stage.qemu.pid
        counted: dict[str, list[int]] = {}
        for name in ("older", "newer"):
            await stage.create(name, memory=NO_MEMORY, disks=Variant("a{ss}", wanted))
            stage.qemu.wait_counting()
            counted[name] = await disk_counters(stage, name)
            # It writes the first disk, then the second.
            assert counted[name][0] - counted[name][1] in (0, 1), f"{name}: {counted[name]}"
        assert counted["older"] < counted["newer"]
        for name in ("older", "newer", "older"):
            stage.qemu.control.events.clear()
            await stage.revert(name)
            assert _events(stage, "RESET")
            stage.qemu.wait_counting()
            assert {each: await disk_counters(stage, each) for each in counted} == counted
        for name in ("older", "newer"):
            await stage.delete(name)
            stage.qemu.wait_counting()
        await _assert_bare(stage, disks, reopened=True)
        assert stage.qemu.pid == pid


CACHES = [("drive", "cache=none"), ("drive", "cache=writeback"), ("drive", "cache=unsafe"), ("blockdev", "cache.direct=on")]


@pytest.mark.parametrize(("via", "options"), CACHES)
async def test_an_overlay_is_opened_with_the_cache_mode_of_what_it_covers(via: str, options: str) -> None:
    disks = [_disk(0, ("virtio", via, "raw"), options), _disk(1, ("scsi", via, "qcow2"), options)]
    async with scene(disks) as stage:
        before = _cache_modes(stage)
        assert {mode["direct"] for mode in before} == {"none" in options or "direct" in options}
        await stage.create("a")
        assert _cache_modes(stage) == before
        await revert_and_compare(stage, "a")
        assert _cache_modes(stage) == before
        await stage.delete("a")
        assert _cache_modes(stage) == before
        await _assert_bare(stage, disks)


@pytest.mark.parametrize("kind", [EXTERNAL, INTERNAL], ids=["external", "internal"])
async def test_a_backing_image_of_somebody_else_stays_byte_for_byte(kind: Variant, tmp_path: Path) -> None:
    """Neither snapshots nor their merges reach below the image that the domain was defined with."""
    bases = [make_disk(tmp_path / "base.raw"), make_disk(tmp_path / "base.qcow2", "qcow2")]
    for index, base in enumerate(bases):
        base_format = base.suffix[1:]
        _qemu_img("create", "-q", "-f", "qcow2", "-F", base_format, "-b", str(base), str(tmp_path / f"disk{index}.qcow2"))
    before = [base.read_bytes() for base in bases]
    disks = [GuestDisk(tmp_path / f"disk{index}.qcow2", "qcow2", id=f"disk{index}") for index in range(2)]
    async with scene(disks) as stage:
        for name in ("a", "b"):
            await stage.create(name, type=kind)
            stage.qemu.wait_counting()
        await revert_and_compare(stage, "a")
        await revert_and_compare(stage, "b")
        for name in ("a", "b"):
            await stage.delete(name)
        stage.qemu.wait_counting()
        assert [base.read_bytes() for base in bases] == before
        assert sorted(each.name for each in tmp_path.iterdir()) == ["base.qcow2", "base.raw", "disk0.qcow2", "disk1.qcow2"]
        assert {disk["Image"] for disk in (await stage.properties())["Disks"]} == {str(disk.path) for disk in disks}


async def test_a_cd_rom_with_and_without_medium_is_left_alone(tmp_path: Path) -> None:
    medium = tmp_path / "medium.iso"
    medium.write_bytes(b"\x5a" * 65536)
    drives = [GuestDisk(medium, "raw", "cdrom", id="cd0", options="readonly=on"), GuestDisk(bus="cdrom", id="cd1")]
    async with scene([*TWO_DISKS, *drives]) as stage:
        reasons = {disk["Target"]: disk["Reason"] for disk in (await stage.properties())["Disks"]}
        obstacles = {"cd0": "it is a CD-ROM or floppy", "cd1": "it has no medium"}
        assert reasons == {"disk0": "its format raw has no internal snapshots", "disk1": "", **obstacles}
        await stage.create("a")
        stage.qemu.wait_counting()
        await revert_and_compare(stage, "a")
        assert (await stage.properties("a"))["LeftOut"] == obstacles
        for kind in ("external", "internal"):
            with pytest.raises(CallError, match="cd0") as refused:
                await stage.create("b", disks=Variant("a{ss}", {"cd0": kind}))
            assert refused.value.name == ERROR + "NotSupported"
        assert [row[1] for row in await stage.snapshots()] == ["a"]
        stage.qemu.control.execute("eject", id="cd0")
        await stage.create("c")
        await revert_and_compare(stage, "a")
        assert medium.read_bytes() == b"\x5a" * 65536
        assert [each.name for each in tmp_path.iterdir()] == ["medium.iso"]


async def test_a_paused_domain_stays_paused_and_is_paused_again_after_a_revert() -> None:
    async with scene() as stage:
        await stage.create("running")
        stage.qemu.control.execute("stop")
        await stage.wait_state("paused")
        counter = stage.qemu.counter()
        await stage.create("paused")
        assert (await stage.properties())["State"] == "paused"
        assert not _runs(stage)
        assert stage.qemu.counter() == counter
        made = await stage.properties("paused")
        assert (made["DomainState"], made["Method"], made["PauseUSec"]) == ("paused", "paused", 0)

        stage.qemu.control.execute("cont")
        stage.qemu.wait_counting()
        await stage.revert("paused")
        assert not _runs(stage)
        await stage.wait_state("paused")
        assert stage.qemu.counter() == counter
        await stage.revert("paused", state=Variant("s", "running"))
        await stage.wait_state("running")
        stage.qemu.wait_counting()
        await revert_and_compare(stage, "paused")

        # From paused to a snapshot of a running guest, and paused there because that was asked for.
        stage.qemu.control.execute("stop")
        await stage.revert("running")
        await stage.wait_state("running")
        stage.qemu.wait_counting()
        await stage.revert("running", state=Variant("s", "paused"))
        await stage.wait_state("paused")
        for name in ("running", "paused"):
            await stage.delete(name)
        assert not _runs(stage)
        await _assert_bare(stage, TWO_DISKS)


async def test_memory_backed_by_a_file_is_saved_with_the_guest_paused_and_the_reason_kept() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # a file on tmpfs would do for a live save
        backend = f"memory-backend-file,id=memory,share=on,size=32M,mem-path={name}/memory"
        async with scene(extra=["-object", backend, "-machine", "memory-backend=memory"]) as stage:
            capabilities = (await stage.properties())["Capabilities"]
            assert not capabilities["Live"]
            with pytest.raises(CallError, match="A live snapshot is not possible") as refused:
                await stage.create("a", live=Variant("s", "require"))
            assert refused.value.name == ERROR + "NotSupported"
            assert await stage.snapshots() == []
            await stage.create("a")
            made = await stage.properties("a")
            assert made["Method"] == "paused"
            assert made["MethodReason"] == capabilities["LiveBlocker"]
            assert "guest memory configuration" in made["MethodReason"]
            assert made["PauseUSec"] > 0
            stage.qemu.wait_counting()
            await stage.create("b")
            stage.qemu.wait_counting()
            for each in ("a", "b", "a"):
                await revert_and_compare(stage, each)
            await stage.delete("a")
            await stage.delete("b")
            await _assert_bare(stage, TWO_DISKS)


async def test_a_device_that_cannot_be_saved_is_named() -> None:
    async with scene(extra=["-device", "nvme,serial=1"]) as stage:
        with pytest.raises(CallError, match="nvme") as refused:
            await stage.create("a")
        assert refused.value.name == ERROR + "NotSupported"
        assert "memory: false" in refused.value.text
        assert (await stage.properties())["Capabilities"]["Memory"] is False
        stage.qemu.wait_counting()
        await _assert_images(stage, TWO_DISKS)
        # Its disks alone can be kept, which is what the refusal says.
        await stage.create("a", memory=NO_MEMORY)
        stage.qemu.wait_counting()
        await stage.revert("a")
        stage.qemu.wait_counting()
        await stage.delete("a")
        await _assert_bare(stage, TWO_DISKS)


CAPABILITIES = ("xbzrle", "postcopy-ram", "multifd", "x-ignore-shared", "block", "mapped-ram")
"""Of these some are refused together with a live save, and some end, hang or mislead QEMU when it saves into a file of ours."""


async def test_what_the_user_has_set_for_migrations_is_in_nobodys_way_and_stays() -> None:
    memory = ["-object", "memory-backend-memfd,id=memory,share=on,size=32M", "-machine", "memory-backend=memory"]
    credentials = ["-object", "tls-creds-anon,id=tls0,endpoint=client"]
    async with scene(extra=[*memory, *credentials]) as stage:
        control = stage.qemu.control
        known = {each["capability"] for each in control.execute("query-migrate-capabilities")}
        control.execute("migrate-set-parameters", tls_creds="tls0", max_bandwidth=12_345_678)
        for name in known.intersection(CAPABILITIES):
            _set_capability(stage, name, True)
            before = _migration_settings(stage)
            await stage.create(f"{name}-live", live=Variant("s", "require"))
            assert _migration_settings(stage) == before
            stage.qemu.wait_counting()
            await stage.create(f"{name}-paused", live=Variant("s", "no"))
            assert _migration_settings(stage) == before
            await revert_and_compare(stage, f"{name}-live")
            await revert_and_compare(stage, f"{name}-paused")
            assert _migration_settings(stage) == before
            _set_capability(stage, name, False)


async def test_the_guest_can_be_migrated_between_two_snapshots(tmp_path: Path) -> None:
    """To a file, which is a migration like any other; while it goes on nothing can be saved."""
    target = tmp_path / "migrated"
    async with scene() as stage:
        control = stage.qemu.control
        await stage.create("a")
        _set_capability(stage, "events", True)
        control.execute("migrate-set-parameters", max_bandwidth=4096)
        control.execute("migrate", uri=f"exec:cat > {target}")
        with pytest.raises(CallError, match="a migration of it is going on") as refused:
            await stage.create("b")
        assert refused.value.name == ERROR + "NotSupported"
        assert [row[1] for row in await stage.snapshots()] == ["a"]
        control.execute("migrate-set-parameters", max_bandwidth=0)
        while control.wait_event("MIGRATION")["data"]["status"] != "completed":
            pass
        async with asyncio.timeout(TARGET_TIMEOUT_S):  # what QEMU has written is on its way through a pipe
            while target.read_bytes()[:4] != b"QEVM":
                await stage.wait_any()
        # The event comes a little before QEMU has put the guest away.
        while control.execute("query-status")["status"] != "postmigrate":
            pass
        control.execute("cont")
        await asyncio.to_thread(stage.qemu.wait_counting)
        await stage.create("b")
        await revert_and_compare(stage, "a")
        await revert_and_compare(stage, "b")


async def test_a_larger_guest_that_dirties_its_memory() -> None:
    async with scene(guest=TinyGuest.dirtying(200), memory_mib=256) as stage:
        await stage.create("a")
        stage.qemu.wait_counting(more=50)
        await stage.create("b")
        stage.qemu.wait_counting(more=50)
        await revert_and_compare(stage, "a")
        await revert_and_compare(stage, "b")
        assert (await stage.properties("b"))["Method"] == "live"


@pytest.mark.parametrize("disks", [TWO_DISKS, TWO_QCOW2], ids=["external", "internal"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "paused"])
async def test_a_save_that_is_refused_after_the_disks_were_taken_is_taken_back(
    running: bool, disks: tuple[GuestDisk, ...]
) -> None:
    async with scene(disks) as stage:
        control = stage.qemu.control
        # Somebody else's job has the name of our first one, so that QEMU refuses it with the guest stopped.
        options = {"driver": "file", "filename": str(stage.directory / "foreign.img"), "size": 512}
        control.execute("blockdev-create", job_id="domsnap-job-1", options=options)
        if not running:
            control.execute("stop")
            await stage.wait_state("paused")
        with pytest.raises(CallError, match="snapshot-save") as refused:
            await stage.create("a", live=Variant("s", "no"))
        assert refused.value.name == ERROR + "QemuFailed"
        assert _runs(stage) is running
        assert (await stage.properties())["Interrupted"] == ""
        await _assert_bare(stage, disks)
        control.execute("cont")
        stage.qemu.wait_counting()
        await stage.create("a")
        await revert_and_compare(stage, "a")


async def test_branches_share_an_image_until_one_of_them_is_gone() -> None:
    """a ─┬─ b ─ c and a ─ d ─ (now): everything is deleted, in the order root, middle, leaf, and the rest stays readable."""
    async with scene() as stage:
        for name in ("a", "b", "c"):
            await stage.create(name)
            stage.qemu.wait_counting()
        await revert_and_compare(stage, "a")
        await stage.create("d")
        stage.qemu.wait_counting()
        shared = stage.images / "disk0.raw"
        content = shared.read_bytes()

        await stage.delete("a")
        assert {row[1]: row[4] for row in await stage.snapshots()} == {"b": "", "c": "b", "d": ""}
        assert shared.read_bytes() == content
        for name in ("b", "c", "d"):
            await revert_and_compare(stage, name)
        assert shared.read_bytes() == content

        await stage.delete("b")
        for name in ("c", "d"):
            await revert_and_compare(stage, name)
        assert shared.read_bytes() == content
        await stage.delete("c")
        stage.qemu.wait_counting()
        await revert_and_compare(stage, "d")
        await stage.delete("d")
        await _assert_bare(stage, TWO_DISKS)


MERGED_BYTES = 48 << 20


@pytest.mark.parametrize("direction", ["commit", "stream"])
async def test_a_merge_runs_in_the_direction_that_copies_less_while_the_guest_writes(direction: str) -> None:
    async with scene(disk_bytes=64 << 20) as stage:
        for name in ("a", "b"):
            await stage.create(name)
            # What is written after a lies below what is written after b.
            if (name == "a") == (direction == "commit"):
                _fill(stage, await _node(stage, "disk0"), 1 << 20, MERGED_BYTES)
            stage.qemu.wait_counting()
        stage.qemu.control.events.clear()
        before = stage.qemu.counter()
        await stage.delete("b")
        after = stage.qemu.wait_counting()
        assert after > before
        merged = {event["data"]["device"]: event["data"]["type"] for event in _events(stage, "BLOCK_JOB_COMPLETED")}
        assert direction in merged.values(), merged
        disk0 = next(disk for disk in (await stage.properties())["Disks"] if disk["Target"] == "disk0")
        written = _read(disk0["Image"], disk0["Format"], 1 << 20, MERGED_BYTES)
        assert written == b"\x5a" * MERGED_BYTES
        await revert_and_compare(stage, "a")
        await stage.delete("a")
        await _assert_bare(stage, TWO_DISKS)


async def test_a_branch_that_qemu_has_not_open_is_merged_beside_it() -> None:
    async with scene() as stage:
        for name in ("a", "b", "c"):
            await stage.create(name)
            stage.qemu.wait_counting()
        await revert_and_compare(stage, "a")
        stage.qemu.control.events.clear()
        await stage.delete("b")
        stage.qemu.wait_counting()
        assert _events(stage, "BLOCK_JOB_COMPLETED") == []
        assert {row[1]: row[4] for row in await stage.snapshots()} == {"a": "", "c": "a"}
        for each in stage.images.glob("*.qcow2"):
            _qemu_img("check", "-U", "-q", str(each))
        for name in ("c", "a", "c"):
            await revert_and_compare(stage, name)
        await stage.delete("a", scope=Variant("s", "tree"))
        await _assert_bare(stage, TWO_DISKS)


async def _assert_bare(stage: Scene, disks: Sequence[GuestDisk], *, reopened: bool = False) -> None:
    """Make sure that the domain is as it was defined, and that no file and no node is left over.

    Args:
        reopened: whether there was a revert to an internal snapshot.
    """
    assert await stage.snapshots() == []
    await _assert_images(stage, disks)
    state = sorted(str(each.relative_to(stage.state)) for each in stage.state.rglob("*") if not each.is_dir())
    links = [f"disks/{disk.id}.{disk.format}" for disk in disks]
    assert state in ([], sorted(["disks.env", "domain.libxl-json", *links]))
    nodes = stage.qemu.control.execute("query-named-block-nodes", flat=True)
    assert sorted((node["drv"], node["file"]) for node in nodes) == sorted(
        (driver, str(stage.images / disk.path)) for disk in disks for driver in ("file", disk.format)
    )
    # An image that was closed so that an internal snapshot could be applied to it is open under a name of ours since.
    in_use = {block["inserted"]["node-name"] for block in stage.qemu.control.execute("query-block")} if reopened else set()
    assert [name for node in nodes if (name := node["node-name"]).startswith("domsnap-") and name not in in_use] == []
    for disk in disks:
        path = stage.images / disk.path
        assert disk_counter(path, disk.format) > 0
        assert disk.format != "qcow2" or tags(path) == []


async def _assert_images(stage: Scene, disks: Sequence[GuestDisk]) -> None:
    assert sorted(each.name for each in stage.images.iterdir()) == sorted(str(disk.path) for disk in disks)
    shown = {Path(disk["Image"]).name for disk in (await stage.properties())["Disks"] if disk["Eligible"]}
    assert shown == {str(disk.path) for disk in disks}


def _runs(stage: Scene) -> bool:
    return bool(stage.qemu.control.execute("query-status")["running"])


def _cache_modes(stage: Scene) -> list[dict[str, bool]]:
    return [block["inserted"]["cache"] for block in stage.qemu.control.execute("query-block") if block.get("inserted")]


def _set_capability(stage: Scene, name: str, state: bool) -> None:
    stage.qemu.control.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": state}])


def _migration_settings(stage: Scene) -> tuple[Any, Any]:
    control = stage.qemu.control
    return control.execute("query-migrate-capabilities"), control.execute("query-migrate-parameters")


def _events(stage: Scene, name: str) -> list[dict[str, Any]]:
    """Return the events of that name that have come; one more command lets those come in that are under way."""
    stage.qemu.control.execute("query-status")
    return [event for event in stage.qemu.control.events if event["event"] == name]


async def _node(stage: Scene, target: str) -> str:
    return next(str(disk["Device"]) for disk in (await stage.properties())["Disks"] if disk["Target"] == target)


def _fill(stage: Scene, device: str, offset: int, size_bytes: int) -> None:
    printed = stage.qemu.control.hmp(f'qemu-io -d {device} "write -P 0x5a {offset} {size_bytes}"')
    assert not printed, printed


def _read(path: str, image_format: str, offset: int, size_bytes: int) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "raw")
        _qemu_img("convert", "-U", "-f", image_format, "-O", "raw", path, str(out))
        return out.read_bytes()[offset : offset + size_bytes]


def _qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, timeout=60)
