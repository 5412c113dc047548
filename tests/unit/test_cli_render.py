# SPDX-License-Identifier: MIT
"""What the tool shows of domains and snapshots, and how it writes single values."""

import dataclasses

import pytest

from snapd.cli import render, words
from snapd.cli.values import DomainRow, SnapshotRow, below, undo_points
from tests.lab.tool_values import (
    CDROM,
    DISK,
    EXPERIMENT,
    FRESH,
    MIB,
    NOW,
    QCOW2,
    SECOND,
    TAGGED_DISK,
    UNDO,
    UPGRADE,
    VM1,
    snapshot,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (412 * MIB, "412 MiB"),
        (1126 * MIB, "1.1 GiB"),
        (10 * MIB, "10 MiB"),
        (1023 * MIB + MIB * 3 // 4, "1.0 GiB"),
        (2**64 - 1, "16 EiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400, "yesterday"),
        (2 * 86400, "2 days ago"),
        (22 * 86400, "3 weeks ago"),
        (70 * 86400, "2 months ago"),
        (800 * 86400, "2 years ago"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    assert words.age(NOW - seconds * SECOND, NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.008, "8 ms"), (0.9999, "1.0 s"), (4.8, "4.8 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7320, "2 h 2 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_pieces_are_packed_into_80_columns_and_never_broken() -> None:
    assert words.packed(["a" * 40, "", "b" * 39, "c d"]) == f"{'a' * 40} {'b' * 39}\nc d"
    assert words.packed(["日" * 40, "b"]) == f"{'日' * 40}\nb"
    assert words.packed(["x" * 100]) == "x" * 100


def test_a_command_is_what_a_shell_takes() -> None:
    assert words.command("revert", "my vm", "--undo") == "domsnap revert 'my vm' --undo"


def test_the_tree() -> None:
    assert render.snapshot_tree(VM1, [EXPERIMENT, FRESH, UPGRADE, UNDO], NOW).splitlines() == [
        "vm1  running  2 disks  1.5 GiB in snapshots",
        "└─ fresh-install                   3 weeks ago  full   412 MiB  paused 8 ms   protected",
        "   ├─ before-upgrade               2 days ago   full   1.1 GiB  paused 12 ms",
        "   │  ├─ (now)",
        "   │  └─ undo-2027-01-15T08-00-00  just now     disks           undo point    protected",
        "   └─ experiment                   yesterday    disks           quiesced",
    ]


def test_a_memory_that_waits_stands_in_the_head_line_of_the_tree() -> None:
    waiting = dataclasses.replace(VM1, state="shutoff", pending_revert="a", pending_problem="Its machine is another.")
    assert render.snapshot_tree(waiting, [snapshot("a", bytes=0)], NOW).splitlines()[:2] == [
        "vm1  shutoff  2 disks  memory of a is loaded when it runs next",
        "The memory was not loaded when it last ran: Its machine is another.",
    ]
    assert render.snapshot_tree(waiting, [snapshot("a")], NOW).splitlines()[:2] == [
        "vm1  shutoff  2 disks  412 MiB in snapshots",
        "memory of a is loaded when it runs next",
    ]


def test_the_tree_of_a_domain_whose_content_is_of_no_snapshot() -> None:
    domain = dataclasses.replace(VM1, current_snapshot="", state="drifted", state_reason="QEMU opened another image.")
    assert render.snapshot_tree(domain, [snapshot("a", days=1)], NOW).splitlines() == [
        "vm1  drifted  2 disks  412 MiB in snapshots",
        "QEMU opened another image.",
        "├─ (now)",
        "└─ a  yesterday  full  412 MiB  paused 8 ms",
    ]


def test_a_snapshot_whose_parent_has_gone_meanwhile_is_shown() -> None:
    assert "└─ orphan" in render.snapshot_tree(VM1, [snapshot("orphan", "gone")], NOW)


def test_a_long_line_of_descent_is_drawn() -> None:
    chain = [snapshot(f"s{number}", f"s{number - 1}" if number else "") for number in range(2000)]
    domain = dataclasses.replace(VM1, current_snapshot="s1999")
    assert len(render.snapshot_tree(domain, chain, NOW).splitlines()) == 2002


def test_wide_letters_keep_the_columns() -> None:
    lines = render.snapshot_tree(
        dataclasses.replace(VM1, current_snapshot=""), [snapshot("日本"), snapshot("abcd")], NOW
    ).splitlines()
    assert lines[2].index("just now") + 2 == lines[3].index("just now")


def test_no_snapshots() -> None:
    empty = dataclasses.replace(VM1, current_snapshot="", interrupted="A create was cut off.")
    assert render.snapshot_tree(empty, [], NOW) == "vm1  running  2 disks\nA create was cut off.\nNo snapshots."


def test_the_table_of_domains() -> None:
    rows = [DomainRow("vm1", "u1", "running"), DomainRow("long-name", "u2", "shutoff")]
    assert render.domain_table(rows) == "vm1        running  u1\nlong-name  shutoff  u2"
    assert render.domain_table([]) == "No domains."


def test_the_details_of_a_domain_say_what_each_disk_can_and_why_not_more() -> None:
    domain = dataclasses.replace(VM1, live_blocker="memory lies in a file", disks=(DISK, QCOW2, CDROM))
    lines = render.domain_details(domain).splitlines()
    assert lines[lines.index("  Disks") :] == [
        "  Disks",
        "    virtio-disk0  8.0 GiB  raw    external              /srv/disk0.raw",
        "      not internal: its format raw has no internal snapshots",
        "    virtio-disk1  1.0 GiB  qcow2  internal or external  /srv/disk1.qcow2",
        "    cd            0 B      raw    no snapshots          no medium",
        "      not in snapshots: it is a CD-ROM or floppy",
    ]
    assert "  Live       not possible: memory lies in a file" in lines


def test_the_details_of_a_domain_tell_of_a_memory_that_waits() -> None:
    waiting = dataclasses.replace(VM1, state="shutoff", state_reason="No QEMU runs.", pending_revert="fresh-install")
    assert "  Pending    memory of fresh-install is loaded when it runs next\n" in render.domain_details(waiting)
    assert "Not loaded" not in render.domain_details(waiting)
    failed = dataclasses.replace(waiting, pending_problem="Its machine is another.")
    assert "  Not loaded  Its machine is another.\n" in render.domain_details(failed)
    assert "Pending" not in render.domain_details(VM1)


def test_the_details_of_a_snapshot() -> None:
    kept = dataclasses.replace(
        FRESH,
        type="mixed",
        method="paused",
        method_reason="QEMU is too old.",
        flags=("protected", "damaged"),
        disks=(*FRESH.disks, TAGGED_DISK),
        left_out={"cd": "it is a CD-ROM or floppy"},
    )
    assert render.snapshot_details(kept, NOW).splitlines() == [
        "vm1 fresh-install",
        "  Taken        3 weeks ago",
        "  Kind         full",
        "  Type         mixed",
        "  Size         412 MiB",
        "  Memory       400 MiB, saved paused",
        "  Not live     QEMU is too old.",
        "  Paused for   8 ms",
        "  Consistency  full",
        "  Domain was   running",
        "  Parent       none",
        "  Current      no",
        "  Protected    yes",
        "  Flags        damaged",
        "  Disks",
        "    virtio-disk0  8.0 GiB  raw    external  /srv/disk0.raw",
        "    virtio-disk1  1.0 GiB  qcow2  internal  /srv/disk1.qcow2 tag tagged",
        "  Left out",
        "    cd: it is a CD-ROM or floppy",
    ]


def test_the_details_of_an_undo_point_say_how_long_it_stays() -> None:
    assert "Undo point   yes\n" in render.snapshot_details(UNDO, NOW)
    loose = dataclasses.replace(UNDO, protected=False)
    assert "Undo point   yes; it ends with the next revert unless it is protected\n" in render.snapshot_details(loose, NOW)
    assert "Type         no disks" in render.snapshot_details(dataclasses.replace(loose, type="any", disks=()), NOW)


def test_long_values_are_broken_between_words() -> None:
    lines = render.snapshot_details(dataclasses.replace(FRESH, description="word " * 40), NOW).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith(" " * 15 + "word")


def test_a_plan_is_a_line_for_each_step() -> None:
    assert render.plan(["Stop the guest.", "Reset the guest."]) == "Stop the guest.\nReset the guest."
    assert render.plan([]) == "Nothing would be done."


def test_nothing_of_others_reaches_the_terminal_unescaped() -> None:
    hostile = dataclasses.replace(FRESH, description="\x1b[2Jgone\x07", method_reason="\u202eabc")
    text = render.snapshot_details(hostile, NOW)
    assert "\x1b" not in text
    assert "\\x1b[2Jgone\\x07" in text
    assert "\\u202eabc" in text


def test_what_is_below_in_the_tree() -> None:
    rows = [SnapshotRow("/", name, parent, ()) for name, parent in [("a", ""), ("b", "a"), ("c", "a"), ("d", "b"), ("x", "")]]
    assert below(rows, "a") == ["b", "c", "d"]
    assert below(rows, "d") == []


def test_the_flags_of_a_row() -> None:
    assert SnapshotRow.from_row(("/", "a", 0, "external", "", 1 | 2 | 8 | 16, False)).flags == ("protected", "damaged", "undo")


def test_the_undo_points_among_rows() -> None:
    rows = [
        SnapshotRow("/", "a", "", ()),
        SnapshotRow("/", "u1", "", ("undo", "protected")),
        SnapshotRow("/", "u2", "", ("undo",)),
    ]
    assert undo_points(rows) == ["u1", "u2"]
