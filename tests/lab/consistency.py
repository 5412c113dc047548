# SPDX-License-Identifier: MIT
"""Whether a snapshot of the tiny guest is of one instant, seen from outside: its memory and its disks count the same.

It knows nothing of pytest.
"""

import itertools

from tests.lab.guest import disk_counter
from tests.lab.scene import Scene


async def revert_and_compare(stage: Scene, name: str, disks: int = 2) -> None:
    """Go back with the guest left paused, compare its memory with the disks that the snapshot pins, and let it run.

    Args:
        disks: how many the snapshot has; the guest counts on all of them.
    """
    await stage.revert_paused(name)
    memory = stage.qemu.counter()
    counters = await disk_counters(stage, name)
    assert len(counters) == disks
    # It counts in memory, then writes the first disk, then the second: each may be one behind what comes before it.
    assert all(memory - counter in (0, 1) for counter in counters), f"{name}: memory {memory}, disks {counters}"
    assert all(first - second in (0, 1) for first, second in itertools.pairwise(counters)), f"{name}: {counters}"
    stage.qemu.control.execute("cont")
    stage.qemu.wait_counting()


async def disk_counters(stage: Scene, name: str) -> list[int]:
    """Return the guest's counter as each disk of a snapshot has it, in the order of the disks."""
    pinned = sorted((await stage.properties(name))["Disks"], key=lambda disk: str(disk["Target"]))
    return [disk_counter(disk["Image"], disk["Format"], disk["Tag"]) for disk in pinned]
