# SPDX-License-Identifier: MIT
"""Another user may look and may not change; on a bus with our own policy file and the rules of a system bus."""

import asyncio
import os
import pwd
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from snapd.bus.contract import contract
from snapd.bus.names import (
    BUS_NAME,
    DOMAIN_INTERFACE,
    INTROSPECTABLE_INTERFACE,
    JOB_INTERFACE,
    MANAGER_INTERFACE,
    OBJECT_MANAGER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
    SNAPSHOT_INTERFACE,
    domain_path,
    snapshot_path,
)
from snapd.bus.wire import BUS, BUS_PATH, CallError, Message, MessageFlag, Variant, Wire
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, UUID, Scene, scene

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = Path(__file__).parents[2] / "dbus" / "org.domsnap1.conf"
NOBODY = pwd.getpwnam("nobody").pw_uid
DOMAIN_PATH, KEPT_PATH = domain_path(DOMAIN), snapshot_path(DOMAIN, "kept")
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
ONE_DISK = (GuestDisk("disk0.raw", "raw", id="disk0"),)
TOOL_TIMEOUT_S = 20.0

LOOKS: list[tuple[str, str, str, str, tuple[Any, ...]]] = [
    (ROOT_PATH, MANAGER_INTERFACE, "ListDomains", "", ()),
    (ROOT_PATH, MANAGER_INTERFACE, "GetDomain", "s", (DOMAIN,)),
    (ROOT_PATH, MANAGER_INTERFACE, "GetDomainByUUID", "s", (UUID,)),
    (ROOT_PATH, MANAGER_INTERFACE, "ListJobs", "", ()),
    (ROOT_PATH, MANAGER_INTERFACE, "ListSnapshots", "sa{sv}", (DOMAIN, {})),
    (ROOT_PATH, OBJECT_MANAGER_INTERFACE, "GetManagedObjects", "", ()),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "GetSnapshot", "s", ("kept",)),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}", ({},)),
    (DOMAIN_PATH, PROPERTIES_INTERFACE, "GetAll", "s", (DOMAIN_INTERFACE,)),
    (KEPT_PATH, PROPERTIES_INTERFACE, "Get", "ss", (SNAPSHOT_INTERFACE, "Name")),
    (KEPT_PATH, INTROSPECTABLE_INTERFACE, "Introspect", "", ()),
    ("/org/domsnap1/job/1", JOB_INTERFACE, "Wait", "", ()),
]

WAIT = {"wait": Variant("b", True)}

CHANGES: list[tuple[str, str, str, str, tuple[Any, ...]]] = [
    (ROOT_PATH, MANAGER_INTERFACE, "CreateSnapshot", "ssa{sv}", (DOMAIN, "mine", WAIT)),
    (ROOT_PATH, MANAGER_INTERFACE, "RevertSnapshot", "ssa{sv}", (DOMAIN, "kept", WAIT)),
    (ROOT_PATH, MANAGER_INTERFACE, "DeleteSnapshot", "ssa{sv}", (DOMAIN, "kept", WAIT)),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("mine", WAIT)),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("", {})),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "RevertSnapshot", "sa{sv}", ("kept", WAIT)),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "DeleteSnapshot", "sa{sv}", ("kept", WAIT)),
    (KEPT_PATH, SNAPSHOT_INTERFACE, "Revert", "a{sv}", (WAIT,)),
    (KEPT_PATH, SNAPSHOT_INTERFACE, "Delete", "a{sv}", (WAIT,)),
    (KEPT_PATH, SNAPSHOT_INTERFACE, "SetProtected", "b", (True,)),
    (DOMAIN_PATH, DOMAIN_INTERFACE, "CancelPendingRevert", "", ()),
    *(
        (DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}", (verb, name, {}))
        for verb, name in (("create", "mine"), ("revert", "kept"), ("revert", ""), ("delete", "kept"))
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Scene]:
    async with scene(ONE_DISK, policies=(POLICY,)) as made:
        made.directory.chmod(0o711)  # so that others reach the bus
        await made.create("kept")
        yield made


