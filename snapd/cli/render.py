# SPDX-License-Identifier: MIT
"""Owns how the tool shows what there is: the list of domains, the tree of snapshots, and details.

Not here: questions and one-line results (``sentences``), single values and layout (``words``). It prints nothing; every
function is pure, and the present time is an argument.

- No text of others reaches a terminal with a control character in it.
"""

from collections.abc import Iterable

from snapd.cli.values import PROTECTED, UNDO, Domain, DomainDisk, DomainRow, Snapshot, SnapshotDisk
from snapd.cli.words import GAP, age, count, duration, fields, packed, paragraph, printable, size, table

_DISK_INDENT = 6


def domain_table(rows: Iterable[DomainRow]) -> str:
    """Write one line for each domain."""
    return table([[printable(each.name), each.state, each.uuid] for each in rows]) or "No domains."


def snapshot_tree(domain: Domain, snapshots: list[Snapshot], now_usec: int) -> str:
    """Write a domain and its snapshots as a tree, oldest first among siblings, ``(now)`` below the current one."""
    lines = [_heading(domain, snapshots), *_remarks(domain)]
    if not snapshots:
        return "\n".join([*lines, "No snapshots."])
    rows = []
    for prefix, snapshot in _walk(domain, snapshots):
        rows.append(
            [prefix + "(now)"] if snapshot is None else [prefix + printable(snapshot.name), *_columns(snapshot, now_usec)]
        )
    return "\n".join([*lines, table(rows, right=3)])


def domain_details(domain: Domain) -> str:
    """Write everything about a domain but its snapshots."""
    named = [
        ("State", domain.state),
        ("Why", domain.state_reason),
        ("Interrupted", domain.interrupted),
        ("UUID", domain.uuid or "not known yet"),
        ("Source", domain.source),
        ("Monitor", domain.monitor),
        ("Snapshots", str(domain.snapshot_count)),
        ("Current", domain.current_snapshot or "none"),
        ("Pending", pending(domain)),
        ("Not loaded", domain.pending_problem),
        ("Memory", f"cannot be saved: {domain.memory_blocker}" if domain.memory_blocker else "can be saved"),
    ]
    if not domain.memory_blocker:
        named.append(("Live", f"not possible: {domain.live_blocker}" if domain.live_blocker else "possible"))
    return "\n".join([printable(domain.name), *fields(named), *_section("Disks", _domain_disks(domain.disks))])


def snapshot_details(snapshot: Snapshot, now_usec: int) -> str:
    """Write everything about a snapshot."""
    named = [
        ("Description", snapshot.description),
        ("Taken", age(snapshot.creation_usec, now_usec)),
        ("Kind", kind(snapshot)),
        ("Type", type_of(snapshot) or "no disks"),
        ("Size", size(snapshot.bytes) if snapshot.bytes else ""),
        ("Memory", size(snapshot.memory_bytes) + f", saved {snapshot.method}" if snapshot.memory else ""),
        ("Not live", snapshot.method_reason),
        ("Paused for", duration(snapshot.pause_usec / 1e6) if snapshot.pause_usec else ""),
        ("Consistency", snapshot.consistency),
        ("Domain was", snapshot.domain_state),
        ("Parent", snapshot.parent or "none"),
        ("Children", ", ".join(snapshot.children)),
        ("Current", _yes(snapshot.current)),
        ("Protected", _yes(snapshot.protected)),
        ("Undo point", _undo(snapshot)),
        ("Flags", ", ".join(each for each in snapshot.flags if each not in (PROTECTED, UNDO))),
    ]
    left_out = [line for target, reason in snapshot.left_out.items() for line in paragraph(f"{target}: {reason}", indent=4)]
    return "\n".join(
        [
            printable(f"{snapshot.domain} {snapshot.name}"),
            *fields(named),
            *_section("Disks", _snapshot_disks(snapshot.disks)),
            *_section("Left out", left_out),
        ]
    )


def plan(steps: Iterable[str]) -> str:
    """Write the steps of a plan, one to a line."""
    return "\n".join(map(printable, steps)) or "Nothing would be done."


def kind(snapshot: Snapshot) -> str:
    """Say whether memory is part of it."""
    return "full" if snapshot.memory else "disks"


