# SPDX-License-Identifier: MIT
"""The link to a monitor: real QEMUs that come and go, and peers that mean no good."""

import asyncio
import contextlib
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from snapd.errors import DomainUnreachable, MonitorLost, QemuFailed
from snapd.qmp.link import KEPT_EVENTS
from snapd.qmp.monitor import LONGEST_LINE_BYTES
from tests.contract.conftest import StartQemu
from tests.lab.fake_monitor import GREETING, Command, FakeMonitor, event, reply, silence
from tests.lab.linked import Down, Up, connected, linked
from tests.lab.qmp import Qmp

pytestmark = pytest.mark.usefixtures("impatient")

NOBODY_LISTENS = "no QEMU listens at its monitor"
KILLED = "its QEMU has ended without saying so: killed, or crashed"


async def test_connects_and_executes(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        assert link.is_up
        assert (await link.execute("query-status"))["status"] == "prelaunch"
        with pytest.raises(QemuFailed, match="refused device_del: Device 'nobody' not found"):
            await link.execute("device_del", id="nobody")
    assert not link.is_up
    with pytest.raises(DomainUnreachable):
        await link.execute("query-status")


async def test_never_started_then_started(start_qemu: StartQemu, tmp_path: Path) -> None:
    async with linked(tmp_path / "qemu0" / "qmp") as kept:
        assert await kept.next_told() == Down(there=False, reason=NOBODY_LISTENS)
        start_qemu(paused=True)
        assert await kept.next_told() == Up()


async def test_killed_and_started_again(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        for _ in range(2):
            qemu.stop()
            assert await kept.next_told() == Down(there=False, reason=KILLED)
            qemu.start()
            assert await kept.next_told() == Up()
            assert (await kept.link.execute("query-status"))["status"] == "prelaunch"
        assert kept.told.empty()


async def test_quit_is_told_from_a_crash(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        qemu.control.execute("quit")
        assert await kept.next_told() == Down(there=False, reason="its QEMU has ended")
        qemu.wait_ended()
        with pytest.raises(DomainUnreachable):
            await kept.link.execute("query-status")


async def test_killed_during_a_command(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        qemu.freeze()
        waiting = asyncio.ensure_future(kept.link.execute("query-status"))
        await asyncio.sleep(0)
        qemu.stop()
        with pytest.raises(MonitorLost) as caught:
            await waiting
        assert caught.value.during == "query-status"


def not_greeted(path: Path) -> Down:
    reason = f"another client holds the monitor {path}, or its QEMU is stopped: it does not greet us"
    return Down(there=True, reason=reason)


async def test_monitor_held_by_another_client(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    other = await asyncio.to_thread(Qmp, qemu.monitor)
    with other:
        async with linked(qemu.monitor) as kept:
            assert await kept.next_told() == not_greeted(qemu.monitor)
            other.close()
            assert await kept.next_told() == Up()


async def test_monitor_held_by_many_clients(start_qemu: StartQemu) -> None:
    """The kernel refuses who comes when QEMU has one client and two others wait."""
    qemu = start_qemu(paused=True)
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(linked(qemu.monitor)) for _ in range(6)]
        told = [await each.next_told() for each in links]
        assert told.count(Up()) == 1
        assert told.count(not_greeted(qemu.monitor)) == 5
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()


async def test_stopped_qemu_loses_the_monitor_and_gets_it_back(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        qemu.freeze()
        with pytest.raises(MonitorLost, match=r"no answer came within 0\.2 s") as caught:
            await kept.link.execute("query-status", timeout_s=0.2)
        assert caught.value.during == "query-status"
        assert await kept.next_told() == not_greeted(qemu.monitor)
        qemu.thaw()
        assert await kept.next_told() == Up()
        assert (await kept.link.execute("query-status"))["status"] == "prelaunch"


async def test_many_commands_time_out_at_once(start_qemu: StartQemu) -> None:
    """A stopped QEMU reads nothing: what is still to be sent must not hold up the end of the connection."""
    qemu = start_qemu(paused=True)
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        qemu.freeze()
        padding = "x" * 4096
        sent = (kept.link.execute("qom-get", timeout_s=0.3, path=padding, property="type") for _ in range(300))
        begun = time.monotonic()
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert time.monotonic() - begun < 20
        assert all(isinstance(each, MonitorLost) for each in outcomes)
        assert await kept.next_told() == not_greeted(qemu.monitor)
        qemu.thaw()
        assert await kept.next_told() == Up()


async def test_hundreds_of_commands_at_once(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        good = [link.execute("query-name") for _ in range(250)]
        bad = [link.execute("qom-get", path=f"/no-{number}", property="type") for number in range(250)]
        outcomes = await asyncio.gather(*itertools.chain(*zip(good, bad, strict=True)), return_exceptions=True)
        assert outcomes[::2] == [{}] * 250
        for number, each in enumerate(outcomes[1::2]):
            assert isinstance(each, QemuFailed)
            assert f"/no-{number}'" in each.text


async def test_largest_answer_fits(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        schema = await link.execute("query-qmp-schema")
        assert 100_000 < len(json.dumps(schema)) < LONGEST_LINE_BYTES / 4


@pytest.mark.parametrize(("mode", "is_refused"), [(0o777, True), (0o1777, False), (0o755, False)])
async def test_replaceable_socket_is_refused(start_qemu: StartQemu, mode: int, is_refused: bool) -> None:
    qemu = start_qemu(paused=True)
    qemu.directory.chmod(mode)
    async with linked(qemu.monitor) as kept:
        told = await kept.next_told()
        if not is_refused:
            assert told == Up()
            return
        assert isinstance(told, Down)
        assert told.there
        assert f"anyone may replace the monitor {qemu.monitor}" in told.reason
        qemu.directory.chmod(0o755)
        assert await kept.next_told() == Up()


async def test_path_that_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    path.write_text("")
    async with linked(path) as kept:
        assert await kept.next_told() == Down(there=False, reason=NOBODY_LISTENS)


async def test_events_come_in_order_and_to_every_watcher(start_qemu: StartQemu) -> None:
    qemu = start_qemu()
    async with linked(qemu.monitor) as kept:
        assert await kept.next_told() == Up()
        link = kept.link
        with link.watch() as outer:
            await link.execute("stop")
            with link.watch() as inner:
                await link.execute("cont")
                assert await inner.until(lambda: inner.last("RESUME") is not None, 5)
            await link.execute("stop")
            assert await outer.until(lambda: len(outer.events) == 3, 5)
        assert [each["event"] for each in outer.events] == ["STOP", "RESUME", "STOP"]
        assert [each["event"] for each in inner.events] == ["RESUME"]
        assert [each["event"] for each in kept.events] == ["STOP", "RESUME", "STOP"]
        newest = outer.last("STOP", "RESUME")
        assert newest is outer.events[-1]
        assert not await inner.until(lambda: False, 0.01)


async def test_event_log_is_bounded(tmp_path: Path) -> None:
    flood = b"".join(event("RTC_CHANGE", offset=number) for number in range(KEPT_EVENTS + 500))
    async with FakeMonitor(tmp_path / "qmp", lambda command: (flood, reply(command, {}))) as fake, connected(fake.path) as link:
        with link.watch() as events:
            await link.execute("query-name")
            assert len(events.events) == KEPT_EVENTS
            newest = events.last("RTC_CHANGE")
            assert newest is not None
            assert newest["data"]["offset"] == KEPT_EVENTS + 499


async def test_event_flood_does_not_grow_memory(tmp_path: Path) -> None:
    flood = b"".join(event("RTC_CHANGE", offset=number) for number in range(2000))
    async with FakeMonitor(tmp_path / "qmp", lambda command: (flood, reply(command, {}))) as fake:
        async with linked(fake.path, keep_events=False) as kept:
            assert await kept.next_told() == Up()
            with kept.link.watch():
                await kept.link.execute("query-name")  # the log is full now
                tracemalloc.start()
                try:
                    before, _ = tracemalloc.get_traced_memory()
                    for _ in range(3):
                        await kept.link.execute("query-name")
                    after, _ = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
        # 6,000 events kept would be 6 MB; what is traced anew is the log itself, whose old events were not traced.
        assert after - before < 2_000_000


def _garbage(_: Command) -> Iterable[bytes]:
    return (b"\x00\xff no JSON at all\r\n",)


def _list(_: Command) -> Iterable[bytes]:
    return (b"[1, 2, 3]\r\n",)


def _deep(_: Command) -> Iterable[bytes]:
    return (b"[" * 200_000 + b"]" * 200_000 + b"\r\n",)


def _giant(_: Command) -> Iterable[bytes]:
    return (b'{"return": "', *[b"x" * 65536] * (LONGEST_LINE_BYTES // 65536 + 1), b'"}\r\n')


def _error_for_nobody(_: Command) -> Iterable[bytes]:
    return (b'{"error": {"class": "GenericError", "desc": "parse error"}}\r\n',)


def _event_of_the_wrong_shape(_: Command) -> Iterable[bytes]:
    return (b'{"event": ["SHUTDOWN"], "timestamp": 7}\r\n', b'{"event": {}}\r\n', b'{"id": []}\r\n')


@pytest.mark.parametrize("answer", [_garbage, _list, _deep, _giant, _error_for_nobody, _event_of_the_wrong_shape])
async def test_hostile_peer_only_loses_its_connection(tmp_path: Path, answer: Callable[[Command], Iterable[bytes]]) -> None:
    path = tmp_path / "qmp"
    async with FakeMonitor(path, answer) as fake, linked(fake.path) as kept:
        for _ in range(2):
            assert await kept.next_told() == Up()
            with pytest.raises(MonitorLost):
                await kept.link.execute("query-status")


def _reply_of_the_wrong_shape(command: Command) -> Iterable[bytes]:
    return (json.dumps({"id": command["id"], "neither": "return nor error"}).encode() + b"\r\n",)


def _error_of_the_wrong_shape(command: Command) -> Iterable[bytes]:
    return (json.dumps({"id": command["id"], "error": "no object"}).encode() + b"\r\n",)


@pytest.mark.parametrize("answer", [_reply_of_the_wrong_shape, _error_of_the_wrong_shape])
async def test_reply_of_the_wrong_shape(tmp_path: Path, answer: Callable[[Command], Iterable[bytes]]) -> None:
    async with FakeMonitor(tmp_path / "qmp", answer) as fake, connected(fake.path) as link:
        with pytest.raises(MonitorLost):
            await link.execute("query-status")


async def test_replies_nobody_asked_for_are_dropped(tmp_path: Path) -> None:
    def answer(command: Command) -> Iterable[bytes]:
        for number in range(50):
            yield reply({"id": f"nobody-{number}"}, "wrong")
        yield reply(command, "right")
        yield reply(command, "late")

    async with FakeMonitor(tmp_path / "qmp", answer) as fake, connected(fake.path) as link:
        for _ in range(3):
            assert await link.execute("query-name") == "right"


async def test_never_answering(tmp_path: Path) -> None:
    async with FakeMonitor(tmp_path / "qmp", silence) as fake, linked(fake.path) as kept:
        for _ in range(2):
            assert await kept.next_told() == Up()
            with pytest.raises(MonitorLost):
                await kept.link.execute("query-status", timeout_s=0.1)


async def test_never_reading(tmp_path: Path) -> None:
    async with FakeMonitor(tmp_path / "qmp", deaf=True) as fake, linked(fake.path) as kept:
        assert await kept.next_told() == Up()
        with pytest.raises(MonitorLost):
            await kept.link.execute("qom-get", timeout_s=0.1, path="x" * (4 << 20), property="type")
        assert await kept.next_told() == Up()


@pytest.mark.parametrize("greeting", [b"", b"hello\r\n", b'{"QMP": 5}\r\n', b"x" * (LONGEST_LINE_BYTES + 1)])
async def test_greeting_of_a_stranger(tmp_path: Path, greeting: bytes) -> None:
    async with FakeMonitor(tmp_path / "qmp", greeting=greeting) as fake, linked(fake.path) as kept:
        told = await kept.next_told()
        assert isinstance(told, Down)
        assert told.there
        assert str(fake.path) in told.reason
        fake._greeting = GREETING
        assert await kept.next_told() == Up()


async def test_cancelled_wait_leaves_the_connection_usable(start_qemu: StartQemu) -> None:
    qemu = start_qemu(paused=True)
    async with connected(qemu.monitor) as link:
        waiting = asyncio.ensure_future(link.execute("query-qmp-schema"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await link.execute("query-status"))["status"] == "prelaunch"
        assert link.is_up
