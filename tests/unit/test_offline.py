# SPDX-License-Identifier: MIT
"""A domain that is shut off as the engine sees it: disks as remembered and looked at, internal snapshots all or none."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from snapd.engine.offline import Offline
from snapd.engine.ports import Qemu
from snapd.errors import ImageInUse, ImageToolFailed, NotSupported, SnapdError
from snapd.model.domain import DomainState
from snapd.model.images import Direction, ImageFacts, Merge
from snapd.model.plan import CreateRequest, Opening, Parking, Tag
from snapd.model.record import DomainRecord
from tests.unit.planned_domain import VDA, VDB, VDC, Domain

SIZE = 3 << 30
FULL = "No space left on device"


@dataclass
class Images:
    """Image files with internal snapshots; ``fails`` names the images on which the next step fails."""

    tags: dict[str, list[str]] = field(default_factory=dict)
    fails: dict[str, SnapdError] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    async def look(self, path: str, image_format: str) -> ImageFacts:
        self._ask("look", path, image_format)
        return ImageFacts(SIZE, tuple(self.tags.get(path, ())), 1 << 16, extended_l2=True)

    async def make_tag(self, path: str, tag: str) -> None:
        self._ask("make", path, tag)
        self.tags.setdefault(path, []).append(tag)

    async def drop_tag(self, path: str, tag: str) -> None:
        self._ask("drop", path, tag)
        self.tags[path].remove(tag)

    def _ask(self, what: str, path: str, subject: str) -> None:
        self.asked.append((what, path, subject))
        if path in self.fails:
            raise self.fails[path]


def _offline(images: Images, domain: Domain) -> Offline:
    return Offline(cast("Any", images), domain.record)


async def test_the_disks_are_those_remembered_with_what_their_images_say() -> None:
    domain = Domain(VDA, VDB)
    domain.take("s")
    images = Images({"/images/web.s.qcow2": ["t"]})
    offline = _offline(images, domain)

    seen = await offline.inspect()

    assert (seen.state, seen.uuid, seen.machine, seen.open_images) == (DomainState.SHUTOFF, "1b4e28ba", None, {})
    assert sorted(images.asked) == [("look", "/images/data.s.qcow2", "qcow2"), ("look", "/images/web.s.qcow2", "qcow2")]
    vda, vdb = seen.disks
    assert (vda.target, vda.image, vda.format, vda.tags) == ("vda", "/images/web.s.qcow2", "qcow2", ("t",))
    assert vda.chain == ("/images/web.s.qcow2", VDA.image, "/base/os.raw")
    assert (vda.virtual_size_bytes, vda.cluster_bytes, vda.extended_l2) == (SIZE, 1 << 16, True)
    assert (vda.writable, vda.eligible, vdb.tags) == (True, True, ())
    assert seen.formats == {path: image.format for path, image in domain.graph.images.items()}
    assert await offline.open_images() == {}


@pytest.mark.parametrize("follows_active", [True, False])
async def test_whether_its_next_start_finds_the_active_images_is_remembered(follows_active: bool) -> None:
    domain = Domain(VDA)
    domain.record = replace(domain.record, follows_active=follows_active)

    assert (await _offline(Images(), domain).inspect()).follows_active is follows_active


async def test_what_can_be_made_of_each_disk_is_told_by_format_and_place() -> None:
    (vdb,) = await _offline(Images(), Domain(VDB)).disks()

    assert vdb.no_internal == "its format raw has no internal snapshots"
    assert vdb.no_external == ""


async def test_an_image_that_something_has_open_is_refused() -> None:
    images = Images(fails={VDA.image: ImageInUse(VDA.image, "is open in another program")})

    with pytest.raises(ImageInUse):
        await _offline(images, Domain(VDA, VDC)).inspect()


async def test_a_domain_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(NotSupported) as refusal:
        await Offline(cast("Any", Images()), DomainRecord("web", "u")).inspect()

    assert refusal.value.sentence == (
        "A snapshot of a domain that is shut off is not possible for domain web: none of its disks is known yet; start it once "
        "while the service runs, so that they are learned."
    )


# Internal snapshots


def _tags(name: str) -> list[Tag]:
    return [Tag(disk, name) for disk in (VDA, VDB, VDC)]


async def test_an_internal_snapshot_is_made_in_each_image() -> None:
    images = Images()

    await _offline(images, Domain(VDA)).take([], _tags("s"))

    assert images.tags == {VDA.image: ["s"], VDB.image: ["s"], VDC.image: ["s"]}


async def test_if_one_cannot_be_made_those_before_it_are_taken_back_newest_first() -> None:
    images = Images({VDA.image: ["old"]}, {VDC.image: ImageToolFailed("qemu-img snapshot", FULL)})

    with pytest.raises(ImageToolFailed, match=FULL):
        await _offline(images, Domain(VDA)).take([], _tags("s"))

    assert images.tags == {VDA.image: ["old"], VDB.image: []}
    assert [each for each in images.asked if each[0] == "drop"] == [("drop", VDB.image, "s"), ("drop", VDA.image, "s")]


async def test_an_internal_snapshot_is_deleted_in_its_image() -> None:
    images = Images({VDA.image: ["s", "t"]})

    await _offline(images, Domain(VDA)).drop_tag(VDA.image, "s")

    assert images.tags == {VDA.image: ["t"]}


# What only a QEMU needs


def _report(*_: object) -> None: ...


async def test_what_only_a_qemu_needs_touches_nothing() -> None:
    images = Images()
    domain = Domain(VDA, VDB)
    before = domain.record
    offline = _offline(images, domain)
    overlay = domain.plan(CreateRequest("s", disks={"vda": "internal"})).overlays[0]
    parking = Parking(VDA, "n", domain.graph.images[VDA.image])

    offline.rename({"/a": "/b"})
    await offline.open_overlay(overlay, "")
    await offline.open_image(Opening("n", overlay.image, ""))
    await offline.close_nodes(["n"])
    await offline.close_unused([VDA.image])
    await offline.stop()
    await offline.resume()
    await offline.park(parking)
    await offline.unpark(parking)
    await offline.swap(overlay)
    await offline.swap_back(VDA)
    await offline.reset()
    await offline.merge(Merge(Direction.COMMIT, "/a", "/b", None, active=True), _report)
    await offline.disarm_live_save()
    await offline.detach_memory()

    assert (await offline.has_run(), await offline.hold(VDA, "n"), await offline.pause_usec()) == (False, False, 0)
    assert images.asked == []
    assert domain.record == before


@pytest.mark.parametrize(
    "ask",
    [
        lambda qemu: qemu.arm_live_save(0),
        lambda qemu: qemu.save_live(_report),
        lambda qemu: qemu.attach_memory(0, 0),
        lambda qemu: qemu.save_paused("memory", 0),
        lambda qemu: qemu.make_loadable(),
        lambda qemu: qemu.load("memory", 0),
    ],
)
async def test_memory_is_never_asked_for(ask: Callable[[Qemu], Awaitable[None]]) -> None:
    with pytest.raises(RuntimeError, match="domain web is shut off and has no memory"):
        await ask(_offline(Images(), Domain(VDA)))


def test_it_is_a_qemu_to_the_engine() -> None:
    qemu: Qemu = _offline(Images(), Domain(VDA))

    assert isinstance(qemu, Offline)
