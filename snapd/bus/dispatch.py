# SPDX-License-Identifier: MIT
"""From a call on the bus to its handler and back to an answer.

Not here: what a call does (the faces). Invariants: what is not in the contract does not exist; each call runs in a task of the
daemon's; each is answered once, unless its sender wants no answer; nothing unexpected is told to strangers but a reference.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from snapd.bus.authorization import Authorization
from snapd.bus.contract import contract, introspect_xml, standard
from snapd.bus.errors import (
    LIMITS_EXCEEDED,
    BusError,
    invalid_args,
    property_read_only,
    to_bus,
    unknown_interface,
    unknown_method,
    unknown_object,
    unknown_property,
)
from snapd.bus.faces import Caller, Face, shown
from snapd.bus.names import (
    INTROSPECTABLE_INTERFACE,
    OBJECT_MANAGER_INTERFACE,
    PEER_INTERFACE,
    PROPERTIES_INTERFACE,
    ROOT_PATH,
)
from snapd.bus.objects import Objects
from snapd.bus.wire import Message, MessageFlag, MessageTooLong, MessageType, Variant, Wire, WireClosed

MOST_CALLS = 1000
"""How many calls may be under way, those that wait for a job included."""

MOST_CALLS_PER_USER = 250
"""How many of them may be of one user, so that who waits for a long job in many calls does not shut others out."""

log = logging.getLogger(__name__)

Results = tuple[str, tuple[Any, ...]]
"""The signature and the values of an answer."""


@dataclass(frozen=True)
class Call:
    """A method call; what D-Bus lets a caller leave out is empty."""

    path: str
    interface: str
    member: str
    sender: str
    signature: str
    body: tuple[Any, ...]

    @classmethod
    def of(cls, message: Message) -> Self:
        return cls(
            message.path or "",
            message.interface or "",
            message.member or "",
            message.sender or "",
            message.signature,
            tuple(message.body),
        )


class Dispatcher:
    def __init__(
        self, wire: Wire, objects: Objects, authorization: Authorization, spawn: Callable[[Awaitable[None]], object]
    ) -> None:
        self._wire, self._objects, self._authorization, self._spawn = wire, objects, authorization, spawn
        self._under_way = 0
        self._all_answered = asyncio.Event()
        self._of_user: Counter[int] = Counter()
        self._standard: dict[str, Callable[[Call], Results]] = {
            INTROSPECTABLE_INTERFACE: self._introspect,
            PROPERTIES_INTERFACE: self._properties,
            OBJECT_MANAGER_INTERFACE: self._managed_objects,
        }

    def take(self, message: Message) -> bool:
        """Begin to answer a call. Returns: whether it was one; those of Peer are left to the wire."""
        if message.message_type is not MessageType.METHOD_CALL or _is_for_peer(message):
            return False
        self._under_way += 1
        self._spawn(self._serve(message))
        return True

    async def until_answered(self, timeout_s: float) -> None:
        """Wait until every call that was taken has its answer; no longer than ``timeout_s``, as a caller may not be reading."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._under_way:
                    self._all_answered.clear()
                    await self._all_answered.wait()

    async def _serve(self, message: Message) -> None:
        try:
            await self._reply(message, await self._answer(message))
        except WireClosed:
            log.debug("%s.%s of %s has nobody to answer to any more", message.interface, message.member, message.sender)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_answered.set()

    async def _answer(self, message: Message) -> Message:
        try:
            signature, results = await self._results(Call.of(message))
            return Message.new_method_return(message, signature, list(results))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer and the log its traceback
            reply = to_bus(error)
            return Message.new_error(message, reply.name, reply.message)

    async def _reply(self, message: Message, answer: Message) -> None:
        if message.flags & MessageFlag.NO_REPLY_EXPECTED:
            return
        try:
            await self._wire.send(answer)
        except MessageTooLong as error:
            await self._wire.send(Message.new_error(message, LIMITS_EXCEEDED, f"The answer is too long: {error}."))

    async def _results(self, call: Call) -> Results:
        if self._under_way > MOST_CALLS:
            raise BusError(LIMITS_EXCEEDED, f"More than {MOST_CALLS} calls are under way; try again later.")
        face = self._objects.face(call.path)
        if face is None and self._objects.children(call.path) is None:
            raise unknown_object(call.path)
        interface = call.interface or self._interface_with(face, call.member)
        if interface in self._standard:
            methods = standard()[interface].methods
            if call.member not in methods:
                raise unknown_method(interface, call.member)
            expected = methods[call.member].in_signature
            if call.signature != expected:
                raise invalid_args(interface, call.member, expected, call.signature)
            return self._standard[interface](call)
        if face is None or interface != face.interface:
            raise unknown_interface(call.path, interface)
        return await self._call(face, call)

    async def _call(self, face: Face, call: Call) -> Results:
        method = contract()[face.interface].methods.get(call.member)
        if method is None:
            raise unknown_method(face.interface, call.member)
        if call.signature != method.in_signature:
            raise invalid_args(face.interface, call.member, method.in_signature, call.signature)
        caller: Caller = await self._authorization.identify(call.sender)
        with self._counted(caller.uid):
            return method.out_signature, await face.methods()[call.member](caller, *call.body)

    @contextlib.contextmanager
    def _counted(self, uid: int) -> Iterator[None]:
        if self._of_user[uid] >= MOST_CALLS_PER_USER:
            raise BusError(LIMITS_EXCEEDED, f"{MOST_CALLS_PER_USER} calls of user {uid} are under way; try again later.")
        self._of_user[uid] += 1
        try:
            yield
        finally:
            self._of_user[uid] -= 1
            if not self._of_user[uid]:
                del self._of_user[uid]

    def _interface_with(self, face: Face | None, member: str) -> str:
        """Return the interface that a call without one means."""
        if face and member in contract()[face.interface].methods:
            return face.interface
        for interface in self._standard:
            if member in standard()[interface].methods:
                return interface
        raise unknown_method("", member)

    def _introspect(self, call: Call) -> Results:
        face = self._objects.face(call.path)
        children = self._objects.children(call.path)
        own = [contract()[face.interface]] if face else []
        return "s", (introspect_xml(own, children or []),)

    def _managed_objects(self, call: Call) -> Results:
        if call.path != ROOT_PATH:
            raise unknown_interface(call.path, OBJECT_MANAGER_INTERFACE)
        return "a{oa{sa{sv}}}", ({path: self._objects.properties(path) for path in self._objects.managed_paths()},)

    def _properties(self, call: Call) -> Results:
        face = self._objects.face(call.path)
        interface = call.body[0]
        if interface in standard():
            values: Mapping[str, Variant] = {}
        elif face and interface == face.interface:
            values = shown(contract()[interface], face)
        else:
            raise unknown_interface(call.path, interface)
        if call.member == "GetAll":
            return "a{sv}", (dict(values),)
        name = call.body[1]
        if name not in values:
            raise unknown_property(interface, name)
        if call.member == "Set":
            raise property_read_only(interface, name)
        return "v", (values[name],)


def _is_for_peer(message: Message) -> bool:
    """Tell whether a call is of the interface Peer, which the wire answers; it may be meant without being named."""
    if message.interface:
        return message.interface == PEER_INTERFACE
    return message.member in standard()[PEER_INTERFACE].methods
