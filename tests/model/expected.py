# SPDX-License-Identifier: MIT
"""What must be: the model that a domain is compared with, plain bytes and plain dictionaries.

Not here: the domain itself (``rig``) and the comparison (``checks``). It knows nothing of images, overlays or tags: a snapshot
is the content of some disks and perhaps a memory, and a revert puts it back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.model.guest import Memory
from tests.model.steps import UNIT_BYTES, Delete, Revert

UNDO_PREFIX = "undo#"
RUNNING, PAUSED, SHUTOFF = "running", "paused", "shutoff"


@dataclass
class Past:
    """A snapshot: ``content`` of the disks that it includes, and its ``memory``, saved on a machine of ``memory_mib``."""

    content: dict[str, bytes]
    state: str
    parent: str
    memory: Memory | None = None
    memory_mib: int = 0
    is_undo: bool = False
    protected: bool = False


@dataclass
class Expected:
    """``pending`` is the revert whose memory is loaded when QEMU runs again; ``current`` is empty where there is none."""

    present: dict[str, bytes]
    state: str = RUNNING
    memory_mib: int = 16
    past: dict[str, Past] = field(default_factory=dict)
    current: str = ""
    pending: Revert | None = None
    undo_points: int = 0

    # What is there

    @property
    def undo_point(self) -> str:
        """The name of the newest undo point, or nothing where there is none."""
        numbers = [int(name.removeprefix(UNDO_PREFIX)) for name, past in self.past.items() if past.is_undo]
        return f"{UNDO_PREFIX}{max(numbers)}" if numbers else ""

    def below(self, name: str) -> list[str]:
        """Return ``name`` and all its descendants."""
        found = [name]
        for each in found:
            found += [child for child, past in self.past.items() if past.parent == each]
        return found

    def scope(self, step: Delete) -> list[str]:
        """Return what a delete takes."""
        return {"one": [step.name], "tree": self.below(step.name), "children": self.below(step.name)[1:]}[step.scope]

    # What happens

    def write(self, target: str, unit: int, data: bytes) -> None:
        was = self.present[target]
        at = unit * UNIT_BYTES
        self.present[target] = was[:at] + data + was[at + len(data) :]

    def create(self, name: str, targets: Iterable[str], memory: Memory | None) -> None:
        content = {target: self.present[target] for target in targets}
        self.past[name] = Past(content, self.state, self.current, memory, self.memory_mib)
        self.current = name

    def loads(self, name: str) -> bool:
        """Whether a revert to the snapshot loads memory at once."""
        return self.past[name].memory is not None and self.state != SHUTOFF

    def revert(self, step: Revert, undo_memory: Memory | None, *, goes_on: bool = False) -> None:
        """Go back; undo points of earlier reverts end, also one that is gone back to, unless its memory is yet to be loaded.

        One that ``goes_on`` with an earlier one, whose memory had to wait, ends none.
        """
        name = step.name or self.undo_point
        target = self.past[name]
        waits = target.memory is not None and self.state == SHUTOFF
        points = [each for each, past in self.past.items() if past.is_undo and not past.protected]
        ended = [] if goes_on else [each for each in points if not (waits and each == name)]
        if step.undo:
            self.undo_points += 1
            kept = {each: self.present[each] for each in target.content}
            undo = Past(kept, self.state, self.current, undo_memory, self.memory_mib, is_undo=True)
            self.past[f"{UNDO_PREFIX}{self.undo_points}"] = undo
        self.pending = Revert(name, step.state) if waits else None
        self.state = self.state_after(step.state, target)
        self.present.update(target.content)
        self.current = name
        self.remove(ended)

    def state_after(self, wanted: str, target: Past) -> str:
        """Return the state that a revert to ``target`` leaves the domain in."""
        if self.state == SHUTOFF:
            return SHUTOFF
        if wanted != "as-taken":
            return wanted
        return self.state if target.state == SHUTOFF else target.state

    def remove(self, names: Iterable[str]) -> None:
        """Remove snapshots; what was below them moves up, and memory that waits to be loaded from them is forgotten."""
        for name in names:
            parent = self.past.pop(name).parent
            for past in self.past.values():
                past.parent = parent if past.parent == name else past.parent
            self.current = parent if self.current == name else self.current
            if self.pending and self.pending.name == name:
                self.pending = None

    def start(self, *, paused: bool, memory_mib: int) -> Memory | None:
        """Start the domain. Returns: the memory that it had been waiting to load, if any, and has loaded by now.

        The loading is a revert of its own, with an undo point of what the domain has written since it was started.
        """
        self.memory_mib = memory_mib
        self.state = PAUSED if paused else RUNNING
        if self.pending is None:
            return None
        memory = self.past[self.pending.name].memory
        self.revert(self.pending, None, goes_on=True)
        return memory


def different_units(expected: bytes, found: bytes) -> list[int]:
    """Return the number of each unit in which two contents differ."""
    ends = range(0, max(len(expected), len(found)), UNIT_BYTES)
    return [at // UNIT_BYTES for at in ends if expected[at : at + UNIT_BYTES] != found[at : at + UNIT_BYTES]]


def parents(past: Mapping[str, Past]) -> dict[str, str]:
    return {name: each.parent for name, each in past.items()}
