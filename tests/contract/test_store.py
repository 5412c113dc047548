# SPDX-License-Identifier: MIT
"""The store on real directories: what is durable when, SIGKILL at every system call, damage, and what units are told."""

import asyncio
import errno
import functools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from snapd.errors import Interrupted, NoSpace, NotSupported, StateDamaged
from snapd.model.domain import DomainState, Machine
from snapd.model.images import Image, ImageGraph, Origin, Pin
from snapd.model.plan import DeletePlan
from snapd.model.record import DomainRecord, PendingRevert
from snapd.model.snapshot import MemoryState, RevertState, SaveMethod, Snapshot, SnapshotDisk, SnapshotType
from snapd.state import atomic
from snapd.state.directory import prototype_path, snapshot_path
from snapd.state.libxl_json import loads
from snapd.state.store import Store
from tests.lab.domain_values import PLANS

UUID = "5c84adcc-bd59-788a-96d2-195f9b599cfe"
PLAN = DeletePlan(("a",), ("/m",), ())
MOST_CALLS = 400
CHANGING_CALLS = {"open", "write", "fsync", "fchmod", "rename", "symlink", "unlink", "mkdir"}
CHILD_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 30

NASTY = [
    "..hidden",
    ".",
    "a b/c",
    "100%",
    "%20",
    "d.a",
    "a",
    "-rf",
    "\n",
    "ünïcödé ☃",
    "x" * 200,
    "ü" * 100,
    '"quoted" $HOME `x` \\',
    "*",
    "con.libxl-json",
]


def base() -> DomainRecord:
    images = {path: Image(path, "raw", None, Origin.DEFINED, 1 << 20) for path in ("/i/a.raw", "/i/b.raw")}
    return DomainRecord("web", UUID, ImageGraph(images, {"vda": "/i/a.raw", "vdb": "/i/b.raw"}))


def created(record: DomainRecord, name: str) -> DomainRecord:
    """Return ``record`` after a snapshot ``name`` of all its disks."""
    graph, number = record.graph, len(record.graph.images)
    covered = dict(graph.active)
    for target, path in covered.items():
        graph = graph.cover(target, Image(f"/i/{target}.{number}.qcow2", "qcow2", path, Origin.CREATED, 1 << 20))
    graph = graph.pin(name, {target: Pin(path) for target, path in covered.items()})
    snapshot = Snapshot(
        name,
        created_usec=1_700_000_000_000_000 + number,
        type=SnapshotType.EXTERNAL,
        state=DomainState.RUNNING,
        disks=tuple(SnapshotDisk(target, path, "qcow2", 1 << 20) for target, path in graph.active.items()),
        machine=Machine("pc", 1 << 30, 2, ("vga",)),
        memory=MemoryState("/m/memory", 5, SaveMethod.LIVE),
    )
    return replace(record, graph=graph, tree=record.tree.add(snapshot))


def tagged(record: DomainRecord, name: str) -> DomainRecord:
    """Return ``record`` after an internal snapshot ``name`` of the domain shut off, without disk vdb."""
    path = record.graph.active["vda"]
    snapshot = Snapshot(
        name,
        created_usec=1_700_000_000_000_000 + len(record.tree),
        type=SnapshotType.INTERNAL,
        state=DomainState.SHUTOFF,
        disks=(SnapshotDisk("vda", "", "", 1 << 20),),
        consistency="offline",
        left_out={"vdb": "the request says 'no' for it"},
        undo=True,
    )
    return replace(record, graph=record.graph.pin(name, {"vda": Pin(path, name)}), tree=record.tree.add(snapshot))


def waiting(record: DomainRecord, name: str) -> DomainRecord:
    """Return ``record`` with a revert to ``name`` that is done when the domain runs again, and QEMU on the active images."""
    return replace(record, pending=PendingRevert(name, RevertState.PAUSED), follows_active=True)


def protected(record: DomainRecord, name: str) -> DomainRecord:
    told = {**record.tree.snapshots, name: replace(record.tree.snapshots[name], protected=True)}
    return replace(record, tree=replace(record.tree, snapshots=told))


