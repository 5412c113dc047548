# SPDX-License-Identifier: MIT
"""The image graph by example: directions of a merge, what stays, what is refused, and what counts as broken.

Not here: sequences of operations (``tests/property/test_image_graph.py``).
"""

from dataclasses import replace

import pytest

from snapd.model.images import Direction, Image, ImageGraph, Merge, Origin, Pin, graph_of_chain


def _chain(*origins: Origin) -> ImageGraph:
    """Make a graph of images ``/0`` (active), ``/1`` and so on, each backing on the next."""
    paths = [f"/{at}" for at in range(len(origins))]
    backings = [*paths[1:], None]
    return graph_of_chain("vda", tuple(Image(*each) for each in zip(paths, ["qcow2"] * 9, backings, origins, strict=False)))


@pytest.mark.parametrize(
    ("overlay_bytes", "backing_bytes", "direction"),
    [(1, 2, Direction.COMMIT), (2, 2, Direction.COMMIT), (3, 2, Direction.STREAM)],
)
def test_a_merge_copies_the_smaller_image(overlay_bytes: int, backing_bytes: int, direction: Direction) -> None:
    graph = _chain(Origin.CREATED, Origin.CREATED, Origin.DEFINED).pin("kept", {"vda": Pin("/2")})

    (step,) = graph.collect({"/0": overlay_bytes, "/1": backing_bytes})

    assert step == Merge(direction, "/0", "/1", "/2", active=True)


def test_an_overlay_of_the_defined_image_is_committed_however_large() -> None:
    (step,) = _chain(Origin.CREATED, Origin.DEFINED).collect({"/0": 1000, "/1": 1})

    assert step == Merge(Direction.COMMIT, "/0", "/1", None, active=True)


def test_a_commit_moves_pins_and_dependents_to_the_image_that_stays() -> None:
    graph = _chain(Origin.CREATED, Origin.CREATED, Origin.DEFINED).pin("kept", {"vda": Pin("/1")})

    (step,) = graph.collect({})

    assert step == Merge(Direction.COMMIT, "/1", "/2", None, active=False, repoint=("/0",))
    after = graph.apply(step)
    assert after.pins["kept"]["vda"] == Pin("/2")
    assert after.images["/0"].backing == "/2"


@pytest.mark.parametrize(
    "graph",
    [
        _chain(Origin.DEFINED, Origin.FOREIGN),
        _chain(Origin.CREATED, Origin.FOREIGN),
        _chain(Origin.DEFINED, Origin.DEFINED),
        _chain(Origin.DEFINED).with_images(
            Image("/old", "qcow2", None, Origin.DEFINED), Image("/base", "raw", None, Origin.FOREIGN)
        ),
    ],
)
def test_what_the_service_did_not_make_stays(graph: ImageGraph) -> None:
    assert graph.collect({}) == []


@pytest.mark.parametrize("overlay", [Image("/1", "qcow2", "/0", Origin.CREATED), Image("/2", "qcow2", "/9", Origin.CREATED)])
def test_an_image_covers_only_a_known_one_and_only_as_a_new_one(overlay: Image) -> None:
    with pytest.raises(ValueError, match=f"{overlay.path} cannot cover {overlay.backing}"):
        _chain(Origin.DEFINED, Origin.FOREIGN).cover("vda", overlay)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (_chain(Origin.DEFINED).with_images(Image("/0", "raw", "/x", Origin.DEFINED)), "/0 backs on /x, which is unknown"),
        (_chain(Origin.DEFINED).with_images(Image("/0", "qcow2", "/0", Origin.DEFINED)), "/0 backs on itself"),
        (ImageGraph(active={"vda": "/x"}), "the active image /x of vda is unknown"),
        (_chain(Origin.DEFINED).pin("s", {"vda": Pin("/0")}), "the active image /0 of vda is frozen"),
        (replace(_chain(Origin.DEFINED), active={"vda": "/0", "vdb": "/0"}), "two disks share an active image"),
        (_chain(Origin.DEFINED).pin("s", {"vda": Pin("/x", "t")}), "snapshot s pins /x, which is unknown"),
    ],
)
def test_a_broken_graph_is_told(broken: ImageGraph, sentence: str) -> None:
    assert sentence in broken.violations()
