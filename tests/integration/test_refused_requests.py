# SPDX-License-Identifier: MIT
"""Requests that are wrong in themselves: each has its own error and sentence, and changes nothing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from snapd.bus.names import BUS_NAME, DOMAIN_INTERFACE, SNAPSHOT_INTERFACE, domain_path, snapshot_path
from snapd.bus.wire import Variant
from tests.lab.scene import DOMAIN, UUID, Scene, scene
from tests.lab.untouched import BUS_ERROR, ERROR, assert_works, refused, untouched

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERBS = ("CreateSnapshot", "RevertSnapshot", "DeleteSnapshot")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Scene]:
    """One scene for all: nothing here may change it."""
    async with scene() as made:
        await made.create("taken")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stage(shared: Scene) -> AsyncIterator[Scene]:
    """Let the test run with a domain that must be as before when it ends."""
    async with untouched(shared):
        yield shared


async def test_a_domain_that_is_not_there(stage: Scene) -> None:
    for verb in VERBS:
        await refused(stage.manager(verb, "ssa{sv}", "vm2", "taken", {}), f"{ERROR}NoSuchDomain", "vm2")
    await refused(stage.manager("ListSnapshots", "sa{sv}", "vm2", {}), f"{ERROR}NoSuchDomain", "vm2")
    await refused(stage.manager("GetDomain", "s", ""), f"{ERROR}NoSuchDomain", "''")
    for uuid in ("", "-", UUID.replace("a", "b")):
        await refused(stage.manager("GetDomainByUUID", "s", uuid), f"{ERROR}NoSuchDomain", uuid)
    await refused(_on_domain(stage, "CreateSnapshot", "sa{sv}", "s1", {}, domain="vm2"), f"{BUS_ERROR}UnknownObject", "vm2")


async def test_a_snapshot_that_is_not_there(stage: Scene) -> None:
    for verb in VERBS[1:]:
        await refused(stage.manager(verb, "ssa{sv}", DOMAIN, "gone", {}), f"{ERROR}NoSuchSnapshot", DOMAIN, "'gone'")
    await refused(stage.delete(""), f"{ERROR}NoSuchSnapshot", DOMAIN, "''")
    await refused(stage.revert(""), f"{ERROR}NotSupported", DOMAIN, "Undoing a revert", "no undo point")
    await refused(_on_domain(stage, "GetSnapshot", "s", "gone"), f"{ERROR}NoSuchSnapshot", DOMAIN, "'gone'")
    listed = stage.manager("ListSnapshots", "sa{sv}", DOMAIN, {"after": Variant("s", "gone")})
    await refused(listed, f"{ERROR}NoSuchSnapshot", DOMAIN, "'gone'")
    path = snapshot_path(DOMAIN, "gone")
    for member, signature, body in (("Revert", "a{sv}", ({},)), ("SetProtected", "b", (True,))):
        call = stage.wire.call(BUS_NAME, path, SNAPSHOT_INTERFACE, member, signature, body)
        await refused(call, f"{BUS_ERROR}UnknownObject", path)


async def test_an_option_that_is_not_known(stage: Scene) -> None:
    for verb in VERBS:
        call = stage.manager(verb, "ssa{sv}", DOMAIN, "taken", {"colour": Variant("s", "red")})
        await refused(call, f"{ERROR}InvalidOption", "'colour'", verb, "wait")
    await refused(_list(stage, colour=Variant("s", "red")), f"{ERROR}InvalidOption", "'colour'", "ListSnapshots")
    # An option of one verb is none of another.
    await refused(stage.create("s1", scope=Variant("s", "one")), f"{ERROR}InvalidOption", "'scope'", "CreateSnapshot")
    await refused(stage.create("s1", undo=Variant("b", True)), f"{ERROR}InvalidOption", "'undo'", "CreateSnapshot")
    await refused(stage.revert("taken", quiesce=Variant("s", "no")), f"{ERROR}InvalidOption", "'quiesce'", "RevertSnapshot")
    await refused(stage.delete("taken", force=Variant("b", True)), f"{ERROR}InvalidOption", "'force'", "DeleteSnapshot")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("description", Variant("u", 1)),
        ("memory", Variant("s", "yes")),
        ("type", Variant("b", True)),
        ("disks", Variant("as", ["disk0"])),
        ("live", Variant("b", False)),
        ("quiesce", Variant("b", True)),
    ],
)
async def test_an_option_of_the_wrong_type(stage: Scene, option: str, value: Variant) -> None:
    await refused(stage.create("s1", **{option: value}), f"{ERROR}InvalidOption", f"'{option}'", f"'{value.signature}'")


@pytest.mark.parametrize("option", ["undo", "undo-memory", "force"])
async def test_an_option_of_a_revert_that_is_no_boolean(stage: Scene, option: str) -> None:
    reverting = stage.revert("taken", **{option: Variant("s", "yes")})
    await refused(reverting, f"{ERROR}InvalidOption", f"'{option}'", "boolean", "'s'")


async def test_wait_state_scope_and_limit_of_the_wrong_type(stage: Scene) -> None:
    waiting = stage.manager("CreateSnapshot", "ssa{sv}", DOMAIN, "s1", {"wait": Variant("s", "yes")})
    await refused(waiting, f"{ERROR}InvalidOption", "'wait'", "boolean")
    await refused(stage.revert("taken", state=Variant("u", 1)), f"{ERROR}InvalidOption", "'state'", "string")
    await refused(stage.delete("taken", scope=Variant("b", True)), f"{ERROR}InvalidOption", "'scope'", "string")
    await refused(_list(stage, limit=Variant("s", "1")), f"{ERROR}InvalidOption", "'limit'", "number")


async def test_a_word_that_an_option_does_not_have(stage: Scene) -> None:
    await refused(stage.create("s1", type=Variant("s", "huge")), f"{ERROR}InvalidOption", "'type'", "'huge'", "external")
    # A snapshot can turn out mixed, and nobody can ask for that but disk by disk.
    await refused(stage.create("s1", type=Variant("s", "mixed")), f"{ERROR}InvalidOption", "'type'", "'mixed'", "internal")
    await refused(stage.create("s1", quiesce=Variant("s", "yes")), f"{ERROR}InvalidOption", "'quiesce'", "'yes'", "require")
    await refused(stage.create("s1", live=Variant("s", "maybe")), f"{ERROR}InvalidOption", "'live'", "'maybe'", "require")
    await refused(stage.revert("taken", state=Variant("s", "off")), f"{ERROR}InvalidOption", "'state'", "'off'", "paused")
    await refused(stage.delete("taken", scope=Variant("s", "all")), f"{ERROR}InvalidOption", "'scope'", "'all'", "tree")
    unknown, wrong = {"disk9": "external"}, {"disk0": "any"}
    await refused(stage.create("s1", disks=Variant("a{ss}", unknown)), f"{ERROR}InvalidOption", "disk9", "disk0, disk1", DOMAIN)
    await refused(
        stage.create("s1", disks=Variant("a{ss}", wrong)), f"{ERROR}InvalidOption", "'any'", "disk0", "internal, external, no"
    )


@pytest.mark.parametrize(
    ("signature", "body"),
    [("", ()), ("s", ("s1",)), ("sa{ss}", ("s1", {})), ("ua{sv}", (1, {})), ("sa{sv}s", ("s1", {}, "more"))],
)
async def test_arguments_of_the_wrong_types(stage: Scene, signature: str, body: tuple[Any, ...]) -> None:
    call = _on_domain(stage, "CreateSnapshot", signature, *body)
    await refused(call, f"{BUS_ERROR}InvalidArgs", "org.domsnap1.Domain.CreateSnapshot", "'sa{sv}'", f"'{signature}'")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a" * 201, "201 bytes"),
        ("ä" * 101, "202 bytes"),
        ("new\nline", "control character"),
        ("bell\x07", "control character"),
        ("delete\x7f", "control character"),
        ("next\x85line", "control character"),
        ("a/b", "'/'"),
        ("/", "'/'"),
        (".", "directory"),
        ("..", "directory"),
        ("7", "number"),
        ("123456789", "number"),
    ],
)
async def test_a_name_that_is_not_allowed(stage: Scene, name: str, why: str) -> None:
    await refused(stage.create(name), f"{ERROR}InvalidName", why, repr(name)[:30])


async def test_a_name_that_is_taken(stage: Scene) -> None:
    await refused(stage.create("taken"), f"{ERROR}SnapshotExists", DOMAIN, "'taken'")


async def test_what_this_domain_cannot_do(stage: Scene) -> None:
    left_out = Variant("a{ss}", {"disk1": "no"})
    await refused(stage.create("s1", disks=left_out), f"{ERROR}NotSupported", DOMAIN, "disk1", "left out")
    no_memory = Variant("b", False)
    both_out = Variant("a{ss}", {"disk0": "no", "disk1": "no"})
    nothing = stage.create("s1", memory=no_memory, disks=both_out)
    await refused(nothing, f"{ERROR}NotSupported", DOMAIN, "none of them", "disk0", "disk1")
    frozen = stage.create("s1", memory=no_memory, quiesce=Variant("s", "require"))
    await refused(frozen, f"{ERROR}NotSupported", DOMAIN, "Freezing file systems", "names no agent", "'agent:'")
    await refused(stage.domain("CancelPendingRevert"), f"{ERROR}NotSupported", DOMAIN, "no memory is waiting")


async def test_a_plan_is_refused_like_its_verb(stage: Scene) -> None:
    await refused(stage.plan("merge", "taken"), f"{ERROR}InvalidOption", "'verb'", "'merge'", "create, revert, delete")
    await refused(stage.plan("", ""), f"{ERROR}InvalidOption", "'verb'", "''")
    wait = Variant("b", True)
    for verb in ("create", "revert", "delete"):
        await refused(stage.plan(verb, "taken", wait=wait), f"{ERROR}InvalidOption", "'wait'", f"Plan of {verb}")
        await refused(stage.plan(verb, "taken", colour=wait), f"{ERROR}InvalidOption", "'colour'", f"Plan of {verb}")
    for verb in ("revert", "delete"):
        await refused(stage.plan(verb, "gone"), f"{ERROR}NoSuchSnapshot", DOMAIN, "'gone'")
    await refused(stage.plan("revert", ""), f"{ERROR}NotSupported", DOMAIN, "Undoing a revert", "no undo point")
    await refused(stage.plan("create", "taken"), f"{ERROR}SnapshotExists", DOMAIN, "'taken'")
    await refused(stage.plan("create", "a/b"), f"{ERROR}InvalidName", "a/b", "'/'")
    left_out = Variant("a{ss}", {"disk0": "no"})
    await refused(stage.plan("create", "s1", disks=left_out), f"{ERROR}NotSupported", DOMAIN, "disk0", "left out")
    await refused(stage.plan("delete", "taken", scope=Variant("s", "all")), f"{ERROR}InvalidOption", "'scope'", "'all'")


async def test_a_plan_changes_nothing(stage: Scene) -> None:
    assert "Write down snapshot 's1'." in await stage.plan("create", "s1")
    assert "Make 'taken' the current snapshot." in await stage.plan("revert", "taken")
    assert "Forget snapshot 'taken'." in await stage.plan("delete", "taken")
    assert (await stage.properties())["Job"] == "/"


async def test_a_file_that_is_in_the_way_is_left_as_it_is(stage: Scene) -> None:
    memory, overlay = stage.state / "s1.vmstate.qcow2", stage.images / "disk1.s1.qcow2"
    link = stage.images / "disk0.s1.qcow2"
    for path in (memory, overlay):
        path.write_bytes(b"not ours")
        await refused(stage.create("s1"), f"{ERROR}ImageInUse", str(path))
        assert path.read_bytes() == b"not ours"
        path.unlink()
    # The link leads nowhere, so only making the file finds it.
    link.symlink_to("nowhere")
    await refused(stage.create("s1"), f"{ERROR}ImageInUse", str(link))
    assert str(link.readlink()) == "nowhere"
    link.unlink()


async def test_all_of_it_leaves_a_domain_that_works(shared: Scene) -> None:
    await assert_works(shared)


async def _on_domain(stage: Scene, member: str, signature: str, *body: Any, domain: str = DOMAIN) -> tuple[Any, ...]:
    return await stage.wire.call(BUS_NAME, domain_path(domain), DOMAIN_INTERFACE, member, signature, body)


async def _list(stage: Scene, **options: Variant) -> tuple[Any, ...]:
    return await stage.manager("ListSnapshots", "sa{sv}", DOMAIN, options)
