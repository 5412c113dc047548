# SPDX-License-Identifier: MIT
"""The image graph by example: directions of a merge, what stays, what is refused, and what counts as broken.

Not here: sequences of operations (``tests/property/test_image_graph.py``).
"""

from dataclasses import replace

import pytest

from snapd.model.images import Collection, Direction, DropTag, Image, ImageGraph, Merge, Origin, Pin, Unlink

FOREIGN, DEFINED, CREATED = Origin.FOREIGN, Origin.DEFINED, Origin.CREATED


def _chain(*origins: Origin, sizes: tuple[int, ...] = ()) -> ImageGraph:
    """Make a graph of images ``/0`` (active), ``/1`` and so on, each backing on the next."""
    images = [
        Image(f"/{at}", "qcow2", f"/{at + 1}" if at + 1 < len(origins) else None, origin, sizes[at] if sizes else 0)
        for at, origin in enumerate(origins)
    ]
    return ImageGraph({each.path: each for each in images}, {"vda": "/0"})


# Merges


@pytest.mark.parametrize(
    ("overlay_bytes", "backing_bytes", "direction"),
    [(1, 2, Direction.COMMIT), (2, 2, Direction.COMMIT), (3, 2, Direction.STREAM)],
)
def test_a_merge_copies_the_smaller_image(overlay_bytes: int, backing_bytes: int, direction: Direction) -> None:
    graph = _chain(CREATED, CREATED, DEFINED).pin("kept", {"vda": Pin("/2")})

    (step,) = graph.collect({"/0": overlay_bytes, "/1": backing_bytes})

    assert step == Merge(direction, "/0", "/1", "/2", active=True)


def test_an_overlay_of_the_defined_image_is_committed_however_large() -> None:
    (step,) = _chain(CREATED, DEFINED).collect({"/0": 1000, "/1": 1})

    assert step == Merge(Direction.COMMIT, "/0", "/1", None, active=True)


def test_a_commit_moves_pins_and_dependents_to_the_image_that_stays() -> None:
    graph = _chain(CREATED, CREATED, DEFINED).pin("kept", {"vda": Pin("/1")})

    (step,) = graph.collect({})

    assert step == Merge(Direction.COMMIT, "/1", "/2", None, active=False, repoint=("/0",))
    after = graph.apply(step)
    assert after.pins["kept"]["vda"] == Pin("/2")
    assert after.images["/0"].backing == "/2"


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [
        ((5, 4), [Merge(Direction.COMMIT, "/0", "/1", None, active=True)]),
        ((4, 4), [Merge(Direction.COMMIT, "/0", "/1", None, active=True)]),
        # It would show the end of the larger one, and an image is never shrunk.
        ((4, 5), []),
    ],
)
def test_an_overlay_is_committed_only_into_an_image_that_is_not_larger(sizes: tuple[int, int], steps: list[Collection]) -> None:
    graph = _chain(CREATED, DEFINED, sizes=sizes)

    assert graph.collect({}) == steps
    for step in steps:
        assert graph.apply(step).images["/1"].virtual_size_bytes == sizes[0]


def test_a_larger_image_of_ours_is_streamed_instead_of_committed_into() -> None:
    graph = _chain(CREATED, CREATED, DEFINED, sizes=(4, 5, 4)).pin("kept", {"vda": Pin("/2")})

    (step,) = graph.collect({"/0": 1, "/1": 1000})

    assert step == Merge(Direction.STREAM, "/0", "/1", "/2", active=True)
    assert graph.apply(step).images == {
        "/0": Image("/0", "qcow2", "/2", CREATED, 4),
        "/2": Image("/2", "qcow2", None, DEFINED, 4),
    }


# What stays


@pytest.mark.parametrize(
    "graph",
    [
        _chain(DEFINED, FOREIGN),
        _chain(CREATED, FOREIGN),
        _chain(DEFINED, DEFINED),
        _chain(DEFINED).with_images(Image("/old", "qcow2", None, DEFINED), Image("/base", "raw", None, FOREIGN)),
    ],
)
def test_what_the_service_did_not_make_stays(graph: ImageGraph) -> None:
    assert graph.collect({}) == []


@pytest.mark.parametrize("holder", ["/0", "/1"])
def test_an_image_with_internal_snapshots_and_what_is_below_it_stay(holder: str) -> None:
    graph = _chain(CREATED, CREATED, DEFINED).pin("s", {"vda": Pin(holder, "s")})

    assert graph.collect({}) == []


# Internal snapshots


@pytest.mark.parametrize(
    ("frozen", "opened", "steps"),
    [
        (False, (), [DropTag("/0", "s")]),
        (False, ("/0",), [DropTag("/0", "s")]),
        (True, (), [DropTag("/0", "s")]),
        (True, ("/0",), []),
        (True, ("/other",), [DropTag("/0", "s")]),
    ],
)
def test_an_internal_snapshot_that_nothing_pins_goes_unless_its_image_is_open_for_reading(
    frozen: bool, opened: tuple[str, ...], steps: list[Collection]
) -> None:
    graph = _chain(DEFINED).pin("s", {"vda": Pin("/0", "s")})
    if frozen:
        graph = graph.cover("vda", Image("/over", "qcow2", "/0", CREATED)).pin("kept", {"vda": Pin("/0")})

    after = graph.unpin("s")

    assert after.images["/0"].doomed == ("s",)
    assert after.collect({}, opened) == steps


