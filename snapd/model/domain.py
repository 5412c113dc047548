# SPDX-License-Identifier: MIT
"""A domain as values: how it is defined, what its QEMU shows of it, and the state it is in.

Not here: its snapshots (``tree``) and its images (``images``).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class DomainState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shutoff"
    UNREACHABLE = "unreachable"
    DRIFTED = "drifted"


class DiskPolicy(StrEnum):
    """What the definition says of a disk's part in snapshots."""

    ANY = "any"
    INTERNAL = "internal"
    EXTERNAL = "external"
    NO = "no"


@dataclass(frozen=True)
class DiskDefinition:
    """A disk as the administrator wrote it down; ``image`` is an absolute path."""

    target: str
    image: str
    format: str
    policy: DiskPolicy = DiskPolicy.ANY


@dataclass(frozen=True)
class DomainDefinition:
    """A domain as its YAML file has it; ``uuid`` is empty where QEMU's own is to be used."""

    name: str
    monitor: str
    uuid: str = ""
    disks: tuple[DiskDefinition, ...] = ()
    source: str = ""
    agent: str = ""


@dataclass(frozen=True)
class Disk:
    """A disk as QEMU shows it now.

    ``device`` is the path or id that ``qom-set`` takes, ``node`` the name of its root node, ``image`` the file of that node, or
    empty without a medium. ``chain`` holds the image and what it backs on, top first. ``obstacle`` says why no snapshot can
    include the disk, ``no_internal`` and ``no_external`` why not one of that kind, and ``writable`` whether leaving it out
    would let memory and disk disagree. ``tags`` are the internal snapshots in the image. Of a flash, QEMU keeps the content in
    its own memory: it reads the image at its start only.

    ``cluster_bytes``, ``extended_l2`` and the modes are for overlays to be like the image and the node that they cover; an
    empty mode or size is not known.
    """

    target: str
    device: str
    node: str
    image: str
    format: str
    chain: tuple[str, ...]
    virtual_size_bytes: int
    writable: bool
    obstacle: str = ""
    no_internal: str = ""
    no_external: str = ""
    tags: tuple[str, ...] = ()
    is_flash: bool = False
    cluster_bytes: int = 0
    extended_l2: bool = False
    aio: str = ""
    discard: str = ""
    cache_direct: bool = False
    cache_no_flush: bool = False
    detect_zeroes: str = "off"
    link: str = ""

    @property
    def eligible(self) -> bool:
        return not self.obstacle and not (self.no_internal and self.no_external)

    @property
    def reason(self) -> str:
        """Why no snapshot can include the disk; empty where one can."""
        return "" if self.eligible else self.obstacle or f"{self.no_external}, and {self.no_internal}"


def no_internal(image_format: str) -> str:
    """Return why an image of a format cannot have internal snapshots, or nothing."""
    return "" if image_format == "qcow2" else f"its format {image_format} has no internal snapshots"


def no_external(path: str) -> str:
    """Return why an image at ``path`` cannot be covered, or nothing."""
    is_device = path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108  a file system, and not ours
    return f"it lies on the block device {path}, beside which no overlay can lie" if is_device else ""


@dataclass(frozen=True)
class Machine:
    """What must be equal for a memory state to be loaded: QEMU's machine type, memory, processors and devices."""

    type: str
    memory_bytes: int
    cpus: int
    devices: tuple[str, ...]

    def difference(self, now: "Machine") -> str:
        """Return how ``now`` differs from this machine, in words, or nothing where a memory state of this one fits it."""
        if self.type != now.type:
            return f"its machine type is {now.type} and was {self.type}"
        if self.memory_bytes != now.memory_bytes:
            return f"it has {now.memory_bytes >> 20} MiB of memory and had {self.memory_bytes >> 20} MiB"
        if self.cpus != now.cpus:
            return f"it has {now.cpus} processors and had {self.cpus}"
        missing = sorted(Counter(self.devices) - Counter(now.devices))
        added = sorted(Counter(now.devices) - Counter(self.devices))
        if missing:
            return f"its device {missing[0]} is missing"
        if added:
            return f"its device {added[0]} is new"
        return ""


@dataclass(frozen=True)
class Inspection:
    """Everything about a domain that a plan needs to know of its QEMU, read before anything is touched.

    ``live_blocker`` says why memory cannot be saved while the guest runs, ``memory_blocker`` why it cannot be saved at all.
    ``open_images`` maps every image that QEMU has open to the node that holds it, ``formats`` to its format. ``follows_active``
    is whether QEMU was told by us which images to open, so that its next start finds the active ones. ``open_files`` are the
    files that its process has open, all links followed, as far as they may be seen. Of a domain that is shut off, disks and
    formats are what was known last, and there is no machine.
    """

    state: DomainState
    uuid: str
    machine: Machine | None
    disks: tuple[Disk, ...]
    open_images: Mapping[str, str]
    formats: Mapping[str, str]
    qemu_version: tuple[int, int, int]
    live_blocker: str = ""
    memory_blocker: str = ""
    follows_active: bool = False
    open_files: frozenset[str] = frozenset()

    @property
    def running(self) -> bool:
        return self.state is DomainState.RUNNING

    @property
    def shut_off(self) -> bool:
        return self.state is DomainState.SHUTOFF