async def connect_as(uid: int, address: str) -> Wire:
    """Connect as another user: the kernel tells the bus who we are at the moment of connecting."""
    os.seteuid(uid)
    try:
        return await Wire.connect(address)
    finally:
        os.seteuid(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nobody(stage: Scene) -> AsyncIterator[Wire]:
    wire = await connect_as(NOBODY, stage.bus_address)
    try:
        assert await wire.call(BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", (wire.unique_name,)) == (NOBODY,)
        yield wire
    finally:
        wire.close()


async def everything(stage: Scene) -> tuple[Any, ...]:
    """Return what must be the same after something that was refused."""
    (jobs,) = await stage.manager("ListJobs")
    return await stage.snapshots(), jobs, stage.files(), await stage.properties()


@pytest.mark.parametrize("interface", sorted(contract()))
async def test_every_method_of_the_contract_is_either_for_everyone_or_for_administrators(interface: str) -> None:
    looks, changes = ({each[2:4] for each in rows if each[1] == interface} for rows in (LOOKS, CHANGES))
    methods = contract()[interface].methods
    assert looks | changes == {(name, method.in_signature) for name, method in methods.items()}
    assert not looks & changes


@pytest.mark.parametrize(("path", "interface", "member", "signature", "body"), LOOKS)
async def test_everyone_may_look(
    path: str, interface: str, member: str, signature: str, body: tuple[Any, ...], stage: Scene, nobody: Wire
) -> None:
    seen = await nobody.call(BUS_NAME, path, interface, member, signature, body)
    assert seen == await stage.wire.call(BUS_NAME, path, interface, member, signature, body)


@pytest.mark.parametrize(("path", "interface", "member", "signature", "body"), CHANGES)
async def test_others_may_not_change_and_nothing_is_done_for_them(
    path: str, interface: str, member: str, signature: str, body: tuple[Any, ...], stage: Scene, nobody: Wire
) -> None:
    before = await everything(stage)
    stage.signals.clear()
    with pytest.raises(CallError) as error:
        await nobody.call(BUS_NAME, path, interface, member, signature, body)
    assert error.value.name == ACCESS_DENIED
    assert f"domain {DOMAIN}; ask an administrator." in error.value.text
    assert await everything(stage) == before
    assert stage.signals == []


async def test_who_is_not_allowed_is_not_told_what_is_wrong_with_the_options(nobody: Wire) -> None:
    with pytest.raises(CallError) as error:
        options = {"no such option": Variant("s", "")}
        await nobody.call(BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("a/b", options))
    assert error.value.name == ACCESS_DENIED
    with pytest.raises(CallError) as error:
        await nobody.call(BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, "Plan", "ssa{sv}", ("explode", "none", options))
    assert error.value.name == ACCESS_DENIED


async def test_busctl_of_another_user_looks_and_does_not_change(stage: Scene) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        command = [*user, "busctl", f"--address={stage.bus_address}", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)

    looked = await asyncio.to_thread(run, "call", BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "ListDomains")
    assert looked.stdout.startswith(f'a(ssso) 1 "{DOMAIN}"'), looked.stderr
    before = await everything(stage)
    changing = ("CreateSnapshot", "ssa{sv}", DOMAIN, "mine", "0")
    refused = await asyncio.to_thread(run, "call", BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, *changing)
    assert refused.returncode != 0
    assert refused.stderr == "Call failed: Access denied\n"
    assert await everything(stage) == before


async def test_who_has_left_before_it_was_known_gets_nothing_done(stage: Scene) -> None:
    before = await everything(stage)
    for _ in range(5):
        wire = await connect_as(NOBODY, stage.bus_address)
        call = Message(BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, "DeleteSnapshot", signature="sa{sv}", body=["kept", {}])
        call.flags = MessageFlag.NO_REPLY_EXPECTED
        await wire.send(call)
        wire.close()
    # An answer to one who came after them: what they asked has been decided.
    await stage.manager("ListDomains")
    assert await everything(stage) == before
    assert "Traceback" not in stage.daemon.log


async def test_root_may_change(stage: Scene) -> None:
    await stage.create("by root")
    await stage.revert("kept")
    await stage.delete("by root")


async def test_nobody_else_may_have_the_name(nobody: Wire) -> None:
    with pytest.raises(CallError) as error:
        await nobody.request_name(BUS_NAME)
    assert error.value.name == ACCESS_DENIED


async def test_signals_reach_everyone(stage: Scene, nobody: Wire) -> None:
    heard: list[str] = []
    ended = asyncio.Event()

    def hear(message: Message) -> bool:
        heard.append(message.member or "")
        if message.member == "JobRemoved":
            ended.set()
        return False

    nobody.handle(hear)
    await nobody.call(BUS, BUS_PATH, BUS, "AddMatch", "s", (f"type='signal',sender='{BUS_NAME}'",))
    await stage.create("seen by all")
    async with asyncio.timeout(TOOL_TIMEOUT_S):
        await ended.wait()
    assert {"InterfacesAdded", "SnapshotCreated", "PropertiesChanged", "Completed"} <= set(heard)
    await stage.delete("seen by all")
