# SPDX-License-Identifier: MIT
"""The memory-state container: its layout at every size, and files that qemu-img has nothing to say against."""

import asyncio
import json
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from snapd.errors import ImageInUse, ImageToolFailed
from snapd.images import vmstate
from snapd.images.qemu_img import QemuImg
from snapd.images.vmstate import CLUSTER_BYTES, L2_COVERS_BYTES, MEMORY_TAG, Layout, MemoryFile, metadata

KIB, MIB, GIB, TIB, PIB = (1 << shift for shift in (10, 20, 30, 40, 50))
CREATED_S = 1_700_000_000
CHILD_TIMEOUT_S = 30
SIZES = [
    *(1, KIB, CLUSTER_BYTES - 1, CLUSTER_BYTES, CLUSTER_BYTES + 1, GIB, 4 * GIB - 1, 4 * GIB),
    *(L2_COVERS_BYTES - 1, L2_COVERS_BYTES, L2_COVERS_BYTES + 1, 2 * TIB, 3 * TIB + 7, 16 * TIB),
]

pytestmark = pytest.mark.timeout(60)


class Reader:
    """Reads a container the way the specification says, from what ``metadata`` would write."""

    def __init__(self, pieces: list[tuple[int, bytes]]) -> None:
        self.pieces = pieces
        header = struct.unpack(">4sIQIIQIIQQIIQQQQII", self.read(0, 104))
        assert header[:2] == (b"QFI\xfb", 3)
        self.cluster_bytes = 1 << header[4]
        self.active_l1_entries, self.active_l1 = header[7], header[8]
        self.refcount_table = header[9]
        assert header[11] == 1, "one internal snapshot"
        table = header[12]
        fixed = struct.unpack(">QIHHIIQII", self.read(table, 40))
        self.l1, self.l1_entries, self.date_s, self.short_size = fixed[0], fixed[1], fixed[4], fixed[7]
        self.vm_state_bytes, self.disk_bytes, _ = struct.unpack(">QQQ", self.read(table + 40, 24))
        names = self.read(table + 40 + fixed[8], fixed[2] + fixed[3])
        self.tag = names[fixed[2] :].decode()
        self.tables = {0, self.refcount_table, self.active_l1, table, self.l1}

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes as the file would: what was not written is zero."""
        found = bytearray(length)
        for start, content in self.pieces:
            first, last = max(offset, start), min(offset + length, start + len(content))
            if first < last:
                found[first - offset : last - offset] = content[first - start : last - start]
        return bytes(found)

    def pointers(self, offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}Q", self.read(offset, count * 8))

    def vm_state_clusters(self) -> list[int]:
        first_entry = -(-self.disk_bytes // L2_COVERS_BYTES)
        tables = self.pointers(self.l1, self.l1_entries)
        assert not any(tables[:first_entry]), "the disk is empty"
        self.tables.update(tables[first_entry:])
        per_table = self.cluster_bytes // 8
        return [each for table in tables[first_entry:] for each in self.pointers(table, per_table) if each]

    def counted_clusters(self) -> set[int]:
        per_block = self.cluster_bytes // 2
        counted: set[int] = set()
        for index, block in enumerate(self.pointers(self.refcount_table, self.cluster_bytes // 8)):
            if not block:
                continue
            self.tables.add(block)
            counts = struct.unpack(f">{per_block}H", self.read(block, self.cluster_bytes))
            assert set(counts) <= {0, 1}
            start = index * per_block
            counted.update((start + each) * self.cluster_bytes for each, count in enumerate(counts) if count)
        return counted


@pytest.mark.parametrize("largest", [*SIZES, PIB, vmstate.LARGEST_STREAM_BYTES])
def test_layout_has_room_for_the_stream_and_counts_every_cluster(largest: int) -> None:
    layout = Layout.for_stream(largest)

    assert layout.capacity_bytes >= largest
    assert layout.data_offset % CLUSTER_BYTES == 0
    assert layout.refcount_blocks_offset < layout.l2_offset < layout.data_offset
    counted_bytes = layout.refcount_blocks * vmstate.REFCOUNTS_PER_BLOCK * CLUSTER_BYTES
    assert counted_bytes >= layout.file_bytes(layout.capacity_bytes)
    assert layout.refcount_blocks * 8 <= CLUSTER_BYTES
    assert layout.data_offset - layout.refcount_blocks_offset == (layout.refcount_blocks + layout.l2_tables) * CLUSTER_BYTES


@pytest.mark.parametrize("largest", [-1, 0, vmstate.LARGEST_STREAM_BYTES + 1])
def test_layout_refuses_sizes_without_meaning(largest: int) -> None:
    with pytest.raises(ValueError, match="has no layout"):
        Layout.for_stream(largest)


@pytest.mark.parametrize("stream", SIZES)
def test_metadata_stays_in_its_region_without_overlap_and_ends_with_the_header(stream: int) -> None:
    layout = Layout.for_stream(stream)

    pieces = metadata(layout, stream, CREATED_S)

    spans = sorted((offset, offset + len(content)) for offset, content in pieces)
    assert all(end <= following for (_, end), (following, _) in pairwise(spans))
    assert spans[-1][1] <= layout.data_offset
    assert pieces[-1][0] == 0
    assert pieces[-1][1].startswith(b"QFI\xfb")


@pytest.mark.parametrize("largest", [1, 16 * TIB])
@pytest.mark.parametrize("stream", [1, CLUSTER_BYTES + 1, 4 * GIB, L2_COVERS_BYTES + 1])
def test_metadata_maps_the_stream_in_order_and_counts_exactly_what_is_used(largest: int, stream: int) -> None:
    layout = Layout.for_stream(max(largest, stream))
    reader = Reader(metadata(layout, stream, CREATED_S))

    clusters = reader.vm_state_clusters()
    assert clusters == list(range(layout.data_offset, layout.file_bytes(stream), CLUSTER_BYTES))
    assert reader.counted_clusters() == reader.tables | set(clusters)
    assert reader.tag == MEMORY_TAG
    assert reader.date_s == CREATED_S
    assert reader.vm_state_bytes == stream
    assert reader.short_size == (stream if stream < 4 * GIB else 0)
    assert reader.active_l1_entries == reader.l1_entries


def test_metadata_refuses_a_stream_that_does_not_fit() -> None:
    layout = Layout.for_stream(KIB)
    for stream in (0, layout.capacity_bytes + 1):
        with pytest.raises(ValueError, match="does not fit"):
            metadata(layout, stream, CREATED_S)


async def test_finished_file_holds_the_stream_and_is_a_container(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    stream = os.urandom(5 * MIB + 123)
    memory_file = await vmstate.create_memory_file(str(path), 64 * MIB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(memory_file.fd)
    assert path.stat().st_blocks * 512 >= 64 * MIB, "the room is taken before QEMU writes"
    handed_over = os.dup(memory_file.fd)  # shares the offset, as a descriptor sent to QEMU does
    os.write(handed_over, stream)
    os.close(handed_over)

    assert await vmstate.finish(memory_file) == len(stream)

    assert memory_file.file.closed
    offset = memory_file.layout.data_offset
    content = path.read_bytes()
    assert content[offset : offset + len(stream)] == stream
    assert not any(content[offset + len(stream) :])
    assert len(content) == memory_file.layout.file_bytes(len(stream))
    assert path.stat().st_blocks * 512 < 7 * MIB, "margin given back, region sparse"
    assert (await QemuImg().check(str(path))).is_clean
    assert _listed_tags(path) == [(MEMORY_TAG, len(stream))]


@pytest.mark.parametrize("stream", [600 * GIB, 2 * TIB + 300 * GIB + 5])
async def test_containers_of_several_tables_and_blocks_check_clean(tmp_path: Path, stream: int) -> None:
    path = tmp_path / "memory"
    memory_file = _sparse(path, stream)

    assert await vmstate.finish(memory_file) == stream

    assert (await QemuImg().check(str(path))).is_clean
    assert _listed_tags(path) == [(MEMORY_TAG, stream)]


async def test_a_file_without_a_stream_is_no_container(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    memory_file = await vmstate.create_memory_file(str(path), MIB)

    with pytest.raises(ImageToolFailed) as caught:
        await vmstate.finish(memory_file)
    assert str(caught.value) == f"finishing {path} failed: QEMU wrote no memory state into it."
    with pytest.raises(ImageToolFailed, match="not in qcow2 format"):
        await QemuImg().check(str(path))

    await vmstate.discard(memory_file)
    await vmstate.discard(memory_file)
    assert list(tmp_path.iterdir()) == []


async def test_everything_but_the_header_makes_no_container(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    layout = Layout.for_stream(MIB)
    with path.open("wb") as file:
        file.truncate(layout.file_bytes(MIB))
        for offset, content in metadata(layout, MIB, CREATED_S)[:-1]:
            file.seek(offset)
            file.write(content)

    with pytest.raises(ImageToolFailed, match="not in qcow2 format"):
        await QemuImg().check(str(path))


async def test_an_overlong_stream_is_refused(tmp_path: Path) -> None:
    memory_file = _sparse(tmp_path / "memory", Layout.for_stream(MIB).capacity_bytes + 1, Layout.for_stream(MIB))

    with pytest.raises(ImageToolFailed, match="the memory state is longer than"):
        await vmstate.finish(memory_file)
    await vmstate.discard(memory_file)


async def test_a_file_in_the_way_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"precious")

    with pytest.raises(ImageInUse) as caught:
        await vmstate.create_memory_file(str(path), MIB)
    assert str(caught.value) == f"{path} already exists and is never overwritten; move it away."
    with pytest.raises(ImageInUse, match="already exists"):
        await vmstate.create_empty(str(path), QemuImg())

    assert path.read_bytes() == b"precious"


def test_a_full_disk_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    # A small file system of its own, gone with the process: what /dev/shm gives is the machine's memory.
    child = """
