# SPDX-License-Identifier: MIT
"""Whether a refusal or a failure has left everything as it was: guest, QEMU, files, state and tree, all seen from outside.

It knows nothing of pytest.
"""

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, fields
from typing import Any

from snapd.bus.wire import CallError
from tests.lab.scene import Scene

ERROR = "org.domsnap1.Error."
BUS_ERROR = "org.freedesktop.DBus.Error."

MEMORY_SUFFIX = ".vmstate.qcow2"
"""QEMU writes to a memory file when it loads it, also where that fails."""

_SENTENCE = re.compile(r"[A-Z/'\"a-z][^\n]*[^.\n]\.")
_LEAKS = ("Traceback", "None", "object at 0x", "Error(")
_SHOWN = ("State", "CurrentSnapshot", "Interrupted", "PendingRevert", "PendingProblem")
_PARAMETERS = ("max-bandwidth", "tls-creds")


@dataclass(frozen=True)
class Picture:
    """All that a request which is refused, or an operation which fails, must leave alone."""

    files: list[str]
    state: dict[str, str]
    tree: list[tuple[Any, ...]]
    disks: list[dict[str, Any]]
    domain: tuple[str, ...]
    nodes: list[tuple[str, str]]
    tags: list[tuple[str, str]]
    running: bool
    capabilities: dict[str, bool]
    parameters: dict[str, Any]
    descriptor_sets: list[Any]
    jobs: list[tuple[str, str]]


async def picture(stage: Scene) -> Picture:
    control = stage.qemu.control
    shown = await stage.properties()
    parameters = control.execute("query-migrate-parameters")
    nodes = control.execute("query-named-block-nodes", flat=True)
    return Picture(
        files=stage.files(),
        state={
            str(each.relative_to(stage.state)): hashlib.sha256(each.read_bytes()).hexdigest()
            for each in stage.state.rglob("*")
            if each.is_file() and not each.is_symlink() and not each.name.endswith(MEMORY_SUFFIX)
        },
        tree=await stage.snapshots(),
        disks=shown["Disks"],
        domain=tuple(shown[name] for name in _SHOWN),
        nodes=sorted((node["drv"], node["file"]) for node in nodes),
        tags=sorted((node["file"], tag["name"]) for node in nodes for tag in node["image"].get("snapshots", ())),
        running=control.execute("query-status")["running"],
        capabilities={each["capability"]: each["state"] for each in control.execute("query-migrate-capabilities")},
        parameters={name: parameters.get(name) for name in _PARAMETERS},
        descriptor_sets=control.execute("query-fdsets"),
        jobs=[(job["id"], job["type"]) for job in control.execute("query-jobs")],
    )


def assert_same(before: Picture, after: Picture) -> None:
    for field in fields(Picture):
        was, now = getattr(before, field.name), getattr(after, field.name)
        assert now == was, f"{field.name}:\nwas {was}\nis  {now}"


@contextlib.asynccontextmanager
async def untouched(stage: Scene, *, pauses: bool = False) -> AsyncIterator[None]:
    """Run the block, and see that all is as before it and that the guest goes on counting, if it ran.

    Args:
        pauses: whether the guest may have been stopped for a moment.
    """
    before = await picture(stage)
    stage.qemu.control.events.clear()
    yield
    after = await picture(stage)
    assert_same(before, after)
    events = [event["event"] for event in stage.qemu.control.events]
    assert pauses or not {"STOP", "RESUME", "RESET"} & set(events), f"the guest was stopped: {events}"
    if before.running:
        stage.qemu.wait_counting()


async def refused(call: Awaitable[Any], error: str, *named: str) -> str:
    """Await a call that must end with the D-Bus error ``error``, in one sentence that names all of ``named``, and return it."""
    try:
        answer = await call
    except CallError as answered:
        assert answered.name == error, f"{error} was expected, and the answer is {answered}"
        assert_sentence(answered.text, *named)
        return answered.text
    raise AssertionError(f"{error} naming {named} was expected, and the answer is {answer}")


def assert_sentence(text: str, *named: str) -> None:
    assert _SENTENCE.fullmatch(text), f"this is no sentence: {text!r}"
    assert not any(leak in text for leak in _LEAKS), f"this is not for a person: {text!r}"
    missing = [each for each in named if each not in text]
    assert not missing, f"{missing} is not in {text!r}"


async def assert_works(stage: Scene) -> None:
    """Take a snapshot and delete it again: what happened before stands in nobody's way."""
    await stage.create("afterwards")
    assert "afterwards" in [row[1] for row in await stage.snapshots()]
    await stage.delete("afterwards")