def deleted(record: DomainRecord, name: str) -> DomainRecord:
    return replace(record, graph=record.graph.unpin(name), tree=record.tree.remove([name]))


def described(record: DomainRecord, *names: str) -> DomainRecord:
    told = {name: replace(record.tree.snapshots[name], description=f"about {name}") for name in names}
    return replace(record, tree=replace(record.tree, snapshots={**record.tree.snapshots, **told}))


async def store_of(directory: Path, *records: DomainRecord) -> Store:
    store = await Store.open(directory, "web", UUID)
    for record in records:
        await store.commit(record)
    return store


async def reopened(directory: Path) -> Store:
    return await Store.open(directory, "web", UUID)


def reopened_here(directory: Path) -> Store:
    return asyncio.run(reopened(directory))


def listing(directory: Path) -> list[str]:
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*") if not each.is_dir() or each.is_symlink())


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in listing(directory) if not (directory / name).is_symlink()}


# Opening and committing


async def test_a_new_domain_has_an_empty_record_and_a_private_directory(tmp_path: Path) -> None:
    store = await reopened(tmp_path / "state" / UUID)
    assert store.committed == DomainRecord("web", UUID)
    assert (store.intent, store.interrupted, store.damaged) == (None, None, {})
    assert stat.S_IMODE((tmp_path / "state" / UUID).stat().st_mode) == 0o700
    assert listing(tmp_path / "state" / UUID) == []


async def test_what_is_committed_is_there_when_opened_again(tmp_path: Path) -> None:
    first = created(base(), "a")
    second = created(first, "b")
    store = await store_of(tmp_path, first, second)
    assert store.committed is second
    again = await reopened(tmp_path)
    assert again.committed == second
    await again.commit(deleted(second, "a"))
    assert (await reopened(tmp_path)).committed == deleted(second, "a")
    assert listing(tmp_path) == [
        "disks.env",
        "disks/vda.qcow2",
        "disks/vdb.qcow2",
        "domain.libxl-json",
        "snapshotdata-b.libxl-json",
    ]


async def test_everything_that_a_record_holds_is_there_when_opened_again(tmp_path: Path) -> None:
    both = created(tagged(base(), "in"), "out")
    steps = [
        both,
        waiting(both, "out"),
        protected(waiting(both, "out"), "in"),
        replace(protected(both, "in"), follows_active=True),
        deleted(replace(both, follows_active=True), "in"),
    ]
    store = await reopened(tmp_path)
    for record in steps:
        await store.commit(record)
        again = await reopened(tmp_path)
        assert (again.committed, again.damaged) == (record, {})
    graph = steps[-1].graph
    assert [image.doomed for image in graph.images.values() if image.doomed] == [("in",)]
    await store.commit(replace(steps[-1], graph=graph.apply(graph.collect({})[0])))
    assert (await reopened(tmp_path)).committed.graph.images == {
        path: replace(image, doomed=()) for path, image in graph.images.items()
    }


async def test_a_pending_revert_to_what_is_gone_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    first = waiting(created(base(), "a"), "a")
    store = await store_of(tmp_path, first)
    before = contents(tmp_path)
    with pytest.raises(StateDamaged, match="the snapshot 'a' of the pending revert is not in the list"):
        await store.commit(deleted(first, "a"))
    assert contents(tmp_path) == before
    assert (await reopened(tmp_path)).committed == store.committed == first


async def test_the_links_are_where_the_store_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = await reopened(Path("state") / UUID)
    assert store.links_directory == str(tmp_path / "state" / UUID / "disks")
    await store.commit(base())
    links = {each.name: str(each.readlink()) for each in Path(store.links_directory).iterdir()}
    assert links == {"vda.raw": "/i/a.raw", "vdb.raw": "/i/b.raw"}


async def test_files_are_for_nobody_else(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await store_of(tmp_path / UUID, created(base(), "a"))
        await store.begin("delete", "a", PLAN)
    finally:
        os.umask(before)
    found = [each.lstat().st_mode for each in (tmp_path / UUID).rglob("*")]
    modes = {stat.S_IMODE(mode) for mode in found if stat.S_ISREG(mode)}
    assert modes == {0o600}
    assert {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / UUID, tmp_path / UUID / "disks")} == {0o700}


