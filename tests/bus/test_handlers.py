# SPDX-License-Identifier: MIT
"""The contract and the faces say the same: every member of the XML has its handler or value, and the reverse."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from snapd.bus.authorization import Authorization
from snapd.bus.contract import contract
from snapd.bus.domain import DomainFace
from snapd.bus.faces import Face, shown
from snapd.bus.job import JobFace
from snapd.bus.manager import ManagerFace
from snapd.bus.objects import Objects
from snapd.bus.snapshot import SnapshotFace
from snapd.bus.verbs import Verbs
from snapd.config import Timeouts
from snapd.daemon import HostAdapters
from snapd.errors import NoSuchDomain
from snapd.model.domain import DomainDefinition, DomainState
from snapd.model.events import DomainChanged
from snapd.model.plan import DeletePlan, Live
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot, SnapshotType
from snapd.model.tree import SnapshotTree
from snapd.service.host import Host
from snapd.service.jobs import Jobs
from snapd.service.mutations import Surroundings
from snapd.service.policy import Policy
from snapd.service.publisher import Publisher
from snapd.state.store import Store

NAME, UUID, SNAPSHOT = "vm1", "a4eb4367-b880-3b11-d1e8-d5d2b2c1a3aa", "before"
DEADLINE_S = 5.0
POLICY = Policy(0, 10, Live.AUTO)


async def _domain_is_known(publisher: Publisher, start: Callable[[], object]) -> None:
    known = asyncio.Event()
    publisher.subscribe(lambda event: known.set() if event == DomainChanged(NAME) else None)
    start()
    async with asyncio.timeout(DEADLINE_S):
        await known.wait()


@contextlib.asynccontextmanager
async def _host_of(directory: Path) -> AsyncIterator[Host]:
    """A host that looks after one domain, whose QEMU does not run and which has one snapshot."""
    store = await Store.open(directory / UUID, NAME, UUID)
    snapshot = Snapshot(SNAPSHOT, 1, SnapshotType.EXTERNAL, DomainState.RUNNING, disks=())
    await store.begin("delete", SNAPSHOT, DeletePlan((), (), ()))
    await store.commit(DomainRecord(NAME, UUID, tree=SnapshotTree().add(snapshot)))
    await store.end()
    running: list[asyncio.Task[None]] = []

    def spawn(work: Awaitable[None]) -> Callable[[], object]:
        task = asyncio.ensure_future(work)
        running.append(task)
        return task.cancel

    publisher = Publisher()
    adapters = HostAdapters(directory, None, Timeouts(monitor_s=1))
    jobs = Jobs(publisher, 10, 10)
    host = Host(Surroundings(adapters, jobs, publisher, spawn, POLICY))
    try:
        await _domain_is_known(publisher, lambda: host.follow([DomainDefinition(NAME, str(directory / "qmp"), UUID)]))
        jobs.open("create", NAME, SNAPSHOT, 0)
        yield host
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with _host_of(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def faces(host: Host) -> dict[str, Face]:
    """One face of each interface, by its name."""
    verbs = Verbs(cast("Authorization", None), POLICY)
    domain = host.domains[NAME]
    found: list[Face] = [
        ManagerFace(host, verbs, "1", "2"),
        DomainFace(domain, verbs),
        SnapshotFace(domain, SNAPSHOT, verbs),
        JobFace(host.jobs.all()[0], host),
    ]
    return {face.interface: face for face in found}


async def test_every_interface_of_the_contract_has_a_face(faces: dict[str, Face]) -> None:
    assert set(faces) == set(contract())


@pytest.mark.parametrize("name", sorted(contract()))
async def test_every_method_has_a_handler_and_every_handler_a_method(name: str, faces: dict[str, Face]) -> None:
    methods = faces[name].methods()
    assert set(methods) == set(contract()[name].methods)
    assert all(inspect.iscoroutinefunction(handler) for handler in methods.values())


@pytest.mark.parametrize("name", sorted(contract()))
async def test_every_handler_takes_what_its_method_takes(name: str, faces: dict[str, Face]) -> None:
    for member, handler in faces[name].methods().items():
        expected = 1 + len(contract()[name].methods[member].inputs)
        assert len(inspect.signature(handler).parameters) == expected, member


@pytest.mark.parametrize("name", sorted(contract()))
async def test_every_property_has_a_value_of_its_type_and_every_value_a_property(name: str, faces: dict[str, Face]) -> None:
    assert set(faces[name].properties()) == set(contract()[name].properties)
    values = shown(contract()[name], faces[name])
    assert {each: value.signature for each, value in values.items()} == {
        each.name: each.type for each in contract()[name].properties.values()
    }


async def test_every_face_is_reached_by_its_path(host: Host) -> None:
    verbs = Verbs(cast("Authorization", None), POLICY)
    objects = Objects(host, ManagerFace(host, verbs, "1", "2"), verbs)
    paths = ["/org/domsnap1", *objects.managed_paths()]
    assert paths == [
        "/org/domsnap1",
        "/org/domsnap1/domain/vm1",
        "/org/domsnap1/domain/vm1/snapshot/before",
        "/org/domsnap1/job/1",
    ]
    assert [type(objects.face(path)) for path in paths] == [ManagerFace, DomainFace, SnapshotFace, JobFace]


@pytest.mark.parametrize("uuid", [UUID, UUID.upper(), UUID.replace("-", ""), UUID.replace("-", "").upper()])
async def test_a_domain_is_found_by_its_uuid_however_that_is_written(uuid: str, host: Host) -> None:
    assert host.get_by_uuid(uuid).name == NAME


@pytest.mark.parametrize("uuid", ["", "-", UUID[:-1], "00000000-0000-0000-0000-000000000000"])
async def test_no_domain_is_found_by_what_is_no_uuid_of_one(uuid: str, host: Host) -> None:
    with pytest.raises(NoSuchDomain):
        host.get_by_uuid(uuid)


async def test_a_domain_without_a_uuid_is_not_found_by_nothing(tmp_path: Path) -> None:
    async with _host_of(tmp_path) as host:
        host.follow([DomainDefinition("vm2", str(tmp_path / "other"))])
        assert list(host.domains) == ["vm2"]
        with pytest.raises(NoSuchDomain):
            host.get_by_uuid("")
