# SPDX-License-Identifier: MIT
"""What can be done to a domain, as values: the steps of which a random walk, and a recorded one, is made.

Not here: what a step should lead to (``expected``) and how it is done (``world``). The representation of a step is Python that
makes it again, so that a sequence which failed is pasted into ``test_regressions`` as it was printed.

- A snapshot is named as the step that made it named it; an undo point, whose name the service makes up, is ``undo#1`` for
  the first of the walk, ``undo#2`` for the second, and so on.
"""

from dataclasses import dataclass
from typing import Final

UNIT_BYTES: Final = 4096
DISK_UNITS: Final = 256
FIRST_UNIT: Final = 1
"""What lies before is the boot sector."""

DISK_BYTES: Final = UNIT_BYTES * DISK_UNITS


@dataclass(frozen=True)
class Setup:
    """How a walk begins: the kind of each disk, of which the first boots.

    A kind is ``raw``, ``qcow2``, or one of these on an image that the service must never write to: ``qcow2-on-raw``,
    ``qcow2-on-qcow2``.
    """

    disks: tuple[str, ...] = ("qcow2", "raw")


@dataclass(frozen=True)
class Write:
    """``how`` is ``write``, ``zero``, ``unmap`` (zeroes that may be given back) or ``discard``."""

    target: str
    unit: int
    units: int = 1
    pattern: int = 0
    how: str = "write"


@dataclass(frozen=True)
class Create:
    """``disks`` are pairs of a target and its kind; ``type`` is that of all others."""

    name: str
    type: str = "any"
    memory: bool | None = None
    disks: tuple[tuple[str, str], ...] = ()
    live: str = "auto"


@dataclass(frozen=True)
class Revert:
    """The empty name is the undo point of the last revert."""

    name: str
    state: str = "as-taken"
    undo: bool = True
    undo_memory: bool = False
    force: bool = False


@dataclass(frozen=True)
class Delete:
    name: str
    scope: str = "one"


@dataclass(frozen=True)
class Protect:
    """Protect a snapshot from deletes, and an undo point from reverts, or take that off again."""

    name: str
    protected: bool = True


@dataclass(frozen=True)
class CancelPending:
    """Give up the memory that waits for the next start."""


@dataclass(frozen=True)
class Pause: ...


@dataclass(frozen=True)
class Resume: ...


@dataclass(frozen=True)
class ShutOff:
    """``kill`` ends QEMU as ``kill -9`` does, after what was written has been flushed; else it is told to quit."""

    kill: bool = False


@dataclass(frozen=True)
class Start:
    """``links`` starts QEMU through the links of the state directory instead of the paths that ``disks.env`` names."""

    paused: bool = False
    links: bool = False
    memory_mib: int = 16


@dataclass(frozen=True)
class RestartService: ...


Step = Write | Create | Revert | Delete | Protect | CancelPending | Pause | Resume | ShutOff | Start | RestartService


def script(setup: Setup, steps: list[Step]) -> str:
    """Return Python that makes the walk again."""
    lines = [f"    {step!r}," for step in steps]
    return "\n".join([f"{setup!r},", "[", *lines, "],"])
