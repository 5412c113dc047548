# SPDX-License-Identifier: MIT
"""Image files as values, and what QEMU and its tools do to them.

A file has blocks of its own and falls through to its backing file, as qcow2 does; beyond the end of that it reads as zeros. An
internal snapshot is a copy of the blocks of one file: it falls through to the same backing file, whatever that is by then.
"""

from dataclasses import dataclass, field

from snapd.model.images import Merge

Content = tuple[int, ...]


@dataclass
class File:
    """An image file: ``blocks`` that it holds itself, and ``tags``, each with the size and the blocks at its instant."""

    size: int
    backing: str | None
    blocks: dict[int, int] = field(default_factory=dict)
    tags: dict[str, tuple[int, dict[int, int]]] = field(default_factory=dict)


class Files:
    """The image files of a host."""

    def __init__(self) -> None:
        self.by_path: dict[str, File] = {}

    # What they show

    def read(self, path: str) -> Content:
        return self._fall_through(self.by_path[path].size, self.by_path[path].blocks, path)

    def read_tag(self, path: str, tag: str) -> Content:
        size, blocks = self.by_path[path].tags[tag]
        return self._fall_through(size, blocks, path)

    def _fall_through(self, size: int, blocks: dict[int, int], path: str) -> Content:
        backing = self.by_path[path].backing
        return tuple(blocks[index] if index in blocks else self._block(backing, index) for index in range(size))

    def _block(self, path: str | None, index: int) -> int:
        while path is not None and index < self.by_path[path].size:
            if index in self.by_path[path].blocks:
                return self.by_path[path].blocks[index]
            path = self.by_path[path].backing
        return 0

    def chain(self, path: str) -> list[str]:
        found: list[str] = []
        at: str | None = path
        while at is not None:
            found.append(at)
            at = self.by_path[at].backing
        return found

    def backing_on(self, path: str) -> list[str]:
        return [each for each, file in self.by_path.items() if file.backing == path]

    # What is done to one

    def create(self, path: str, size: int, backing: str | None) -> None:
        assert path not in self.by_path
        self.by_path[path] = File(size, backing)

    def unlink(self, path: str) -> None:
        del self.by_path[path]

    def grow(self, path: str, size: int) -> None:
        """Grow a file; what its backing file has there is covered with zeros."""
        file = self.by_path[path]
        below = self.by_path[file.backing].size if file.backing else 0
        file.blocks.update(dict.fromkeys(range(file.size, min(size, below)), 0))
        file.size = max(size, file.size)

    def make_tag(self, path: str, tag: str) -> None:
        file = self.by_path[path]
        assert tag not in file.tags
        file.tags[tag] = (file.size, dict(file.blocks))

    def apply_tag(self, path: str, tag: str) -> None:
        file = self.by_path[path]
        file.size, file.blocks = file.tags[tag][0], dict(file.tags[tag][1])

    def drop_tag(self, path: str, tag: str) -> None:
        del self.by_path[path].tags[tag]

    def copy_tag(self, path: str, tag: str, copy: str) -> None:
        """Fill the new file ``copy`` with what differs from its backing file."""
        content, below = self.read_tag(path, tag), self.read(copy)
        assert len(content) == len(below)
        self.by_path[copy].blocks = {at: block for at, block in enumerate(content) if block != below[at]}

    # Merges

    def commit(self, step: Merge) -> None:
        """Copy the overlay into its backing file; that never shrinks, and the overlay's tags are lost with it."""
        overlay, backing = self.by_path[step.overlay], self.by_path[step.backing]
        self.grow(step.backing, overlay.size)
        backing.blocks.update(overlay.blocks)
        for path in step.repoint:
            self.by_path[path].backing = step.backing
        self.unlink(step.overlay)

    def stream(self, step: Merge) -> None:
        """Copy the backing file into the overlay, with zeros beyond its end; the overlay's tags read what is below then."""
        overlay, backing = self.by_path[step.overlay], self.by_path[step.backing]
        zeros = dict.fromkeys(range(backing.size, overlay.size), 0)
        copied = {at: block for at, block in backing.blocks.items() if at < overlay.size}
        overlay.blocks = {**zeros, **copied, **overlay.blocks}
        overlay.backing = step.below
        self.unlink(step.backing)
