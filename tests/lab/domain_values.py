# SPDX-License-Identifier: MIT
"""Plans as values: for each kind one that leaves nothing out, and for those that can be, one without all that may be missing.

Not here: plans that fit a domain (``unit.planned_domain``).
"""

from dataclasses import replace
from types import MappingProxyType

from snapd.model.domain import Disk, DomainState, Machine
from snapd.model.images import Direction, DropTag, Image, Merge, Origin, Pin, Unlink
from snapd.model.plan import (
    Application,
    CreatePlan,
    DeletePlan,
    MemoryPlan,
    Opening,
    Overlay,
    Parking,
    Plan,
    Quiesce,
    RevertPlan,
    Tag,
    TidyPlan,
    UndoPoint,
)
from snapd.model.snapshot import RevertState, SaveMethod

MACHINE = Machine("pc-q35-7.2", 2 << 30, 4, ("virtio-blk-pci@04.0", "VGA@01.0"))
DISK = Disk(
    target="vda",
    device="/machine/peripheral/disk0",
    node="#block1",
    image="/images/a.qcow2",
    format="qcow2",
    chain=("/images/a.qcow2", "/images/base.raw"),
    virtual_size_bytes=1 << 30,
    writable=True,
    obstacle="it is being copied",
    no_internal="its image has an external data file",
    no_external="its node is shared",
    tags=("t1", "t2"),
    is_flash=True,
    cluster_bytes=1 << 16,
    extended_l2=True,
    aio="io_uring",
    discard="unmap",
    cache_direct=True,
    cache_no_flush=True,
    detect_zeroes="unmap",
)
IMAGE = Image("/images/a.qcow2", "qcow2", "/images/base.raw", Origin.DEFINED, 1 << 30, ("gone", "gone too"))
OVERLAY = Overlay(
    disk=DISK,
    node="domsnap-0-0",
    image=Image("/images/a.s.qcow2", "qcow2", IMAGE.path, Origin.CREATED, 1 << 30),
    backing_format="qcow2",
    copy_of=Pin(IMAGE.path, "t1"),
)
MEMORY = MemoryPlan("/state/s.vmstate.qcow2", 3 << 30, SaveMethod.LIVE, "memory is backed by huge pages")
AFTER = (
    DropTag(IMAGE.path, "gone"),
    Merge(Direction.STREAM, "/images/o.qcow2", "/images/b.qcow2", None, active=True),
    Merge(Direction.COMMIT, "/images/o.qcow2", "/images/b.qcow2", IMAGE.path, active=False, repoint=("/images/p.qcow2",)),
    Unlink("/images/q.qcow2"),
)

CREATE = CreatePlan(
    name="s",
    description="Before the upgrade",
    state=DomainState.RUNNING,
    linked=(Parking(DISK, "domsnap-0-r0", IMAGE),),
    overlays=(OVERLAY, replace(OVERLAY, copy_of=None)),
    tags=(Tag(DISK, "s~2"),),
    left_out={"cd": "it is a CD-ROM"},
    memory=MEMORY,
    quiesce=Quiesce.AUTO,
    machine=MACHINE,
    follows_active=True,
    notes=("Disk vda has a chain of 60 images now.",),
)
CREATE_SHUT_OFF = CreatePlan(
    name="s",
    description="",
    state=DomainState.SHUTOFF,
    linked=(),
    overlays=(),
    tags=(),
    left_out=MappingProxyType({}),
    memory=None,
    quiesce=Quiesce.NO,
    machine=None,
)
REVERT = RevertPlan(
    name="s",
    state=DomainState.PAUSED,
    overlays=(OVERLAY,),
    openings=(Opening("domsnap-0-b0", IMAGE, ""), Opening("domsnap-0-b1", OVERLAY.image, "domsnap-0-b0")),
    backing_nodes=MappingProxyType({"vda": "domsnap-0-b1"}),
    applications=(Application(DISK, "domsnap-0-1", IMAGE, "s", "undo-1", 1 << 30),),
    memory_path="/state/s.vmstate.qcow2",
    resume=True,
    later=RevertState.AS_TAKEN,
    machine=MACHINE,
    undo=UndoPoint(
        "undo-1",
        {"vda": Pin(IMAGE.path, "undo-1"), "vdb": Pin("/images/b.raw")},
        {"vda": 1 << 30},
        {"vdc": "the revert left it"},
        MEMORY,
    ),
    dropped=("undo-0",),
    after=AFTER,
    notes=("Flash pflash0 was left as it is.",),
)
REVERT_BARE = replace(
    REVERT, overlays=(), openings=(), backing_nodes={}, applications=(), memory_path="", later=None, machine=None, undo=None
)
DELETE = DeletePlan(("s", "t"), ("/state/s.vmstate.qcow2",), AFTER, ("Internal snapshot 't' stays.",))

PLANS: dict[str, Plan] = {
    "create": CREATE,
    "create, shut off": CREATE_SHUT_OFF,
    "revert": REVERT,
    "revert without all that may be missing": REVERT_BARE,
    "delete": DELETE,
    "tidy": TidyPlan(AFTER, ("Internal snapshot 't' stays.",)),
}
