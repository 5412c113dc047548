# SPDX-License-Identifier: MIT
"""A client that keeps its own picture of the service from signals alone, as a manager of virtual machines does.

Also what asks of signals that were heard whether they came, once each and in order.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from snapd.bus.names import (
    BUS_NAME,
    MANAGER_INTERFACE,
    OBJECT_MANAGER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
)
from snapd.bus.wire import Message, MessageType, Wire, unwrap
from tests.lab.scene import Scene

EQUAL_TIMEOUT_S = 10.0

Objects = dict[str, dict[str, dict[str, Any]]]
"""By path and interface, the properties without their types."""


async def fetch(wire: Wire) -> Objects:
    """Ask for everything there is."""
    (below,) = await wire.call(BUS_NAME, ROOT_PATH, OBJECT_MANAGER_INTERFACE, "GetManagedObjects")
    (root,) = await wire.call(BUS_NAME, ROOT_PATH, PROPERTIES_INTERFACE, "GetAll", "s", (MANAGER_INTERFACE,))
    return {ROOT_PATH: {MANAGER_INTERFACE: unwrap(root)}} | {path: unwrap(each) for path, each in below.items()}


def difference(mirrored: Objects, real: Objects) -> list[str]:
    """Return, in words, each place where the two are not equal."""
    found = [f"{path} is not there any more" for path in sorted(set(mirrored) - set(real))]
    found += [f"{path} was not announced" for path in sorted(set(real) - set(mirrored))]
    for path in sorted(set(real) & set(mirrored)):
        for interface, values in real[path].items():
            told = mirrored[path].get(interface, {})
            found += [
                f"{path} {name}: told {told.get(name)!r}, is {value!r}"
                for name, value in values.items()
                if told.get(name) != value
            ]
    return found


class Mirror:
    """Fed with every signal in order; complains of those that make no sense."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.complaints: list[str] = []

    def hear(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        match message.interface, message.member:
            case (str(), "InterfacesAdded"):
                self._added(message.path or "", *unwrap(message.body))
            case (str(), "InterfacesRemoved"):
                self._removed(message.path or "", *message.body)
            case (str(), "PropertiesChanged"):
                self._changed(message.path or "", *unwrap(message.body))
            case _ if message.path not in self.objects:
                self.complaints.append(f"{message.member} came from {message.path}, which was not announced")

    def _added(self, manager: str, path: str, interfaces: dict[str, dict[str, Any]]) -> None:
        if manager != ROOT_PATH or path in self.objects:
            self.complaints.append(f"{manager} announced {path} once more")
        self.objects[path] = interfaces

    def _removed(self, manager: str, path: str, interfaces: list[str]) -> None:
        if manager != ROOT_PATH or set(self.objects.pop(path, {})) != set(interfaces):
            self.complaints.append(f"{manager} took {interfaces} away from {path}, which were not there")

    def _changed(self, path: str, interface: str, changed: dict[str, Any], invalidated: list[str]) -> None:
        known = self.objects.get(path, {}).get(interface)
        if known is None or invalidated:
            self.complaints.append(f"properties {sorted(changed)}, {invalidated} changed on {path}, which was not announced")
            return
        same = [name for name, value in changed.items() if known.get(name) == value]
        if same or not changed:
            self.complaints.append(f"properties {same} of {path} were told again, unchanged")
        known.update(changed)


@contextlib.asynccontextmanager
async def mirroring(stage: Scene) -> AsyncIterator[Mirror]:
    """Keep a mirror that has seen everything once and from then on only listens."""
    made = Mirror(await fetch(stage.wire))

    def hear(message: Message) -> bool:
        made.hear(message)
        return stage.hear(message)

    stage.wire.handle(hear)
    try:
        yield made
    finally:
        stage.wire.handle(stage.hear)


async def agree(stage: Scene, mirror: Mirror) -> None:
    """Wait until the mirror shows what a client that asks now is told."""
    differing: list[str] = []
    try:
        async with asyncio.timeout(EQUAL_TIMEOUT_S):
            while differing := difference(mirror.objects, await fetch(stage.wire)):
                await stage.wait_any()
    except TimeoutError:
        raise AssertionError("the mirror and the service differ:\n" + "\n".join(differing)) from None
    assert mirror.complaints == []


def story(messages: list[Message]) -> list[tuple[str, str]]:
    """Return path and member of each signal, without the progress of jobs."""
    return [(each.path or "", each.member or "") for each in messages]


def positions(messages: list[Message], path: str, member: str, *body: Any) -> list[int]:
    """Return where the signal stands whose body begins with ``body``."""
    return [
        index
        for index, each in enumerate(messages)
        if (each.path, each.member) == (path, member) and tuple(each.body[: len(body)]) == body
    ]


def in_order(messages: list[Message], *wanted: tuple[Any, ...]) -> None:
    """Assert that each of the signals came exactly once, and in this order."""
    found = [positions(messages, *each) for each in wanted]
    assert all(len(each) == 1 for each in found), (wanted, found, story(messages))
    flat = [each[0] for each in found]
    assert flat == sorted(flat), (wanted, story(messages))


def told(messages: list[Message], path: str, name: str) -> list[Any]:
    """Return each value that was told of a property, oldest first."""
    changes = [each.body[1] for each in messages if (each.path, each.member) == (path, "PropertiesChanged")]
    return [unwrap(changed[name]) for changed in changes if name in changed]
