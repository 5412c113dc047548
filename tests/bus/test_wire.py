# SPDX-License-Identifier: MIT
"""The wire on a real bus, and on a bus that misbehaves, with both D-Bus libraries: each guard has its test."""

import array
import asyncio
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.bus import Bus

PATH, INTERFACE = "/a/b", "test.Interface"
TEST_TIMEOUT_S = 10.0
KIB, MIB = 1024, 1024 * 1024

Handler = Callable[[Any], bool]


@asynccontextmanager
async def two(wire: Any, address: str, handler: Callable[[Any], Handler]) -> AsyncIterator[tuple[Any, Any]]:
    """A connection that serves and one that calls; the handler is made from the first."""
    server = await wire.Wire.connect(address)
    client = await wire.Wire.connect(address)
    server.handle(handler(server))
    try:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            yield server, client
    finally:
        server.close()
        client.close()


def echo(wire: Any) -> Callable[[Any], Handler]:
    """Answer each call to the interface with its own body."""

    def on(server: Any) -> Handler:
        def handle(message: Any) -> bool:
            if message.interface != INTERFACE or message.message_type is not wire.MessageType.METHOD_CALL:
                return False
            server.post(wire.Message.new_method_return(message, message.signature, message.body))
            return True

        return handle

    return on


def taking(act: Callable[[Any], object]) -> Handler:
    """Take each message and do this with it."""

    def handle(message: Any) -> bool:
        act(message)
        return True

    return handle


async def call(client: Any, server: Any, signature: str = "", body: tuple[Any, ...] = (), **options: Any) -> Any:
    return await client.call(server.unique_name, PATH, INTERFACE, "Method", signature, body, **options)


async def subscribe(wire: Any, client: Any) -> asyncio.Queue[Any]:
    """Have the bodies of the interface's signals put into a queue."""
    received: asyncio.Queue[Any] = asyncio.Queue()

    def handle(message: Any) -> bool:
        if message.interface == INTERFACE and message.message_type is wire.MessageType.SIGNAL:
            received.put_nowait(message.body)
        return True

    client.handle(handle)
    await client.call(wire.BUS, wire.BUS_PATH, wire.BUS, "AddMatch", "s", (f"type='signal',interface='{INTERFACE}'",))
    return received


def event(wire: Any, number: int, size: int = 0) -> Any:
    return wire.Message.new_signal(PATH, INTERFACE, "Event", "uay", [number, bytes(size)])