async def test_each_snapshot_file_says_parent_and_pins(tmp_path: Path) -> None:
    second = created(created(base(), "a"), "b")
    store = await store_of(tmp_path, created(base(), "a"), second)
    await store.commit(deleted(second, "a"))
    written = loads(snapshot_path(tmp_path, "b").read_bytes(), "b")
    ours: Any = written["domsnap"]
    assert "parent" not in ours or ours["parent"] == ""
    assert ours["pins"] == {"vda": {"image": "/i/vda.2.qcow2"}, "vdb": {"image": "/i/vdb.2.qcow2"}}


async def test_nasty_names_come_back(tmp_path: Path) -> None:
    record, directory = base(), tmp_path / "state"
    store = await store_of(directory)
    for name in NASTY:
        record = created(record, name)
        await store.commit(record)
    again = await reopened(directory)
    assert again.damaged == {}
    assert again.committed == record
    assert len([name for name in listing(directory) if name.startswith("snapshotdata-")]) == len(NASTY)
    for name in NASTY:
        record = deleted(record, name)
        await again.commit(record)
    assert [name for name in listing(directory) if name.startswith("snapshotdata")] == []
    assert list(tmp_path.iterdir()) == [directory]


async def test_a_name_that_is_not_utf8_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    first = created(base(), "a")
    store = await store_of(tmp_path, first)
    before = contents(tmp_path)
    graph = first.graph.with_images(Image("/i/\udcff", "raw", None, Origin.FOREIGN))
    for record in (created(first, "\udcff"), replace(first, graph=graph), created(first, "nul\0")):
        with pytest.raises(StateDamaged):
            await store.commit(record)
    with pytest.raises(NotSupported, match="To delete 'a' is not possible for domain web: its plan cannot be written down"):
        await store.begin("delete", "a", DeletePlan(("a",), ("/\udcff",), ()))
    assert contents(tmp_path) == before
    assert (store.committed, store.intent) == (first, None)


async def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    await store_of(tmp_path, created(base(), "a"))
    for path in (snapshot_path(tmp_path, "a"), tmp_path / "domain.libxl-json"):
        path.write_text(path.read_text().replace("{\n", '{\n    "b_info": 5,\n', 1))
    store = await reopened(tmp_path)
    await store.commit(described(created(store.committed, "b"), "a"))
    for path in (snapshot_path(tmp_path, "a"), tmp_path / "domain.libxl-json"):
        assert loads(path.read_bytes(), "f")["b_info"] == 5


# What is not listed, not there, not readable, or not ours


async def test_a_snapshot_that_is_not_listed_does_not_exist_and_is_left_alone(tmp_path: Path) -> None:
    first = created(base(), "a")
    store = await store_of(tmp_path, first)
    stray = snapshot_path(tmp_path, "stray")
    shutil.copy(snapshot_path(tmp_path, "a"), stray)
    assert (await reopened(tmp_path)).committed == first
    await store.commit(deleted(first, "a"))
    assert stray.exists()


async def test_the_domain_file_decides_on_parents_and_pins(tmp_path: Path) -> None:
    second = created(created(base(), "a"), "b")
    await store_of(tmp_path, second)
    path = snapshot_path(tmp_path, "b")
    path.write_text(path.read_text().replace('"parent": "a"', '"parent": "c"').replace("/i/vda.2.qcow2", "/elsewhere"))
    store = await reopened(tmp_path)
    assert store.committed.tree.snapshots["b"].parent == "a"
    assert store.committed.graph == second.graph
    await store.commit(created(second, "c"))
    assert '"parent": "a"' in path.read_text()


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "it is missing": lambda path: path.unlink(),
    "not JSON": lambda path: path.write_bytes(b"{"),
    "is not UTF-8": lambda path: path.write_bytes(b'{"name": "\xff"}'),
    "the end of the file": lambda path: path.write_bytes(b""),
    "it holds a snapshot called 'z', not 'b'": lambda path: path.write_text(
        path.read_text().replace('"name": "b"', '"name": "z"')
    ),
    "must be a string": lambda path: path.write_text(path.read_text().replace('"name": "b"', '"name": 5')),
    "it is no regular file": replace_by_directory,
}


