# SPDX-License-Identifier: MIT
"""What goes wrong in a fake QEMU, and when.

Not here: carrying it out (``server``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto


class Effect(Enum):
    """What happens at a command.

    - ``FAIL``: it is answered with an error, and nothing was done.
    - ``HANG``: nothing is answered any more, on no monitor, until the fake is told to go on.
    - ``DISCONNECT``: its monitor is disconnected without an answer; a client may connect again.
    - ``DIE``: QEMU is gone, as after ``kill -9``.
    - ``FAIL_JOB``: the job that it starts ends with an error, and nothing was done.
    """

    FAIL = auto()
    HANG = auto()
    DISCONNECT = auto()
    DIE = auto()
    FAIL_JOB = auto()


@dataclass
class Fault:
    """Happens once, at the ``nth`` command from now on: of all commands, or of those called ``command``.

    With ``after``, QEMU has done what it was told to when it happens: only the answer is missing.
    """

    effect: Effect
    nth: int = 1
    command: str = ""
    after: bool = False
    text: str = "Input/output error"

    def __post_init__(self) -> None:
        if self.after and self.effect in (Effect.FAIL, Effect.FAIL_JOB):
            raise ValueError("what has been done does not fail")


class Faults:
    """The faults that are still to come; ``happened`` are those that came, in their order."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._coming = list(faults)
        self.happened: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._coming.append(fault)

    def at(self, command: str) -> Fault | None:
        """Count a command. Returns: the fault that is to happen at it, if there is one; the first of several."""
        due = None
        for fault in list(self._coming):
            if fault.command in ("", command):
                fault.nth -= 1
                if fault.nth <= 0 and due is None:
                    due = fault
                    self._coming.remove(fault)
                    self.happened.append(fault)
        return due