@asynccontextmanager
async def fake_bus(wire: Any, directory: Path) -> AsyncIterator[tuple[Any, socket.socket]]:
    """A connection to a bus that greets as it should and does nothing more, and that bus's end of it."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "bus"))
        listener.listen()
        listener.setblocking(False)

        async def run() -> socket.socket:
            peer, _ = await loop.sock_accept(listener)
            peer.setblocking(False)
            received = b""
            while not received.endswith(b"BEGIN\r\n"):
                received += await loop.sock_recv(peer, 4096)
            await loop.sock_sendall(peer, b"DATA\r\nOK 00\r\n")
            hello = await loop.sock_recv(peer, 4096)
            await loop.sock_sendall(peer, encoded(wire, answer_to(wire, hello, "s", [":1.1"])))
            return peer

        async with asyncio.timeout(TEST_TIMEOUT_S), asyncio.TaskGroup() as tasks:
            peering = tasks.create_task(run())
            connection = await wire.Wire.connect(f"unix:path={directory}/bus")
            peer = await peering
            try:
                yield connection, peer
            finally:
                connection.close()
                peer.close()


def encoded(wire: Any, message: Any) -> bytes:
    message.serial = message.serial or 7
    return bytes(message._marshall(False))


def answer_to(wire: Any, call: bytes, signature: str, body: list[Any]) -> Any:
    return wire.Message.new_method_return(importlib.import_module("snapd.bus.guards").decode(call), signature, body)


def test_uses_the_library_it_says(wire: Any, library: str) -> None:
    assert wire.Message.__module__.partition(".")[0] == library.replace("-", "_")


def test_refuses_a_library_it_does_not_know() -> None:
    environment = os.environ | {"DOMSNAPD_DBUS_LIBRARY": "dbus-python"}
    importing = subprocess.run(
        [sys.executable, "-c", "import snapd.bus.wire"], env=environment, capture_output=True, check=False
    )
    assert importing.returncode != 0
    assert b"DOMSNAPD_DBUS_LIBRARY is 'dbus-python'" in importing.stderr


async def test_structs_are_tuples_with_either_library(wire: Any, private_bus: str) -> None:
    variant = wire.Variant
    signature = "(sa(ii))a{s(ub)}vaya{sv}"
    given = (
        ("a", [(1, 2), [3, 4]]),
        {"x": [5, True]},
        variant("(iv)", (1, variant("a(s)", [("deep",)]))),
        b"\0\1",
        {"plain": variant("t", 2**63), "row": variant("(s)", ("z",))},
    )
    async with two(wire, private_bus, echo(wire)) as (server, client):
        answer = await call(client, server, signature, given)
    assert answer[:2] == (("a", [(1, 2), (3, 4)]), {"x": (5, True)})
    assert isinstance(answer[2], variant)
    assert wire.unwrap(answer[2:]) == ((1, [("deep",)]), b"\0\1", {"plain": 2**63, "row": ("z",)})


async def test_a_body_that_cannot_be_sent_is_refused_where_it_is_made(wire: Any, private_bus: str) -> None:
    async with two(wire, private_bus, echo(wire)) as (server, client):
        for signature, body in (("s", ("a\0b",)), ("s", (1,)), ("(ii)", (("x", "y"),)), ("ay", (bytes(8 * MIB),))):
            with pytest.raises(Exception, match=r"NUL|type|bytes|str|int") as caught:
                await call(client, server, signature, body)
            assert not isinstance(caught.value, wire.WireClosed)
        assert await call(client, server, "s", ("still here",)) == ("still here",)


async def test_flags_are_seen_and_nothing_is_answered_that_nobody_expects(wire: Any, private_bus: str) -> None:
    seen: list[Any] = []
    interactive, silent = wire.MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION, wire.MessageFlag.NO_REPLY_EXPECTED

    def on(server: Any) -> Handler:
        return taking(lambda message: seen.append(message.flags))

    def refusing(message: Any) -> bool:
        seen.append(message.flags)
        return False

    async with two(wire, private_bus, on) as (server, client):
        with pytest.raises(wire.CallError):
            await call(client, server, flags=interactive, timeout_s=0.1)
        server.handle(refusing)
        with pytest.raises(wire.CallError) as caught:
            await call(client, server, flags=silent, timeout_s=0.2)
    assert caught.value.name == "org.freedesktop.DBus.Error.NoReply"
    assert interactive in seen
    assert silent in seen


async def test_peer_is_answered_and_the_handler_comes_first(wire: Any, private_bus: str) -> None:
    peer = "org.freedesktop.DBus.Peer"
    async with two(wire, private_bus, lambda _server: lambda _message: False) as (server, client):
        assert await client.call(server.unique_name, PATH, peer, "Ping") == ()
        bus_id = await client.call(wire.BUS, "/", peer, "GetMachineId")
        for _ in range(3):
            assert await client.call(server.unique_name, PATH, peer, "GetMachineId") == bus_id
        for interface, member in ((peer, "Else"), ("org.freedesktop.DBus.Introspectable", "Introspect"), (INTERFACE, "M")):
            with pytest.raises(wire.CallError) as caught:
                await client.call(server.unique_name, PATH, interface, member)
            assert caught.value.name == "org.freedesktop.DBus.Error.UnknownMethod"

        def own_ping(message: Any) -> bool:
            server.post(wire.Message.new_method_return(message, "s", ["mine"]))
            return True

        server.handle(own_ping)
        for interface, member in ((peer, "Ping"), ("org.freedesktop.DBus.Introspectable", "Introspect")):
            assert await client.call(server.unique_name, PATH, interface, member) == ("mine",)


async def test_a_fault_of_the_handler_is_logged_and_not_told(
    wire: Any, private_bus: str, caplog: pytest.LogCaptureFixture
) -> None:
    def on(server: Any) -> Handler:
        def handle(message: Any) -> bool:
            raise RuntimeError(f"secret {server.unique_name} {message.member}")

        return handle

    async with two(wire, private_bus, on) as (server, client):
        for _ in range(2):
            with pytest.raises(wire.CallError) as caught:
                await call(client, server)
            assert "secret" not in str(caught.value)
    assert "secret" in caplog.text


async def test_a_name_is_owned_or_taken_and_losing_it_ends_the_connection(wire: Any, private_bus: str) -> None:
    async with two(wire, private_bus, echo(wire)) as (first, second):
        await first.request_name("test.Name")
        await first.request_name("test.Name")
        with pytest.raises(wire.NameTaken, match=r"test\.Name"):
            await second.request_name("test.Name")
        assert await second.call(wire.BUS, wire.BUS_PATH, wire.BUS, "ListQueuedOwners", "s", ("test.Name",)) == (
            [first.unique_name],
        )
        with pytest.raises(wire.WireClosed):  # the bus says that it is lost before it answers
            await first.call(wire.BUS, wire.BUS_PATH, wire.BUS, "ReleaseName", "s", ("test.Name",))
        assert await first.wait_closed() == "the name test.Name was lost"
        await second.request_name("test.Name")


async def test_a_full_socket_only_delays(wire: Any, bus: Bus) -> None:
    async with two(wire, bus.address, echo(wire)) as (server, client):
        received = await subscribe(wire, client)
        os.kill(bus.pid, signal.SIGSTOP)
        try:
            for number in range(100):
                server.post(event(wire, number, 20 * KIB))
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(server.send(event(wire, 100)))
                with pytest.raises(wire.CallError, match="did not answer"):
                    await call(server, client, timeout_s=0.1)
                assert not sending.done()
                server.post(event(wire, 101))
                os.kill(bus.pid, signal.SIGCONT)
        finally:
            os.kill(bus.pid, signal.SIGCONT)
        assert [(await received.get())[0] for _ in range(102)] == list(range(102))
        assert server._link._outbox._stall is None  # nothing wakes an idle connection


async def test_what_is_posted_is_bounded(wire: Any, tmp_path: Path) -> None:
    async with fake_bus(wire, tmp_path) as (connection, _):
        accepted = 0
        with pytest.raises(wire.WireClosed, match="does not take what is sent"):
            while accepted < 64:
                connection.post(event(wire, accepted, MIB))
                accepted += 1
        assert 16 <= accepted <= 18
        assert "16 MiB" in await connection.wait_closed()


async def test_a_bus_that_takes_nothing_is_given_up(wire: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("snapd.bus.link"), "STALL_TIMEOUT_S", 0.1)
    async with fake_bus(wire, tmp_path) as (connection, _):
        with pytest.raises(wire.WireClosed, match="took nothing"):
            await connection.send(event(wire, 1, MIB))
        assert "took nothing" in await connection.wait_closed()


async def test_a_slow_bus_is_not_given_up(wire: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("snapd.bus.link"), "STALL_TIMEOUT_S", 0.2)
    loop = asyncio.get_running_loop()
    async with fake_bus(wire, tmp_path) as (connection, peer), asyncio.TaskGroup() as tasks:
        began, size = loop.time(), 0
        sending = tasks.create_task(connection.send(event(wire, 1, 2 * MIB)))
        while size < 2 * MIB:
            size += len(await loop.sock_recv(peer, 256 * KIB))
            await asyncio.sleep(0.05)
        await sending
        assert loop.time() - began > 0.2
        assert not connection._link.closed.done()


async def test_signatures_of_others_do_not_stay(wire: Any, private_bus: str, library: str) -> None:
    guards = importlib.import_module("snapd.bus.guards")
    async with two(wire, private_bus, echo(wire)) as (server, client):
        for base in range(0, 1000, 250):
            variants = [
                wire.Variant(f"({bin(base + each)[2:].translate({48: 'u', 49: 's'})})", _row(base + each))
                for each in range(250)
            ]
            assert len((await call(client, server, "av", (variants,)))[0]) == 250
    size = len(guards.SignatureTree._cache) if library == "dbus-next" else guards.get_signature_tree.cache_info().currsize
    assert size <= guards.MAX_SIGNATURES


def _row(number: int) -> tuple[Any, ...]:
    return tuple("" if bit == "1" else 0 for bit in bin(number)[2:])


def large_call(wire: Any, client: Any, server: Any, body_bytes: int) -> tuple[bytes, int]:
    """A call with a body of `a(y)`, eight bytes each: the kind that takes a parser seconds; and its serial."""
    message = wire.Message(server.unique_name, PATH, INTERFACE, "Method", signature="a(y)", body=[[(0,)]])
    small = bytes(client._encode(message))
    header = small[: -(4 + 4 + 1)]
    array_bytes = body_bytes // 8 * 8 - 8 + 1
    body = array_bytes.to_bytes(4, "little") + bytes(4 + array_bytes)
    return header[:4] + len(body).to_bytes(4, "little") + header[8:] + body, message.serial


async def test_a_message_over_the_limit_is_refused_and_everyone_else_goes_on(wire: Any, private_bus: str) -> None:
    loop = asyncio.get_running_loop()
    longest_s, last_s = 0.0, time.thread_time()

    async def watch() -> None:
        nonlocal longest_s, last_s
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()  # of this thread, so that a busy machine does not count
            longest_s, last_s = max(longest_s, now_s - last_s), now_s

    async with two(wire, private_bus, echo(wire)) as (server, client):
        other = await wire.Wire.connect(private_bus)
        data, serial = large_call(wire, client, server, 31 * MIB)
        answer = client._calls[serial] = loop.create_future()
        last_s = time.thread_time()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch())
            sent = loop.create_future()
            client._link.put(data, sent)
            await sent
            assert await call(other, server, "s", ("other",)) == ("other",)
            refusal = await answer
            watching.cancel()
        assert refusal.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        assert str(8 * MIB) in refusal.body[0]
        assert await call(client, server, "s", ("again",)) == ("again",)
        other.close()
    assert longest_s < 0.05


async def test_a_service_may_take_less(wire: Any, private_bus: str) -> None:
    async with two(wire, private_bus, echo(wire)) as (server, client):
        careful = await wire.Wire.connect(private_bus, receive_limit_bytes=128 * KIB)
        careful.handle(echo(wire)(careful))
        assert await call(client, careful, "ay", (bytes(127 * KIB),)) == (bytes(127 * KIB),)
        with pytest.raises(wire.CallError, match=f"LimitsExceeded.*{128 * KIB}"):
            await call(client, careful, "ay", (bytes(128 * KIB),))
        assert await call(client, server, "ay", (bytes(128 * KIB),)) == (bytes(128 * KIB),)
        careful.close()


async def test_a_header_over_the_limit_is_let_go(wire: Any, private_bus: str) -> None:
    async with two(wire, private_bus, echo(wire)) as (server, client):
        path = "/a" * (100 * KIB)
        client.post(wire.Message(server.unique_name, path, INTERFACE, "Method"))
        assert await call(client, server, "s", ("after",)) == ("after",)


async def test_a_large_answer_is_refused_on_either_side(wire: Any, private_bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(wire, private_bus, echo(wire)) as (server, client):
        with pytest.raises(wire.MessageTooLong):
            await server.send(event(wire, 1, 8 * MIB))

        def oversized(message: Any) -> bool:
            with monkeypatch.context() as patch:
                patch.setattr(wire, "MAX_MESSAGE_BYTES", 32 * MIB)
                server.post(wire.Message.new_method_return(message, "ay", [bytes(9 * MIB)]))
            return True

        server.handle(oversized)
        with pytest.raises(wire.CallError, match="LimitsExceeded"):
            await call(client, server)
        server.handle(echo(wire)(server))
        (almost,) = await call(client, server, "ay", (bytes(8 * MIB - 512),))
        assert len(almost) == 8 * MIB - 512


async def test_when_the_bus_is_gone_all_fails_at_once(wire: Any, bus: Bus) -> None:
    async with two(wire, bus.address, lambda _server: lambda _message: True) as (server, client):
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_outcome(call(client, server)))
            assert await client.call(wire.BUS, wire.BUS_PATH, wire.BUS, "NameHasOwner", "s", ("a.b",)) == (False,)
            os.kill(bus.pid, signal.SIGKILL)
            assert await client.wait_closed() == "the bus ended the connection"
        assert isinstance(waiting.result(), wire.WireClosed)
        for attempt in (call(client, server), client.send(event(wire, 1)), client.request_name("a.b")):
            failure = await asyncio.wait_for(_outcome(attempt), 1)
            assert isinstance(failure, wire.WireClosed)
            assert str(failure) == "the bus ended the connection"
        with pytest.raises(wire.WireClosed):
            client.post(event(wire, 1))
        with pytest.raises(wire.WireClosed, match="cannot be reached"):
            await wire.Wire.connect(bus.address)


async def _outcome(attempt: Any) -> object:
    try:
        return await attempt
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error


async def test_closing_fails_what_waits_and_makes_no_tasks(wire: Any, private_bus: str) -> None:
    before = asyncio.all_tasks()
    async with two(wire, private_bus, lambda _server: lambda _message: True) as (server, client):
        assert asyncio.all_tasks() == before
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_outcome(call(client, server)))
            await asyncio.sleep(0)
            client.close()
            client.close()
        assert isinstance(waiting.result(), wire.WireClosed)
        assert await client.wait_closed() == await client.wait_closed() == "it was closed on this side"


async def test_greets_without_a_uid_and_asks_for_no_descriptors(wire: Any, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        listener.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(_outcome(wire.Wire.connect(f"unix:path={tmp_path}/bus,guid=00")))
            peer, _ = await loop.sock_accept(listener)
            with peer:
                assert await loop.sock_recv(peer, 4096) == b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
                await loop.sock_sendall(peer, b"REJECTED KERBEROS\r\n")
                refusal = await connecting
        assert isinstance(refusal, wire.WireClosed)
        assert "REJECTED KERBEROS" in str(refusal)


async def test_a_bus_that_does_not_greet_is_given_up(wire: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("snapd.bus.link"), "CONNECT_TIMEOUT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        with pytest.raises(wire.WireClosed, match="does not answer"):
            await wire.Wire.connect(f"unix:path={tmp_path}/bus")


async def test_descriptors_that_arrive_nevertheless_do_not_stay(wire: Any, tmp_path: Path) -> None:
    async with fake_bus(wire, tmp_path) as (connection, peer):
        arrived = asyncio.Event()
        connection.handle(taking(lambda _message: arrived.set()))
        open_before = len(os.listdir("/proc/self/fd"))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [peer.fileno()] * 4))]
        peer.sendmsg([encoded(wire, event(wire, 1))], rights)
        await arrived.wait()
        assert len(os.listdir("/proc/self/fd")) == open_before


async def test_what_cannot_be_read_is_dropped_and_what_is_not_dbus_ends_the_connection(wire: Any, tmp_path: Path) -> None:
    async with fake_bus(wire, tmp_path) as (connection, peer):
        numbers: asyncio.Queue[int] = asyncio.Queue()
        connection.handle(taking(lambda message: numbers.put_nowait(message.body[0])))
        good = encoded(wire, event(wire, 5))
        unknown_type = good[:1] + b"\x09" + good[2:]
        no_such_path = good.replace(b"/a/b\0", b"\xff\xff\xff\xff\0")
        for each in unknown_type, no_such_path, good:
            for start in range(0, len(each), 7):
                await asyncio.get_running_loop().sock_sendall(peer, each[start : start + 7])
        assert await numbers.get() == 5
        assert numbers.empty()
        await asyncio.get_running_loop().sock_sendall(peer, b"HTTP/1.1 400 Bad Request")
        assert "not D-Bus" in await connection.wait_closed()


async def test_serials_begin_again_and_are_never_zero(wire: Any, private_bus: str) -> None:
    async with two(wire, private_bus, echo(wire)) as (server, client):
        client._serial = 2**32 - 2
        for number in range(3):
            assert await call(client, server, "u", (number,)) == (number,)
        assert client._serial == 2


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    from snapd.bus.link import socket_path  # noqa: PLC0415 - the fixtures exchange the module

    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "tcp:host=a;unix:guid=1,path=/s%20b")
    assert socket_path("system") == "/run/dbus/system_bus_socket"
    assert socket_path("session") == "/s b"
    assert socket_path("unix:abstract=x") == "\0x"
    for wrong in "tcp:host=a", "", "nonsense":
        with pytest.raises(ValueError, match="not the address"):
            socket_path(wrong)
