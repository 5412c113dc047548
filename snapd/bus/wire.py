# SPDX-License-Identifier: MIT
"""The connection to the message bus: messages out, messages in, and why it ended.

The socket is the business of `link`, the library that makes and reads messages that of `guards`; the library's own
`MessageBus` stays unused, because it loses the connection when the socket is full, answers calls by itself and stalls on
large messages. What a call means is the business of `dispatch`.

- Messages leave in the order in which `send`, `post` and `call` were called.
- Structs arrive as tuples, and may be given as tuples; bodies hold a `Variant` where the type is `v`.
- The wire makes no tasks: the handler is called in the loop, and starts what takes time in a task of its owner.
- Making and reading a message holds the loop, so bulk is answered in pages.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from snapd.bus.guards import LIBRARY, Message, MessageFlag, MessageType, Variant, decode, encode, unwrap
from snapd.bus.link import CONNECT_TIMEOUT_S, Frame, Link, WireClosed

__all__ = ["LIBRARY", "CallError", "Message", "MessageFlag", "MessageTooLong", "MessageType", "NameTaken"]
__all__ += ["Variant", "Wire", "WireClosed", "unwrap"]

CALL_TIMEOUT_S = 25.0
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_PEER = "org.freedesktop.DBus.Peer"
_ERROR = "org.freedesktop.DBus.Error."
_DO_NOT_QUEUE, _PRIMARY_OWNER, _ALREADY_OWNER = 4, 1, 4
_MACHINE_ID = Path("/etc/machine-id")

log = logging.getLogger(__name__)


class MessageTooLong(Exception):
    """A message was not sent, because no receiver of ours would take it; the connection goes on."""


class NameTaken(Exception):
    """Somebody else owns the name."""


class CallError(Exception):
    """The answer to a call is an error: its D-Bus name and its sentence."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        super().__init__(f"{name}: {text}")