@pytest.mark.parametrize("said", DAMAGE)
async def test_a_damaged_snapshot_keeps_its_place_and_its_pins(tmp_path: Path, said: str) -> None:
    record = created(created(created(base(), "a"), "b"), "c")
    await store_of(tmp_path, record)
    path = snapshot_path(tmp_path, "b")
    DAMAGE[said](path)
    for _ in range(2):
        store = await reopened(tmp_path)
        assert list(store.damaged) == ["b"]
        assert said in store.damaged["b"]
        assert store.committed.graph == record.graph
        assert {name: each.parent for name, each in store.committed.tree.snapshots.items()} == {"a": "", "b": "a", "c": "b"}
        assert {name: record.tree.snapshots[name] for name in "ac"} == {
            name: store.committed.tree.snapshots[name] for name in "ac"
        }
    assert not path.exists()
    quarantined = sorted(each.name for each in (tmp_path / "quarantine").iterdir()) if said != "it is missing" else []
    assert quarantined == ([path.name, f"{path.name}.reason"] if said != "it is missing" else [])
    # Other snapshots come and go; this one stays what it is until it is deleted.
    await store.commit(created(store.committed, "d"))
    assert not path.exists()
    assert list(store.damaged) == ["b"]
    assert list((await reopened(tmp_path)).damaged) == ["b"]
    await store.commit(deleted(store.committed, "b"))
    assert store.damaged == {}
    again = await reopened(tmp_path)
    assert again.damaged == {}
    assert again.committed == store.committed


async def test_two_damaged_files_of_one_name_are_both_set_aside(tmp_path: Path) -> None:
    record = created(base(), "a")
    path = snapshot_path(tmp_path, "a")
    store = await store_of(tmp_path, record)
    for content in (b"first", b"second"):
        path.write_bytes(content)
        store = await reopened(tmp_path)
        assert "a" in store.damaged
    found = contents(tmp_path / "quarantine")
    assert {found[path.name], found[f"{path.name}.2"]} == {b"first", b"second"}
    assert len(found) == 4
    # A snapshot of that name can be taken again.
    await store.commit(created(deleted(store.committed, "a"), "a"))
    assert store.damaged == {}
    assert (await reopened(tmp_path)).committed == store.committed


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"domsnap": {"version": 2}}', b'{"domsnap": {"version": 1, "current": "x"}}']
)
async def test_a_damaged_domain_file_is_reported_and_nothing_is_moved(tmp_path: Path, content: bytes) -> None:
    await store_of(tmp_path, created(base(), "a"))
    (tmp_path / "domain.libxl-json").write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(StateDamaged) as caught:
        await reopened(tmp_path)
    assert caught.value.path == str(tmp_path / "domain.libxl-json")
    assert contents(tmp_path) == before


async def test_the_files_of_the_prototype_are_read_and_then_have_our_names(tmp_path: Path) -> None:
    record = created(created(base(), "x"), "an old one")
    await store_of(tmp_path, record)
    for name in ("x", "an old one"):
        snapshot_path(tmp_path, name).rename(prototype_path(tmp_path, name))
    store = await reopened(tmp_path)
    assert store.committed == record
    # The prototype's name for "x" is our name for "d.x".
    after = created(record, "d.x")
    await store.commit(after)
    again = await reopened(tmp_path)
    assert (again.committed, again.damaged) == (after, {})
    assert [name for name in listing(tmp_path) if name.startswith("snapshotdata")] == [
        "snapshotdata-an%20old%20one.libxl-json",
        "snapshotdata-d.x.libxl-json",
        "snapshotdata-x.libxl-json",
    ]
    snapshot_path(tmp_path, "x").unlink()
    lost = await reopened(tmp_path)
    assert list(lost.damaged) == ["x"]
    assert snapshot_path(tmp_path, "d.x").exists()


