# SPDX-License-Identifier: MIT
"""Values of the model as the contract has them: rows, dictionaries of variants, paths.

The only business here is shape; what is shown is decided by the faces.
"""

from typing import Any

from snapd.bus.names import NO_OBJECT, domain_path, job_path, snapshot_path
from snapd.bus.wire import Variant
from snapd.model.domain import Disk, Inspection
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.service.jobs import Job, JobState
from snapd.service.managed_domain import ManagedDomain

FLAG_MEMORY = 1
FLAG_PROTECTED = 2
FLAG_DAMAGED = 8
FLAG_UNDO = 16
"""4 stands for adopted, which this version does not know."""


def disk_row(disk: Disk) -> dict[str, Variant]:
    return {
        "Target": Variant("s", disk.target),
        "Device": Variant("s", disk.device),
        "Image": Variant("s", disk.image),
        "Format": Variant("s", disk.format),
        "VirtualSize": Variant("t", disk.virtual_size_bytes),
        "Eligible": Variant("b", disk.eligible),
        "CanInternal": Variant("b", not disk.obstacle and not disk.no_internal),
        "CanExternal": Variant("b", not disk.obstacle and not disk.no_external),
        "Reason": Variant("s", disk.obstacle or disk.no_internal or disk.no_external),
    }


def capabilities(seen: Inspection | None) -> dict[str, Variant]:
    if seen is None:
        no_guest = "no QEMU is connected"
        return {
            "Memory": Variant("b", False),
            "MemoryBlocker": Variant("s", no_guest),
            "Live": Variant("b", False),
            "LiveBlocker": Variant("s", no_guest),
        }
    return {
        "Memory": Variant("b", not seen.memory_blocker),
        "MemoryBlocker": Variant("s", seen.memory_blocker),
        "Live": Variant("b", not (seen.live_blocker or seen.memory_blocker)),
        "LiveBlocker": Variant("s", seen.live_blocker or seen.memory_blocker),
    }


def snapshot_disk_rows(record: DomainRecord, snapshot: Snapshot) -> list[dict[str, Variant]]:
    sizes = {disk.target: disk.virtual_size_bytes for disk in snapshot.disks}
    device = {disk.target: disk.overlay for disk in snapshot.disks}
    rows = []
    for target, pin in sorted(record.graph.pins.get(snapshot.name, {}).items()):
        image = record.graph.images[pin.image]
        rows.append(
            {
                "Target": Variant("s", target),
                "Device": Variant("s", target if target in device else ""),
                "Image": Variant("s", pin.image),
                "Format": Variant("s", image.format),
                "Tag": Variant("s", pin.tag),
                "VirtualSize": Variant("t", sizes.get(target, image.virtual_size_bytes)),
            }
        )
    return rows


def snapshot_row(domain: ManagedDomain, snapshot: Snapshot) -> tuple[Any, ...]:
    flags = (
        (FLAG_MEMORY if snapshot.memory else 0)
        | (FLAG_PROTECTED if snapshot.protected else 0)
        | (FLAG_DAMAGED if snapshot.name in domain.damaged else 0)
        | (FLAG_UNDO if snapshot.undo else 0)
    )
    return (
        snapshot_path(domain.name, snapshot.name),
        snapshot.name,
        snapshot.created_usec,
        type_shown(snapshot),
        snapshot.parent,
        flags,
        domain.record.tree.current == snapshot.name,
    )


def type_shown(snapshot: Snapshot) -> str:
    """Return the type in our own word where libxl has none: disks of both kinds are ``mixed``."""
    return "mixed" if snapshot.type is SnapshotType.ANY and snapshot.disks else snapshot.type.value


def job_row(job: Job) -> tuple[Any, ...]:
    return (job_path(job.number), job.operation, job.state.value, domain_path(job.domain), job.progress or 0.0)


def snapshot_or_none(domain: ManagedDomain | None, name: str) -> str:
    """Return the path of a snapshot, or of nothing where there is none of that name."""
    if domain is None or name not in domain.record.tree:
        return NO_OBJECT
    return snapshot_path(domain.name, name)


def job_of(domain: ManagedDomain) -> str:
    return job_path(domain.job.number) if domain.job and domain.job.state is JobState.RUNNING else NO_OBJECT


def domain_row(domain: ManagedDomain) -> tuple[str, str, str, str]:
    return domain.name, domain.record.uuid, domain.state.value, domain_path(domain.name)
