# SPDX-License-Identifier: MIT
"""Plans in words: one line for each step, in the order in which they are done, as a person reads them.

Not here: how a plan comes about (``planner``) and how it is walked (``engine``); both follow the same order.
"""

from collections.abc import Iterator, Sequence

from snapd.model.domain import DomainState
from snapd.model.images import Collection, Direction, DropTag, Merge, Unlink
from snapd.model.plan import Application, CreatePlan, DeletePlan, Overlay, Plan, Quiesce, RevertPlan, TidyPlan
from snapd.model.snapshot import SaveMethod


def describe(plan: Plan) -> list[str]:
    """Return what ``plan`` does, a line for each step, and then what whoever asked should know."""
    match plan:
        case CreatePlan():
            steps = [*_create(plan)]
        case RevertPlan():
            steps = [*_revert(plan)]
        case DeletePlan():
            steps = [*_delete(plan)]
        case TidyPlan():
            steps = [*_collected(plan.after)]
    return [*steps, *(f"Note: {note}" for note in plan.notes)]


def _create(plan: CreatePlan) -> Iterator[str]:
    for target, reason in plan.left_out.items():
        yield f"Leave out disk {target}: {reason}."
    if plan.linked:
        disks = ", ".join(each.disk.target for each in plan.linked)
        yield f"Have QEMU open the images of {disks} by their own names and not by links, the guest stopped for a moment."
    for overlay in plan.overlays:
        yield f"Make {overlay.image.path}, which will cover {overlay.disk.image} of disk {overlay.disk.target}."
    if plan.memory:
        yield f"Make {plan.memory.path} for the memory, with room for {plan.memory.largest_stream_bytes >> 20} MiB."
    if plan.quiesce is not Quiesce.NO:
        yield "Freeze the guest's file systems" + (", if its agent answers." if plan.quiesce is Quiesce.AUTO else ".")
    if plan.pauses:
        yield "Stop the guest."
    if plan.overlays or plan.tags:
        yield f"At one instant: {_taken(plan)}."
    if plan.memory:
        yield "Save memory while the guest goes on." if plan.memory.method is SaveMethod.LIVE else "Save memory."
    if plan.memory and plan.memory.method is SaveMethod.PAUSED and plan.pauses:
        yield f"Let the guest go on, which waits for its memory because {plan.memory.method_reason}."
    if plan.quiesce is not Quiesce.NO:
        yield "Thaw the file systems."
    yield f"Write down snapshot {plan.name!r}."


def _taken(plan: CreatePlan) -> str:
    covered = [f"cover disk {overlay.disk.target}" for overlay in plan.overlays]
    tagged = [f"make internal snapshot {tag.name!r} in {tag.disk.image} of disk {tag.disk.target}" for tag in plan.tags]
    return ", ".join([*covered, *tagged])


def _revert(plan: RevertPlan) -> Iterator[str]:
    yield from (_applied(each) for each in plan.applications if not each.is_active)
    yield from (_made(overlay) for overlay in plan.overlays)
    if plan.state is DomainState.RUNNING:
        yield "Stop the guest."
    if plan.undo and plan.undo.memory:
        yield f"Save the memory of now in {plan.undo.memory.path}."
    yield from _switched(plan)
    if plan.resume:
        yield "Let the guest go on."
    if plan.undo:
        yield f"Write down undo point {plan.undo.name!r}, which holds what was there before."
    if plan.name not in plan.dropped:
        yield f"Make {plan.name!r} the current snapshot."
    yield from (f"Forget undo point {name!r}." for name in plan.dropped)
    yield from _collected(plan.after)


def _switched(plan: RevertPlan) -> Iterator[str]:
    """Say what is done with the guest stopped."""
    for overlay in plan.overlays:
        yield f"Put disk {overlay.disk.target} on {overlay.image.path}."
    for each in plan.applications:
        if each.is_active:
            yield f"Keep what {each.image.path} holds now as internal snapshot {each.keep!r}."
            yield _applied(each)
        else:
            yield f"Put disk {each.disk.target} on {each.image.path}."
    if plan.later is not None:
        yield f"Load the memory from {plan.memory_path} when the domain runs again."
    elif plan.memory_path:
        yield f"Load the memory from {plan.memory_path}."
    elif plan.state is not DomainState.SHUTOFF:
        yield "Reset the guest."


def _applied(each: Application) -> str:
    return f"Apply internal snapshot {each.tag!r} in {each.image.path} of disk {each.disk.target}."


def _made(overlay: Overlay) -> str:
    image = overlay.image
    if overlay.copy_of:
        source = overlay.copy_of
        return f"Copy internal snapshot {source.tag!r} out of {source.image}, which others need, to {image.path}."
    return f"Make {image.path} on {image.backing} for disk {overlay.disk.target}."


def _delete(plan: DeletePlan) -> Iterator[str]:
    for name in plan.names:
        yield f"Forget snapshot {name!r}."
    for path in plan.memory_paths:
        yield f"Remove {path}."
    yield from _collected(plan.after)


def _collected(steps: Sequence[Collection]) -> Iterator[str]:
    for step in steps:
        match step:
            case Unlink():
                yield f"Remove {step.path}."
            case DropTag():
                yield f"Delete internal snapshot {step.tag!r} in {step.image}."
            case Merge(direction=Direction.COMMIT):
                yield f"Merge {step.overlay} into {step.backing} and remove it."
            case Merge():
                yield f"Merge {step.backing} into {step.overlay} and remove it."
