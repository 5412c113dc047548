# SPDX-License-Identifier: MIT
"""How the tool takes its command line, and how it shows progress."""

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from snapd.cli import options, progress
from snapd.cli.main import main
from snapd.cli.values import JobProgress
from tests.lab.tool_values import MIB


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
        (["create", "vm1", "--memory", "--disks-only"], "--memory and --disks-only exclude each other"),
        (["create", "vm1", "--type", "mixed"], "is not one of 'any', 'internal', 'external'"),
        (["create", "vm1", "--quiesce", "maybe"], "is not one of 'auto', 'require', 'no'"),
        (["create", "vm1", "--disk", "disk0"], "'disk0' is not TARGET=internal|external|no"),
        (["create", "vm1", "--disk", "=no"], "'=no' is not TARGET=internal|external|no"),
        (["create", "vm1", "--disk", "disk0=raw"], "'disk0=raw' is not TARGET=internal|external|no"),
        (["create", "vm1", "--disk", "a=no", "--disk", "a=internal"], "a cannot be both no and internal"),
        (["revert", "vm1"], "Name a SNAPSHOT, or use --undo"),
        (["revert", "vm1", ""], "SNAPSHOT is empty"),
        (["revert", "vm1", "", "--undo"], "SNAPSHOT is empty"),
        (["revert", "vm1", "a", "--undo"], "SNAPSHOT and --undo exclude each other"),
        (["revert", "vm1", "a", "--no-undo", "--undo-memory"], "--no-undo and --undo-memory exclude each other"),
        (["plan", "revert", "vm1"], "Name a SNAPSHOT, or use --undo"),
        (["plan", "delete", "vm1"], "Missing argument 'NAME'"),
        (["plan", "frobnicate", "vm1"], "No such command 'frobnicate'"),
        (["protect", "vm1"], "Missing argument 'SNAPSHOT'"),
        (["cancel-revert"], "Missing argument 'DOMAIN'"),
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
    for verb in ("domains", "list", "show", "create", "revert", "delete", "plan", "protect", "cancel-revert"):
        assert f"\n  {verb} " in outcome.stdout


@pytest.mark.parametrize("verb", ["", "create", "revert", "delete", "protect", "cancel-revert", "plan", "plan create"])
def test_help_fits_80_columns(verb: str) -> None:
    outcome = CliRunner().invoke(main, [*verb.split(), "-h"])
    assert outcome.exit_code == 0
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    assert "..." not in outcome.stdout.replace("[ARGS]...", "")


CREATE_NOTHING: dict[str, object] = {
    **{"description": "", "memory": False, "disks_only": False, "kind": None},
    **{"disks": {}, "quiesce": None, "live": None},
}
REVERT_NOTHING = dict.fromkeys(("undo", "no_undo", "undo_memory", "paused", "running", "force"), False)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {}),
        ({"disks_only": True}, {"memory": False}),
        ({"memory": True}, {"memory": True}),
        ({"kind": "internal"}, {"type": "internal"}),
        ({"quiesce": "require", "live": "no"}, {"quiesce": "require", "live": "no"}),
        ({"disks": {"disk0": "no"}, "description": "x"}, {"disks": {"disk0": "no"}, "description": "x"}),
    ],
)
def test_what_is_sent_with_create(given: dict[str, object], sent: dict[str, object]) -> None:
    assert options.as_create({**CREATE_NOTHING, **given}) == sent


@pytest.mark.parametrize(
    ("snapshot", "given", "name", "sent"),
    [
        ("a", {}, "a", {}),
        (None, {"undo": True}, "", {}),
        (None, {"undo": True, "no_undo": True}, "", {"undo": False}),
        ("a", {"no_undo": True}, "a", {"undo": False}),
        ("a", {"undo_memory": True}, "a", {"undo": True, "undo-memory": True}),
        ("a", {"paused": True, "force": True}, "a", {"state": "paused", "force": True}),
        ("a", {"running": True}, "a", {"state": "running"}),
    ],
)
def test_what_is_sent_with_revert(snapshot: str | None, given: dict[str, bool], name: str, sent: dict[str, object]) -> None:
    assert options.as_revert(snapshot, {**REVERT_NOTHING, **given}) == (name, sent)


def test_a_target_of_a_disk_may_have_an_equals_sign_in_it() -> None:
    """What is refused then is the bus that is not there, and not the command line."""
    outcome = CliRunner().invoke(main, ["--bus", "nonsense", "create", "vm1", "--disk", "a=b=no", "--disk", "a=b=no"])
    assert outcome.exit_code == 3
