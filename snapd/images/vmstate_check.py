# SPDX-License-Identifier: MIT
"""Looking at a memory-state container before it is loaded: a load that fails has lost the guest's memory.

Making one is ``vmstate``, whose layout this does not assume: QEMU may have written it itself. The content of the stream is not
looked at.

Source: QEMU docs/interop/qcow2.txt.
"""

import os
import struct

from snapd.errors import StateDamaged
from snapd.images.files import named, run_to_end
from snapd.images.vmstate import MEMORY_TAG

_HEADER = struct.Struct(">4sI12xI24x12xIQ")
"""Magic, version, cluster bits; number of snapshots, where they stand."""

_SNAPSHOT = struct.Struct(">QIHH20xI")
"""L1 offset and size, lengths of id and name, length of the extra data."""

_CLUSTER_BITS = range(9, 22)
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00


async def check(path: str) -> None:
    """Make sure that the file is a container and goes as far as its memory state does.

    Raises: StateDamaged; ImageToolFailed when it cannot be read.
    """
    await run_to_end(lambda: _check(path))


def _check(path: str) -> None:
    with named("opening", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with named("reading", path):
            end = os.fstat(descriptor).st_size
            needed = _end_of_state(descriptor)
    except (struct.error, ValueError) as error:
        raise StateDamaged(path, 0, "it is no memory state any more; delete its snapshot") from error
    finally:
        os.close(descriptor)
    if end < needed:
        raise StateDamaged(path, 0, f"it was cut off: it has {end} bytes, and its memory state goes to {needed}")


def _end_of_state(descriptor: int) -> int:
    """Return where the last cluster of the memory state ends. Raises: struct.error or ValueError where there is none."""
    magic, _, cluster_bits, snapshots, table = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
    if magic != b"QFI\xfb" or cluster_bits not in _CLUSTER_BITS or snapshots != 1:
        raise ValueError("no container")
    l1_offset, l1_size, id_length, name_length, extra_length = _SNAPSHOT.unpack(os.pread(descriptor, _SNAPSHOT.size, table))
    name = os.pread(descriptor, name_length, table + _SNAPSHOT.size + extra_length + id_length)
    if name != MEMORY_TAG.encode():
        raise ValueError("no memory state")
    cluster_bytes = 1 << int(cluster_bits)
    last = 0
    for l2_offset in _pointers(descriptor, l1_offset, l1_size):
        if l2_offset:
            last = max(last, *_pointers(descriptor, l2_offset, cluster_bytes // 8), 0)
    if not last:
        raise ValueError("an empty memory state")
    return last + cluster_bytes


def _pointers(descriptor: int, offset: int, count: int) -> list[int]:
    """Return the offsets in a table up to the last one that is not zero. Raises: ValueError when the file ends before it."""
    table = os.pread(descriptor, 8 * count, offset)
    if len(table) < 8 * count:
        raise ValueError("a table that is cut off")
    # A table has room for 512 GiB and mostly zeros; to look at each of them would take longer than to load the memory.
    used = -(-len(table.rstrip(b"\0")) // 8)
    return [entry & _OFFSET_MASK for entry in struct.unpack(f">{used}Q", table[: 8 * used])]
