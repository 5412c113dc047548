# SPDX-License-Identifier: MIT
"""Which disks take part in a snapshot, which kind each one's is, and why the others are left out.

Not here: what becomes of them (``planner``). The order of who decides: the request for that disk, the definition of that disk,
the request for all, and then what suits how the domain is started.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from snapd.errors import InvalidOption, NotSupported
from snapd.model.domain import Disk, DiskPolicy, DomainDefinition, Inspection
from snapd.model.plan import CreateRequest
from snapd.model.record import DomainRecord
from snapd.model.snapshot import SnapshotType

_CHOICES = (DiskPolicy.INTERNAL, DiskPolicy.EXTERNAL, DiskPolicy.NO)
_KINDS = (DiskPolicy.INTERNAL, DiskPolicy.EXTERNAL)


@dataclass
class DiskChoice:
    """``left_out`` says why not, by target."""

    external: list[Disk] = field(default_factory=list)
    internal: list[Disk] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def choose_disks(
    definition: DomainDefinition, record: DomainRecord, seen: Inspection, request: CreateRequest, *, memory: bool
) -> DiskChoice:
    """Return the part of each disk.

    Args:
        memory: whether memory is saved; a disk that the guest writes to must not be left out then.

    Raises: InvalidOption; NotSupported naming the disk that would have to take part and cannot.
    """
    _check(record.name, seen, request.disks)
    policies = {disk.target: disk.policy for disk in definition.disks}
    default = default_kind(record, seen)
    choice = DiskChoice()
    for disk in seen.disks:
        wanted = request.disks.get(disk.target, "")
        kind, reason = _part(disk, wanted, policies.get(disk.target, DiskPolicy.ANY), request.type, default)
        if kind is DiskPolicy.INTERNAL:
            choice.internal.append(disk)
            continue
        if kind is DiskPolicy.EXTERNAL:
            choice.external.append(disk)
            continue
        if memory and disk.writable:
            why = f"the guest can write to disk {disk.target}, which would have to be left out because {reason}"
            raise NotSupported(record.name, "A snapshot with memory", why)
        if wanted in _KINDS:
            raise NotSupported(record.name, f"An {wanted} snapshot of disk {disk.target}", reason)
        if request.type is not SnapshotType.ANY and disk.writable and not disk.obstacle and wanted != DiskPolicy.NO:
            raise NotSupported(
                record.name, f"An {request.type} snapshot of disk {disk.target}", f"{reason}; leave that disk out"
            )
        choice.left_out[disk.target] = reason
    if not memory and not choice.external and not choice.internal:
        reasons = "; ".join(f"{target}: {reason}" for target, reason in choice.left_out.items())
        raise NotSupported(record.name, "A snapshot of the disks", f"none of them can take part ({reasons or 'it has none'})")
    return choice


def default_kind(record: DomainRecord, seen: Inspection) -> DiskPolicy:
    """Return the kind where nobody says otherwise.

    External snapshots move the active image, which a unit with a fixed path would not follow: so they come by themselves only
    where the next start finds the active image anyway, where they are in use already, and where nothing else is possible.
    """
    has_external = any(not pin.tag for pins in record.graph.pins.values() for pin in pins.values())
    if seen.follows_active or record.follows_active or has_external:
        return DiskPolicy.EXTERNAL
    writable = [disk for disk in seen.disks if disk.writable and disk.eligible]
    return DiskPolicy.EXTERNAL if any(disk.no_internal for disk in writable) else DiskPolicy.INTERNAL


def _check(domain: str, seen: Inspection, chosen: Mapping[str, str]) -> None:
    targets = [disk.target for disk in seen.disks]
    for target, wanted in chosen.items():
        if target not in targets:
            raise InvalidOption("disks", f"names {target}, and domain {domain} has {', '.join(targets) or 'no disk'}")
        if wanted not in _CHOICES:
            raise InvalidOption("disks", f"says {wanted!r} for disk {target}, and can say {', '.join(_CHOICES)}")


def _part(
    disk: Disk, wanted: str, policy: DiskPolicy, type_for_all: SnapshotType, default: DiskPolicy
) -> tuple[DiskPolicy, str]:
    """Return the disk's kind, or ``NO`` and why."""
    if wanted == DiskPolicy.NO:
        return DiskPolicy.NO, "the request says 'no' for it"
    if policy is DiskPolicy.NO and not wanted:
        return DiskPolicy.NO, "its definition says 'snapshot: no'"
    if not disk.eligible:
        return DiskPolicy.NO, disk.reason
    if wanted in _KINDS:
        return _if_possible(disk, DiskPolicy(wanted), "")
    if policy in _KINDS:
        return _if_possible(disk, policy, f"its definition says 'snapshot: {policy}', and ")
    if type_for_all is not SnapshotType.ANY:
        return _if_possible(disk, DiskPolicy(type_for_all.value), "")
    kind, _ = _if_possible(disk, default, "")
    # An eligible disk can have a snapshot of at least one kind.
    return kind if kind is not DiskPolicy.NO else next(each for each in _KINDS if each is not default), ""


def _if_possible(disk: Disk, kind: DiskPolicy, said: str) -> tuple[DiskPolicy, str]:
    obstacle = disk.no_internal if kind is DiskPolicy.INTERNAL else disk.no_external
    return (DiskPolicy.NO, f"{said}{obstacle}") if obstacle else (kind, "")
