# SPDX-License-Identifier: MIT
"""Which step comes next: chosen at random, all of a walk by one seed.

Not here: doing it (``world``), and the walks that hypothesis chooses (``test_model``).
"""

import random

from tests.model.expected import PAUSED, RUNNING, SHUTOFF, Expected
from tests.model.steps import (
    DISK_UNITS,
    FIRST_UNIT,
    CancelPending,
    Create,
    Delete,
    Pause,
    Protect,
    RestartService,
    Resume,
    Revert,
    Setup,
    ShutOff,
    Start,
    Step,
    Write,
)

MOST_SNAPSHOTS = 8
MOST_UNITS = 40
SETUPS = (
    Setup(("qcow2", "raw")),
    Setup(("raw", "qcow2")),
    Setup(("qcow2", "qcow2-on-raw")),
    Setup(("qcow2-on-qcow2", "raw", "qcow2")),
    Setup(("raw", "qcow2-on-qcow2", "qcow2")),
)
HOWS = ("write", "write", "write", "zero", "unmap", "discard")
TYPES = ("any", "any", "internal", "external")
KINDS = ("internal", "external", "no")
ODD_NAMES = ("a b {}", "ü,{}", ".{}", "%41{}", "-{}", "'\"{}", "{}=#:~", "\\{}", "{}" + 60 * "€")
"""For names that a file, a command line or a protocol might take for something else."""

_ALWAYS = {"create": 6.0, "revert": 5.0, "delete": 3.0, "restart": 0.5, "protect": 0.4, "cancel": 0.0}
_WEIGHTS = {
    RUNNING: _ALWAYS | {"write": 7.0, "pause": 1.0, "shut off": 2.0},
    PAUSED: _ALWAYS | {"write": 7.0, "resume": 2.0, "shut off": 2.0},
    SHUTOFF: _ALWAYS | {"write": 6.0, "start": 7.0, "cancel": 0.5},
}


def snapshot_name(number: int, odd: int | None) -> str:
    """Return a name that no other step of the walk has; ``odd`` chooses an odd one."""
    return f"s{number}" if odd is None else ODD_NAMES[odd % len(ODD_NAMES)].format(f"s{number}")


class Chooser:
    """Chooses steps that make sense, most of them ones that are not refused."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._number = 0

    def setup(self) -> Setup:
        return self._chance.choice(SETUPS)

    def step(self, expected: Expected) -> Step:
        weights = dict(_WEIGHTS[expected.state])
        if not expected.past:
            weights["revert"] = weights["delete"] = weights["protect"] = 0
        if expected.pending is None:
            weights["cancel"] = 0
        if len(expected.past) >= MOST_SNAPSHOTS:
            weights["create"] = 0
            weights["delete"] *= 3
        chosen = self._chance.choices(list(weights), list(weights.values()))[0]
        match chosen:
            case "write":
                return self._write(expected)
            case "create":
                return self._create(expected)
            case "revert":
                return self._revert(expected)
            case "delete":
                scope = self._chance.choices(["one", "tree", "children"], [8, 1, 1])[0]
                return Delete(self._snapshot(expected), scope)
            case "protect":
                name = self._snapshot(expected)
                return Protect(name, not expected.past[name].protected)
            case "cancel":
                return CancelPending()
            case "shut off":
                return ShutOff(kill=self._often(0.4))
            case "start":
                memory_mib = 16
                if expected.pending is None and self._often(0.05):
                    memory_mib = 24
                return Start(paused=self._often(0.3), links=self._often(0.4), memory_mib=memory_mib)
            case "pause":
                return Pause()
            case "resume":
                return Resume()
            case _:
                return RestartService()

    def _often(self, part: float) -> bool:
        return self._chance.random() < part

    def _snapshot(self, expected: Expected) -> str:
        return self._chance.choice(sorted(expected.past))

    def _write(self, expected: Expected) -> Write:
        unit = self._chance.randrange(FIRST_UNIT, DISK_UNITS)
        units = min(self._chance.choice((1, 1, 3, 16, MOST_UNITS)), DISK_UNITS - unit)
        how = self._chance.choice(HOWS)
        pattern = self._chance.randrange(1, 256) if how == "write" else 0
        return Write(self._chance.choice(sorted(expected.present)), unit, units, pattern, how)

    def _create(self, expected: Expected) -> Create:
        self._number += 1
        name = snapshot_name(self._number, self._chance.randrange(len(ODD_NAMES)) if self._often(0.2) else None)
        memory = self._chance.choice((None, None, False, False, True))
        disks = {target: self._chance.choice(KINDS) for target in sorted(expected.present) if self._often(0.35)}
        if memory is not False and expected.state != SHUTOFF and self._often(0.9):
            disks = {target: kind for target, kind in disks.items() if kind != "no"}
        live = self._chance.choice(("auto", "auto", "auto", "no"))
        return Create(name, self._chance.choice(TYPES), memory, tuple(disks.items()), live)

    def _revert(self, expected: Expected) -> Revert:
        name = "" if self._often(0.2) else self._snapshot(expected)
        past = expected.past.get(name or expected.undo_point)
        state = self._chance.choice(("as-taken", "as-taken", "running", "paused"))
        if expected.state == SHUTOFF and past and past.memory is None and self._often(0.9):
            state = "as-taken"
        was_off = past is not None and past.state == SHUTOFF and expected.state != SHUTOFF
        return Revert(
            name, state, undo=self._often(0.7), undo_memory=self._often(0.3), force=self._often(0.8 if was_off else 0.1)
        )
