# SPDX-License-Identifier: MIT
"""What ``qemu-img`` answers about an image, as values: what its header says, which internal snapshots it holds, its faults.

Asking is not its subject (``qemu_img``).
"""

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from snapd.errors import ImageToolFailed

T = TypeVar("T")


@dataclass(frozen=True)
class InternalSnapshot:
    """An internal snapshot; ids and names come from QEMU and are not unique together."""

    id: str
    name: str


@dataclass(frozen=True)
class ImageInfo:
    """What an image says of itself.

    ``backing`` is an absolute path, or QEMU's own notation (``json:``, ``nbd:``) where it is no local file. ``cluster_bytes``
    is 0 and ``extended_l2`` False where the format is not qcow2.
    """

    path: str
    format: str
    virtual_size_bytes: int
    actual_size_bytes: int
    backing: str | None
    backing_format: str | None
    snapshots: tuple[InternalSnapshot, ...]
    cluster_bytes: int = 0
    extended_l2: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.snapshots)


@dataclass(frozen=True)
class ImageCheck:
    """What ``qemu-img check`` counted; leaks waste space and harm nothing."""

    corruptions: int
    leaks: int
    unchecked: int

    @property
    def is_clean(self) -> bool:
        return not (self.corruptions or self.leaks or self.unchecked)


class _Snapshot(msgspec.Struct):
    id: str
    name: str


class _Qcow2(msgspec.Struct, rename="kebab", frozen=True):
    extended_l2: bool = False


class _Specific(msgspec.Struct):
    data: _Qcow2 = _Qcow2()


class _Info(msgspec.Struct, rename="kebab"):
    filename: str
    format: str
    virtual_size: int
    actual_size: int = 0
    cluster_size: int = 0
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: list[_Snapshot] = []
    format_specific: msgspec.Raw = msgspec.Raw(b"{}")


class _Check(msgspec.Struct, rename="kebab"):
    check_errors: int
    corruptions: int = 0
    leaks: int = 0


def read_info(answer: bytes, command: str) -> ImageInfo:
    """Read the answer of ``qemu-img info``. Raises: ImageToolFailed of ``command``, as the others do."""
    return _value(_decoded(answer, _Info, command), command)


def read_chain(answer: bytes, command: str) -> list[ImageInfo]:
    """Read the answer of ``qemu-img info --backing-chain``."""
    return [_value(each, command) for each in _decoded(answer, list[_Info], command)]


def read_check(answer: bytes, command: str) -> ImageCheck:
    """Read the answer of ``qemu-img check``."""
    counted = _decoded(answer, _Check, command)
    return ImageCheck(counted.corruptions, counted.leaks, counted.check_errors)


def _value(info: _Info, command: str) -> ImageInfo:
    is_qcow2 = info.format == "qcow2"
    # Other formats have other data, which need not fit.
    specific = _decoded(info.format_specific, _Specific, command) if is_qcow2 else _Specific()
    return ImageInfo(
        info.filename,
        info.format,
        info.virtual_size,
        info.actual_size,
        info.full_backing_filename,
        info.backing_filename_format,
        tuple(InternalSnapshot(each.id, each.name) for each in info.snapshots),
        info.cluster_size if is_qcow2 else 0,
        specific.data.extended_l2,
    )


def _decoded(answer: bytes | msgspec.Raw, kind: type[T], command: str) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageToolFailed(command, f"its answer cannot be read: {error}") from error