import asyncio, json, os, sys
from snapd.errors import NoSpace
from snapd.images.vmstate import create_memory_file
directory = sys.argv[1]
try:
    asyncio.run(create_memory_file(directory + "/memory", 64 << 20))
except NoSpace as error:
    print(json.dumps([error.directory, error.needed_bytes, error.free_bytes, os.listdir(directory)]))
"""
    done = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user", "sh", "-ec"),
            'mount -t tmpfs -o size=8m tmpfs "$1"; exec "$2" -c "$3" "$1"',
            *("sh", str(tmp_path), sys.executable, child),
        ],
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    directory, needed, free, left = json.loads(done.stdout)
    assert (directory, needed, left) == (str(tmp_path), 64 * MIB, [])
    assert 7 * MIB < free <= 8 * MIB, "what is free without the part that was taken already"


async def test_a_cancelled_creation_leaves_nothing(tmp_path: Path) -> None:
    creation = asyncio.ensure_future(vmstate.create_memory_file(str(tmp_path / "memory"), MIB))
    await asyncio.sleep(0)  # lets the thread begin; wherever the cancellation meets it, the outcome is the same
    creation.cancel()

    with pytest.raises(asyncio.CancelledError):
        await creation
    assert list(tmp_path.iterdir()) == []


async def test_an_empty_container_has_large_clusters_and_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "memory"

    await vmstate.create_empty(str(path), QemuImg())

    assert path.stat().st_mode & 0o777 == 0o600
    described = _described(path)
    assert (described["format"], described["cluster-size"], described["virtual-size"]) == ("qcow2", 2 * MIB, MIB)
    assert "snapshots" not in described
    assert (await QemuImg().check(str(path))).is_clean


async def test_opening_for_loading_gives_one_descriptor_of_each_mode(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"state")

    read_write, read_only = await vmstate.open_for_loading(str(path))
    try:
        assert os.pread(read_only, 5, 0) == b"state"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(read_only, b"x", 0)
        assert os.pwrite(read_write, b"S", 0) == 1
        assert not os.get_inheritable(read_write)
        assert not os.get_inheritable(read_only)
    finally:
        os.close(read_write)
        os.close(read_only)


async def test_opening_what_is_missing_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageToolFailed) as caught:
        await vmstate.open_for_loading(str(tmp_path / "gone"))
    assert str(caught.value) == f"opening {tmp_path}/gone failed: No such file or directory."


def _sparse(path: Path, stream: int, layout: Layout | None = None) -> MemoryFile:
    """Return a file as after a stream of ``stream`` bytes, all of them a hole."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    memory_file = MemoryFile(str(path), os.fdopen(descriptor, "r+b", buffering=0), layout or Layout.for_stream(stream))
    os.lseek(memory_file.fd, memory_file.layout.data_offset + stream, os.SEEK_SET)
    return memory_file


def _described(path: Path) -> dict[str, object]:
    answer = subprocess.run(
        ["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)],
        capture_output=True,
        timeout=CHILD_TIMEOUT_S,
        check=True,
    )
    described = json.loads(answer.stdout)
    assert isinstance(described, dict)
    return described


def _listed_tags(path: Path) -> list[tuple[str, int]]:
    snapshots = _described(path)["snapshots"]
    assert isinstance(snapshots, list)
    return [(each["name"], each["vm-state-size"]) for each in snapshots]
