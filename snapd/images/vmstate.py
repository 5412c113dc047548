# SPDX-License-Identifier: MIT
"""The memory-state container: a qcow2 file around a stream that QEMU wrote, so that ``snapshot-load`` finds it there.

QEMU writes the stream itself, through a descriptor; what is here reserves room in front of it and afterwards describes it.
Handing descriptors to QEMU is not its subject. Invariants:

- The stream is never copied, and lies in one piece from ``Layout.data_offset`` on.
- The metadata region is sparse: only what a table really says is written.
- A file whose stream is not complete and durable has no qcow2 header, so nothing takes it for a container.
- No file that was there before is written to.

Source: QEMU docs/interop/qcow2.txt; block/qcow2-snapshot.c for where the VM state begins.
"""

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from snapd.errors import ImageToolFailed
from snapd.images.files import create_exclusively, named, run_to_end, sync_directory, unlink_created
from snapd.images.qemu_img import QemuImg

MEMORY_TAG = "memory"
CLUSTER_BITS = 21
CLUSTER_BYTES = 1 << CLUSTER_BITS
REFCOUNTS_PER_BLOCK = CLUSTER_BYTES // 2
L2_ENTRIES = CLUSTER_BYTES // 8
L2_COVERS_BYTES = L2_ENTRIES * CLUSTER_BYTES
LARGEST_STREAM_BYTES = 1 << 56  # one cluster each for the refcount table and the snapshot's L1 goes further than that
DISK_BYTES = 1 << 20  # QEMU refuses none, and one L1 entry is the least a disk can have

_HEADER_VERSION = 3
_HEADER_LENGTH = 104
_REFCOUNT_ORDER = 4  # 16 bits
_SNAPSHOT_ID = b"1"
_NO_ICOUNT = (1 << 64) - 1