async def test_two_domains_with_one_uuid_do_not_mix(tmp_path: Path) -> None:
    mine, theirs = await Store.open(tmp_path, "web", UUID), await Store.open(tmp_path, "mail", UUID)
    await mine.commit(created(base(), "a"))
    other = replace(created(base(), "b"), name="mail")
    with pytest.raises(StateDamaged, match=r"something else has changed it .* no two domains have one uuid"):
        await theirs.commit(other)
    with pytest.raises(StateDamaged, match="something else has changed it"):
        await theirs.begin("create", "b", PLAN)
    with pytest.raises(StateDamaged, match="it is the state of domain 'web', and 'mail' cannot have the same uuid"):
        await Store.open(tmp_path, "mail", UUID)
    with pytest.raises(StateDamaged, match="it is the state of the domain with the uuid"):
        await Store.open(tmp_path, "web", UUID.replace("5", "6"))
    assert (await reopened(tmp_path)).committed == created(base(), "a")
    assert not snapshot_path(tmp_path, "b").exists()
    await mine.commit(created(mine.committed, "c"))


# The intent


async def test_an_intent_is_durable_from_begin_to_end(tmp_path: Path) -> None:
    store = await store_of(tmp_path, created(base(), "a"))
    await store.begin("delete", "a", PLAN)
    await store.step("pause")
    await store.step("commit /i/x")
    path = str(tmp_path / "intent.json")
    for each in (store, await reopened(tmp_path)):
        assert each.intent is not None
        assert (each.intent.operation, each.intent.subject, each.intent.path) == ("delete", "a", path)
        assert each.intent.begun == ("pause", "commit /i/x")
        assert each.interrupted == ("delete a", path)
        with pytest.raises(Interrupted, match="in the middle of delete a"):
            await each.begin("create", "b", PLAN)
    value: Any = loads((tmp_path / "intent.json").read_bytes(), "f")
    assert value.pop("started_usec") > 0
    assert value == {
        "version": 1,
        "operation": "delete",
        "subject": "a",
        "plan": {"names": ["a"], "memory_paths": ["/m"], "after": [], "notes": []},
        "begun": ["pause", "commit /i/x"],
    }
    for _ in range(2):
        await store.end()
        assert (store.intent, store.interrupted) == (None, None)
        assert (await reopened(tmp_path)).intent is None
    await store.begin("create", "b", PLAN)


