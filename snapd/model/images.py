# SPDX-License-Identifier: MIT
"""The image graph: which images there are, what each backs on, which are active and which a snapshot pins.

It decides what may be unlinked or merged; it touches no file. Invariants, checked by ``violations`` and the property tests:

1. A frozen image's guest-visible content never changes.
2. What a snapshot pins always reads back as the content at its instant.
3. Nothing reachable from a pin or from an active image is ever unlinked. Nothing else stays for ever.
4. The active image is not frozen; no image backs on itself, directly or not.
5. Only images that the service created are ever unlinked; foreign ones, below the image a domain was defined with, are never
   written either.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Origin(StrEnum):
    """Who made an image, which decides what may happen to it."""

    FOREIGN = "foreign"
    DEFINED = "defined"
    CREATED = "created"


class Direction(StrEnum):
    COMMIT = "commit"
    STREAM = "stream"


@dataclass(frozen=True)
class Image:
    """``doomed`` names internal snapshots in it that nothing pins any more and that are still to be deleted.

    ``foreign_tags`` are internal snapshots that somebody else has made in an image of ours, which therefore stays.
    """

    path: str
    format: str
    backing: str | None
    origin: Origin
    virtual_size_bytes: int = 0
    doomed: tuple[str, ...] = ()
    foreign_tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFacts:
    """What an image says of itself; the last two are for what covers it, 0 and False where they do not apply."""

    virtual_size_bytes: int
    tags: tuple[str, ...]
    cluster_bytes: int = 0
    extended_l2: bool = False


@dataclass(frozen=True)
class Pin:
    """What a snapshot needs of one disk: a whole image, or with ``tag`` an internal snapshot inside it."""

    image: str
    tag: str = ""


@dataclass(frozen=True)
class Unlink:
    """Remove an image that nothing needs."""

    path: str


@dataclass(frozen=True)
class DropTag:
    """Delete an internal snapshot that nothing pins any more."""

    image: str
    tag: str


@dataclass(frozen=True)
class Merge:
    """Make one image of ``overlay`` and its ``backing``.

    A commit copies the overlay into the backing image, which then stands for both; ``repoint`` names the images that backed on
    the overlay. A stream copies the backing image into the overlay, which then backs on ``below``.
    """

    direction: Direction
    overlay: str
    backing: str
    below: str | None
    active: bool
    repoint: tuple[str, ...] = ()

    @property
    def removed(self) -> str:
        return self.overlay if self.direction is Direction.COMMIT else self.backing

    @property
    def kept(self) -> str:
        return self.backing if self.direction is Direction.COMMIT else self.overlay


Collection = Unlink | DropTag | Merge


@dataclass(frozen=True)
class ImageGraph:
    """A value; every change returns a new graph.

    ``active`` maps a disk's target to its active image; ``pins`` maps a snapshot's name to what it needs of each target.
    """

    images: Mapping[str, Image] = field(default_factory=dict)
    active: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, Mapping[str, Pin]] = field(default_factory=dict)

    # What is there

    def dependents(self, path: str) -> list[str]:
        """Return the images that back on ``path``."""
        return sorted(each.path for each in self.images.values() if each.backing == path)

    def chain(self, path: str) -> list[Image]:
        """Return the image ``path`` and all it backs on, top first."""
        found: list[Image] = []
        at: str | None = path
        while at is not None and len(found) <= len(self.images):
            found.append(self.images[at])
            at = self.images[at].backing
        return found

    def _all_pins(self) -> Iterator[Pin]:
        for by_target in self.pins.values():
            yield from by_target.values()

    def is_pinned_whole(self, path: str) -> bool:
        return any(pin.image == path and not pin.tag for pin in self._all_pins())

    def has_tags(self, path: str) -> bool:
        return bool(self.images[path].foreign_tags or self.pinned_tags(path))

    def pinned_tags(self, path: str) -> set[str]:
        """Return the internal snapshots in ``path`` that snapshots need."""
        return {pin.tag for pin in self._all_pins() if pin.image == path and pin.tag}

    def is_active(self, path: str) -> bool:
        return path in self.active.values()

    def is_frozen(self, path: str) -> bool:
        """Whether the content of ``path`` must not change: another image backs on it, or a snapshot pins it whole."""
        return self.is_pinned_whole(path) or any(each.backing == path for each in self.images.values())

    def _below_tags(self, path: str) -> bool:
        """Whether an image with tags is ``path`` or stands above it: a merge there would destroy what the tags hold."""
        return self.has_tags(path) or any(self._below_tags(each) for each in self.dependents(path))

    def violations(self) -> list[str]:
        """Return each broken structural invariant as a sentence."""
        broken = [
            f"{each.path} backs on {each.backing}, which is unknown"
            for each in self.images.values()
            if each.backing is not None and each.backing not in self.images
        ]
        for path in self.images:
            seen, at = {path}, self.images[path].backing
            while at is not None and at in self.images:
                if at in seen:
                    broken.append(f"{path} backs on itself")
                    break
                seen.add(at)
                at = self.images[at].backing
        for target, path in self.active.items():
            if path not in self.images:
                broken.append(f"the active image {path} of {target} is unknown")
            elif self.is_frozen(path):
                broken.append(f"the active image {path} of {target} is frozen")
        if len(set(self.active.values())) != len(self.active):
            broken.append("two disks share an active image")
        for snapshot, by_target in self.pins.items():
            broken += [
                f"snapshot {snapshot} pins {pin.image}, which is unknown"
                for pin in by_target.values()
                if pin.image not in self.images
            ]
        return broken

    # What can be done

    def with_images(self, *images: Image) -> "ImageGraph":
        return replace(self, images={**self.images, **{each.path: each for each in images}})

    def cover(self, target: str, overlay: Image) -> "ImageGraph":
        """Make ``overlay`` the active image of ``target``; it backs on any image of the graph.

        One that covers the active image is as large as that, which may have grown since it was learned.
        """
        covered = self.images.get(overlay.backing or "")
        if covered is None or overlay.path in self.images:
            raise ValueError(f"{overlay.path} cannot cover {overlay.backing}")
        if covered.path == self.active.get(target):
            covered = replace(covered, virtual_size_bytes=overlay.virtual_size_bytes)
        return replace(self.with_images(covered, overlay), active={**self.active, target: overlay.path})

    def pin(self, snapshot: str, pins: Mapping[str, Pin]) -> "ImageGraph":
        return replace(self, pins={**self.pins, snapshot: dict(pins)})

    def unpin(self, *snapshots: str) -> "ImageGraph":
        """Forget what ``snapshots`` need; internal ones are from then on to be deleted."""
        graph = self
        for pin in (pin for name in snapshots for pin in self.pins.get(name, {}).values() if pin.tag):
            graph = graph.doom(pin.image, pin.tag)
        return replace(graph, pins={name: by_target for name, by_target in self.pins.items() if name not in snapshots})

    def doom(self, path: str, tag: str) -> "ImageGraph":
        """Leave the internal snapshot ``tag`` in ``path``, which nothing pins, to be deleted."""
        image = self.images[path]
        return self.with_images(replace(image, doomed=(*image.doomed, tag)))

    def go_to(self, target: str, path: str, virtual_size_bytes: int) -> "ImageGraph":
        """Make ``path``, an image of the graph to which an internal snapshot was applied, the active image of ``target``."""
        applied = replace(self.images[path], virtual_size_bytes=virtual_size_bytes)
        return replace(self.with_images(applied), active={**self.active, target: path})

    def apply(self, step: Collection) -> "ImageGraph":
        """Return the graph after ``step``, which ``collect`` has proposed."""
        if isinstance(step, Unlink):
            return replace(self, images={path: each for path, each in self.images.items() if path != step.path})
        if isinstance(step, DropTag):
            image = self.images[step.image]
            return self.with_images(replace(image, doomed=tuple(tag for tag in image.doomed if tag != step.tag)))
        if step.direction is Direction.STREAM:
            streamed = self.with_images(replace(self.images[step.overlay], backing=step.below))
            return streamed.apply(Unlink(step.backing))

        def moved(path: str) -> str:
            return step.backing if path == step.overlay else path

        size = self.images[step.overlay].virtual_size_bytes
        images = {
            path: replace(each, backing=moved(each.backing) if each.backing else None)
            for path, each in self.images.items()
            if path != step.overlay
        }
        images[step.backing] = replace(images[step.backing], virtual_size_bytes=size)
        return ImageGraph(
            images=images,
            active={target: moved(path) for target, path in self.active.items()},
            pins={
                snapshot: {target: replace(pin, image=moved(pin.image)) for target, pin in by_target.items()}
                for snapshot, by_target in self.pins.items()
            },
        )

    def collect(self, allocated_bytes: Mapping[str, int], opened: Container[str] = ()) -> list[Collection]:
        """Return, in order, what brings the graph to rest: no image left that is neither needed nor a shared layer.

        Args:
            allocated_bytes: what each image occupies, by path; a merge runs in the direction that copies less.
            opened: the images that a QEMU has open. A frozen one of them is open for reading only, so an internal snapshot in
                it stays doomed until that changes.
        """
        steps: list[Collection] = []
        graph = self
        while step := graph._next_step(allocated_bytes, opened):
            steps.append(step)
            graph = graph.apply(step)
        return steps

    def _next_step(self, allocated_bytes: Mapping[str, int], opened: Container[str]) -> Collection | None:
        garbage = [
            image
            for _, image in sorted(self.images.items())
            if image.origin is not Origin.FOREIGN
            and not self.is_active(image.path)
            and not self.is_pinned_whole(image.path)
            and not self._below_tags(image.path)
        ]
        for image in garbage:
            if image.origin is Origin.CREATED and not self.dependents(image.path):
                return Unlink(image.path)
        for path, image in sorted(self.images.items()):
            if image.doomed and not (path in opened and self.is_frozen(path)):
                return DropTag(path, image.doomed[0])
        for image in garbage:
            above = self.dependents(image.path)
            if len(above) == 1 and (merge := self._merge(image, self.images[above[0]], allocated_bytes)):
                return merge
        return None

    def _merge(self, backing: Image, overlay: Image, allocated_bytes: Mapping[str, int]) -> Merge | None:
        # A commit never shrinks the backing image: the end of a larger one would show behind that of the overlay.
        can_commit = overlay.origin is Origin.CREATED and overlay.virtual_size_bytes >= backing.virtual_size_bytes
        can_stream = backing.origin is Origin.CREATED
        if not can_commit and not can_stream:
            return None
        commit_is_less = allocated_bytes.get(overlay.path, 0) <= allocated_bytes.get(backing.path, 0)
        commits = can_commit and (commit_is_less or not can_stream)
        return Merge(
            direction=Direction.COMMIT if commits else Direction.STREAM,
            overlay=overlay.path,
            backing=backing.path,
            below=backing.backing,
            active=self.is_active(overlay.path),
            repoint=tuple(self.dependents(overlay.path)) if commits else (),
        )
