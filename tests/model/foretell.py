# SPDX-License-Identifier: MIT
"""What is foretold of a step before it is taken: whether it makes sense, and whether and why it is refused.

Not here: what it leads to (``expected``). All are pure functions; an empty answer means that the step is carried out.
"""

from collections.abc import Mapping

from snapd.model.plan import CHAIN_LIMIT
from tests.model.expected import PAUSED, RUNNING, SHUTOFF, Expected
from tests.model.steps import (
    CancelPending,
    Create,
    Delete,
    Pause,
    Protect,
    RestartService,
    Resume,
    Revert,
    ShutOff,
    Start,
    Step,
    Write,
)


def makes_sense(step: Step, expected: Expected) -> bool:
    """Return whether the step is possible now, which is not to say that it is not refused."""
    state, past = expected.state, expected.past
    match step:
        case Create():
            return step.name not in past
        case Revert():
            return not step.name or step.name in past
        case Delete():
            return step.name in past and bool(expected.scope(step))
        case Protect():
            return step.name in past
        case CancelPending():
            return expected.pending is not None
        case Pause():
            return state == RUNNING
        case Resume():
            return state == PAUSED
        case ShutOff():
            return state != SHUTOFF
        case Start():
            waits = expected.pending
            return state == SHUTOFF and (waits is None or past[waits.name].memory_mib == step.memory_mib)
        case Write() | RestartService():
            return True


def why_no_create(step: Create, expected: Expected, chains: Mapping[str, tuple[str, int]]) -> str:
    """Return why a create is refused.

    Args:
        chains: of each disk, the format of its active image and the number of images it consists of.
    """
    chosen = dict(step.disks)
    kinds = {target: chosen.get(target, step.type) for target in chains}
    if expected.state == SHUTOFF and step.memory:
        return "there is no memory"
    if saves_memory(step, expected) and "no" in kinds.values():
        return "memory and the disk left out would disagree"
    if all(kind == "no" for kind in kinds.values()):
        return "no disk is left"
    for target, kind in kinds.items():
        image_format, depth = chains[target]
        if kind == "internal" and image_format == "raw":
            return f"{target} is raw"
        # Without a kind it is the service that chooses, and a chain as long as that is none that a walk comes to.
        if kind == "external" and depth >= CHAIN_LIMIT:
            return f"the chain of {target} is full"
    return ""


def saves_memory(step: Create, expected: Expected) -> bool:
    return expected.state != SHUTOFF if step.memory is None else step.memory


def why_no_revert(step: Revert, expected: Expected) -> str:
    """Return why a revert is refused."""
    name = step.name or expected.undo_point
    if not name:
        return "there is no undo point"
    target = expected.past[name]
    if expected.state == SHUTOFF:
        return "it is shut off" if step.state != "as-taken" and target.memory is None else ""
    if target.state == SHUTOFF and not step.force:
        return "it was taken shut off"
    if target.memory and target.memory_mib != expected.memory_mib:
        return "the machine has another size of memory"
    if step.undo and step.undo_memory and set(expected.present) - set(target.content):
        return "it leaves a disk as it is, which would not fit the memory that is kept"
    return ""


def why_no_delete(step: Delete, expected: Expected) -> str:
    """Return why a delete is refused."""
    held = [name for name in expected.scope(step) if expected.past[name].protected]
    return f"{held[0]} is protected" if held else ""
