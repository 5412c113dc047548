# SPDX-License-Identifier: MIT
"""Image files as a fake QEMU sees them: locked as a real one locks them, looked at, and changed with `qemu-img`.

Not here: which node has which file (``nodes``). Invariants:

- a file that is open is locked against others with the same bytes as by a real QEMU, so that `qemu-img` refuses it;
- only what is looked at is read: nothing is kept of a header.

Source: QEMU docs/interop/qcow2.txt; block/file-posix.c for the locks.
"""

import fcntl
import os
import struct
import subprocess
from dataclasses import dataclass

from tests.lab.fake_qemu.protocol import Refused

TOOL_TIMEOUT_S = 60.0

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ4xIQ12xIQQQQI")
"""Up to the refcount order: magic, version, backing, cluster bits, size, L1, snapshots, features."""

_TAG = struct.Struct(">QIHHIIQII")
_EXTENDED_L2, _LAZY_REFCOUNTS = 1 << 4, 1
_BACKING_FORMAT = 0xE2792ACA
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

_FLOCK = struct.Struct("hhqqi4x")
_PERMISSION_BYTES, _UNSHARED_BYTES = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
_NAMES = {_READ: "consistent read", _WRITE: "write", _RESIZE: "resize"}


@dataclass(frozen=True)
class TagEntry:
    """An internal snapshot; ``vm_state_bytes`` is 0 without memory, and ``table_offset`` where the file has its entry."""

    id: str
    name: str
    vm_state_bytes: int
    date_sec: int
    date_nsec: int
    clock_nsec: int
    table_offset: int
    l1_offset: int
    l1_size: int


@dataclass(frozen=True)
class Header:
    """What a qcow2 file says of itself; ``backing`` as it stands there, or empty."""

    virtual_size_bytes: int
    cluster_bytes: int
    backing: str
    backing_format: str
    extended_l2: bool
    lazy_refcounts: bool
    refcount_bits: int
    tags: tuple[TagEntry, ...]


def read_header(descriptor: int) -> Header:
    """Read a qcow2 header. Raises: Refused when it is none."""
    start = os.pread(descriptor, _HEADER.size, 0)
    if len(start) < _HEADER.size or not start.startswith(_MAGIC):
        raise Refused("Image is not in qcow2 format")
    (
        _,
        _,
        name_at,
        name_bytes,
        cluster_bits,
        size_bytes,
        _,
        _,
        tags,
        tags_at,
        incompatible,
        compatible,
        _,
        refcount_order,
    ) = _HEADER.unpack(start)
    return Header(
        virtual_size_bytes=size_bytes,
        cluster_bytes=1 << cluster_bits,
        backing=os.pread(descriptor, name_bytes, name_at).decode(),
        backing_format=_extension(descriptor, _BACKING_FORMAT).decode(),
        extended_l2=bool(incompatible & _EXTENDED_L2),
        lazy_refcounts=bool(compatible & _LAZY_REFCOUNTS),
        refcount_bits=1 << refcount_order,
        tags=_read_tags(descriptor, tags, tags_at),
    )


def _extension(descriptor: int, wanted: int) -> bytes:
    (at,) = struct.unpack(">I", os.pread(descriptor, 4, 100))
    while True:
        kind, length = struct.unpack(">II", os.pread(descriptor, 8, at))
        if kind in (0, wanted):
            return os.pread(descriptor, length, at + 8) if kind else b""
        at += 8 + length + -length % 8


def _read_tags(descriptor: int, count: int, at: int) -> tuple[TagEntry, ...]:
    found = []
    for _ in range(count):
        l1_offset, l1_size, id_bytes, name_bytes, sec, nsec, clock, state_bytes, extra = _TAG.unpack(
            os.pread(descriptor, _TAG.size, at)
        )
        rest = os.pread(descriptor, extra + id_bytes + name_bytes, at + _TAG.size)
        if extra >= 8:
            (state_bytes,) = struct.unpack(">Q", rest[:8])
        text = rest[extra:].decode()
        found.append(TagEntry(text[:id_bytes], text[id_bytes:], state_bytes, sec, nsec, clock, at, l1_offset, l1_size))
        at += _TAG.size + len(rest)
        at += -at % 8
    return tuple(found)


def read_vm_state(descriptor: int, header: Header, tag: TagEntry, length: int) -> bytes:
    """Return the first bytes of the memory state that an internal snapshot has, at most a cluster, or nothing."""
    per_table = header.cluster_bytes // (16 if header.extended_l2 else 8)
    first = -(-header.virtual_size_bytes // (per_table * header.cluster_bytes))
    if first >= tag.l1_size:
        return b""
    offset = tag.l1_offset + 8 * first
    for _ in range(2):  # to the L2 table, and to the cluster
        (entry,) = struct.unpack(">Q", os.pread(descriptor, 8, offset))
        offset = entry & _OFFSET_MASK
        if not offset:
            return b""
    return os.pread(descriptor, min(length, header.cluster_bytes), offset)


def set_vm_state_bytes(path: str, tag: TagEntry, size_bytes: int) -> None:
    """Write into an internal snapshot's entry how long its memory state is, which `qemu-img` leaves at 0."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, struct.pack(">I", size_bytes), tag.table_offset + _TAG.size - 8)
        os.pwrite(descriptor, struct.pack(">Q", size_bytes), tag.table_offset + _TAG.size)
    finally:
        os.close(descriptor)


def run_tool(*command: str) -> None:
    """Run `qemu-img` or `qemu-io`. Raises: Refused with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    # qemu-io says that it failed and ends well
    if done.returncode or (command[0] == "qemu-io" and done.stdout.strip()):
        raise Refused((done.stderr or done.stdout).strip())


def lock(descriptor: int, *, writable: bool) -> None:
    """Lock an open file as a QEMU that writes to it, or only reads it. Raises: Refused; it has no locks then."""
    permissions = (_READ, _WRITE, _RESIZE) if writable else (_READ,)
    for byte in (*(_PERMISSION_BYTES + each for each in permissions), *(_UNSHARED_BYTES + each for each in (_WRITE, _RESIZE))):
        _set(descriptor, fcntl.F_RDLCK, byte)
    for each in (_WRITE, _RESIZE):
        if each in permissions and _is_held(descriptor, _UNSHARED_BYTES + each):
            unlock(descriptor)
            raise Refused(f'Failed to get "{_NAMES[each]}" lock')
        if _is_held(descriptor, _PERMISSION_BYTES + each):
            unlock(descriptor)
            raise Refused(f'Failed to get shared "{_NAMES[each]}" lock')


def unlock(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def _set(descriptor: int, kind: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_held(descriptor: int, byte: int) -> bool:
    """Tell whether anyone else has a lock on the byte."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)
