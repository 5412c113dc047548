# SPDX-License-Identifier: MIT
"""``domsnap`` as a process against the real service: what it prints, asks, and ends with."""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab.guest import TinyGuest
from tests.lab.scene import DOMAIN, UUID, Scene, scene
from tests.lab.tool import RUN_TIMEOUT_S, Tool

POLICY = Path(__file__).parents[2] / "dbus" / "org.domsnap1.conf"

DOMAIN_KEYS = {
    *("name", "uuid", "state", "state_reason", "interrupted", "source", "monitor", "current_snapshot", "snapshot_count"),
    *("pending_revert", "pending_problem", "memory_blocker", "live_blocker", "disks"),
}
DOMAIN_DISK_KEYS = {
    *("target", "device", "image", "format", "virtual_size_bytes", "eligible", "can_internal", "can_external", "reason"),
}
SNAPSHOT_KEYS = {
    *("name", "domain", "description", "creation_usec", "type", "memory", "memory_bytes", "pause_usec", "method"),
    *("method_reason", "consistency", "domain_state", "parent", "children", "current", "protected", "undo", "bytes"),
    *("flags", "disks", "left_out"),
}
STEPS = ("making files", "saving memory", *(f"saving memory  {part} %" for part in (25, 50, 75, 100)), "making it durable")
SNAPSHOT_DISK_KEYS = {"target", "device", "image", "format", "tag", "virtual_size_bytes"}


@pytest.fixture
async def stage() -> AsyncIterator[Scene]:
    async with scene() as made:
        yield made


@pytest.fixture
def tool(stage: Scene) -> Tool:
    return Tool(stage.bus_address)


async def test_a_persons_session(stage: Scene, tool: Tool) -> None:
    assert await asyncio.to_thread(tool.done, "domains") == f"vm1  running  {UUID}\n"
    assert "No snapshots." in await asyncio.to_thread(tool.done, "list", DOMAIN)

    made = await asyncio.to_thread(tool.run, "create", DOMAIN, "base", "--description", "before all")
    assert made.returncode == 0
    assert re.fullmatch(r"Created base: full, external, 2 disks, paused for [\d.]+ m?s, \d+ KiB, [\d.]+ m?s\.\n", made.stdout)
    # Progress is announced at most five times a second, so a quick job may show no more than its first step.
    assert made.stderr
    assert set(made.stderr.splitlines()) <= {f"vm1  {step}" for step in STEPS}
    named = await asyncio.to_thread(tool.done, "create", DOMAIN)
    match = re.match(r"Created (\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d): ", named)
    assert match
    stage.qemu.wait_counting()
    reverted = await asyncio.to_thread(tool.done, "revert", DOMAIN, "base", "--no-undo")
    assert re.fullmatch(r"Reverted vm1 to base in [\d.]+ m?s; QEMU kept running\.\n", reverted)
    await asyncio.to_thread(tool.done, "create", DOMAIN, "branch", "--live", "no")

    tree = (await asyncio.to_thread(tool.done, "list", DOMAIN)).splitlines()
    assert re.fullmatch(r"vm1  running  2 disks  [\d.]+ [KM]iB in snapshots", tree[0])
    assert [line.split("  ")[0] for line in (tree[1],)] == ["└─ base"]
    assert tree[2].startswith(f"   ├─ {match[1]}")
    assert tree[3].startswith("   └─ branch ")
    assert tree[4] == "      └─ (now)"

    shown = await asyncio.to_thread(tool.done, "show", DOMAIN)
    assert f"UUID       {UUID}" in shown
    assert "Current    branch" in shown
    assert str(stage.images / "disk0.raw") not in shown
    shown = await asyncio.to_thread(tool.done, "show", DOMAIN, "base")
    assert "before all" in shown
    assert f"{match[1]}, branch" in shown
    assert str(stage.images / "disk0.raw") in shown
    assert "Not live     live: no was asked for" in await asyncio.to_thread(tool.done, "show", DOMAIN, "branch")

    deleted = await asyncio.to_thread(tool.done, "delete", DOMAIN, "base", "--only-children")
    assert re.fullmatch(r"Deleted 2 snapshots below base in [\d.]+ m?s\.\n", deleted)
    await asyncio.to_thread(tool.done, "create", DOMAIN, "leaf")
    deleted = await asyncio.to_thread(tool.done, "delete", DOMAIN, "base", "--children")
    assert deleted.startswith("Deleted base and 1 snapshot below it in ")
    assert await stage.snapshots() == []


