# SPDX-License-Identifier: MIT
"""Plans in words follow the order in which the engine does them: what it asks of its ports is compared line by line.

Not here: how each line reads (``test_describe.py``), and what happens when a step fails.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from snapd.engine import create, delete, revert, tidy
from snapd.engine.ports import Ports
from snapd.model.describe import describe
from snapd.model.domain import DomainState
from snapd.model.images import Merge, Pin
from snapd.model.plan import CreatePlan, CreateRequest, DeletePlan, Live, Overlay, Quiesce, RevertPlan, RevertRequest, TidyPlan
from snapd.model.snapshot import SnapshotType
from snapd.model.tree import Scope
from tests.unit.planned_domain import VDA, VDB, VDC, WITH_AGENT, Domain

PAUSED, SHUTOFF = DomainState.PAUSED, DomainState.SHUTOFF
INTERNAL = SnapshotType.INTERNAL

Asked = tuple[str, tuple[Any, ...]]
AnyPlan = CreatePlan | RevertPlan | DeletePlan | TidyPlan


class World:
    """Every port at once: it takes note of what it is asked and answers as if that were done."""

    def __init__(self, domain: Domain) -> None:
        self.committed = domain.record
        self.open = dict(domain.seen.open_images)
        self.asked: list[Asked] = []
        self.descriptor = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {
            "open_container": (0, 0),
            "create_memory": self,
            "allocated_bytes": {},
            "open_images": self.open,
            "hold": False,
            "has_run": False,
        }

        async def ask(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            return answers.get(name, 1)

        return ask

    def close_descriptors(self, *_: int) -> None: ...


def _lines(asked: list[Asked]) -> Iterator[str]:
    """Yield how the line of each thing that was asked begins, for those that have one."""
    merged: set[str] = set()
    is_written = False
    for name, arguments in asked:
        match name, arguments:
            case "create_overlay", (Overlay(copy_of=None, image=image), _):
                yield f"Make {image.path}"
            case "create_overlay", (Overlay(copy_of=Pin(tag=tag)), _):
                yield f"Copy internal snapshot '{tag}'"
            case "freeze", ():
                yield "Freeze the guest's"
            case "thaw", ():
                yield "Thaw the file systems"
            case "stop", ():
                yield "Stop the guest"
            case "take", _:
                yield "At one instant"
            case ("save_live", _) | ("save_paused", _):
                yield "Save"
            case "swap", (Overlay(disk=disk),):
                yield f"Put disk {disk.target}"
            case "make_tag", (path, _):
                yield f"Keep what {path}"
            case "apply_tag", (path, tag):
                yield f"Apply internal snapshot '{tag}' in {path}"
            case "load", _:
                yield "Load the memory"
            case "reset", ():
                yield "Reset the guest"
            case "resume", ():
                yield "Let the guest go on"
            case "commit", _ if not is_written:
                is_written = True
                yield "Write down"
            case "unlink", (path,) if path not in merged:
                yield f"Remove {path}"
            case "drop_tag", (_, tag):
                yield f"Delete internal snapshot '{tag}'"
            case "merge", (Merge() as merge, _):
                merged.add(merge.removed)
                yield f"Merge {merge.removed}"


# What is said besides: what takes no step of its own, and files for memory, which are made beside the overlays.
UNSAID = ("Leave out", "Note:", "Forget", "Make 's' the current", "Make /var/lib")


def _domain(case: str) -> tuple[Domain, AnyPlan]:
    """Return a domain and a plan for it."""
    domain = Domain(VDA, VDB, definition=WITH_AGENT)
    kinds = {"vda": "internal"}
    match case:
        case "live":
            return domain, domain.plan(CreateRequest("s", disks=kinds))
        case "paused meanwhile":
            return domain, domain.plan(CreateRequest("s", live=Live.NO, disks=kinds))
        case "quiesced":
            return domain, domain.plan(CreateRequest("s", memory=False, quiesce=Quiesce.REQUIRE, disks=kinds))
        case "of a paused guest":
            domain.looks(PAUSED)
            return domain, domain.plan(CreateRequest("s"))
        case "revert" | "revert with its undo point" | "revert that keeps memory":
            domain.take("s")
            if "its" in case:
                domain.revert("s")
            return domain, domain.plan_revert(RevertRequest("s", undo="that" in case, undo_memory="that" in case))
        case "revert to what is applied" | "revert to what is applied, with an undo point":
            domain = Domain(VDA, VDC)
            domain.take("s", INTERNAL, memory=False)
            return domain, domain.plan_revert(RevertRequest("s", undo="with" in case))
        case "revert to what is copied":
            domain.take("old")
            domain.take("s", INTERNAL)
            domain.take("above")
            return domain, domain.plan_revert(RevertRequest("s", undo=False))
        case "delete":
            for name in ("old", "s", "new"):
                domain.take(name)
            return domain, domain.plan_delete("s")
        case "delete all":
            domain.take("s")
            domain.take("in it", INTERNAL)
            return domain, domain.plan_delete("s", Scope.TREE)
    domain.take("s")
    domain.delete("s")
    domain.record = replace(domain.record, graph=domain.graph.doom("/images/web.qcow2", "gone"))
    return domain, TidyPlan(tuple(domain.graph.collect({})))


async def _carry_out(domain: Domain, plan: AnyPlan, world: World) -> None:
    port = cast("Any", world)
    ports = Ports(port, port, port, port)

    def report(*_: object) -> None: ...

    match plan:
        case CreatePlan():
            await create.carry_out(ports, domain.record, plan, 1, report)
        case RevertPlan():
            await revert.carry_out(ports, domain.record, plan, 1, report)
        case DeletePlan():
            await delete.carry_out(ports, domain.record, plan, report)
        case TidyPlan():
            await tidy.carry_out(ports, domain.record, plan, report)


@pytest.mark.parametrize(
    "case",
    [
        "live",
        "paused meanwhile",
        "quiesced",
        "of a paused guest",
        "revert",
        "revert with its undo point",
        "revert that keeps memory",
        "revert to what is applied",
        "revert to what is applied, with an undo point",
        "revert to what is copied",
        "delete",
        "delete all",
        "tidy",
    ],
)
async def test_a_plan_is_told_in_the_order_in_which_it_is_done(case: str) -> None:
    domain, plan = _domain(case)
    world = World(domain)

    await _carry_out(domain, plan, world)

    told = [line for line in describe(plan) if not line.startswith(UNSAID)]
    if isinstance(plan, DeletePlan | TidyPlan) or (isinstance(plan, RevertPlan) and not plan.undo):
        done = [line for line in _lines(world.asked) if line != "Write down"]
    else:
        done = list(_lines(world.asked))
    assert [line[: len(begin)] for line, begin in zip(told, done, strict=True)] == done
