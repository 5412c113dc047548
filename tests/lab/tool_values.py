# SPDX-License-Identifier: MIT
"""A domain and its snapshots as the tool knows them, for tests of what it writes.

It knows nothing of pytest.
"""

import dataclasses
from typing import Any

from snapd.cli.values import Domain, DomainDisk, JobEnd, Snapshot, SnapshotDisk

SECOND = 1_000_000
DAY = 86400 * SECOND
NOW = 1_800_000_000 * SECOND
MIB = 2**20

NO_INTERNAL = "its format raw has no internal snapshots"
DISK = DomainDisk("virtio-disk0", "/machine/disk0", "/srv/disk0.raw", "raw", 8 * 2**30, True, False, True, NO_INTERNAL)
QCOW2 = DomainDisk("virtio-disk1", "/machine/disk1", "/srv/disk1.qcow2", "qcow2", 2**30, True, True, True, "")
CDROM = DomainDisk("cd", "/machine/cd", "", "raw", 0, False, False, False, "it is a CD-ROM or floppy")
KEPT_DISK = SnapshotDisk("virtio-disk0", "/machine/disk0", "/srv/disk0.raw", "raw", "", 8 * 2**30)
TAGGED_DISK = SnapshotDisk("virtio-disk1", "/machine/disk1", "/srv/disk1.qcow2", "qcow2", "tagged", 2**30)

VM1 = Domain(
    name="vm1",
    uuid="a4eb4367-b880-3b11-d1e8-d5d2b2c1a3aa",
    state="running",
    state_reason="",
    interrupted="",
    source="defined",
    monitor="/run/qemu/vm1.monitor",
    current_snapshot="before-upgrade",
    snapshot_count=3,
    pending_revert="",
    pending_problem="",
    memory_blocker="",
    live_blocker="",
    disks=(DISK, CDROM),
)


def snapshot(name: str, parent: str = "", days: float = 0, **changes: Any) -> Snapshot:
    """Return a full snapshot of a running domain, taken ``days`` before now, but for ``changes``."""
    plain = Snapshot(
        name=name,
        domain="vm1",
        description="",
        creation_usec=int(NOW - days * DAY),
        type="external",
        memory=True,
        memory_bytes=400 * MIB,
        pause_usec=8000,
        method="live",
        method_reason="",
        consistency="full",
        domain_state="running",
        parent=parent,
        children=(),
        current=False,
        protected=False,
        undo=False,
        bytes=412 * MIB,
        flags=(),
        disks=(KEPT_DISK,),
        left_out={},
    )
    return dataclasses.replace(plain, **changes)


FRESH = snapshot("fresh-install", days=22, protected=True, flags=("protected",))
UPGRADE = snapshot("before-upgrade", "fresh-install", days=2, bytes=1126 * MIB, pause_usec=12_000, current=True)
DISKS_ONLY: dict[str, Any] = {"memory": False, "memory_bytes": 0, "pause_usec": 0, "bytes": 0, "method": ""}
EXPERIMENT = snapshot("experiment", "fresh-install", days=1, consistency="quiesced", **DISKS_ONLY)
UNDO = snapshot(
    "undo-2027-01-15T08-00-00",
    "before-upgrade",
    consistency="crash-consistent",
    undo=True,
    protected=True,
    flags=("protected", "undo"),
    **DISKS_ONLY,
)


def done_in(took_s: float, *notes: str, snapshot: str = "") -> JobEnd:
    """Return the end of a job."""
    return JobEnd(snapshot, notes, took_s)