async def test_json_has_the_documented_keys(tool: Tool) -> None:
    made = await asyncio.to_thread(tool.json, "create", DOMAIN, "a", "--description", "Ä")
    assert set(made) == {"result", "snapshot", "duration_s", "notes"}
    assert (made["result"], made["snapshot"]["name"], made["snapshot"]["description"]) == ("done", "a", "Ä")
    _assert_snapshot(made["snapshot"])
    await asyncio.to_thread(tool.json, "create", DOMAIN, "b")
    domains = await asyncio.to_thread(tool.json, "domains")
    assert domains == {"domains": [{"name": DOMAIN, "uuid": UUID, "state": "running"}]}
    listed = await asyncio.to_thread(tool.json, "list", DOMAIN)
    assert set(listed) == {"domain", "snapshots"}
    _assert_domain(listed["domain"])
    assert [(each["name"], each["parent"], each["children"]) for each in listed["snapshots"]] == [
        ("a", "", ["b"]),
        ("b", "a", []),
    ]
    for each in listed["snapshots"]:
        _assert_snapshot(each)
    shown = await asyncio.to_thread(tool.json, "show", DOMAIN)
    assert set(shown) == {"domain"}
    _assert_domain(shown["domain"])
    shown = await asyncio.to_thread(tool.json, "show", DOMAIN, "b")
    assert set(shown) == {"snapshot"}
    _assert_snapshot(shown["snapshot"])
    reverted = await asyncio.to_thread(tool.json, "revert", DOMAIN, "a")
    assert set(reverted) == {"result", "domain", "snapshot", "undo", "duration_s", "notes"}
    assert (reverted["domain"]["current_snapshot"], reverted["snapshot"]["current"]) == ("a", True)
    _assert_domain(reverted["domain"])
    _assert_snapshot(reverted["snapshot"])
    shown = await asyncio.to_thread(tool.json, "show", DOMAIN, reverted["undo"])
    _assert_snapshot(shown["snapshot"])
    assert (shown["snapshot"]["undo"], shown["snapshot"]["flags"]) == (True, ["undo"])
    protected = await asyncio.to_thread(tool.json, "protect", DOMAIN, "b")
    assert set(protected) == {"result", "snapshot"}
    assert (protected["snapshot"]["protected"], protected["snapshot"]["flags"]) == (True, ["protected"])
    await asyncio.to_thread(tool.json, "protect", DOMAIN, "b", "--off")
    planned = await asyncio.to_thread(tool.json, "plan", "delete", DOMAIN, "a", "--children")
    assert set(planned) == {"steps"}
    assert {"Forget snapshot 'a'.", "Forget snapshot 'b'."} < set(planned["steps"])
    deleted = await asyncio.to_thread(tool.json, "delete", DOMAIN, "a", "--children")
    assert set(deleted) == {"result", "deleted", "duration_s", "notes"}
    assert sorted(deleted["deleted"]) == ["a", "b", reverted["undo"]]
    refused = await asyncio.to_thread(tool.run, "--json", "show", DOMAIN, "a")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)
    assert set(error) == {"error"}
    assert error["error"]["name"] == "org.domsnap1.Error.NoSuchSnapshot"
    assert refused.stderr == f"domsnap: {error['error']['message']}\n"


def _assert_domain(domain: dict[str, object]) -> None:
    assert set(domain) == DOMAIN_KEYS
    disks = domain["disks"]
    assert isinstance(disks, list)
    assert [set(disk) for disk in disks] == [DOMAIN_DISK_KEYS] * 2


def _assert_snapshot(snapshot: dict[str, object]) -> None:
    assert set(snapshot) == SNAPSHOT_KEYS
    disks = snapshot["disks"]
    assert isinstance(disks, list)
    assert [set(disk) for disk in disks] == [SNAPSHOT_DISK_KEYS] * 2


async def test_a_revert_leaves_the_guest_as_asked(stage: Scene, tool: Tool) -> None:
    await stage.create("a")
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "a", "--paused", "--no-undo")
    assert said.endswith("; QEMU kept running, and the guest is paused.\n")
    assert not stage.qemu.control.execute("query-status")["running"]
    await stage.create("p")
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "p", "--running", "--no-undo")
    assert said.endswith("; QEMU kept running.\n")
    stage.qemu.wait_counting()
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "p", "--no-undo")
    assert said.endswith("; QEMU kept running, and the guest is paused.\n")


async def test_it_asks_on_a_terminal_and_shows_a_bar_there(stage: Scene, tool: Tool) -> None:
    code, shown = await asyncio.to_thread(tool.on_terminal, "create", DOMAIN, "a")
    assert code == 0
    assert "\x1b[" in shown
    assert "━" in shown
    assert "Created a: full" in shown
    assert "[y/N]" not in shown
    for verb, question in (("revert", "vm1 goes back to a (just now)"), ("delete", "Delete a of vm1 (full")):
        code, shown = await asyncio.to_thread(tool.on_terminal, verb, DOMAIN, "a", answer="n")
        assert code == 1
        assert question in shown
        assert "domsnap: Nothing was done." in shown
    assert [row[1] for row in await stage.snapshots()] == ["a"]
    code, shown = await asyncio.to_thread(tool.on_terminal, "revert", DOMAIN, "a", "--no-undo", "--yes")
    assert (code, "[y/N]" in shown) == (0, False)
    code, shown = await asyncio.to_thread(tool.on_terminal, "revert", DOMAIN, "a", "--no-undo", answer="y")
    assert code == 0
    assert "What is not in a snapshot is lost. Go on?" in shown
    assert "Reverted vm1 to a in" in shown
    code, shown = await asyncio.to_thread(tool.on_terminal, "delete", DOMAIN, "a", answer="y")
    assert code == 0
    assert "Deleted a in" in shown
    assert await stage.snapshots() == []


