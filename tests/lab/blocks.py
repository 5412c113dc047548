# SPDX-License-Identifier: MIT
"""Reading image files without QEMU: what a guest would see of an image or of an internal snapshot in it, block for block.

Not here: writing, and looking at what is no content (``images``). It knows nothing of pytest.

- It shares nothing with what is tested, and starts no process: a whole tree of snapshots is read in milliseconds.
- What a QEMU has written and not flushed is not in the file yet; who reads while one runs flushes first.
- What it does not understand (compression, encryption, subclusters, an image marked corrupt) raises ValueError; nothing is
  guessed.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_SNAPSHOT_EXTRA = struct.Struct(">QQ")

_DIRTY = 1
"""Reference counts may be behind; the content is right all the same."""

_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1


@dataclass(frozen=True)
class _Table:
    """Where the first table of a content is, and how much of a disk it maps."""

    offset: int
    entries: int
    size_bytes: int


@dataclass(frozen=True)
class Qcow2:
    """What the header and the snapshot table of an image say; ``backing`` is absolute, or empty."""

    path: str
    cluster_bits: int
    table: _Table
    backing: str
    backing_format: str
    tags: dict[str, _Table]


class BlockReader:
    """Reads contents, each file once; make a new one after anything was written."""

    def __init__(self) -> None:
        self._contents: dict[tuple[str, str], bytes] = {}
        self._images: dict[str, Qcow2] = {}

    def image(self, path: str | os.PathLike[str], image_format: str) -> bytes:
        """Return the whole content of an image with what it backs on. Raises: ValueError, OSError."""
        key = (os.fspath(path), image_format)
        if key not in self._contents:
            if image_format == "raw":
                self._contents[key] = Path(path).read_bytes()
            elif image_format == "qcow2":
                self._contents[key] = self._content(self._image(key[0]), self._image(key[0]).table)
            else:
                raise ValueError(f"{key[0]}: the format {image_format} is not known here")
        return self._contents[key]

    def tag(self, path: str | os.PathLike[str], name: str) -> bytes:
        """Return the whole content of an internal snapshot in a qcow2 image. Raises: ValueError, OSError."""
        image = self._image(os.fspath(path))
        if name not in image.tags:
            raise ValueError(f"{image.path} has no internal snapshot {name!r}, only {sorted(image.tags)}")
        return self._content(image, image.tags[name])

    def tags(self, path: str | os.PathLike[str]) -> list[str]:
        """Return the names of the internal snapshots in a qcow2 image, in the order of the table."""
        return list(self._image(os.fspath(path)).tags)

    def backing(self, path: str | os.PathLike[str]) -> tuple[str, str]:
        """Return the backing image of a qcow2 image as an absolute path and its format, empty without one."""
        image = self._image(os.fspath(path))
        return image.backing, image.backing_format

    def _image(self, path: str) -> Qcow2:
        if path not in self._images:
            self._images[path] = _parse(path)
        return self._images[path]

    def _content(self, image: Qcow2, table: _Table) -> bytes:
        below = self.image(image.backing, image.backing_format) if image.backing else b""
        content = bytearray(below[: table.size_bytes].ljust(table.size_bytes, b"\0"))
        cluster = 1 << image.cluster_bits
        with Path(image.path).open("rb") as file:
            for second, l2_offset in enumerate(_words(file.fileno(), table.offset, table.entries)):
                if not l2_offset & _OFFSET:
                    continue
                first = second * (cluster // 8)
                wanted = min(cluster // 8, -(-table.size_bytes // cluster) - first)
                for index, entry in enumerate(_words(file.fileno(), l2_offset & _OFFSET, max(0, wanted)), first):
                    self._put(file.fileno(), image, content, index, entry)
        return bytes(content)

    def _put(self, descriptor: int, image: Qcow2, content: bytearray, index: int, entry: int) -> None:
        """Put what one cluster holds itself into ``content``; one that is not allocated shows what is below."""
        cluster = 1 << image.cluster_bits
        begin, end = index * cluster, min((index + 1) * cluster, len(content))
        if entry & _COMPRESSED:
            raise ValueError(f"{image.path}: cluster {index} is compressed, which is not known here")
        if entry & _ZERO:
            content[begin:end] = bytes(end - begin)
        elif entry & _OFFSET:
            # QEMU may not have extended the file to the end of a cluster whose last part was never written.
            content[begin:end] = os.pread(descriptor, end - begin, entry & _OFFSET).ljust(end - begin, b"\0")


def _words(descriptor: int, offset: int, count: int) -> tuple[int, ...]:
    data = os.pread(descriptor, 8 * count, offset)
    return struct.unpack(f">{count}Q", data.ljust(8 * count, b"\0"))


def _parse(path: str) -> Qcow2:
    with Path(path).open("rb") as file:
        data = os.pread(file.fileno(), 1 << 16, 0)
        if data[:4] != _MAGIC:
            raise ValueError(f"{path} is not qcow2")
        (_, version, name_at, name_bytes, cluster_bits, size, encryption, entries, table_at, _, _, count, tags_at) = (
            _HEADER.unpack_from(data)
        )
        if version != 3 or encryption:
            raise ValueError(f"{path}: version {version}, encryption {encryption} are not known here")
        incompatible, _, _, _, header_bytes = _FEATURES.unpack_from(data, _HEADER.size)
        if incompatible & ~_DIRTY:
            raise ValueError(f"{path}: the features {incompatible:#x} are not known here")
        backing = data[name_at : name_at + name_bytes].decode() if name_at else ""
        return Qcow2(
            path=path,
            cluster_bits=cluster_bits,
            table=_Table(table_at, entries, size),
            backing=os.path.join(os.path.dirname(path), backing) if backing else "",
            backing_format=_backing_format(data, header_bytes) if backing else "",
            tags=_snapshots(file.fileno(), path, tags_at, count),
        )


def _backing_format(data: bytes, at: int) -> str:
    while True:
        kind, length = _EXTENSION.unpack_from(data, at)
        if kind == _BACKING_FORMAT:
            return data[at + 8 : at + 8 + length].decode()
        if not kind:
            return ""
        at += 8 + (length + 7) // 8 * 8


def _snapshots(descriptor: int, path: str, at: int, count: int) -> dict[str, _Table]:
    found: dict[str, _Table] = {}
    for _ in range(count):
        table_at, entries, id_bytes, name_bytes, *_, extra_bytes = _SNAPSHOT.unpack(os.pread(descriptor, _SNAPSHOT.size, at))
        more = os.pread(descriptor, extra_bytes + id_bytes + name_bytes, at + _SNAPSHOT.size)
        _, size = _SNAPSHOT_EXTRA.unpack_from(more)
        name = more[extra_bytes + id_bytes :].decode()
        if name in found:
            raise ValueError(f"{path} has two internal snapshots {name!r}")
        found[name] = _Table(table_at, entries, size)
        at += (_SNAPSHOT.size + len(more) + 7) // 8 * 8
    return found
