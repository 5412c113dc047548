# SPDX-License-Identifier: MIT
"""The long profile of the model test: random walks until the time is over, then what was done, by kind.

``python -m tests.model.soak``. The environment may say ``DOMSNAPD_SOAK_SECONDS`` (an hour unless it does) and
``DOMSNAPD_SOAK_SEED``, the first walk's. A walk that fails is printed as Python for ``test_regressions.py``, shortened as far
as that goes, and the exit status is 1. Not here: the walks themselves (``world``).
"""

import asyncio
import contextlib
import io
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.model.chooser import Chooser
from tests.model.steps import Setup, Step, script
from tests.model.world import world

SECONDS_VARIABLE = "DOMSNAPD_SOAK_SECONDS"
SEED_VARIABLE = "DOMSNAPD_SOAK_SEED"
DEFAULT_S = 3600.0
STEPS = 60
SHORTEN_S = 600.0
REPORT_EVERY_S = 60.0
MOST_MORE_OPEN = 10
"""Descriptors that the service may have open beyond those after the first walk: a leak grows with every walk."""


class Failed(Exception):
    """A walk that failed, with its ``steps``."""

    def __init__(self, setup: Setup, steps: list[Step], why: str) -> None:
        self.setup, self.steps, self.why = setup, steps, why
        super().__init__(why)


async def random_walk(seed: int, steps: int, counts: Counter[str]) -> None:
    """Take ``steps`` random steps; ``counts`` is added to. Raises: Failed."""
    chooser = Chooser(random.Random(seed))
    setup = chooser.setup()
    taken: list[Step] = []
    try:
        async with world(setup) as walk:
            taken = walk.steps
            while len(walk.steps) < steps:
                if await walk.do(chooser.step(walk.expected)):
                    counts["steps"] += 1
            await walk.end()
            counts += walk.counts
    except Exception as error:
        raise Failed(setup, list(taken), f"{type(error).__name__}: {error}") from error
    counts["walks"] += 1


async def replay(setup: Setup, steps: Sequence[Step]) -> list[Step]:
    """Take the steps that make sense. Returns: those. Raises: Failed."""
    taken: list[Step] = []
    try:
        async with world(setup) as walk:
            taken = walk.steps
            for step in steps:
                await walk.do(step)
            done = list(taken)
            await walk.end()
            return done
    except Exception as error:
        raise Failed(setup, list(taken), f"{type(error).__name__}: {error}") from error


def shorten(failed: Failed, seconds: float = SHORTEN_S) -> Failed:
    """Leave out steps as long as the walk still fails, until ``seconds`` are over. Returns: the shortest that failed."""
    deadline = time.monotonic() + seconds
    best, size = failed, max(1, len(failed.steps) // 2)
    while time.monotonic() < deadline:
        at = 0
        while at < len(best.steps) - 1 and time.monotonic() < deadline:
            tried = [*best.steps[:at], *best.steps[at + size :]]
            again = _fails(best.setup, tried)
            if again is None or len(again.steps) >= len(best.steps):
                at += size
            else:
                best = again
        if size == 1:
            break
        size = max(1, size // 2)
    return best


def _fails(setup: Setup, steps: Sequence[Step]) -> Failed | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            asyncio.run(replay(setup, steps))
    except Failed as failed:
        return failed
    return None


def main() -> int:
    # Whoever ends this ends the QEMU of the walk too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    end = time.monotonic() + float(os.environ.get(SECONDS_VARIABLE, DEFAULT_S))
    seed = int(os.environ.get(SEED_VARIABLE, "") or random.randrange(1 << 32))
    counts: Counter[str] = Counter()
    reported, first_open = time.monotonic(), 0
    while time.monotonic() < end:
        try:
            asyncio.run(random_walk(seed, STEPS, counts))
        except Failed as failed:
            print(f"seed {seed}, step {len(failed.steps)}: {failed.why}", flush=True)
            shortest = shorten(failed)
            print(f"shortened to {len(shortest.steps)} steps: {shortest.why}\n{script(shortest.setup, shortest.steps)}")
            return 1
        seed += 1
        opened = len(os.listdir("/proc/self/fd"))
        first_open = first_open or opened
        if opened > first_open + MOST_MORE_OPEN:
            print(f"{opened} descriptors are open after a walk, and {first_open} were after the first")
            return 1
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            print(f"{counts['walks']} walks, {counts['steps']} steps", flush=True)
    for kind, count in sorted(counts.items()):
        print(f"{count:8} {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
