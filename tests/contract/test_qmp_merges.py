# SPDX-License-Identifier: MIT
"""Merges on a QEMU, real or fake, whose guest waits: what every image of the chain reads like afterwards.

Not here: a guest that writes meanwhile, and QEMUs that end (``test_qmp_merges_guest``).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd.errors import QemuFailed
from snapd.model.images import Direction, Merge
from snapd.qmp.blocks import query_disks, query_open
from snapd.qmp.merges import merge
from tests.contract.chains import JOB, Chain, Progress, merged
from tests.contract.disks import only_disk
from tests.lab.fake_qemu.either import KINDS, StartEither, starting
from tests.lab.images import backing_of, check_image, digest
from tests.lab.linked import connected


@pytest.fixture(params=KINDS)
def start_either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartEither]:
    """A function that starts a real QEMU, or a fake one."""
    with starting(request.param, tmp_path) as start:
        yield start


@pytest.mark.parametrize("via", ["drive", "blockdev"])
@pytest.mark.parametrize("length", [2, 3])
async def test_active_commit(start_either: StartEither, tmp_path: Path, via: str, length: int) -> None:
    chain = Chain(tmp_path, length)
    qemu = start_either(chain.disk(via), paused=True)
    async with merged(qemu, chain.commit(length - 1)) as link:
        disk = await only_disk(link)
        assert disk.chain == tuple(str(path) for path in reversed(chain.paths[:-1]))
        assert disk.writable
    qemu.stop()
    assert digest(chain.paths[-2], chain.format(chain.paths[-2])) == chain.digests[-1]
    for below in range(length - 2):
        assert digest(chain.paths[below], chain.format(chain.paths[below])) == chain.digests[below]


async def test_active_commits_down_to_the_first_image(start_either: StartEither, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 4)
    qemu = start_either(chain.disk(), paused=True)
    async with merged(qemu, *(chain.commit(number) for number in (3, 2, 1))) as link:
        assert (await only_disk(link)).chain == (str(chain.paths[0]),)
    qemu.stop()
    assert digest(chain.paths[0], "raw") == chain.digests[-1]


async def test_intermediate_commit(start_either: StartEither, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 4)
    base, low, middle, top = chain.paths
    qemu = start_either(chain.disk(), paused=True)
    async with merged(qemu, chain.commit(2)) as link:
        assert (await only_disk(link)).chain == (str(top), str(low), str(base))
        assert str(middle) not in await query_open(link)
    assert backing_of(top) == (str(low), "qcow2")
    qemu.stop()
    assert [digest(path, chain.format(path)) for path in (base, low, top)] == [chain.digests[each] for each in (0, 2, 3)]
    for path in (low, top):
        check_image(path)


async def test_intermediate_commit_into_raw(start_either: StartEither, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 3)
    qemu = start_either(chain.disk(), paused=True)
    async with merged(qemu, chain.commit(1)) as link:
        assert (await only_disk(link)).chain == (str(chain.paths[2]), str(chain.paths[0]))
    assert backing_of(chain.paths[2]) == (str(chain.paths[0]), "raw")
    qemu.stop()
    assert digest(chain.paths[0], "raw") == chain.digests[1]
    assert digest(chain.paths[2], "qcow2") == chain.digests[2]


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_stream(start_either: StartEither, tmp_path: Path, number: int) -> None:
    """Into the active image and into one below it, with something further below and with nothing."""
    chain = Chain(tmp_path, 4)
    qemu = start_either(chain.disk(), paused=True)
    async with merged(qemu, chain.stream(number)) as link:
        left = [path for path in chain.paths if path != chain.paths[number - 1]]
        assert (await only_disk(link)).chain == tuple(
            str(path) for path in reversed(left if number > 1 else left[left.index(chain.paths[1]) :])
        )
        assert str(chain.paths[number - 1]) not in await query_open(link)
    below = chain.paths[number - 2] if number > 1 else None
    assert backing_of(chain.paths[number]) == ((str(below), chain.format(below)) if below else ("", ""))
    qemu.stop()
    for path, expected in zip(chain.paths, chain.digests, strict=True):
        assert digest(path, chain.format(path)) == expected
        if path.suffix == ".qcow2":
            check_image(path)


async def test_merge_of_two_disks_touches_one(start_either: StartEither, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    chains = [Chain(tmp_path / name, 3) for name in ("a", "b")]
    qemu = start_either(*(chain.disk() for chain in chains), paused=True)
    async with merged(qemu, chains[1].commit(2)) as link:
        assert [len(disk.chain) for disk in await query_disks(link)] == [3, 2]
    qemu.stop()
    assert digest(chains[0].paths[-1], "qcow2") == chains[0].digests[-1]


async def test_what_is_no_chain_is_refused(start_either: StartEither, tmp_path: Path) -> None:
    chain = Chain(tmp_path, 2)
    qemu = start_either(chain.disk(), paused=True)
    async with connected(qemu.monitor) as link:
        stranger = Merge(Direction.COMMIT, str(tmp_path / "stranger.qcow2"), str(chain.paths[0]), None, active=True)
        with pytest.raises(QemuFailed, match="no disk has"):
            await merge(link, stranger, JOB, Progress())
        assert not qemu.control.execute("query-jobs")
