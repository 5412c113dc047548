# SPDX-License-Identifier: MIT
"""Owns how the tool writes things down for people: lists, the tree, details, questions and one-line results.

It asks nobody and prints nothing; every function is pure, and the present time is an argument.

- No text of others reaches a terminal with a control character in it.
"""

import unicodedata
from collections.abc import Iterable

from snapd.cli.values import Domain, DomainRow, Snapshot

_MINUTE, _HOUR, _DAY, _WEEK, _MONTH, _YEAR = 60, 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400
_AGES = [(_YEAR, "year"), (_MONTH, "month"), (_WEEK, "week"), (_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")]
_UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
_GAP = "  "


def printable(text: str) -> str:
    """Return the text with control characters, and those that turn the direction of writing, shown as escapes."""
    return "".join(
        each if unicodedata.category(each) not in ("Cc", "Cf", "Cs") else each.encode("unicode_escape").decode()
        for each in text
    )


def size(size_bytes: int) -> str:
    """Write a size with at most one decimal: ``0 B``, ``96 MiB``, ``1.1 GiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _UNITS:
        value /= 1024
        if value < 9.95:
            return f"{value:.1f} {unit}"
        if value < 1023.5:
            break
    return f"{value:.0f} {unit}"


def age(then_usec: int, now_usec: int) -> str:
    """Write how long ago an instant was, in one unit: ``just now``, ``yesterday``, ``3 weeks ago``."""
    seconds = (now_usec - then_usec) // 1_000_000
    for length, unit in _AGES:
        count = seconds // length
        if count == 1 and unit == "day":
            return "yesterday"
        if count >= 1:
            return f"{_count(count, unit)} ago"
    return "just now"


def duration(length_s: float) -> str:
    """Write a length of time: ``8 ms``, ``4.8 s``, ``3 min 20 s``."""
    if length_s < 0.9995:
        return f"{length_s * 1000:.0f} ms"
    if length_s < 59.95:
        return f"{length_s:.1f} s"
    minutes, seconds = divmod(round(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def domain_table(rows: Iterable[DomainRow]) -> str:
    """Write one line for each domain."""
    return _table([[printable(each.name), each.state, each.uuid] for each in rows]) or "No domains."


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
    return "\n".join([*lines, _table(rows, right=3)])


def domain_details(domain: Domain) -> str:
    """Write everything about a domain but its snapshots."""
    fields = [
        ("State", domain.state),
        ("UUID", domain.uuid or "not known yet"),
        ("Source", domain.source),
        ("Monitor", domain.monitor),
        ("Snapshots", str(domain.snapshot_count)),
        ("Current", domain.current_snapshot or "none"),
        ("Memory", f"cannot be saved: {domain.memory_blocker}" if domain.memory_blocker else "can be saved"),
    ]
    if not domain.memory_blocker:
        fields.append(("Live", f"not possible: {domain.live_blocker}" if domain.live_blocker else "possible"))
    disks = [
        [each.target, size(each.virtual_size_bytes), each.format, each.image or "no medium"]
        + ([] if each.eligible else [f"not in snapshots: {each.reason}"])
        for each in domain.disks
    ]
    return "\n".join([printable(domain.name), *_remarks(domain), *_fields(fields), *_disks(disks)])


def snapshot_details(snapshot: Snapshot, now_usec: int) -> str:
    """Write everything about a snapshot."""
    fields = [
        ("Description", snapshot.description),
        ("Taken", age(snapshot.creation_usec, now_usec)),
        ("Kind", _kind(snapshot) + (f", {', '.join(snapshot.flags)}" if snapshot.flags else "")),
        ("Size", size(snapshot.bytes)),
        ("Memory", size(snapshot.memory_bytes) + f", saved {snapshot.method}" if snapshot.memory else ""),
        ("Not live", snapshot.method_reason),
        ("Paused for", duration(snapshot.pause_usec / 1e6) if snapshot.pause_usec else ""),
        ("Consistency", snapshot.consistency),
        ("Domain was", snapshot.domain_state),
        ("Parent", snapshot.parent or "none"),
        ("Children", ", ".join(snapshot.children)),
        ("Current", "yes" if snapshot.current else "no"),
    ]
    disks = [
        [each.target, size(each.virtual_size_bytes), each.format, each.image + (f" tag {each.tag}" if each.tag else "")]
        for each in snapshot.disks
    ]
    return "\n".join([printable(f"{snapshot.domain} {snapshot.name}"), *_fields(fields), *_disks(disks)])


def revert_question(domain: str, snapshot: Snapshot, now_usec: int) -> str:
    """Ask before a revert."""
    when = age(snapshot.creation_usec, now_usec)
    return printable(f"{domain} goes back to {snapshot.name} ({when}). What is not in a snapshot is lost. Go on?")


def delete_question(domain: str, snapshot: Snapshot, names_below: list[str], scope: str, now_usec: int) -> str:
    """Ask before a delete; ``scope`` is ``one``, ``tree`` or ``children``."""
    what = _deleted(snapshot.name, names_below, scope)
    detail = (
        "" if scope == "children" else f" ({_kind(snapshot)}, {size(snapshot.bytes)}, {age(snapshot.creation_usec, now_usec)})"
    )
    return printable(f"Delete {what} of {domain}{detail}?")


def created(snapshot: Snapshot, took_s: float) -> str:
    """Say that a snapshot was taken."""
    facts = [_kind(snapshot), _count(len(snapshot.disks), "disk")]
    if snapshot.pause_usec:
        facts.append(f"guest paused for {duration(snapshot.pause_usec / 1e6)}")
    elif not snapshot.memory:
        facts.append(snapshot.consistency)
    reason = f" Not live: {snapshot.method_reason}" if snapshot.method_reason else ""
    return printable(f"Created {snapshot.name}: {', '.join([*facts, size(snapshot.bytes), duration(took_s)])}.{reason}")


def reverted(domain: Domain, snapshot: str, took_s: float) -> str:
    """Say that a domain was taken back."""
    state = {"running": "the guest is running", "paused": "the guest is paused", "shutoff": "the domain is shut off"}
    now = f"; {state[domain.state]}" if domain.state in state else ""
    return printable(f"Reverted {domain.name} to {snapshot} in {duration(took_s)}{now}.")


def deleted(snapshot: str, names_below: list[str], scope: str, took_s: float) -> str:
    """Say what was deleted."""
    return printable(f"Deleted {_deleted(snapshot, names_below, scope)} in {duration(took_s)}.")


def _deleted(name: str, names_below: list[str], scope: str) -> str:
    count = _count(len(names_below), "snapshot")
    if scope == "children":
        return f"{count} below {name}"
    return f"{name} and {count} below it" if scope == "tree" and names_below else name


def _heading(domain: Domain, snapshots: list[Snapshot]) -> str:
    facts = [printable(domain.name), domain.state, _count(len(domain.disks), "disk")]
    if snapshots:
        facts.append(f"{size(sum(each.bytes for each in snapshots))} in snapshots")
    return _GAP.join(facts)


def _remarks(domain: Domain) -> list[str]:
    return [printable(each) for each in (domain.state_reason, domain.interrupted) if each]


def _columns(snapshot: Snapshot, now_usec: int) -> list[str]:
    how = f"paused {duration(snapshot.pause_usec / 1e6)}" if snapshot.pause_usec else snapshot.consistency
    return [age(snapshot.creation_usec, now_usec), _kind(snapshot), size(snapshot.bytes), how, " ".join(snapshot.flags)]


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


def _kind(snapshot: Snapshot) -> str:
    return "full" if snapshot.memory else "disks"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _fields(fields: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in fields)
    return [f"  {name:<{width}}  {printable(value)}" for name, value in fields if value]


def _disks(disks: list[list[str]]) -> list[str]:
    if not disks:
        return []
    table = _table([[printable(cell) for cell in row] for row in disks])
    return ["  Disks", *(f"    {line}" for line in table.splitlines())]


def _table(rows: list[list[str]], right: int | None = None) -> str:
    """Align columns by what a terminal shows, the one at ``right`` to the right; a row of one cell does not count."""
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row if len(row) > 1 else []):
            widths[column] = max(widths.get(column, 0), _cells(cell))
    lines = []
    for row in rows:
        padded = []
        for column, cell in enumerate(row):
            space = " " * (widths.get(column, 0) - _cells(cell))
            padded.append(space + cell if column == right else cell + space)
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def _cells(text: str) -> int:
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) != 0 for each in text)
