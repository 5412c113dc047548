# SPDX-License-Identifier: MIT
"""A domain's committed state: its image graph and its snapshot tree, which change together or not at all.

Not here: how it is made durable (``state.store``).
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from snapd.model.domain import Disk, DomainDefinition, no_external, no_internal
from snapd.model.images import Image, ImageGraph, Origin
from snapd.model.snapshot import RevertState
from snapd.model.tree import SnapshotTree

LONGEST_STEM_BYTES = 50
"""Leaves room for the escaped name of a snapshot and the ending in the 255 bytes of a file name."""


@dataclass(frozen=True)
class PendingRevert:
    """A revert of a domain that was shut off, to a snapshot whose memory is loaded when QEMU runs again."""

    name: str
    state: RevertState


@dataclass(frozen=True)
class DomainRecord:
    """``follows_active`` is whether QEMU was last started on the images that we named as active."""

    name: str
    uuid: str
    graph: ImageGraph = field(default_factory=ImageGraph)
    tree: SnapshotTree = field(default_factory=SnapshotTree)
    pending: PendingRevert | None = None
    follows_active: bool = False

    @property
    def protects_nothing(self) -> bool:
        """Whether no snapshot and no image of ours depends on what QEMU has open, so that the user may change it freely."""
        images = self.graph.images.values()
        return not self.tree.snapshots and not any(image.origin is Origin.CREATED or image.doomed for image in images)

    def learn(self, disks: Iterable[Disk], formats: Mapping[str, str], *, follows_active: bool) -> "DomainRecord":
        """Return the record with each eligible disk that it does not know yet; ``formats`` gives each image's format.

        The image a disk runs on now becomes the one that the domain was defined with; what that backs on is foreign.
        """
        graph = ImageGraph() if self.protects_nothing else self.graph
        for disk in disks:
            if not disk.eligible or disk.target in graph.active:
                continue
            chain = [
                Image(
                    path=path,
                    format=formats[path],
                    backing=disk.chain[depth + 1] if depth + 1 < len(disk.chain) else None,
                    origin=Origin.FOREIGN if depth else Origin.DEFINED,
                    virtual_size_bytes=0 if depth else disk.virtual_size_bytes,
                )
                for depth, path in enumerate(disk.chain)
            ]
            unknown = [image for image in chain if image.path not in graph.images]
            graph = graph.with_images(*unknown)
            graph = ImageGraph(graph.images, {**graph.active, disk.target: disk.image}, graph.pins)
        return replace(self, graph=graph, follows_active=follows_active)

    def note_tags(self, tags: Mapping[str, Iterable[str]]) -> "DomainRecord":
        """Return the record with what there is of others' internal snapshots in images of ours; ``tags`` are all, by path."""
        changed = []
        for path, found in tags.items():
            image = self.graph.images.get(path)
            if image is None or image.origin is not Origin.CREATED:
                continue
            ours = self.graph.pinned_tags(path) | set(image.doomed)
            foreign = tuple(tag for tag in found if tag not in ours)
            if foreign != image.foreign_tags:
                changed.append(replace(image, foreign_tags=foreign))
        return replace(self, graph=self.graph.with_images(*changed)) if changed else self

    def drift(self, definition: DomainDefinition, disks: Iterable[Disk]) -> str:
        """Return how the images that QEMU has open differ from those expected, or nothing where they agree."""
        present = {disk.target: disk for disk in disks}
        for wanted in definition.disks:
            if wanted.target not in present:
                return f"its definition has a disk {wanted.target} and QEMU has none of that name"
            disk = present[wanted.target]
            is_free = self.protects_nothing or wanted.target not in self.graph.active
            if is_free and (disk.image, disk.format) != (wanted.image, wanted.format):
                return (
                    f"disk {wanted.target} is defined as {wanted.image} ({wanted.format}) and QEMU has opened "
                    f"{disk.image or 'nothing'} ({disk.format or 'no format'}); correct the definition or "
                    "start QEMU with that image"
                )
        for target, path in self.graph.active.items() if not self.protects_nothing else ():
            # One that was unplugged is for the revert that needs it to refuse.
            if target not in present:
                continue
            disk = present[target]
            expected = [image.path for image in self.graph.chain(path)]
            if disk.image != path:
                return (
                    f"disk {target} should be {path} and QEMU has opened {disk.image or 'nothing'}; start QEMU with the image "
                    "named in disks.env, before the guest writes to the wrong one"
                )
            if disk.format != self.graph.images[path].format:
                return (
                    f"disk {target} should be {path} ({self.graph.images[path].format}) and QEMU has opened it as "
                    f"{disk.format or 'no format'}; start QEMU with the format named in disks.env, before the guest writes"
                )
            if list(disk.chain) != expected:
                return (
                    f"disk {target} should back on {' on '.join(expected[1:]) or 'nothing'} and backs on "
                    f"{' on '.join(disk.chain[1:]) or 'nothing'}"
                )
        return ""

    def remembered_disks(self) -> tuple[Disk, ...]:
        """Return the disks as far as they are known without QEMU and without looking at their images."""
        return tuple(
            Disk(
                target=target,
                device="",
                node="",
                image=path,
                format=self.graph.images[path].format,
                chain=tuple(each.path for each in self.graph.chain(path)),
                virtual_size_bytes=self.graph.images[path].virtual_size_bytes,
                writable=True,
                no_internal=no_internal(self.graph.images[path].format),
                no_external=no_external(path),
            )
            for target, path in self.graph.active.items()
        )

    def defined_image(self, target: str) -> str:
        """Return the image that disk ``target`` was defined with."""
        chain = self.graph.chain(self.graph.active[target])
        return next((image.path for image in chain if image.origin is Origin.DEFINED), chain[0].path)

    def stem(self, target: str) -> str:
        """Return the file name of the defined image without its ending, cut to fit, for naming what covers it."""
        stem = posixpath.splitext(posixpath.basename(self.defined_image(target)))[0]
        return stem.encode(errors="ignore")[:LONGEST_STEM_BYTES].decode(errors="ignore")
