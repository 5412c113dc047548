# SPDX-License-Identifier: MIT
"""``domsnap`` against the real service: the kinds of snapshots, undo points, protection, plans, shut-off domains."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from tests.lab.fake_agent import FakeAgent
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, Scene, scene, short_directory
from tests.lab.tool import Tool

QCOW2_ONLY = (GuestDisk("disk0.qcow2", "qcow2", id="disk0"), GuestDisk("disk1.qcow2", "qcow2", id="disk1"))
UNDO = r"undo-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d"
NAMED_SO = "my undo point"
"""A name that must not be taken for the thing."""

TOOK = r"[\d.]+ m?s"


@pytest.fixture
async def stage() -> AsyncIterator[Scene]:
    async with scene(QCOW2_ONLY) as made:
        yield made


@pytest.fixture
def tool(stage: Scene) -> Tool:
    return Tool(stage.bus_address)


async def test_create_says_which_kind_it_was(tool: Tool) -> None:
    made = await asyncio.to_thread(tool.done, "create", DOMAIN, "i")
    assert re.fullmatch(rf"Created i: full, internal, 2 disks, paused for {TOOK}, \d+ KiB, {TOOK}\.\n", made)
    made = await asyncio.to_thread(tool.done, "create", DOMAIN, "d", "--disks-only", "--disk", "disk1=no")
    assert re.fullmatch(rf"Created d: disks, internal, 1 disk, not paused, crash-consistent, {TOOK}\.\n", made)
    made = await asyncio.to_thread(
        tool.done, "create", DOMAIN, "m", "--disks-only", "--disk", "disk0=external", "--quiesce", "no"
    )
    assert re.fullmatch(rf"Created m: disks, mixed, 2 disks, not paused, crash-consistent, {TOOK}\.\n", made)
    made = await asyncio.to_thread(tool.done, "create", DOMAIN, "e", "--memory", "--type", "external")
    assert made.startswith("Created e: full, external, 2 disks, paused for ")

    tree = (await asyncio.to_thread(tool.done, "list", DOMAIN)).splitlines()
    assert [re.split(" {2,}", line.lstrip(" └─"))[0:3:2] for line in tree[1:-1]] == [
        ["i", "full"],
        ["d", "disks"],
        ["m", "disks"],
        ["e", "full"],
    ]
    shown = await asyncio.to_thread(tool.done, "show", DOMAIN, "d")
    assert "\n  Type         internal\n" in shown
    assert "\n  Consistency  crash-consistent\n" in shown
    assert shown.endswith("\n  Left out\n    disk1: the request says 'no' for it\n")
    values = (await asyncio.to_thread(tool.json, "show", DOMAIN, "d"))["snapshot"]
    assert values["left_out"] == {"disk1": "the request says 'no' for it"}
    assert "\n  Type         mixed\n" in await asyncio.to_thread(tool.done, "show", DOMAIN, "m")
    shown = await asyncio.to_thread(tool.done, "show", DOMAIN)
    assert len(re.findall(r"\n    disk\d  1.0 MiB  qcow2  internal or external  /", shown)) == 2


async def test_a_disk_that_can_have_one_kind_only_says_why_and_the_other_is_refused() -> None:
    async with scene() as stage:
        tool = Tool(stage.bus_address)
        shown = (await asyncio.to_thread(tool.done, "show", DOMAIN)).splitlines()
        at = shown.index("  Disks")
        assert shown[at + 1].startswith("    disk0  1.0 MiB  raw    external              /")
        assert shown[at + 2] == "      not internal: its format raw has no internal snapshots"
        assert shown[at + 3].startswith("    disk1  1.0 MiB  qcow2  internal or external  /")
        values = (await asyncio.to_thread(tool.json, "show", DOMAIN))["domain"]["disks"]
        assert [(each["can_internal"], each["can_external"]) for each in values] == [(False, True), (True, True)]
        refused = await asyncio.to_thread(tool.run, "create", DOMAIN, "a", "--type", "internal", "--disks-only")
        assert refused.returncode == 1
        assert "An internal snapshot of disk disk0 is not possible" in refused.stderr


async def test_file_systems_are_frozen_if_the_agent_answers() -> None:
    with short_directory() as directory:
        async with (
            FakeAgent(directory / "agent") as agent,
            scene(QCOW2_ONLY, define={"agent": str(agent.path)}) as stage,
        ):
            tool = Tool(stage.bus_address)
            made = await asyncio.to_thread(tool.done, "create", DOMAIN, "a", "--disks-only", "--quiesce", "require")
            assert re.fullmatch(rf"Created a: disks, internal, 2 disks, not paused, quiesced, {TOOK}\.\n", made)
            assert re.search(r"└─ a +just now +disks +quiesced\n", await asyncio.to_thread(tool.done, "list", DOMAIN))
            agent.file_systems = 0
            lines = (await asyncio.to_thread(tool.done, "create", DOMAIN, "b", "--disks-only")).splitlines()
            assert "crash-consistent" in lines[0]
            assert lines[1].startswith("Note: The file systems were not frozen: ")
            noted = await asyncio.to_thread(tool.json, "create", DOMAIN, "c", "--disks-only")
            assert noted["notes"] == [lines[1].removeprefix("Note: ")]
            refused = await asyncio.to_thread(tool.run, "create", DOMAIN, "d", "--disks-only", "--quiesce", "require")
            assert (refused.returncode, "could not be frozen" in refused.stderr) == (1, True)


async def test_a_revert_keeps_what_it_discards_and_can_be_undone(stage: Scene, tool: Tool) -> None:
    await asyncio.to_thread(tool.done, "create", DOMAIN, "a")
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "a")
    assert re.fullmatch(
        rf"Reverted vm1 to a in {TOOK}; QEMU kept running\.\nUndo with: domsnap revert vm1 --undo\n",
        said,
    )
    tree = (await asyncio.to_thread(tool.done, "list", DOMAIN)).splitlines()
    assert re.fullmatch(rf"   └─ {UNDO}  just now  disks +undo point", tree[-1])
    first = tree[-1].split()[1]
    assert "\n  Undo point   yes; it ends with" in await asyncio.to_thread(tool.done, "show", DOMAIN, first)

    undone = await asyncio.to_thread(tool.json, "revert", DOMAIN, "--undo", "--undo-memory")
    assert undone["snapshot"] is None
    assert re.fullmatch(UNDO + r"(-\d+)?", undone["undo"])
    assert undone["undo"] != first
    kept = (await asyncio.to_thread(tool.json, "show", DOMAIN, undone["undo"]))["snapshot"]
    assert (kept["undo"], kept["memory"], kept["protected"]) == (True, True, False)
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "--undo", "--no-undo")
    assert said.startswith(f"Reverted vm1 to {undone['undo']} in ")
    assert "Undo with" not in said
    assert [row[1] for row in await stage.snapshots()] == ["a"]


async def test_an_undo_point_that_is_protected_stays(stage: Scene, tool: Tool) -> None:
    await asyncio.to_thread(tool.done, "create", DOMAIN, "a")
    first = (await asyncio.to_thread(tool.json, "revert", DOMAIN, "a"))["undo"]
    assert await asyncio.to_thread(tool.done, "protect", DOMAIN, first) == f"{first} of vm1 is protected now.\n"
    second = (await asyncio.to_thread(tool.json, "revert", DOMAIN, "a"))["undo"]
    assert {row[1] for row in await stage.snapshots()} == {"a", first, second}
    assert re.search(rf"{first} .*  undo point +protected\n", await asyncio.to_thread(tool.done, "list", DOMAIN))


async def test_what_is_protected_is_deleted_only_after_the_command_that_is_named(stage: Scene, tool: Tool) -> None:
    for name in ("a", "b"):
        await asyncio.to_thread(tool.done, "create", DOMAIN, name)
    await asyncio.to_thread(tool.done, "protect", DOMAIN, "b")
    sentence = "domsnap: Snapshot 'b' is protected; take the protection off first: domsnap protect vm1 b --off\n"
    for arguments in (("b",), ("a", "--children"), ("a", "--only-children")):
        refused = await asyncio.to_thread(tool.run, "delete", DOMAIN, *arguments)
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", sentence)
    code, shown = await asyncio.to_thread(tool.on_terminal, "delete", DOMAIN, "b")
    assert (code, "[y/N]" in shown, sentence.strip() in shown.replace("\r\n", "\n")) == (1, False, True)
    assert [row[1] for row in await stage.snapshots()] == ["a", "b"]
    assert await asyncio.to_thread(tool.done, "protect", DOMAIN, "b", "--off") == "b of vm1 is no longer protected.\n"
    await asyncio.to_thread(tool.done, "delete", DOMAIN, "b")
    assert [row[1] for row in await stage.snapshots()] == ["a"]


@pytest.mark.parametrize(
    ("undo_by_default", "arguments", "fate"),
    [
        (True, (), "is kept as an undo point, without memory."),
        (True, ("--undo-memory",), "is kept as an undo point, with memory."),
        (True, ("--no-undo",), "is lost."),
        (False, (), "is lost."),
        (False, ("--undo-memory",), "is kept as an undo point, with memory."),
    ],
)
async def test_the_question_says_what_becomes_of_the_present(
    undo_by_default: bool, arguments: tuple[str, ...], fate: str
) -> None:
    async with scene(settings={"snapshots": {"undo": undo_by_default}}) as stage:
        tool = Tool(stage.bus_address)
        await asyncio.to_thread(tool.done, "create", DOMAIN, NAMED_SO)
        code, shown = await asyncio.to_thread(tool.on_terminal, "revert", DOMAIN, NAMED_SO, *arguments, answer="y")
        assert code == 0
        question = " ".join(shown.split())
        assert f"vm1 goes back to {NAMED_SO} (just now). What is not in a snapshot {fate} Go on? [y/N]" in question
        assert ("Undo with: domsnap revert vm1 --undo" in question) is (fate != "is lost.")


async def test_a_plan_tells_the_steps_and_does_nothing(stage: Scene, tool: Tool) -> None:
    await asyncio.to_thread(tool.done, "create", DOMAIN, "a")
    rows, files = await stage.snapshots(), stage.files()
    planned = await asyncio.to_thread(tool.done, "plan", "create", DOMAIN, "b", "--disk", "disk1=external")
    assert "Stop the guest.\n" in planned
    assert planned.endswith("Write down snapshot 'b'.\n")
    planned = await asyncio.to_thread(tool.done, "plan", "create", DOMAIN, "b", "--disks-only")
    assert "Stop the guest." not in planned
    planned = await asyncio.to_thread(tool.done, "plan", "revert", DOMAIN, "a", "--paused")
    assert "undo point" in planned
    assert "Let the guest go on." not in planned
    planned = (await asyncio.to_thread(tool.json, "plan", "revert", DOMAIN, "a", "--no-undo"))["steps"]
    assert "Let the guest go on." in planned
    assert not [each for each in planned if "undo point" in each]
    planned = await asyncio.to_thread(tool.done, "plan", "delete", DOMAIN, "a")
    assert planned.startswith("Forget snapshot 'a'.\n")
    assert (await stage.snapshots(), stage.files()) == (rows, files)


async def test_a_domain_that_is_shut_off(stage: Scene, tool: Tool) -> None:
    await asyncio.to_thread(tool.done, "create", DOMAIN, "live", "--type", "external")
    await stage.shut_off()
    made = await asyncio.to_thread(tool.done, "create", DOMAIN, "off")
    assert re.fullmatch(rf"Created off: disks, external, 2 disks, offline, {TOOK}\.\n", made)
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "off", "--no-undo")
    assert re.fullmatch(rf"Reverted vm1 to off in {TOOK}; the domain is shut off\.\n", said)
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "live")
    assert re.fullmatch(
        rf"Reverted vm1 to live in {TOOK}; the memory of live is loaded when it next runs\.\n"
        r"Undo with: domsnap revert vm1 --undo\n",
        said,
    )
    head = (await asyncio.to_thread(tool.done, "list", DOMAIN)).partition("└─")[0]
    assert "  memory of live is loaded when it runs next" in head.replace("\n", "  ")
    assert "\n  Pending    memory of live is loaded when it runs next\n" in await asyncio.to_thread(tool.done, "show", DOMAIN)
    assert (await asyncio.to_thread(tool.json, "show", DOMAIN))["domain"]["pending_revert"] == "live"
    canceled = await asyncio.to_thread(tool.done, "cancel-revert", DOMAIN)
    assert canceled == "The memory of live is not loaded into vm1 any more; its disks stay as they are.\n"
    assert "memory of live" not in await asyncio.to_thread(tool.done, "list", DOMAIN)
    await asyncio.to_thread(tool.done, "revert", DOMAIN, "live", "--no-undo")
    values = await asyncio.to_thread(tool.json, "cancel-revert", DOMAIN)
    assert (set(values), values["domain"]["pending_revert"]) == ({"result", "domain"}, "")


async def test_a_memory_that_does_not_fit_says_why_it_was_not_loaded(stage: Scene, tool: Tool) -> None:
    await asyncio.to_thread(tool.done, "create", DOMAIN, "a")
    await stage.shut_off()
    await asyncio.to_thread(tool.done, "revert", DOMAIN, "a", "--paused", "--no-undo")
    stage.qemu.disks = (*stage.qemu.disks, GuestDisk("", bus="cdrom", id="cd0"))
    await stage.start()
    await stage.wait_property("PendingProblem")
    shown = await asyncio.to_thread(tool.done, "show", DOMAIN)
    assert re.search(r"\n  Not loaded  .*cd0", shown, re.DOTALL)
    assert "\n      not in snapshots: it has no medium" in shown
    assert "was not loaded when it last ran: " in await asyncio.to_thread(tool.done, "list", DOMAIN)


async def test_a_snapshot_of_a_domain_that_was_shut_off_needs_force(stage: Scene, tool: Tool) -> None:
    await stage.shut_off()
    await asyncio.to_thread(tool.done, "create", DOMAIN, "off")
    await stage.start("running")
    refused = await asyncio.to_thread(tool.run, "revert", DOMAIN, "off")
    assert (refused.returncode, "use force" in refused.stderr) == (1, True)
    said = await asyncio.to_thread(tool.done, "revert", DOMAIN, "off", "--force", "--no-undo")
    assert re.fullmatch(rf"Reverted vm1 to off in {TOOK}; QEMU kept running\.\n", said)