def test_several_snapshots_are_forgotten_at_once() -> None:
    graph = (
        _chain(DEFINED).pin("s", {"vda": Pin("/0", "s")}).pin("t", {"vda": Pin("/0", "t")}).pin("u", {"vda": Pin("/0", "u")})
    )

    after = graph.unpin("s", "u", "never there")

    assert set(after.pins) == {"t"}
    assert after.images["/0"].doomed == ("s", "u")
    assert after.collect({}) == [DropTag("/0", "s"), DropTag("/0", "u")]


def test_an_image_that_goes_is_not_tidied_first() -> None:
    graph = _chain(DEFINED).with_images(Image("/old", "qcow2", "/0", CREATED, doomed=("s",)))

    assert graph.collect({}) == [Unlink("/old")]


def test_a_merge_comes_after_the_internal_snapshots_that_stood_in_its_way() -> None:
    graph = _chain(CREATED, DEFINED).doom("/0", "s").doom("/1", "t")

    assert graph.collect({}) == [
        DropTag("/0", "s"),
        DropTag("/1", "t"),
        Merge(Direction.COMMIT, "/0", "/1", None, active=True),
    ]
    # One that had to wait for the merge comes after it.
    assert graph.collect({}, ("/0", "/1")) == [
        DropTag("/0", "s"),
        Merge(Direction.COMMIT, "/0", "/1", None, active=True),
        DropTag("/1", "t"),
    ]


def test_to_go_to_an_image_is_to_make_it_active_with_the_size_of_what_was_applied() -> None:
    graph = _chain(CREATED, DEFINED, sizes=(5, 4)).with_images(Image("/left", "qcow2", "/1", CREATED, 9))

    after = graph.go_to("vda", "/left", 6)

    assert after.active == {"vda": "/left"}
    assert after.images["/left"] == Image("/left", "qcow2", "/1", CREATED, 6)


@pytest.mark.parametrize(("path", "frozen"), [("/0", False), ("/1", True), ("/pinned", True), ("/tagged", False)])
def test_an_image_is_frozen_by_what_backs_on_it_and_by_what_pins_it_whole(path: str, frozen: bool) -> None:
    graph = _chain(CREATED, DEFINED).with_images(
        Image("/pinned", "qcow2", "/1", CREATED), Image("/tagged", "qcow2", "/1", CREATED)
    )
    graph = graph.pin("s", {"vda": Pin("/pinned")}).pin("t", {"vda": Pin("/tagged", "t")})

    assert graph.is_frozen(path) is frozen


# Covering


@pytest.mark.parametrize(
    "overlay",
    [
        Image("/1", "qcow2", "/0", CREATED),
        Image("/2", "qcow2", "/9", CREATED),
        Image("/2", "qcow2", None, CREATED),
    ],
)
def test_an_image_covers_only_a_known_one_and_only_as_a_new_one(overlay: Image) -> None:
    with pytest.raises(ValueError, match=f"{overlay.path} cannot cover {overlay.backing}"):
        _chain(DEFINED, FOREIGN).cover("vda", overlay)


def test_an_image_that_was_grown_has_its_size_when_it_is_covered() -> None:
    graph = _chain(CREATED, DEFINED, sizes=(4, 4))

    active = graph.cover("vda", Image("/new", "qcow2", "/0", CREATED, 6))
    other = graph.cover("vda", Image("/new", "qcow2", "/1", CREATED, 3))

    assert active.images["/0"].virtual_size_bytes == 6
    # What is frozen did not change its size since it was covered.
    assert other.images["/1"].virtual_size_bytes == 4


# Broken graphs


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (_chain(DEFINED).with_images(Image("/0", "raw", "/x", DEFINED)), "/0 backs on /x, which is unknown"),
        (_chain(DEFINED).with_images(Image("/0", "qcow2", "/0", DEFINED)), "/0 backs on itself"),
        (ImageGraph(active={"vda": "/x"}), "the active image /x of vda is unknown"),
        (_chain(DEFINED).pin("s", {"vda": Pin("/0")}), "the active image /0 of vda is frozen"),
        (replace(_chain(DEFINED), active={"vda": "/0", "vdb": "/0"}), "two disks share an active image"),
        (_chain(DEFINED).pin("s", {"vda": Pin("/x", "t")}), "snapshot s pins /x, which is unknown"),
    ],
)
def test_a_broken_graph_is_told(broken: ImageGraph, sentence: str) -> None:
    assert sentence in broken.violations()


def test_an_internal_snapshot_does_not_freeze_the_active_image() -> None:
    assert _chain(DEFINED).pin("s", {"vda": Pin("/0", "t")}).violations() == []
