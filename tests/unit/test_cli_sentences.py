# SPDX-License-Identifier: MIT
"""What the tool asks, and what it says when something is done."""

import dataclasses

import pytest

from snapd.cli import sentences
from snapd.cli.sentences import Reverted
from snapd.cli.values import Domain
from tests.lab.tool_values import DISKS_ONLY, EXPERIMENT, FRESH, NOW, TAGGED_DISK, UPGRADE, VM1, done_in, snapshot

PAUSED = dataclasses.replace(VM1, state="paused")
SHUT_OFF = dataclasses.replace(VM1, state="shutoff")
QUESTION_COLUMNS = 80 - len(" [y/N]: ")


def test_what_was_created() -> None:
    assert sentences.created(FRESH, done_in(4.8)).splitlines() == [
        "Created fresh-install: full, external, 1 disk, paused for 8 ms, 412 MiB, 4.8 s."
    ]
    assert sentences.created(EXPERIMENT, done_in(0.2)).splitlines() == [
        "Created experiment: disks, external, 1 disk, not paused, quiesced, 200 ms."
    ]
    mixed = snapshot("m", type="mixed", disks=(*FRESH.disks, TAGGED_DISK), consistency="crash-consistent", **DISKS_ONLY)
    assert "Created m: disks, mixed, 2 disks, not paused, crash-consistent, " in sentences.created(mixed, done_in(0.2))
    shut_off = dataclasses.replace(mixed, type="internal", domain_state="shutoff", consistency="offline")
    assert sentences.created(shut_off, done_in(0.2)) == "Created m: disks, internal, 2 disks, offline, 200 ms."
    bare = dataclasses.replace(FRESH, name="m", type="any", disks=())
    assert sentences.created(bare, done_in(1)) == "Created m: full, 0 disks, paused for 8 ms, 412 MiB, 1.0 s."


def test_what_was_created_goes_on_below_where_it_is_long() -> None:
    slow = dataclasses.replace(UPGRADE, name="2027-01-15T08-00-00", method_reason="its memory lies in a file")
    assert sentences.created(slow, done_in(4.8)).splitlines() == [
        "Created 2027-01-15T08-00-00: full, external, 1 disk, paused for 12 ms, 1.1 GiB,",
        "4.8 s. Not live: its memory lies in a file.",
    ]


def test_notes_are_lines_of_their_own() -> None:
    end = done_in(0.1, "The chain is long.", "So is this.")
    notes = ["Note: The chain is long.", "Note: So is this."]
    assert sentences.created(FRESH, end).splitlines()[1:] == notes
    assert sentences.deleted("a", [], "one", end).splitlines()[1:] == notes
    assert sentences.reverted(Reverted(VM1, VM1, "a", "", end)).splitlines()[1:] == notes


@pytest.mark.parametrize(
    ("before", "after", "undo", "said"),
    [
        (VM1, VM1, "", "Reverted vm1 to a in 1.3 s; QEMU kept running."),
        (VM1, PAUSED, "", "Reverted vm1 to a in 1.3 s; QEMU kept running, and the guest is paused."),
        (VM1, VM1, "u", "Reverted vm1 to a in 1.3 s; QEMU kept running.\nUndo with: domsnap revert vm1 --undo"),
        (SHUT_OFF, SHUT_OFF, "", "Reverted vm1 to a in 1.3 s; the domain is shut off."),
        (SHUT_OFF, VM1, "", "Reverted vm1 to a in 1.3 s; the domain is running."),
        (
            SHUT_OFF,
            dataclasses.replace(SHUT_OFF, pending_revert="a"),
            "u",
            "Reverted vm1 to a in 1.3 s; the memory of a is loaded when it next runs.\nUndo with: domsnap revert vm1 --undo",
        ),
    ],
)
def test_what_was_reverted(before: Domain, after: Domain, undo: str, said: str) -> None:
    assert sentences.reverted(Reverted(before, after, "a", undo, done_in(1.3))) == said


def test_what_was_deleted() -> None:
    assert sentences.deleted("a", [], "tree", done_in(0.4)) == "Deleted a in 400 ms."
    assert sentences.deleted("a", ["b"], "tree", done_in(0.4)) == "Deleted a and 1 snapshot below it in 400 ms."
    assert sentences.deleted("a", ["b", "c"], "children", done_in(0.4)) == "Deleted 2 snapshots below a in 400 ms."


@pytest.mark.parametrize(
    ("domain", "keeps_undo", "keeps_memory", "fate"),
    [
        (VM1, True, False, "is kept as an undo point, without memory."),
        (VM1, True, True, "is kept as an undo point, with memory."),
        (SHUT_OFF, True, False, "is kept as an undo point."),
        (VM1, False, False, "is lost."),
    ],
)
def test_the_question_before_a_revert_says_what_becomes_of_the_present(
    domain: Domain, keeps_undo: bool, keeps_memory: bool, fate: str
) -> None:
    question = sentences.revert_question(domain, FRESH, keeps_undo=keeps_undo, keeps_memory=keeps_memory, now_usec=NOW)
    lines = question.splitlines()
    assert " ".join(lines) == f"vm1 goes back to fresh-install (3 weeks ago). What is not in a snapshot {fate} Go on?"
    assert max(map(len, lines)) <= QUESTION_COLUMNS


def test_the_question_before_a_delete() -> None:
    assert (
        sentences.delete_question("vm1", FRESH, [], "one", NOW) == "Delete fresh-install of vm1 (full, 412 MiB, 3 weeks ago)?"
    )
    assert sentences.delete_question("vm1", EXPERIMENT, [], "one", NOW) == "Delete experiment of vm1 (disks, yesterday)?"
    below = ["a", "b"]
    assert sentences.delete_question("vm1", FRESH, below, "children", NOW) == "Delete 2 snapshots below fresh-install of vm1?"


def test_a_refusal_of_a_protected_snapshot_names_the_command() -> None:
    told = sentences.protected("Snapshot 'a b' is protected; take the protection off first.", "vm1", "a b")
    assert told == "Snapshot 'a b' is protected; take the protection off first: domsnap protect vm1 'a b' --off"


def test_protection() -> None:
    assert sentences.protection("vm1", "a", is_on=True) == "a of vm1 is protected now."
    assert sentences.protection("vm1", "a", is_on=False) == "a of vm1 is no longer protected."


def test_a_memory_that_was_given_up() -> None:
    said = sentences.pending_canceled(dataclasses.replace(SHUT_OFF, pending_revert="a"))
    assert said == "The memory of a is not loaded into vm1 any more; its disks stay as they are."


def test_nothing_of_others_reaches_the_terminal_unescaped() -> None:
    said = sentences.created(dataclasses.replace(FRESH, method_reason="\x1b[2J"), done_in(0.1, "\x07"))
    assert "\x1b" not in said
    assert "\x07" not in said
