# SPDX-License-Identifier: MIT
"""A walk: each step is done to the domain and to the model, and then the two are compared.

Not here: the domain (``rig``), the model (``expected``), the comparison (``checks``), and who chooses the steps.

- A step that makes no sense where the walk is does nothing and says so, so that a sequence with parts left out can be replayed.
- A refusal is foretold from the model; one that was not foretold fails, and so does one that did not come.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from snapd.errors import NotSupported, Protected, SnapdError
from snapd.model.domain import DomainState
from snapd.model.plan import CreateRequest, DeleteRequest, Live, RevertRequest
from snapd.model.snapshot import RevertState, SnapshotType
from snapd.model.tree import Scope
from tests.lab.blocks import BlockReader
from tests.lab.scene import short_directory
from tests.model.checks import check_all, check_bare, check_kinds, check_with_tools
from tests.model.expected import PAUSED, RUNNING, SHUTOFF, Expected
from tests.model.foretell import makes_sense, saves_memory, why_no_create, why_no_delete, why_no_revert
from tests.model.guest import Memory, Watch
from tests.model.rig import Request, Rig
from tests.model.steps import (
    UNIT_BYTES,
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
    script,
)

TOOLS_EVERY = 5
"""``qemu-img check`` of all images takes longer than all else; it comes at each so manieth step, when shut off, and last."""


class World:
    """``names`` says what the service calls each snapshot, by its name in the walk; ``counts`` is what was done, by kind."""

    def __init__(self, directory: Path, setup: Setup) -> None:
        self.setup = setup
        self.rig = Rig(directory, setup)
        self.steps: list[Step] = []
        self.names: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.expected = Expected({})
        self._watch = Watch()

    async def begin(self) -> None:
        await self.rig.open()
        self._watch.until_counting(self.rig.running)
        graph = self.rig.domain.record.graph
        reader = BlockReader()
        present = {target: reader.image(path, graph.images[path].format) for target, path in graph.active.items()}
        self.expected = Expected(present)
        self._compare(with_tools=True)

    async def end(self) -> None:
        """Compare once more, by every means, then delete all snapshots, in steps of the walk, and see that nothing is left."""
        self._compare(with_tools=True)
        for name in [name for name, past in self.expected.past.items() if past.protected]:
            await self.do(Protect(name, protected=False))
        while self.expected.past:
            await self.do(Delete(min(self.expected.past)))
        check_bare(self.rig)

    async def do(self, step: Step) -> bool:
        """Take a step and compare. Returns: whether it made sense.

        Raises: AssertionError, or what the step raised; the walk so far is printed then.
        """
        if not makes_sense(step, self.expected):
            return False
        self.steps.append(step)
        try:
            await self._take(step)
            is_off = self.expected.state == SHUTOFF
            self._compare(with_tools=len(self.steps) % TOOLS_EVERY == 0 or (is_off and isinstance(step, ShutOff)))
        except BaseException:
            print(self.story())
            raise
        return True

    def story(self) -> str:
        """Return the walk so far as it can be replayed, and what the service has complained about."""
        return "\n".join(["The walk, for test_regressions.py:", script(self.setup, self.steps), *self.rig.complaints.lines])

    def _compare(self, *, with_tools: bool) -> None:
        check_all(self.rig, self.expected, self.names)
        if with_tools:
            check_with_tools(self.rig, self.expected)

    async def _take(self, step: Step) -> None:
        match step:
            case Write():
                self._write(step)
            case Create():
                await self._create(step)
            case Revert():
                await self._revert(step)
            case Delete():
                await self._delete(step)
            case Protect():
                await self._protect(step)
            case CancelPending():
                await self.rig.domain.cancel_pending()
                self.expected.pending = None
            case Pause():
                self.rig.running.control.execute("stop")
                await self._reach(PAUSED)
            case Resume():
                self.rig.running.control.execute("cont")
                await self._reach(RUNNING)
            case ShutOff():
                self.rig.end_qemu(kill=step.kill)
                await self._reach(SHUTOFF)
            case Start():
                await self._start(step)
            case RestartService():
                await self.rig.end_service()
                self.rig.begin_service()
                await self.rig.until_state(DomainState(self.expected.state))
        self.counts[type(step).__name__.lower()] += 1

    async def _reach(self, state: str) -> None:
        self.expected.state = state
        await self.rig.until_state(DomainState(state))
        if state == RUNNING:
            self._watch.until_counting(self.rig.running)

    # Disks and guest

    def _write(self, step: Write) -> None:
        offset, length = step.unit * UNIT_BYTES, step.units * UNIT_BYTES
        command = {
            "write": f"write -q -P {step.pattern}",
            "zero": "write -q -z",
            "unmap": "write -q -z -u",
            "discard": "discard -q",
        }
        self.rig.write(step.target, f"{command[step.how]} {offset} {length}")
        data = bytes([step.pattern if step.how == "write" else 0]) * length
        if step.how == "discard":
            data = self._what_discard_left(step, data)
        self.expected.write(step.target, step.unit, data)

    def _what_discard_left(self, step: Write, zeroes: bytes) -> bytes:
        """Return what the range holds after a discard, which may leave each part of it as it was."""
        self.rig.flush()
        graph = self.rig.domain.record.graph
        path = graph.active[step.target]
        at = step.unit * UNIT_BYTES
        found = BlockReader().image(path, graph.images[path].format)[at : at + len(zeroes)]
        was = self.expected.present[step.target][at : at + len(zeroes)]
        for unit in range(0, len(zeroes), UNIT_BYTES):
            part = slice(unit, unit + UNIT_BYTES)
            assert found[part] in (zeroes[part], was[part]), f"a discard has made something of unit {step.unit + unit}"
        return found

    async def _start(self, step: Start) -> None:
        self.rig.start_qemu(self.rig.next_images(links=step.links), paused=step.paused, memory_mib=step.memory_mib)
        self._watch.booted = False
        loaded = self.expected.start(paused=step.paused, memory_mib=step.memory_mib)
        await self.rig.until_state(DomainState(self.expected.state))
        if loaded:
            self._learn_undo_point()
            self._watch.compare(self.rig.running, loaded, stands_still=self.expected.state == PAUSED)
            self.counts["memory loaded at start"] += 1
        if self.expected.state == RUNNING:
            self._watch.until_counting(self.rig.running)

    # Requests

    async def _ask(self, request: Request, refusal: str) -> bool:
        """Make a request. Returns: whether it was carried out, and not refused as foretold."""
        try:
            job = await self.rig.ask(request)
        except SnapdError as error:
            assert refusal, f"{request} was refused: {error}"
            assert isinstance(error, NotSupported | Protected), f"{request} was refused by {error!r}, and not because {refusal}"
            self.counts["refused"] += 1
            return False
        assert job.error is None, f"{request} failed: {job.error}"
        assert not refusal, f"{request} was carried out, and should have been refused because {refusal}"
        return True

    async def _create(self, step: Create) -> None:
        request = CreateRequest(
            step.name, type=SnapshotType(step.type), memory=step.memory, disks=dict(step.disks), live=Live(step.live)
        )
        graph = self.rig.domain.record.graph
        chains = {target: (graph.images[path].format, len(graph.chain(path))) for target, path in graph.active.items()}
        before = self._memory_now()
        if not await self._ask(request, why_no_create(step, self.expected, chains)):
            return
        memory = None
        if before and saves_memory(step, self.expected):
            memory = self._watch.until_now(self.rig.running, before)
        self.names[step.name] = step.name
        chosen = dict(step.disks)
        self.expected.create(step.name, [target for target in self.rig.targets if chosen.get(target) != "no"], memory)
        if self.expected.state == RUNNING:
            self._watch.until_counting(self.rig.running)
        for kind in check_kinds(self.rig, step, {target: image_format for target, (image_format, _) in chains.items()}):
            self.counts[f"disk created {kind}, {self.expected.state}"] += 1
        self.counts[f"created {'with memory' if memory else 'disk-only'}"] += 1

    def _memory_now(self) -> Memory | None:
        """Return what is known of the guest's memory, if there is a guest."""
        if self.expected.state == SHUTOFF:
            return None
        return self._watch.look(self.rig.running, stands_still=self.expected.state == PAUSED)

    async def _revert(self, step: Revert) -> None:
        name = step.name or self.expected.undo_point
        refusal = why_no_revert(step, self.expected)
        before = self.expected.state
        real = self.names[name] if step.name else ""
        request = RevertRequest(real, RevertState(step.state), step.undo, step.undo_memory, step.force)
        undo_memory = self._memory_now() if step.undo_memory else None
        if before != SHUTOFF:
            self.rig.running.control.execute("query-status")  # so that the events before the request have come
            self.rig.running.control.events.clear()
        if not await self._ask(request, refusal):
            return
        if undo_memory and before == RUNNING:
            undo_memory = self._watch.until_soon(undo_memory)
        loaded = self.expected.past[name].memory if self.expected.loads(name) else None
        self.expected.revert(step, undo_memory if step.undo else None)
        self._learn_undo_point()
        self.counts[f"reverted {'with memory' if loaded else 'disk-only'}, {before}"] += 1
        if self.expected.state != SHUTOFF:
            self._see_guest(loaded)

    def _see_guest(self, loaded: Memory | None) -> None:
        """See that the guest had its memory loaded, or was reset, and goes on if it should."""
        self.rig.running.control.execute("query-status")
        was_reset = any(event["event"] == "RESET" for event in self.rig.running.control.events)
        if loaded:
            self._watch.compare(self.rig.running, loaded, stands_still=self.expected.state == PAUSED)
        else:
            assert was_reset, "the guest was not reset"
            self._watch.booted = False
        if self.expected.state == RUNNING:
            self._watch.until_counting(self.rig.running)

    def _learn_undo_point(self) -> None:
        """Take note of the name that the service has made up for the undo point."""
        self.names = {name: real for name, real in self.names.items() if name in self.expected.past}
        made = [name for name, past in self.expected.past.items() if past.is_undo and name not in self.names]
        known = set(self.names.values())
        found = [each.name for each in self.rig.domain.record.tree.snapshots.values() if each.undo and each.name not in known]
        assert len(found) == len(made), f"new undo points are {found}, where {made} should have been made"
        self.names |= zip(made, found, strict=True)

    async def _delete(self, step: Delete) -> None:
        gone = self.expected.scope(step)
        request = DeleteRequest(self.names[step.name], Scope(step.scope))
        if not await self._ask(request, why_no_delete(step, self.expected)):
            return
        self.expected.remove(gone)
        self.names = {name: real for name, real in self.names.items() if name not in gone}
        self.counts[f"deleted {step.scope}"] += 1

    async def _protect(self, step: Protect) -> None:
        await self.rig.domain.set_protected(self.names[step.name], step.protected)
        self.expected.past[step.name].protected = step.protected


@contextlib.asynccontextmanager
async def world(setup: Setup) -> AsyncIterator[World]:
    """Begin a walk, and end everything that it has started, however the block ends."""
    with short_directory() as directory:
        made = World(directory, setup)
        try:
            await made.begin()
            yield made
        finally:
            await made.rig.close()
