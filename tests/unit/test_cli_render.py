# SPDX-License-Identifier: MIT
"""What the tool writes for people, and how it takes its command line."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from snapd.cli import progress, render
from snapd.cli.main import main
from snapd.cli.values import Domain, DomainDisk, DomainRow, JobProgress, Snapshot, SnapshotDisk, SnapshotRow, below

SECOND = 1_000_000
DAY = 86400 * SECOND
NOW = 1_800_000_000 * SECOND
MIB = 2**20

DISK = DomainDisk("virtio-disk0", "/machine/disk0", "/srv/disk0.raw", "raw", 8 * 2**30, True, "")
CDROM = DomainDisk("cd", "/machine/cd", "", "raw", 0, False, "it is a CD-ROM")
KEPT_DISK = SnapshotDisk("virtio-disk0", "/machine/disk0", "/srv/disk0.raw", "raw", "", 8 * 2**30)

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
    memory_blocker="",
    live_blocker="",
    disks=(DISK, CDROM),
)


def snapshot(name: str, parent: str = "", days: float = 0, **changes: Any) -> Snapshot:
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
        bytes=412 * MIB,
        flags=(),
        disks=(KEPT_DISK,),
    )
    return dataclasses.replace(plain, **changes)


FRESH = snapshot("fresh-install", days=22, flags=("protected",))
UPGRADE = snapshot("before-upgrade", "fresh-install", days=2, bytes=1126 * MIB, pause_usec=12_000, current=True)
EXPERIMENT = snapshot(
    "experiment", "fresh-install", days=1, memory=False, pause_usec=0, consistency="offline", bytes=96 * MIB, method=""
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
    assert render.size(count) == text


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
    assert render.age(NOW - seconds * SECOND, NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.008, "8 ms"), (0.9999, "1.0 s"), (4.8, "4.8 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7320, "2 h 2 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_the_tree() -> None:
    assert render.snapshot_tree(VM1, [EXPERIMENT, FRESH, UPGRADE], NOW).splitlines() == [
        "vm1  running  2 disks  1.6 GiB in snapshots",
        "└─ fresh-install      3 weeks ago  full   412 MiB  paused 8 ms   protected",
        "   ├─ before-upgrade  2 days ago   full   1.1 GiB  paused 12 ms",
        "   │  └─ (now)",
        "   └─ experiment      yesterday    disks   96 MiB  offline",
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


def test_the_details_of_a_domain_say_why_a_disk_is_left_out() -> None:
    text = render.domain_details(dataclasses.replace(VM1, live_blocker="memory lies in a file"))
    assert "not in snapshots: it is a CD-ROM" in text
    assert "not possible: memory lies in a file" in text
    assert "/srv/disk0.raw" in text


def test_the_details_of_a_snapshot() -> None:
    text = render.snapshot_details(dataclasses.replace(FRESH, method="paused", method_reason="QEMU is too old."), NOW)
    assert "saved paused" in text
    assert "QEMU is too old." in text
    assert "full, protected" in text


def test_results() -> None:
    assert render.created(UPGRADE, 4.8) == "Created before-upgrade: full, 1 disk, guest paused for 12 ms, 1.1 GiB, 4.8 s."
    assert render.created(EXPERIMENT, 0.2) == "Created experiment: disks, 1 disk, offline, 96 MiB, 200 ms."
    assert render.reverted(VM1, "fresh-install", 1.3) == "Reverted vm1 to fresh-install in 1.3 s; the guest is running."
    assert render.deleted("a", [], "tree", 0.4) == "Deleted a in 400 ms."
    assert render.deleted("a", ["b"], "tree", 0.4) == "Deleted a and 1 snapshot below it in 400 ms."
    assert render.deleted("a", ["b", "c"], "children", 0.4) == "Deleted 2 snapshots below a in 400 ms."


def test_questions() -> None:
    assert render.revert_question("vm1", FRESH, NOW) == (
        "vm1 goes back to fresh-install (3 weeks ago). What is not in a snapshot is lost. Go on?"
    )
    assert render.delete_question("vm1", FRESH, [], "one", NOW) == "Delete fresh-install of vm1 (full, 412 MiB, 3 weeks ago)?"
    assert render.delete_question("vm1", FRESH, ["a", "b"], "children", NOW) == "Delete 2 snapshots below fresh-install of vm1?"


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
    assert SnapshotRow.from_row(("/", "a", 0, "external", "", 1 | 2 | 8, False)).flags == ("protected", "damaged")


def test_progress_in_plain_lines() -> None:
    stream = io.StringIO()
    with progress.reporter("vm1", stream, silent=False) as reporter:
        for step, fraction in [("", None), ("preparing", None), ("saving memory", 0.1), ("saving memory", 0.2)]:
            reporter.show(JobProgress(step, fraction, 0))
        for fraction in (0.26, 0.3, 0.8):
            reporter.show(JobProgress("saving memory", fraction, 0))
    assert stream.getvalue().splitlines() == [
        "vm1  preparing",
        "vm1  saving memory",
        "vm1  saving memory  25 %",
        "vm1  saving memory  75 %",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_and_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with progress.reporter("vm[1]", stream, silent=False) as reporter:
        reporter.show(JobProgress("saving memory", None, 0))
        reporter.show(JobProgress("saving memory", 0.62, 640 * MIB))
    shown = stream.getvalue()
    assert "vm[1]" in shown
    assert "62 %" in shown
    assert "640 MiB" in shown
    assert shown.endswith("\x1b[2K")


def test_progress_for_programs_is_silent() -> None:
    stream = io.StringIO()
    with progress.reporter("vm1", stream, silent=True) as reporter:
        reporter.show(JobProgress("saving memory", 0.5, 0))
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["list"], "Missing argument 'DOMAIN'"),
        (["create", "vm1", "a", "b"], "unexpected extra argument"),
        (["create", "vm1", "--live", "maybe"], "is not one of 'auto', 'require', 'no'"),
        (["revert", "vm1", "a", "--paused", "--running"], "--paused and --running exclude each other"),
        (["delete", "vm1", "a", "--children", "--only-children"], "--children and --only-children exclude each other"),
        (["restore", "vm1"], "No such command 'restore'"),
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], complaint: str) -> None:
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 2
    assert complaint in outcome.stderr
    assert outcome.stdout == ""


def test_without_a_bus_it_ends_with_3_and_says_so_to_people_and_programs(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["--json", "--bus", f"unix:path={tmp_path}/none", "domains"])
    assert outcome.exit_code == 3
    assert outcome.stderr.startswith("domsnap: Not connected: ")
    assert json.loads(outcome.stdout)["error"]["name"] == ""


def test_the_bus_is_also_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOMSNAP_BUS", f"unix:path={tmp_path}/none")
    assert "none" in CliRunner().invoke(main, ["domains"]).stderr


def test_help_names_the_verbs() -> None:
    outcome = CliRunner().invoke(main, ["-h"])
    assert outcome.exit_code == 0
    for verb in ("domains", "list", "show", "create", "revert", "delete"):
        assert verb in outcome.stdout