def plain(value: object) -> object:
    """Return what JSON has for a plan, or a part of it."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, str) else value


@pytest.mark.parametrize("what", PLANS)
async def test_any_plan_can_be_written_down_and_every_field_of_it_is_there(tmp_path: Path, what: str) -> None:
    store = await reopened(tmp_path)
    await store.begin("create", "s", PLANS[what])
    await store.step("pause")
    again = await reopened(tmp_path)
    assert again.intent == store.intent
    await again.step("resume")
    assert loads((tmp_path / "intent.json").read_bytes(), "f")["plan"] == plain(PLANS[what])


async def test_a_plan_without_plain_values_is_refused(tmp_path: Path) -> None:
    store = await reopened(tmp_path)
    odd: Any = (object(),)
    with pytest.raises(NotSupported, match=r"its plan cannot be written down \(.* is no plain value\)"):
        await store.begin("delete", "a", replace(PLAN, names=odd))
    assert (listing(tmp_path), store.intent) == ([], None)


async def test_an_intent_that_another_has_begun_is_seen(tmp_path: Path) -> None:
    store, other = await reopened(tmp_path), await reopened(tmp_path)
    await other.begin("delete", "a", PLAN)
    with pytest.raises(Interrupted, match="in the middle of delete a"):
        await store.begin("create", "b", PLAN)


async def test_a_found_intent_can_be_gone_on_with(tmp_path: Path) -> None:
    await (await reopened(tmp_path)).begin("delete", "a", PLAN)
    store = await reopened(tmp_path)
    await store.step("pause")
    found = (await reopened(tmp_path)).intent
    assert found is not None
    assert found.begun == ("pause",)


@pytest.mark.parametrize("content", [b"", b"{}", b"nonsense", b'{"version": "1"}'])
async def test_an_intent_that_cannot_be_read_still_blocks(tmp_path: Path, content: bytes) -> None:
    await store_of(tmp_path, created(base(), "a"))
    (tmp_path / "intent.json").write_bytes(content)
    store = await reopened(tmp_path)
    assert store.interrupted == ("an operation whose record cannot be read", str(tmp_path / "intent.json"))
    with pytest.raises(Interrupted):
        await store.begin("create", "b", PLAN)
    with pytest.raises(StateDamaged, match="has no plan that the step 'pause' could belong to"):
        await store.step("pause")
    assert (tmp_path / "intent.json").read_bytes() == content
    await store.end()
    await store.begin("create", "b", PLAN)


async def test_a_step_without_an_intent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateDamaged, match="has no plan"):
        await (await reopened(tmp_path)).step("pause")


# Failures


class FailingCalls:
    """Lets the n-th call of one function of ``os`` fail: no file system fails at a place of one's choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._real = getattr(os, name)
        self.left = -1
        monkeypatch.setattr(os, name, self._call)

    def _call(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._real(*arguments, **named)


@pytest.mark.parametrize("call", ["fsync", "rename"])
async def test_a_failed_commit_leaves_what_was_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    number = 0
    outcomes: list[bool] = []
    while not outcomes or not outcomes[-1]:
        number += 1
        directory = tmp_path / str(number)
        first = created(base(), "a")
        second = described(created(first, "b"), "a")
        store = await store_of(directory, first)
        before = contents(directory)
        with monkeypatch.context() as patch:
            failing = FailingCalls(patch, call)
            failing.left = number
            try:
                await store.commit(second)
            except (NoSpace, StateDamaged) as error:
                outcomes.append(False)
                unknown = "was changed, but" in str(error)
            else:
                outcomes.append(failing.left > 0)
                unknown, failing.left = False, -1
                assert store.committed is second
                assert (await reopened(directory)).committed == second
                await store.commit(created(second, "c"))
                assert (await reopened(directory)).committed == created(second, "c")
                continue
        if (
            unknown
            and store.committed is first
            and (directory / "domain.libxl-json").read_bytes() != before["domain.libxl-json"]
        ):
            with pytest.raises(StateDamaged, match="something else has changed it"):
                await store.begin("create", "b", PLAN)
            assert (await reopened(directory)).committed in (first, second)
            continue
        assert store.committed is first
        assert contents(directory) == before
        assert (await reopened(directory)).committed == first
        await store.commit(second)
        assert (await reopened(directory)).committed == second
    assert number > 4


async def test_on_a_read_only_file_system_the_state_is_shown_and_changes_are_refused(tmp_path: Path) -> None:
    await store_of(tmp_path, created(base(), "a"), created(created(base(), "a"), "b"))
    (tmp_path / ".domain.libxl-json.0123456789abcdef.tmp").touch()
    snapshot_path(tmp_path, "b").write_bytes(b"{")
    (tmp_path / "disks.env").unlink()
    script = f"""
import asyncio, subprocess, sys
from pathlib import Path
from snapd.errors import StateDamaged
from snapd.model.plan import DeletePlan
from snapd.state.store import Store
directory = Path({str(tmp_path)!r})
subprocess.run(["mount", "--bind", directory, directory], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
async def main():
    store = await Store.open(directory, "web", {UUID!r})
    assert list(store.committed.tree.snapshots) == ["a", "b"], store.committed
    assert list(store.damaged) == ["b"]
    refused = 0
    for change in (store.begin("delete", "a", DeletePlan((), (), ())), store.commit(store.committed), store.end()):
        try:
            await change
        except StateDamaged as error:
            assert "Read-only file system" in str(error), error
            refused += 1
    assert (refused, store.intent) == (3, None)
asyncio.run(main())
"""
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    before = contents(tmp_path)
    done = subprocess.run(
        [*alone, sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == before


async def test_a_call_whose_waiting_is_cancelled_runs_to_its_end_before_the_next(tmp_path: Path) -> None:
    store = await store_of(tmp_path, created(base(), "a"))
    second = created(store.committed, "b")
    waiting = asyncio.ensure_future(store.commit(second))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.commit(created(second, "c"))
    assert store.committed == created(second, "c")
    assert (await reopened(tmp_path)).committed == store.committed


# SIGKILL


def killed_at(number: int, change: Callable[[], Any]) -> bool:
    """Make ``change`` in a child that is killed before its n-th system call. Returns: whether it got to its end."""
    child = os.fork()
    if child == 0:
        calls = 0

        def count(_frame: FrameType, event: str, called: Any) -> None:
            nonlocal calls
            if event == "c_call" and called.__module__ == "posix" and called.__name__ in CHANGING_CALLS:
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.setprofile(count)
            change()
            status = 0
        finally:
            sys.setprofile(None)
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


FIRST = created(base(), "a")
THIRD = created(created(FIRST, "b"), "c")
CHANGES: Mapping[str, tuple[DomainRecord, DomainRecord]] = {
    "the first snapshot": (base(), FIRST),
    "one more": (FIRST, created(FIRST, "b")),
    "two more": (FIRST, THIRD),
    "one fewer, in the middle": (THIRD, deleted(THIRD, "b")),
    "other words": (THIRD, described(THIRD, "a", "b")),
    "all of it": (THIRD, described(created(deleted(THIRD, "a"), "d"), "b", "c")),
    "the same name anew": (THIRD, created(deleted(THIRD, "b"), "b")),
    "an internal one": (FIRST, tagged(FIRST, "b")),
    "an internal one fewer": (tagged(FIRST, "b"), deleted(tagged(FIRST, "b"), "b")),
    "a revert that waits": (FIRST, waiting(FIRST, "a")),
    "protection, and a revert that waits no longer": (waiting(FIRST, "a"), protected(FIRST, "a")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_commit_killed_at_any_call_leaves_the_old_or_the_new_record(tmp_path: Path, what: str) -> None:
    before, after = CHANGES[what]
    original = tmp_path / "original"
    asyncio.run(store_of(original, before))
    met = []
    for number in range(1, MOST_CALLS):
        directory = tmp_path / str(number)
        shutil.copytree(original, directory, symlinks=True)
        store = reopened_here(directory)
        # Threads do not outlive a fork, so the child does what the thread would.
        ended = killed_at(number, functools.partial(store._commit, after))
        found = reopened_here(directory)
        assert found.committed in (before, after)
        assert found.damaged == {}
        met.append(found.committed == after)
        check_units(directory, found.committed)
        assert not [name for name in listing(directory) if name.endswith(".tmp")]
        # Whatever was found, it can be gone on from.
        asyncio.run(found.commit(after))
        assert reopened_here(directory).committed == after
        shutil.rmtree(directory)
        if ended:
            break
    else:
        pytest.fail(f"the commit did not end within {MOST_CALLS} calls")
    assert met == sorted(met)
    assert set(met) == {False, True}


def test_an_intent_killed_at_any_call_is_there_or_not(tmp_path: Path) -> None:
    def begin(store: Store) -> None:
        store._begin("delete", "a", PLAN)

    def step(store: Store) -> None:
        store._step("pause")

    def end(store: Store) -> None:
        store._end()

    async def begun(directory: Path) -> None:
        store = await reopened(directory)
        await store.begin("delete", "a", PLAN)

    for change, prepared, expected in (
        (begin, False, [None, ()]),
        (step, True, [(), ("pause",)]),
        (end, True, [(), None]),
    ):
        met: list[tuple[str, ...] | None] = []
        for number in range(1, MOST_CALLS):
            directory = tmp_path / f"{change.__name__}{number}"
            if prepared:
                asyncio.run(begun(directory))
            store = reopened_here(directory)
            ended = killed_at(number, functools.partial(change, store))
            found = reopened_here(directory).intent
            assert found is None or (found.operation, found.subject) == ("delete", "a")
            met.append(found.begun if found else None)
            if ended:
                break
        assert [each for place, each in enumerate(met) if place == 0 or met[place - 1] != each] == expected


def check_units(directory: Path, record: DomainRecord) -> None:
    """Check that units are told the active images of ``record`` and nothing else."""
    links = {each.name: str(each.readlink()) for each in (directory / "disks").iterdir()}
    active = {target: record.graph.images[path] for target, path in record.graph.active.items()}
    assert links == {f"{target}.{image.format}": image.path for target, image in active.items()}
    expected = {f"DOMSNAP_{target.upper()}_FILE": image.path for target, image in active.items()}
    expected |= {f"DOMSNAP_{target.upper()}_FORMAT": image.format for target, image in active.items()}
    assert sourced(directory / "disks.env", expected) == expected


# What units are told


def sourced(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Read an environment file as a shell does, which is what systemd does with what is written here."""
    script = f". {path}\n" + "".join(f"printf '%s\\0' \"${{{name}-unset}}\"\n" for name in names)
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=True)
    return dict(zip(names, done.stdout.decode().split("\0")[:-1], strict=True))


def one_disk(target: str, path: str, format_name: str = "raw") -> DomainRecord:
    return DomainRecord("web", UUID, ImageGraph({path: Image(path, format_name, None, Origin.DEFINED)}, {target: path}))


@pytest.mark.parametrize("path", ["/a b", "/'\"\\`$HOME`\\\\", "/ü #;=%n", "/$(id)${x}", "/trailing\\", '/"', "/ "])
async def test_any_path_survives_the_environment_file(tmp_path: Path, path: str) -> None:
    await store_of(tmp_path, one_disk("sda-0.é", path, "qcow2"))
    expected = {"DOMSNAP_SDA_0___FILE": path, "DOMSNAP_SDA_0___FORMAT": "qcow2"}
    assert sourced(tmp_path / "disks.env", expected) == expected
    assert (tmp_path / "disks" / "sda-0.%C3%A9.qcow2").readlink() == Path(path)


async def test_what_cannot_be_said_is_left_out(tmp_path: Path) -> None:
    images = {path: Image(path, "raw", None, Origin.DEFINED) for path in ("/a", "/b", "/c\nX=1", "/d")}
    active = {"disk-0": "/a", "disk_0": "/b", "vdc": "/c\nX=1", "vdd": "/d"}
    await store_of(tmp_path, DomainRecord("web", UUID, ImageGraph(images, active)))
    lines = (tmp_path / "disks.env").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ['DOMSNAP_VDD_FILE="/d"', 'DOMSNAP_VDD_FORMAT="raw"']
    assert len([line for line in lines if line.startswith("# Left out")]) == 3


async def test_a_link_of_another_format_goes_and_what_is_no_link_stays(tmp_path: Path) -> None:
    store = await store_of(tmp_path, base())
    (tmp_path / "disks" / "notes").touch()
    (tmp_path / "disks" / "vdz.raw").symlink_to("/gone")
    await store.commit(created(base(), "a"))
    assert sorted(each.name for each in (tmp_path / "disks").iterdir()) == ["notes", "vda.qcow2", "vdb.qcow2"]


async def test_no_two_formats_of_a_disk_are_offered_at_any_instant(tmp_path: Path) -> None:
    store = await store_of(tmp_path, base())
    met: list[tuple[str, ...]] = []

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_return" and frame.f_code.co_filename == atomic.__file__:
            met.append(tuple(sorted(name for name in os.listdir(tmp_path / "disks") if name.startswith("vda"))))

    threading.setprofile(look)
    try:
        await asyncio.to_thread(store._refresh)
        thread = threading.Thread(target=store._commit, args=(created(base(), "a"),))
        thread.start()
        thread.join()
    finally:
        threading.setprofile(None)
    assert set(met) == {("vda.raw",), (), ("vda.qcow2",)}


async def test_opening_puts_the_files_for_units_right(tmp_path: Path) -> None:
    record = created(base(), "a")
    await store_of(tmp_path, record)
    (tmp_path / "disks.env").write_text("DOMSNAP_VDA_FILE=/wrong\n")
    (tmp_path / "disks" / "vda.qcow2").unlink()
    (tmp_path / "disks" / "vda.raw").symlink_to("/i/a.raw")
    await reopened(tmp_path)
    check_units(tmp_path, record)


async def test_what_cannot_be_told_to_units_does_not_undo_a_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = await store_of(tmp_path, base())
    (tmp_path / "disks.env").unlink()
    (tmp_path / "disks.env").mkdir()
    await store.commit(created(base(), "a"))
    assert "must not be started before this is mended" in caplog.text
    (tmp_path / "disks.env").rmdir()
    await store.commit(created(store.committed, "b"))
    check_units(tmp_path, store.committed)