def type_of(snapshot: Snapshot) -> str:
    """Say how its disks are kept; empty when it has none."""
    return snapshot.type if snapshot.disks else ""


def pending(domain: Domain) -> str:
    """Say what memory waits to be loaded; empty when none does."""
    return f"memory of {domain.pending_revert} is loaded when it runs next" if domain.pending_revert else ""


def _heading(domain: Domain, snapshots: list[Snapshot]) -> str:
    size_bytes = sum(each.bytes for each in snapshots)
    in_snapshots = f"{size(size_bytes)} in snapshots" if size_bytes else ""
    return packed([domain.name, domain.state, count(len(domain.disks), "disk"), in_snapshots, pending(domain)], gap=GAP)


def _remarks(domain: Domain) -> list[str]:
    problem = f"The memory was not loaded when it last ran: {domain.pending_problem}" if domain.pending_problem else ""
    return [line for each in (domain.state_reason, domain.interrupted, problem) if each for line in paragraph(each, indent=0)]


def _columns(snapshot: Snapshot, now_usec: int) -> list[str]:
    if snapshot.undo:
        how = "undo point"
    elif snapshot.pause_usec:
        how = f"paused {duration(snapshot.pause_usec / 1e6)}"
    else:
        how = snapshot.consistency
    flags = " ".join(each for each in snapshot.flags if each != UNDO)
    shown_size = size(snapshot.bytes) if snapshot.bytes else ""
    return [age(snapshot.creation_usec, now_usec), kind(snapshot), shown_size, how, flags]


def _walk(domain: Domain, snapshots: list[Snapshot]) -> list[tuple[str, Snapshot | None]]:
    """Return each line of the tree as its drawing and its snapshot; None stands for the present."""
    known = {each.name for each in snapshots}
    children: dict[str, list[Snapshot | None]] = {}
    for each in sorted(snapshots, key=lambda one: one.creation_usec):
        children.setdefault(each.parent if each.parent in known else "", []).append(each)
    current = domain.current_snapshot if domain.current_snapshot in known else ""
    children.setdefault(current, []).insert(0, None)
    lines: list[tuple[str, Snapshot | None]] = []
    waiting = _drawn("", children.get("", []))
    while waiting:
        prefix, below, snapshot = waiting.pop()
        lines.append((prefix, snapshot))
        if snapshot is not None:
            waiting += _drawn(below, children.get(snapshot.name, []))
    return lines


def _drawn(indent: str, siblings: list[Snapshot | None]) -> list[tuple[str, str, Snapshot | None]]:
    """Return drawing, indent of what is below, and snapshot of each sibling, the last one first."""
    return [
        (indent + ("├─ " if position else "└─ "), indent + ("│  " if position else "   "), each)
        for position, each in enumerate(reversed(siblings))
    ]


def _domain_disks(disks: Iterable[DomainDisk]) -> list[str]:
    rows = []
    for each in disks:
        kinds = {"internal": each.can_internal, "external": each.can_external}
        possible = " or ".join(name for name, can in kinds.items() if can) or "no snapshots"
        rows.append([each.target, size(each.virtual_size_bytes), each.format, possible, each.image or "no medium"])
        if each.reason:
            missing = " and ".join(name for name, can in kinds.items() if not can)
            what = f"not {missing}" if each.eligible else "not in snapshots"
            rows += [[line] for line in paragraph(f"{what}: {each.reason}", indent=_DISK_INDENT - 4)]
    return _rows(rows)


def _snapshot_disks(disks: Iterable[SnapshotDisk]) -> list[str]:
    return _rows(
        [
            [
                each.target,
                size(each.virtual_size_bytes),
                each.format,
                "internal" if each.tag else "external",
                each.image + (f" tag {each.tag}" if each.tag else ""),
            ]
            for each in disks
        ]
    )


def _rows(rows: list[list[str]]) -> list[str]:
    return [f"    {line}" for line in table([[printable(cell) for cell in row] for row in rows]).splitlines()]


def _section(title: str, lines: list[str]) -> list[str]:
    return [GAP + title, *lines] if lines else []


def _undo(snapshot: Snapshot) -> str:
    if not snapshot.undo:
        return ""
    return "yes" if snapshot.protected else "yes; it ends with the next revert unless it is protected"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
