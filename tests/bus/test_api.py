# SPDX-License-Identifier: MIT
"""Every member of the API on a real bus, with a real guest, and with either D-Bus library in the service."""

import asyncio
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from snapd.bus.contract import contract, introspect_xml
from snapd.bus.names import (
    BUS_NAME,
    DOMAIN_INTERFACE,
    INTROSPECTABLE_INTERFACE,
    JOB_INTERFACE,
    MANAGER_INTERFACE,
    OBJECT_MANAGER_INTERFACE,
    PEER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
    SNAPSHOT_INTERFACE,
    domain_path,
    snapshot_path,
)
from snapd.bus.wire import CallError, Message, MessageFlag, Variant, unwrap
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, UUID, Scene, scene

pytestmark = pytest.mark.asyncio(loop_scope="module")

STANDARD = "org.freedesktop.DBus.Error."
OURS = "org.domsnap1.Error."
DOMAIN_PATH = domain_path(DOMAIN)
WAIT = {"wait": Variant("b", True)}
TOOL_TIMEOUT_S = 20.0
KIB = 1024

ONE_DISK = (GuestDisk("disk0.raw", "raw", id="disk0"),)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["dbus-fast", "dbus-next"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """A guest that runs, with a root snapshot and two children of it."""
    async with scene(ONE_DISK, environment={"DOMSNAPD_DBUS_LIBRARY": request.param}) as made:
        await made.create("root", description=Variant("s", "the first"))
        await made.create("left")
        await made.revert("root")
        await made.create("right")
        yield made


async def call(stage: Scene, path: str, interface: str | None, member: str, signature: str = "", *body: Any) -> Any:
    """Return the one value of the answer."""
    values = await stage.wire.call(BUS_NAME, path, cast("str", interface), member, signature, body)
    return values[0] if len(values) == 1 else values


async def get_all(stage: Scene, path: str, interface: str) -> dict[str, Variant]:
    return cast("dict[str, Variant]", await call(stage, path, PROPERTIES_INTERFACE, "GetAll", "s", interface))


async def managed(stage: Scene) -> dict[str, dict[str, dict[str, Variant]]]:
    found = await call(stage, ROOT_PATH, OBJECT_MANAGER_INTERFACE, "GetManagedObjects")
    return cast("dict[str, dict[str, dict[str, Variant]]]", found)


async def refused(stage: Scene, path: str, interface: str | None, member: str, signature: str = "", *body: Any) -> CallError:
    with pytest.raises(CallError) as error:
        await call(stage, path, interface, member, signature, *body)
    assert error.value.text.endswith("."), error.value.text
    return error.value


async def run_busctl(stage: Scene, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["busctl", f"--address={stage.bus_address}", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )


async def busctl(stage: Scene, *arguments: str) -> str:
    done = await run_busctl(stage, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What there is


async def test_the_service_runs_on_the_library_that_was_asked_for(stage: Scene, request: pytest.FixtureRequest) -> None:
    loaded = {line.split("/")[-2] for line in _mapped(stage.daemon.pid) if "/dbus_fast/" in line or "/dbus_next/" in line}
    # dbus-next is pure Python and maps nothing.
    assert loaded == (set() if "dbus-next" in request.node.callspec.id else loaded)
    assert stage.daemon.log.count("Traceback") == 0


def _mapped(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


async def test_every_object_shows_its_interface_and_properties_as_the_contract_has_them(stage: Scene) -> None:
    for path, interfaces in (await managed(stage)).items():
        (interface,) = interfaces
        described = contract()[interface]
        text = await call(stage, path, INTROSPECTABLE_INTERFACE, "Introspect")
        children = [node.get("name", "") for node in ET.fromstring(text).findall("node")]
        assert text == introspect_xml([described], children)
        values = await get_all(stage, path, interface)
        assert {name: value.signature for name, value in values.items()} == {
            each.name: each.type for each in described.properties.values()
        }
        for name, value in values.items():
            assert await call(stage, path, PROPERTIES_INTERFACE, "Get", "ss", interface, name) == value


async def test_introspection_leads_from_the_top_to_every_object(stage: Scene) -> None:
    found: set[str] = set()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        root = ET.fromstring(await call(stage, path, INTROSPECTABLE_INTERFACE, "Introspect"))
        if any(each.get("name", "").startswith("org.domsnap1.") for each in root.findall("interface")):
            found.add(path)
        waiting += [f"{path.rstrip('/')}/{node.get('name')}" for node in root.findall("node")]
    assert found == {ROOT_PATH, *await managed(stage)}


async def test_managed_objects_are_what_each_object_says_of_itself(stage: Scene) -> None:
    objects = await managed(stage)
    assert {path for path in objects if "/job/" not in path} == {
        DOMAIN_PATH,
        *(snapshot_path(DOMAIN, name) for name in ("root", "left", "right")),
    }
    for path, interfaces in objects.items():
        for interface, values in interfaces.items():
            assert values == await get_all(stage, path, interface)


async def test_only_the_root_is_an_object_manager(stage: Scene) -> None:
    for path in ("/", "/org/domsnap1/domain", DOMAIN_PATH):
        error = await refused(stage, path, OBJECT_MANAGER_INTERFACE, "GetManagedObjects")
        assert error.name == STANDARD + "UnknownInterface"


# The Manager


async def test_domains_are_listed_and_found(stage: Scene) -> None:
    assert await call(stage, ROOT_PATH, MANAGER_INTERFACE, "ListDomains") == [(DOMAIN, UUID, "running", DOMAIN_PATH)]
    assert await call(stage, ROOT_PATH, MANAGER_INTERFACE, "GetDomain", "s", DOMAIN) == DOMAIN_PATH
    for uuid in (UUID, UUID.upper(), UUID.replace("-", "")):
        assert await call(stage, ROOT_PATH, MANAGER_INTERFACE, "GetDomainByUUID", "s", uuid) == DOMAIN_PATH


async def test_the_properties_of_the_manager(stage: Scene) -> None:
    values = unwrap(await get_all(stage, ROOT_PATH, MANAGER_INTERFACE))
    assert values["DomainCount"] == 1
    assert values["JobCount"] == 0
    assert re.fullmatch(r"\d+\.\d+.*", values["Version"])
    assert re.fullmatch(r"\d+\.\d+.*", values["QemuImgVersion"])


async def test_jobs_are_listed_oldest_first(stage: Scene) -> None:
    rows = await call(stage, ROOT_PATH, MANAGER_INTERFACE, "ListJobs")
    assert [row[1:] for row in rows[:4]] == [
        ("create", "done", DOMAIN_PATH, 1.0),
        ("create", "done", DOMAIN_PATH, 1.0),
        ("revert", "done", DOMAIN_PATH, 1.0),
        ("create", "done", DOMAIN_PATH, 1.0),
    ]
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key=lambda path: int(path.rsplit("/", 1)[1]))


async def test_snapshots_are_listed_alike_by_manager_and_domain(stage: Scene) -> None:
    rows = await call(stage, ROOT_PATH, MANAGER_INTERFACE, "ListSnapshots", "sa{sv}", DOMAIN, {})
    assert rows == await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", {})
    shown = [(path, name, kind, parent, flags, current) for path, name, _, kind, parent, flags, current in rows]
    assert shown == [
        (snapshot_path(DOMAIN, "root"), "root", "external", "", 1, False),
        (snapshot_path(DOMAIN, "left"), "left", "external", "root", 1, False),
        (snapshot_path(DOMAIN, "right"), "right", "external", "root", 1, True),
    ]
    instants = [row[2] for row in rows]
    assert instants == sorted(instants)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
async def test_pages_put_together_are_the_whole_list(limit: int, stage: Scene) -> None:
    whole = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", {})
    rows: list[Any] = []
    while True:
        options = {"limit": Variant("u", limit)} | ({"after": Variant("s", rows[-1][1])} if rows else {})
        page = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", options)
        assert len(page) <= limit
        rows += page
        if len(page) < limit:
            break
    assert rows == whole


async def test_a_page_after_the_last_is_empty_and_one_after_nothing_known_is_refused(stage: Scene) -> None:
    after = {"after": Variant("s", "right")}
    assert await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", after) == []
    error = await refused(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", {"after": Variant("s", "no such")})
    assert error.name == OURS + "NoSuchSnapshot"


# Domain, Snapshot and Job


async def test_the_properties_of_the_domain(stage: Scene) -> None:
    values = await stage.properties()
    size_bytes = values["Disks"][0].pop("VirtualSize")
    assert values == {
        "Name": DOMAIN,
        "UUID": UUID,
        "State": "running",
        "StateReason": "",
        "Interrupted": "",
        "Source": "defined",
        "Monitor": str(stage.qemu.monitor),
        "CurrentSnapshot": snapshot_path(DOMAIN, "right"),
        "SnapshotCount": 3,
        "PendingRevert": "",
        "PendingProblem": "",
        "Disks": [
            {
                "Target": "disk0",
                "Device": values["Disks"][0]["Device"],
                "Image": values["Disks"][0]["Image"],
                "Format": "qcow2",
                "Eligible": True,
                "CanInternal": True,
                "CanExternal": True,
                "Reason": "",
            }
        ],
        "Capabilities": {"Memory": True, "MemoryBlocker": "", "Live": True, "LiveBlocker": ""},
        "Job": "/",
    }
    assert size_bytes == 1 << 20
    assert Path(values["Disks"][0]["Image"]).exists()


async def test_the_properties_of_a_snapshot(stage: Scene) -> None:
    root, right = await stage.properties("root"), await stage.properties("right")
    assert root["Description"] == "the first"
    assert root["Parent"] == "/"
    assert root["Children"] == [snapshot_path(DOMAIN, "left"), snapshot_path(DOMAIN, "right")]
    assert (root["Current"], right["Current"]) == (False, True)
    assert right["Parent"] == snapshot_path(DOMAIN, "root")
    assert right["Children"] == []
    assert right["Domain"] == DOMAIN_PATH
    assert (right["Memory"], right["Method"], right["Consistency"], right["DomainState"]) == (True, "live", "full", "running")
    assert right["MemoryBytes"] > KIB
    assert 0 < right["PauseUSec"] < 10_000_000
    assert [disk["Target"] for disk in right["Disks"]] == ["disk0"]
    assert (right["Type"], right["LeftOut"], right["Protected"], right["Undo"]) == ("external", {}, False, False)


async def test_each_interface_creates_reverts_and_deletes(stage: Scene) -> None:
    domain = (stage, DOMAIN_PATH, DOMAIN_INTERFACE)
    path = snapshot_path(DOMAIN, "here")
    job = await call(*domain, "CreateSnapshot", "sa{sv}", "here", WAIT)
    assert unwrap(await get_all(stage, job, JOB_INTERFACE))["Snapshot"] == path
    assert await call(*domain, "GetSnapshot", "s", "here") == path
    await call(stage, path, SNAPSHOT_INTERFACE, "Revert", "a{sv}", {**WAIT, "state": Variant("s", "paused")})
    await stage.wait_state("paused")
    await call(*domain, "RevertSnapshot", "sa{sv}", "here", WAIT | {"state": Variant("s", "running")})
    await stage.wait_state("running")
    await call(stage, path, SNAPSHOT_INTERFACE, "Delete", "a{sv}", WAIT)
    assert (await refused(*domain, "GetSnapshot", "s", "here")).name == OURS + "NoSuchSnapshot"
    await call(*domain, "CreateSnapshot", "sa{sv}", "here", WAIT)
    await call(*domain, "DeleteSnapshot", "sa{sv}", "here", WAIT | {"scope": Variant("s", "tree")})
    await stage.revert("right")
    assert [row[1] for row in await stage.snapshots()] == ["root", "left", "right"]


async def test_a_snapshot_is_protected_through_its_own_interface(stage: Scene) -> None:
    path = snapshot_path(DOMAIN, "left")
    assert await call(stage, path, SNAPSHOT_INTERFACE, "SetProtected", "b", True) == ()
    assert (await stage.properties("left"))["Protected"] is True
    rows = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", {})
    assert [(row[1], row[5]) for row in rows] == [("root", 1), ("left", 3), ("right", 1)]
    for body in (("left", WAIT), ("root", WAIT | {"scope": Variant("s", "tree")})):
        error = await refused(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "DeleteSnapshot", "sa{sv}", *body)
        assert (error.name, "'left'" in error.text) == (OURS + "Protected", True)
    assert await call(stage, path, SNAPSHOT_INTERFACE, "SetProtected", "b", False) == ()
    assert [row[5] for row in await stage.snapshots()] == [1, 1, 1]


async def test_an_internal_snapshot_without_memory(stage: Scene) -> None:
    options = WAIT | {"type": Variant("s", "internal"), "memory": Variant("b", False)}
    job = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", "inside", options)
    assert unwrap(await get_all(stage, job, JOB_INTERFACE))["Notes"] == []
    shown = await stage.properties("inside")
    assert (shown["Type"], shown["Memory"], shown["Method"], shown["MemoryBytes"]) == ("internal", False, "", 0)
    assert (shown["Consistency"], shown["PauseUSec"]) == ("crash-consistent", 0)
    (disk,) = shown["Disks"]
    assert (disk["Tag"], disk["Image"]) == ("inside", (await stage.properties())["Disks"][0]["Image"])
    await stage.delete("inside")


async def test_what_a_revert_discards_is_kept_unless_told_otherwise(stage: Scene) -> None:
    await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", "right", WAIT)
    (row,) = [row for row in await stage.snapshots() if row[5] & 16]
    point = await stage.properties(row[1])
    assert (point["Undo"], point["Protected"], point["Description"]) == (True, False, "What the revert to right discarded.")
    assert (await stage.properties("right"))["Children"] == [row[0]]
    steps = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}", "revert", "", {"undo": Variant("b", False)})
    assert f"Forget undo point {row[1]!r}." in steps
    await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", "", WAIT | {"undo": Variant("b", False)})
    assert [row[1] for row in await stage.snapshots()] == ["root", "left", "right"]
    await stage.revert("right")


async def test_a_plan_says_each_step_and_answers_with_the_refusals_of_the_verb(stage: Scene) -> None:
    before = await managed(stage)
    plan = (stage, DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}")
    for verb, name in (("create", "planned"), ("create", ""), ("revert", "left"), ("delete", "root")):
        steps = await call(*plan, verb, name, {})
        assert steps
        assert all(re.fullmatch(r"[A-Z].*\.", step) for step in steps), steps
    assert (await refused(*plan, "create", "left", {})).name == OURS + "SnapshotExists"
    assert (await refused(*plan, "revert", "none", {})).name == OURS + "NoSuchSnapshot"
    assert await managed(stage) == before


async def test_an_empty_name_is_made_up_from_the_time(stage: Scene) -> None:
    job = await call(stage, ROOT_PATH, MANAGER_INTERFACE, "CreateSnapshot", "ssa{sv}", DOMAIN, "", WAIT)
    path = unwrap(await get_all(stage, job, JOB_INTERFACE))["Snapshot"]
    name = unwrap(await get_all(stage, path, SNAPSHOT_INTERFACE))["Name"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(-\d+)?", name)
    await stage.delete(name)


async def test_a_job_is_answered_at_once_and_can_be_waited_for(stage: Scene) -> None:
    job = await call(stage, ROOT_PATH, MANAGER_INTERFACE, "CreateSnapshot", "ssa{sv}", DOMAIN, "later", {})
    running = unwrap(await get_all(stage, job, JOB_INTERFACE))
    assert (running["Operation"], running["Domain"], running["StartedByUID"]) == ("create", DOMAIN_PATH, 0)
    outcome = await call(stage, job, JOB_INTERFACE, "Wait")
    assert outcome == ("done", "", "", snapshot_path(DOMAIN, "later"))
    assert await call(stage, job, JOB_INTERFACE, "Wait") == outcome
    ended = unwrap(await get_all(stage, job, JOB_INTERFACE))
    assert (ended["State"], ended["Step"], ended["Progress"], ended["ProgressValid"]) == ("done", "", 1.0, True)
    assert (ended["ErrorName"], ended["ErrorMessage"]) == ("", "")
    await stage.delete("later")
    assert unwrap(await get_all(stage, job, JOB_INTERFACE))["Snapshot"] == "/"


async def test_the_failure_of_a_job_is_a_result_of_wait_and_an_error_of_who_waits(stage: Scene) -> None:
    """An image that QEMU has not open, and that lost its header, is met only when the job opens it."""
    image = Path((await stage.properties("left"))["Disks"][0]["Image"])
    with image.open("r+b") as file:
        header = file.read(4)
        file.seek(0)
        file.write(b"LOST")
    try:
        job = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", "left", {})
        result, error_name, message, snapshot = await call(stage, job, JOB_INTERFACE, "Wait")
        assert (result, snapshot) == ("failed", snapshot_path(DOMAIN, "left"))
        assert error_name in (OURS + "QemuFailed", OURS + "ImageToolFailed")
        assert message.endswith(".")
        shown = unwrap(await get_all(stage, job, JOB_INTERFACE))
        assert (shown["State"], shown["ErrorName"], shown["ErrorMessage"]) == ("failed", error_name, message)
        error = await refused(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", "left", WAIT)
        assert error.name == error_name
    finally:
        with image.open("r+b") as file:
            file.write(header)
    await stage.revert("left")
    await stage.revert("right")
    assert (await stage.properties())["State"] == "running"


@pytest.mark.parametrize("name", ["ünï cödé", "_", "%41", "1234567890", "x" * 200, "'\"$(x)\U0001f40c"])
async def test_any_name_that_is_allowed_has_a_path_that_leads_back_to_it(name: str, stage: Scene) -> None:
    await stage.create(name)
    try:
        path = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "GetSnapshot", "s", name)
        assert re.fullmatch(r"/org/domsnap1/domain/vm1/snapshot/[A-Za-z_][A-Za-z0-9_]*", path)
        assert unwrap(await get_all(stage, path, SNAPSHOT_INTERFACE))["Name"] == name
    finally:
        await stage.delete(name)


@pytest.mark.parametrize("name", ["a/b", ".", "..", "12", "a\nb", "x" * 201, "\x7f"])
async def test_any_other_name_is_refused(name: str, stage: Scene) -> None:
    error = await refused(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", name, {})
    assert error.name == OURS + "InvalidName"


# Errors

ABSENT = "/org/domsnap1/domain/none"

REFUSALS: list[tuple[str, str, str | None, str, str, tuple[Any, ...]]] = [
    (STANDARD + "UnknownObject", ABSENT, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", ({},)),
    (STANDARD + "UnknownObject", "/nowhere", MANAGER_INTERFACE, "ListDomains", "", ()),
    (STANDARD + "UnknownObject", "/org/domsnap1/job/999999", JOB_INTERFACE, "Wait", "", ()),
    (STANDARD + "UnknownObject", f"{DOMAIN_PATH}/snapshot/none", SNAPSHOT_INTERFACE, "Revert", "a{sv}", ({},)),
    (STANDARD + "UnknownObject", ABSENT, PROPERTIES_INTERFACE, "GetAll", "s", (DOMAIN_INTERFACE,)),
    (STANDARD + "UnknownObject", ABSENT, INTROSPECTABLE_INTERFACE, "Introspect", "", ()),
    (STANDARD + "UnknownObject", ABSENT, OBJECT_MANAGER_INTERFACE, "GetManagedObjects", "", ()),
    (STANDARD + "UnknownObject", ABSENT, None, "Nothing", "", ()),
    (STANDARD + "UnknownInterface", DOMAIN_PATH, "org.domsnap1.Nothing", "ListSnapshots", "a{sv}", ({},)),
    (STANDARD + "UnknownInterface", DOMAIN_PATH, MANAGER_INTERFACE, "ListDomains", "", ()),
    (STANDARD + "UnknownInterface", "/org/domsnap1/domain", DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", ({},)),
    (STANDARD + "UnknownInterface", DOMAIN_PATH, PROPERTIES_INTERFACE, "GetAll", "s", (JOB_INTERFACE,)),
    (STANDARD + "UnknownInterface", "/org", PROPERTIES_INTERFACE, "GetAll", "s", (MANAGER_INTERFACE,)),
    (STANDARD + "UnknownMethod", DOMAIN_PATH, DOMAIN_INTERFACE, "Explode", "", ()),
    (STANDARD + "UnknownMethod", DOMAIN_PATH, PROPERTIES_INTERFACE, "Explode", "", ()),
    (STANDARD + "UnknownMethod", DOMAIN_PATH, PEER_INTERFACE, "Explode", "", ()),
    (STANDARD + "UnknownMethod", DOMAIN_PATH, None, "Explode", "", ()),
    (STANDARD + "UnknownProperty", DOMAIN_PATH, PROPERTIES_INTERFACE, "Get", "ss", (DOMAIN_INTERFACE, "Nothing")),
    (
        STANDARD + "UnknownProperty",
        DOMAIN_PATH,
        PROPERTIES_INTERFACE,
        "Set",
        "ssv",
        (DOMAIN_INTERFACE, "Nothing", Variant("s", "")),
    ),
    (STANDARD + "UnknownProperty", DOMAIN_PATH, PROPERTIES_INTERFACE, "Get", "ss", (PEER_INTERFACE, "Name")),
    (
        STANDARD + "PropertyReadOnly",
        DOMAIN_PATH,
        PROPERTIES_INTERFACE,
        "Set",
        "ssv",
        (DOMAIN_INTERFACE, "Name", Variant("s", "x")),
    ),
    (STANDARD + "InvalidArgs", DOMAIN_PATH, DOMAIN_INTERFACE, "GetSnapshot", "", ()),
    (STANDARD + "InvalidArgs", DOMAIN_PATH, DOMAIN_INTERFACE, "GetSnapshot", "o", ("/a",)),
    (STANDARD + "InvalidArgs", DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{ss}", ("x", {})),
    (STANDARD + "InvalidArgs", DOMAIN_PATH, PROPERTIES_INTERFACE, "Get", "s", (DOMAIN_INTERFACE,)),
    (STANDARD + "InvalidArgs", DOMAIN_PATH, PEER_INTERFACE, "Ping", "s", ("x",)),
    (OURS + "NoSuchDomain", ROOT_PATH, MANAGER_INTERFACE, "GetDomain", "s", ("none",)),
    (OURS + "NoSuchDomain", ROOT_PATH, MANAGER_INTERFACE, "GetDomainByUUID", "s", ("",)),
    (OURS + "NoSuchDomain", ROOT_PATH, MANAGER_INTERFACE, "CreateSnapshot", "ssa{sv}", ("none", "x", {})),
    (OURS + "NoSuchDomain", ROOT_PATH, MANAGER_INTERFACE, "ListSnapshots", "sa{sv}", ("none", {})),
    (OURS + "NoSuchSnapshot", DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", ("none", {})),
    (OURS + "NoSuchSnapshot", DOMAIN_PATH, DOMAIN_INTERFACE, "DeleteSnapshot", "sa{sv}", ("none", {})),
    (OURS + "NotSupported", DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", ("", {})),
    (OURS + "NotSupported", DOMAIN_PATH, DOMAIN_INTERFACE, "CancelPendingRevert", "", ()),
    (OURS + "NoSuchSnapshot", DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}", ("delete", "none", {})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}", ("explode", "left", {})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}", ("delete", "left", WAIT)),
    (STANDARD + "UnknownObject", f"{DOMAIN_PATH}/snapshot/none", SNAPSHOT_INTERFACE, "SetProtected", "b", (True,)),
    (STANDARD + "InvalidArgs", f"{DOMAIN_PATH}/snapshot/left", SNAPSHOT_INTERFACE, "SetProtected", "s", ("yes",)),
    (OURS + "SnapshotExists", DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("left", {})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("x", {"what": Variant("s", "")})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", ("left", {"wait": Variant("s", "")})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", ("left", {"force": Variant("u", 1)})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("x", {"quiesce": Variant("s", "x")})),
    (OURS + "InvalidOption", DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", ({"limit": Variant("s", "")},)),
]


@pytest.mark.parametrize(("name", "path", "interface", "member", "signature", "body"), REFUSALS)
async def test_each_mistake_has_the_name_that_clients_know(
    name: str, path: str, interface: str | None, member: str, signature: str, body: tuple[Any, ...], stage: Scene
) -> None:
    before = await stage.snapshots()
    assert (await refused(stage, path, interface, member, signature, *body)).name == name
    assert await stage.snapshots() == before


async def test_a_busy_domain_says_what_it_is_busy_with(stage: Scene) -> None:
    job = await call(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", "first", {})
    error = await refused(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", "second", {})
    assert error.name == OURS + "DomainBusy"
    assert "create first" in error.text
    assert (await call(stage, job, JOB_INTERFACE, "Wait"))[0] == "done"
    await stage.delete("first")


async def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(stage: Scene) -> None:
    options = {"description": Variant("s", "x" * (200 * KIB))}
    error = await refused(stage, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", "x", options)
    assert error.name == STANDARD + "LimitsExceeded"
    assert len(await stage.snapshots()) == 3


# The protocol


async def test_an_interface_need_not_be_named(stage: Scene) -> None:
    assert await call(stage, ROOT_PATH, None, "GetDomain", "s", DOMAIN) == DOMAIN_PATH
    assert await call(stage, DOMAIN_PATH, None, "GetSnapshot", "s", "left") == snapshot_path(DOMAIN, "left")
    assert (await call(stage, DOMAIN_PATH, None, "Get", "ss", DOMAIN_INTERFACE, "Name")).value == DOMAIN
    assert "<node>" in await call(stage, DOMAIN_PATH, None, "Introspect")
    assert DOMAIN_PATH in await call(stage, ROOT_PATH, None, "GetManagedObjects")
    assert await call(stage, ROOT_PATH, None, "Ping") == ()


async def test_peer_answers_everywhere(stage: Scene) -> None:
    for path in (ROOT_PATH, DOMAIN_PATH, "/"):
        assert await call(stage, path, PEER_INTERFACE, "Ping") == ()
        machine = await call(stage, path, PEER_INTERFACE, "GetMachineId")
        assert machine == await call(stage, path, PEER_INTERFACE, "GetMachineId") == Path("/etc/machine-id").read_text().strip()


async def test_who_wants_no_reply_gets_none_and_the_call_is_carried_out(stage: Scene) -> None:
    replies: list[Message] = []

    def watch(message: Message) -> bool:
        replies.append(message)
        return stage.hear(message)

    stage.signals.clear()
    silent = MessageFlag.NO_REPLY_EXPECTED
    # An unexpected answer would be seen here, because each call of the wire has its own serial and this one none that waits.
    log_before = stage.daemon.log
    stage.wire.handle(watch)
    try:
        for member, signature, body in (
            ("GetSnapshot", "s", ["left"]),
            ("Explode", "", []),
            ("CreateSnapshot", "sa{sv}", ["quiet", {}]),
        ):
            await stage.wire.send(
                Message(BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, member, flags=silent, signature=signature, body=body)
            )
        await stage.wait_signal("Completed")
    finally:
        stage.wire.handle(stage.hear)
    assert "quiet" in [row[1] for row in await stage.snapshots()]
    assert {each.message_type.name for each in replies} == {"SIGNAL"}
    assert "Traceback" not in stage.daemon.log[len(log_before) :]
    await stage.delete("quiet")


# busctl


async def test_busctl_shows_the_tree(stage: Scene) -> None:
    assert set((await busctl(stage, "tree", "--list", BUS_NAME)).split()) >= {ROOT_PATH, *await managed(stage)}


@pytest.mark.parametrize("interface", sorted(contract()))
async def test_busctl_introspects_each_kind_of_object(interface: str, stage: Scene) -> None:
    objects: dict[str, dict[str, Any]] = {ROOT_PATH: {MANAGER_INTERFACE: {}}, **await managed(stage)}
    path = next(path for path, interfaces in objects.items() if interface in interfaces)
    shown = await busctl(stage, "introspect", "--full", BUS_NAME, path, interface)
    members = {line.split()[0].removeprefix(".") for line in shown.splitlines()[1:]}
    described = contract()[interface]
    assert members == {*described.methods, *described.signals, *described.properties}


async def test_busctl_carries_out_a_whole_session(stage: Scene) -> None:
    def manager(*words: str) -> tuple[str, ...]:
        return ("call", BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, *words)

    answer = await busctl(stage, *manager("CreateSnapshot", "ssa{sv}", DOMAIN, "by hand", "1", "wait", "b", "true"))
    assert re.fullmatch(r'o "/org/domsnap1/job/\d+"', answer)
    path = snapshot_path(DOMAIN, "by hand")
    assert await busctl(stage, "get-property", BUS_NAME, path, SNAPSHOT_INTERFACE, "Name") == 's "by hand"'
    listed = json.loads(await busctl(stage, "--json=short", *manager("ListSnapshots", "sa{sv}", DOMAIN, "0")))
    assert listed["type"] == "a(ostssub)"
    assert [row[1] for row in listed["data"][0]] == ["root", "left", "right", "by hand"]
    disks = json.loads(await busctl(stage, "--json=short", "get-property", BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, "Disks"))
    assert disks["data"][0]["Target"] == {"type": "s", "data": "disk0"}
    await busctl(
        stage, *manager("RevertSnapshot", "ssa{sv}", DOMAIN, "by hand", "2", "wait", "b", "true", "undo", "b", "false")
    )
    await busctl(stage, *manager("DeleteSnapshot", "ssa{sv}", DOMAIN, "by hand", "1", "wait", "b", "true"))
    failed = await run_busctl(stage, *manager("GetDomain", "s", "none"))
    assert failed.returncode != 0
    assert "There is no domain 'none'" in failed.stderr
    await stage.revert("right")


async def test_the_service_has_met_no_fault_of_its_own(stage: Scene) -> None:
    assert "Traceback" not in stage.daemon.log
    assert "unexpected error" not in stage.daemon.log
