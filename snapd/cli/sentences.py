# SPDX-License-Identifier: MIT
"""Owns what the tool asks before it changes something, and says when that is done.

Not here: lists and details (``render``). It asks nobody and prints nothing; every function is pure.

- No text of others reaches a terminal with a control character in it.
- What is asked or said fits 80 columns, where names are not too long; a command is never broken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from snapd.cli.render import kind, type_of
from snapd.cli.values import Domain, JobEnd, Snapshot
from snapd.cli.words import COLUMNS, age, command, count, duration, packed, printable, size

_ANSWERS = " [y/N]: "
_QUESTION_COLUMNS = COLUMNS - len(_ANSWERS)
_WITH_A_GUEST = ("running", "paused")


@dataclass(frozen=True, slots=True)
class Reverted:
    """What a revert did: how the domain was and is, and the undo point that it kept, empty for none."""

    before: Domain
    after: Domain
    snapshot: str
    undo: str
    end: JobEnd


def revert_question(domain: Domain, snapshot: Snapshot, *, keeps_undo: bool, keeps_memory: bool, now_usec: int) -> str:
    """Ask before a revert; ``keeps_undo`` is whether it makes an undo point, and ``keeps_memory`` one with memory."""
    fate = "is lost."
    if keeps_undo:
        memory = ("with" if keeps_memory else "without") + " memory"
        fate = "is kept as an undo point" + (f", {memory}." if domain.state in _WITH_A_GUEST else ".")
    goes = f"{domain.name} goes back to {snapshot.name} ({age(snapshot.creation_usec, now_usec)})."
    return packed([goes, f"What is not in a snapshot {fate}", "Go on?"], _QUESTION_COLUMNS)


def delete_question(domain: str, snapshot: Snapshot, names_below: list[str], scope: str, now_usec: int) -> str:
    """Ask before a delete; ``scope`` is ``one``, ``tree`` or ``children``."""
    what = f"Delete {_deleted(snapshot.name, names_below, scope)} of {domain}"
    if scope == "children":
        return printable(f"{what}?")
    facts = [kind(snapshot), size(snapshot.bytes) if snapshot.bytes else "", age(snapshot.creation_usec, now_usec)]
    return packed([what, f"({', '.join(filter(None, facts))})?"], _QUESTION_COLUMNS)


def created(snapshot: Snapshot, end: JobEnd) -> str:
    """Say that a snapshot was taken."""
    facts = [kind(snapshot), type_of(snapshot), count(len(snapshot.disks), "disk")]
    if snapshot.pause_usec:
        facts.append(f"paused for {duration(snapshot.pause_usec / 1e6)}")
    elif snapshot.domain_state == "running":
        facts.append("not paused")
    facts += [size(snapshot.bytes)] if snapshot.memory else [snapshot.consistency]
    *first, last = [*filter(None, facts), duration(end.took_s)]
    facts = [*(f"{each}," for each in first), f"{last}."]
    reason = f"Not live: {snapshot.method_reason.rstrip('.')}." if snapshot.method_reason else ""
    said = packed([f"Created {snapshot.name}: {facts[0]}", *facts[1:], reason])
    return "\n".join([said, *_notes(end)])


def reverted(done: Reverted) -> str:
    """Say that a domain was taken back, what became of its QEMU, and how to undo that."""
    said = f"Reverted {done.after.name} to {done.snapshot} in {duration(done.end.took_s)};"
    undo = f"Undo with: {command('revert', done.after.name, '--undo')}" if done.undo else ""
    return "\n".join([packed([said, _state_after(done), undo]), *_notes(done.end)])


def deleted(snapshot: str, names_below: list[str], scope: str, end: JobEnd) -> str:
    """Say what was deleted."""
    said = printable(f"Deleted {_deleted(snapshot, names_below, scope)} in {duration(end.took_s)}.")
    return "\n".join([said, *_notes(end)])


def protection(domain: str, snapshot: str, *, is_on: bool) -> str:
    """Say that a snapshot is protected from now on, or no longer."""
    return printable(f"{snapshot} of {domain} is {'protected now' if is_on else 'no longer protected'}.")


def protected(sentence: str, domain: str, snapshot: str) -> str:
    """Return the service's sentence about a snapshot that is protected, with the command that takes that off."""
    return f"{sentence.rstrip('.')}: {command('protect', domain, snapshot, '--off')}"


def pending_canceled(before: Domain) -> str:
    """Say that a memory is not loaded after all."""
    kept = f"The memory of {before.pending_revert} is not loaded into {before.name} any more;"
    return packed([kept, "its disks stay as they are."])


def _state_after(done: Reverted) -> str:
    if done.after.pending_revert:
        return f"the memory of {done.after.pending_revert} is loaded when it next runs."
    if done.after.state == "shutoff":
        return "the domain is shut off."
    if done.before.state not in _WITH_A_GUEST or done.after.state not in _WITH_A_GUEST:
        return f"the domain is {done.after.state}."
    return "QEMU kept running" + (", and the guest is paused." if done.after.state == "paused" else ".")


def _notes(end: JobEnd) -> Iterable[str]:
    return [printable(f"Note: {each}") for each in end.notes]


def _deleted(name: str, names_below: list[str], scope: str) -> str:
    below = count(len(names_below), "snapshot")
    if scope == "children":
        return f"{below} below {name}"
    return f"{name} and {below} below it" if scope == "tree" and names_below else name