class Wire:
    """One connection, made by `connect`."""

    def __init__(self, receive_limit_bytes: int) -> None:
        self._receive_limit_bytes = receive_limit_bytes
        self.unique_name = ""
        self._link: Link
        self._serial = 0
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._handler: Callable[[Message], bool] = lambda _message: False

    @classmethod
    async def connect(cls, address: str, *, receive_limit_bytes: int = MAX_MESSAGE_BYTES) -> Self:
        """Connect to "system", "session" or a D-Bus address.

        Args:
            receive_limit_bytes: longer messages are refused unread. Reading 8 MiB of the worst shape holds the loop for 1.8
                (dbus-fast) to 3.3 s (dbus-next), 128 KiB for 30 to 50 ms; a service that strangers call wants the latter.

        Raises: `WireClosed` when there is no bus or it refuses us; `ValueError` when the address is none.
        """
        wire = cls(receive_limit_bytes)
        wire._link = await Link.open(address, receive_limit_bytes, wire._receive)
        wire._link.closed.add_done_callback(wire._fail_calls)
        try:
            (wire.unique_name,) = await wire.call(BUS, BUS_PATH, BUS, "Hello", timeout_s=CONNECT_TIMEOUT_S)
        except CallError as error:
            raise WireClosed(f"the bus at {address} refuses us: {error.text}") from error
        finally:
            if not wire.unique_name:
                wire.close()
        return wire

    async def request_name(self, name: str) -> None:
        """Own the name or fail; when it is lost later, the connection ends.

        Raises: `NameTaken`; `CallError` when the bus's policy forbids it.
        """
        (outcome,) = await self.call(BUS, BUS_PATH, BUS, "RequestName", "su", (name, _DO_NOT_QUEUE))
        if outcome not in (_PRIMARY_OWNER, _ALREADY_OWNER):
            raise NameTaken(f"the name {name} is taken by another process")

    def handle(self, handler: Callable[[Message], bool]) -> None:
        """Have each call and signal passed to the handler, which returns whether it took the message.

        A call that is not taken is answered here: those of `org.freedesktop.DBus.Peer`, others with `UnknownMethod`.
        """
        self._handler = handler

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        flags: MessageFlag = MessageFlag.NONE,
    ) -> tuple[Any, ...]:
        """Call a method that answers, and return the values of its answer.

        Raises: `CallError` for an error and for no answer in time; `WireClosed`; as `send`.
        Cancellation: the answer is dropped, the call itself is not taken back.
        """
        message = Message(destination, path, interface, member, flags=flags, signature=signature, body=list(body))
        data, reply = self._encode(message), asyncio.get_running_loop().create_future()
        self._calls[message.serial] = reply
        try:
            async with asyncio.timeout(timeout_s):
                self._link.put(data)
                answer = await reply
        except TimeoutError as error:
            raise CallError(_ERROR + "NoReply", f"{destination} did not answer {member} within {timeout_s:g} s") from error
        finally:
            self._calls.pop(message.serial, None)
        if answer.message_type is MessageType.ERROR:
            text = answer.body[0] if answer.signature.startswith("s") else ""
            raise CallError(answer.error_name or _ERROR + "Failed", text)
        return tuple(answer.body)

    async def send(self, message: Message) -> None:
        """Send a message and return when the kernel has it: the way for answers, whose number and size others choose.

        Raises: `MessageTooLong`, `WireClosed`, and what the library says of a body that does not fit its signature.
        Cancellation: the message leaves all the same.
        """
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link.put(self._encode(message), sent)
        await sent

    def post(self, message: Message) -> None:
        """Send a message without waiting: the way for signals. Past the bound of `link.Outbox` the connection ends.

        Raises: as `send`.
        """
        self._link.put(self._encode(message))

    async def wait_closed(self) -> str:
        """Wait until the connection has ended and return why."""
        return await asyncio.shield(self._link.closed)

    def close(self) -> None:
        """End the connection; what still waits to leave is dropped, so a `send` comes last."""
        self._link.end("it was closed on this side")

    def _encode(self, message: Message) -> bytearray:
        self._serial = self._serial % 0xFFFFFFFF + 1
        message.serial = self._serial
        data = encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooLong(f"a message of {len(data)} bytes was not sent: the limit is {MAX_MESSAGE_BYTES}")
        return data

    def _receive(self, frame: Frame) -> None:
        try:
            message = decode(frame.data)
        except Exception as error:  # noqa: BLE001 - the libraries raise anything, and one message must not end the service
            log.warning("a message of %d bytes cannot be read and is dropped: %r", len(frame.data), error)
            return
        if frame.refused_bytes:
            self._refuse(message, frame.refused_bytes)
        elif message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            reply = self._calls.pop(message.reply_serial or 0, None)
            if reply is not None and not reply.done():
                reply.set_result(message)
        elif message.sender == BUS and message.member == "NameLost" and not message.body[0].startswith(":"):
            self._link.end(f"the name {message.body[0]} was lost")
        else:
            self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        try:
            taken = self._handler(message)
        except Exception:
            log.exception("the handler failed on %s.%s", message.interface, message.member)
            self._answer_error(message, "Failed", "The service met a fault of its own; its log says more.")
            return
        if taken or message.message_type is not MessageType.METHOD_CALL:
            return
        for_peer = message.interface in (None, "", _PEER)
        if for_peer and message.member in ("Ping", "GetMachineId") and message.signature:
            self._answer_error(message, "InvalidArgs", f"{_PEER}.{message.member} takes no arguments.")
        elif for_peer and message.member == "Ping":
            self._answer(message, Message.new_method_return(message))
        elif for_peer and message.member == "GetMachineId" and _MACHINE_ID.exists():
            self._answer(message, Message.new_method_return(message, "s", [_MACHINE_ID.read_text().strip()]))
        else:
            self._answer_error(message, "UnknownMethod", f"There is no method {message.interface}.{message.member} here.")

    def _refuse(self, message: Message, size_bytes: int) -> None:
        text = f"A message of {size_bytes} bytes is refused: the limit is {self._receive_limit_bytes}."
        log.warning("%s It came from %s.", text, message.sender)
        reply = self._calls.pop(message.reply_serial or 0, None)
        if reply is not None and not reply.done():
            reply.set_exception(CallError(_ERROR + "LimitsExceeded", text))
        self._answer_error(message, "LimitsExceeded", text)

    def _answer_error(self, message: Message, name: str, text: str) -> None:
        if message.message_type is MessageType.METHOD_CALL:
            self._answer(message, Message.new_error(message, _ERROR + name, text))

    def _answer(self, message: Message, answer: Message) -> None:
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED and not self._link.closed.done():
            self.post(answer)

    def _fail_calls(self, closed: asyncio.Future[str]) -> None:
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(WireClosed(closed.result()))