# The fixed part of the region, one cluster each; refcount blocks and L2 tables follow.
_REFCOUNT_TABLE, _ACTIVE_L1, _SNAPSHOT_L1, _SNAPSHOT_TABLE, _FIXED_CLUSTERS = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a container; settled before the length of the stream is known.

    Whole L2 tables are reserved, so ``capacity_bytes`` is at least 512 GiB: a stream longer than foretold still fits.
    """

    refcount_blocks: int
    l2_tables: int

    @classmethod
    def for_stream(cls, largest_bytes: int) -> "Layout":
        """Size the metadata region for any stream of up to ``largest_bytes``."""
        if not 0 < largest_bytes <= LARGEST_STREAM_BYTES:
            raise ValueError(f"a stream of {largest_bytes} bytes has no layout")
        l2_tables = -(-largest_bytes // L2_COVERS_BYTES)
        others = _FIXED_CLUSTERS + l2_tables + l2_tables * L2_ENTRIES
        # Each block counts the clusters of the blocks too, itself among them.
        refcount_blocks = -(-others // (REFCOUNTS_PER_BLOCK - 1))
        return cls(refcount_blocks, l2_tables)

    @property
    def refcount_blocks_offset(self) -> int:
        return _FIXED_CLUSTERS * CLUSTER_BYTES

    @property
    def l2_offset(self) -> int:
        return self.refcount_blocks_offset + self.refcount_blocks * CLUSTER_BYTES

    @property
    def data_offset(self) -> int:
        return self.l2_offset + self.l2_tables * CLUSTER_BYTES

    @property
    def capacity_bytes(self) -> int:
        return self.l2_tables * L2_COVERS_BYTES

    def file_bytes(self, stream_bytes: int) -> int:
        """Return the length of the finished file, a whole number of clusters."""
        return self.data_offset + _clusters(stream_bytes) * CLUSTER_BYTES


@dataclass(frozen=True, eq=False)
class MemoryFile:
    """A file under way to become a container; ``finish`` or ``discard`` ends it, and its descriptor is closed only once."""

    path: str
    file: FileIO
    layout: Layout

    @property
    def fd(self) -> int:
        """The descriptor to hand to QEMU; its offset, which QEMU moves, says how long the stream is."""
        return self.file.fileno()


def metadata(layout: Layout, stream_bytes: int, created_s: int) -> list[tuple[int, bytes]]:
    """Describe a stream of ``stream_bytes`` as the VM state of one internal snapshot called ``MEMORY_TAG``.

    Returns: what to write at which offset. The header is last: without it all the rest is nothing.
    """
    if not 0 < stream_bytes <= layout.capacity_bytes:
        raise ValueError(f"a stream of {stream_bytes} bytes does not fit {layout}")
    used_tables = -(-stream_bytes // L2_COVERS_BYTES)
    return [
        (_REFCOUNT_TABLE * CLUSTER_BYTES, _pointers(layout.refcount_blocks_offset, layout.refcount_blocks)),
        (layout.refcount_blocks_offset, _refcounts(layout, used_tables, _clusters(stream_bytes))),
        # The VM state begins behind the disk, whose one L1 entry is empty.
        (_SNAPSHOT_L1 * CLUSTER_BYTES, struct.pack(">Q", 0) + _pointers(layout.l2_offset, used_tables)),
        *_l2_tables(layout, _clusters(stream_bytes)),
        (_SNAPSHOT_TABLE * CLUSTER_BYTES, _snapshot_table(stream_bytes, used_tables, created_s)),
        (0, _header(used_tables)),
    ]


async def create_memory_file(path: str, largest_stream_bytes: int) -> MemoryFile:
    """Create the file that QEMU is to stream memory into, with all the room it may need taken now.

    A background snapshot that meets a full file system freezes the guest for ever (QEMU before 8.2).

    Args: ``largest_stream_bytes`` is the memory's size and a margin.
    Returns: a file whose descriptor stands where the stream begins; owner ours, mode 0600.
    Raises: ImageInUse when anything has that name; NoSpace; nothing is left behind.
    Cancellation: nothing is left behind.
    """
    layout = Layout.for_stream(largest_stream_bytes)
    return await run_to_end(lambda: _create(path, layout, largest_stream_bytes), undo=_remove)


async def finish(memory_file: MemoryFile) -> int:
    """Make a container of the file, once QEMU has written the stream, and close it.

    Returns: the length of the stream in bytes.
    Effects: room that the stream did not need is given back; file and name are durable.
    Raises: ImageToolFailed when nothing was written or it cannot be described; the file is then not a container: discard it.
    Cancellation: the container is complete before it is passed on.
    """
    return await run_to_end(lambda: _finish(memory_file, int(time.time())))


async def discard(memory_file: MemoryFile) -> None:
    """Close and remove the file, finished or not; doing so twice is fine."""
    memory_file.file.close()
    await unlink_created(memory_file.path)


async def create_empty(path: str, tool: QemuImg) -> None:
    """Create a container with nothing in it, for QEMU's own ``snapshot-save``; owner ours, mode 0600.

    Raises: ImageInUse when anything has that name; ImageToolFailed; nothing is left behind.
    """
    await tool.create_new(path, DISK_BYTES, "-o", f"cluster_size={CLUSTER_BYTES}")


async def open_for_loading(path: str) -> tuple[int, int]:
    """Open a container for ``add-fd``, whose set needs both: QEMU opens the file read-only before it opens it to write.

    Returns: a read-write and a read-only descriptor, both the caller's to close.
    """
    return await run_to_end(lambda: _open_twice(path), undo=_close_both)


def _clusters(length_bytes: int) -> int:
    return -(-length_bytes // CLUSTER_BYTES)


def _pointers(first_offset: int, count: int) -> bytes:
    """Return table entries for ``count`` clusters in a row."""
    return struct.pack(f">{count}Q", *range(first_offset, first_offset + count * CLUSTER_BYTES, CLUSTER_BYTES))


def _refcounts(layout: Layout, used_tables: int, data_clusters: int) -> bytes:
    used, unused = struct.pack(">H", 1), struct.pack(">H", 0)
    first_l2 = layout.l2_offset // CLUSTER_BYTES
    return used * (first_l2 + used_tables) + unused * (layout.l2_tables - used_tables) + used * data_clusters


def _l2_tables(layout: Layout, data_clusters: int) -> Iterator[tuple[int, bytes]]:
    for first in range(0, data_clusters, L2_ENTRIES):
        count = min(L2_ENTRIES, data_clusters - first)
        yield layout.l2_offset + first * 8, _pointers(layout.data_offset + first * CLUSTER_BYTES, count)


def _snapshot_table(stream_bytes: int, used_tables: int, created_s: int) -> bytes:
    tag = MEMORY_TAG.encode()
    extra = struct.pack(">QQQ", stream_bytes, DISK_BYTES, _NO_ICOUNT)
    entry = struct.pack(
        ">QIHHIIQII",
        _SNAPSHOT_L1 * CLUSTER_BYTES,
        1 + used_tables,
        len(_SNAPSHOT_ID),
        len(tag),
        created_s & 0xFFFFFFFF,
        0,  # nanoseconds of the date
        0,  # guest clock
        stream_bytes if stream_bytes <= 0xFFFFFFFF else 0,  # the 64-bit size in the extra data is what counts
        len(extra),
    )
    entry += extra + _SNAPSHOT_ID + tag
    return entry + bytes(-len(entry) % 8)


def _header(used_tables: int) -> bytes:
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        _HEADER_VERSION,
        0,  # no backing image
        0,
        CLUSTER_BITS,
        DISK_BYTES,
        0,  # not encrypted
        # As long as the snapshot's: QEMU would otherwise allocate a longer one when it loads, which a full disk refuses.
        1 + used_tables,
        _ACTIVE_L1 * CLUSTER_BYTES,
        _REFCOUNT_TABLE * CLUSTER_BYTES,
        1,  # clusters of the refcount table
        1,  # snapshots
        _SNAPSHOT_TABLE * CLUSTER_BYTES,
        0,  # features: incompatible, compatible, automatically cleared
        0,
        0,
        _REFCOUNT_ORDER,
        _HEADER_LENGTH,
    )
    return header + bytes(8)  # end of header extensions


def _create(path: str, layout: Layout, largest_bytes: int) -> MemoryFile:
    memory_file = MemoryFile(path, os.fdopen(create_exclusively(path), "r+b", buffering=0), layout)
    with named("allocating", path, largest_bytes):
        try:
            os.posix_fallocate(memory_file.fd, layout.data_offset, _clusters(largest_bytes) * CLUSTER_BYTES)
            os.lseek(memory_file.fd, layout.data_offset, os.SEEK_SET)
        except BaseException:
            # Before the error is made, which then tells what is free without the part that was already taken.
            _remove(memory_file)
            raise
    return memory_file


def _remove(memory_file: MemoryFile) -> None:
    memory_file.file.close()
    Path(memory_file.path).unlink()


def _finish(memory_file: MemoryFile, created_s: int) -> int:
    layout, path, fd = memory_file.layout, memory_file.path, memory_file.fd
    with named("finishing", path):
        stream_bytes = os.lseek(fd, 0, os.SEEK_CUR) - layout.data_offset
        if stream_bytes <= 0:
            raise ImageToolFailed(f"finishing {path}", "QEMU wrote no memory state into it")
        if stream_bytes > layout.capacity_bytes:
            raise ImageToolFailed(f"finishing {path}", f"the memory state is longer than {layout.capacity_bytes} bytes")
        # First of all, since it frees the margin: the tables then find room on a disk that has filled up meanwhile.
        os.ftruncate(fd, layout.file_bytes(stream_bytes))
        *tables, header = metadata(layout, stream_bytes, created_s)
        for offset, content in tables:
            _write_all(fd, offset, content)
        os.fdatasync(fd)
        _write_all(fd, *header)
        os.fdatasync(fd)
        memory_file.file.close()
    sync_directory(str(Path(path).parent))
    return stream_bytes


def _write_all(fd: int, offset: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _open_twice(path: str) -> tuple[int, int]:
    with named("opening", path):
        read_write = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return read_write, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(read_write)
            raise


def _close_both(descriptors: tuple[int, int]) -> None:
    for each in descriptors:
        os.close(each)