async def test_exit_codes(stage: Scene, tool: Tool) -> None:
    async def ends(code: int, sentence: str, *arguments: str) -> None:
        ran = await asyncio.to_thread(tool.run, *arguments)
        assert (ran.returncode, ran.stdout) == (code, ""), ran
        assert sentence in ran.stderr
        assert "Traceback" not in ran.stderr
        if code != 2:
            assert ran.stderr.startswith("domsnap: ")
            assert ran.stderr.count("\n") == 1

    await ends(1, "nosuch", "list", "nosuch")
    await ends(1, "'x'", "revert", DOMAIN, "x")
    await ends(1, "'x'", "delete", DOMAIN, "x")
    await ends(1, "a/b", "create", DOMAIN, "a/b")
    await ends(2, "No such command", "frobnicate")
    await ends(2, "Missing argument", "create")
    await ends(1, "Undoing a revert is not possible", "revert", DOMAIN, "--undo")
    await ends(1, "Cancelling a pending revert is not possible", "cancel-revert", DOMAIN)
    await ends(1, "'x'", "protect", DOMAIN, "x")
    await ends(1, "'x'", "plan", "delete", DOMAIN, "x")
    await ends(1, "nosuch", "plan", "create", "nosuch")
    await ends(1, "names x, and domain vm1 has disk0, disk1", "create", DOMAIN, "--disk", "x=no")
    await ends(2, "exclude each other", "revert", DOMAIN, "x", "--paused", "--running")
    await ends(2, "exclude each other", "delete", DOMAIN, "x", "--children", "--only-children")
    await ends(2, "Invalid value", "create", DOMAIN, "--live", "perhaps")
    await ends(3, "Not connected", "--bus", f"unix:path={stage.directory}/nobus", "domains")
    await ends(3, "Not connected", "--bus", "nonsense", "domains")
    stage.daemon.stop()
    await ends(3, "does not answer", "domains")


async def test_who_may_only_look_is_told_so_with_an_exit_code_of_its_own() -> None:
    async with scene(policies=(POLICY,)) as stage:
        stage.directory.chmod(0o755)
        tool = Tool(stage.bus_address)
        await stage.create("a")
        listed = await asyncio.to_thread(tool.run, "list", DOMAIN, as_nobody=True)
        assert (listed.returncode, "└─ a" in listed.stdout) == (0, True), listed.stderr
        forbidden = ["create vm1 b", "revert vm1 a", "delete vm1 a", "protect vm1 a", "plan create vm1", "cancel-revert vm1"]
        for arguments in map(str.split, forbidden):
            denied = await asyncio.to_thread(tool.run, *arguments, as_nobody=True)
            assert denied.returncode == 4
            assert denied.stderr.startswith("domsnap: You may not ")
        denied = await asyncio.to_thread(tool.run, "--json", "create", DOMAIN, "b", as_nobody=True)
        assert denied.returncode == 4
        assert json.loads(denied.stdout)["error"]["name"].endswith(".AccessDenied")
        assert [row[1] for row in await stage.snapshots()] == ["a"]


async def test_without_an_option_the_configured_way_of_saving_is_taken() -> None:
    async with scene(settings={"snapshots": {"live": "no"}}) as stage:
        tool = Tool(stage.bus_address)
        made = await asyncio.to_thread(tool.json, "create", DOMAIN, "a")
        assert made["snapshot"]["method"] == "paused"
        made = await asyncio.to_thread(tool.json, "create", DOMAIN, "b", "--live", "require")
        assert made["snapshot"]["method"] == "live"


async def test_after_ctrl_c_the_job_goes_on() -> None:
    async with scene(guest=TinyGuest.dirtying(200), memory_mib=256) as stage:
        tool = Tool(stage.bus_address)
        stage.qemu.wait_counting(more=100)
        process = subprocess.Popen(
            [*tool.command, "create", DOMAIN, "long"],
            env=tool.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr
            assert (await asyncio.to_thread(process.stderr.readline)).strip().removeprefix(f"{DOMAIN}  ") in STEPS
            # The job cannot end before the tool does, so long as QEMU stands still.
            stage.qemu.freeze()
            assert await stage.snapshots() == []
            process.send_signal(signal.SIGINT)
            out, err = await asyncio.to_thread(process.communicate, timeout=RUN_TIMEOUT_S)
            assert (process.returncode, out) == (1, "")
            assert "domsnap: Stopped waiting; the service goes on with what it has begun." in err
            assert "Traceback" not in err
            assert await stage.snapshots() == []
        finally:
            process.kill()
            process.communicate()
            stage.qemu.thaw()
        await stage.wait_signal("SnapshotCreated")
        assert [row[1] for row in await stage.snapshots()] == ["long"]
        stage.qemu.wait_counting()
