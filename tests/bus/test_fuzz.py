# SPDX-License-Identifier: MIT
"""Random, large, deep and many calls, made from what introspection shows: the service answers each and stays what it was.

The seed is fixed, so that a failure happens again; ``DOMSNAPD_TEST_PROFILE=soak`` takes other seeds and more calls.
"""

import asyncio
import math
import os
import random
import socket
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from snapd.bus.guards import encode
from snapd.bus.link import socket_path
from snapd.bus.names import BUS_NAME, DOMAIN_INTERFACE, INTROSPECTABLE_INTERFACE, MANAGER_INTERFACE, ROOT_PATH, domain_path
from snapd.bus.verbs import CREATE_OPTIONS, DELETE_OPTIONS, LIST_OPTIONS, REVERT_OPTIONS, WAIT
from snapd.bus.wire import BUS, BUS_PATH, CallError, Message, MessageFlag, MessageType, Variant, Wire
from tests.lab.qemu import GuestDisk
from tests.lab.scene import DOMAIN, Scene, scene

pytestmark = pytest.mark.asyncio(loop_scope="module")

IS_SOAK = os.environ.get("DOMSNAPD_TEST_PROFILE") == "soak"
SEED = random.randrange(1 << 32) if IS_SOAK else 20261122
CALLS = 20_000 if IS_SOAK else 1500
AT_ONCE = 20

ANSWER_TIMEOUT_S = 60.0
PROMPT_S = 5.0
MOST_RESIDENT_BYTES = 60 << 20
MOST_GROWTH_BYTES = 6 << 20
QUIET_WINDOW_S = 5.0
MOST_WAKE_UPS = 2
QUIET_TIMEOUT_S = 30.0

ONE_DISK = (GuestDisk("disk0.raw", "raw", id="disk0"),)
DOMAIN_PATH = domain_path(DOMAIN)

NEVER = {
    "org.domsnap1.Error.Internal",
    "org.freedesktop.DBus.Error.Failed",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
}

WORDS = [DOMAIN, "", "one", "two", "three", "all", "tree", "children", "running", "paused", "auto", "require", "no", "external"]
WORDS += ["internal", "create", "revert", "delete"]
WORDS += ["any", "disk0", ".", "..", "/", "a/b", "x" * 200, "x" * 201, "x" * 5000, "\x01\n", "ä€\U0001f40c", "%s{0}", "٣", "12"]
PATHS = [ROOT_PATH, DOMAIN_PATH, "/", "/org", f"{DOMAIN_PATH}/snapshot/one", f"{DOMAIN_PATH}/snapshot", "/org/domsnap1/job/1"]
PATHS += ["/org/domsnap1/domain/_", "/org/domsnap1/job/_", "/org/domsnap1/job/99999999999999999999", "/org/domsnap1/domain/_ff"]
PATHS += ["/org/domsnap1/domain/_zz", "/a" * 200, f"{DOMAIN_PATH}/snapshot/" + "x" * 3000]
OPTIONS = {**CREATE_OPTIONS, **REVERT_OPTIONS, **DELETE_OPTIONS, **LIST_OPTIONS, **WAIT}
INTEGERS = {"y": (0, 8), "n": (1, 15), "q": (0, 16), "i": (1, 31), "u": (0, 32), "x": (1, 63), "t": (0, 64)}
BASIC = "ybnqiuxtdsog"


@dataclass(frozen=True)
class Target:
    """A method that introspection has shown."""

    path: str
    interface: str
    member: str
    signature: str


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["dbus-fast", "dbus-next"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with scene(ONE_DISK, environment={"DOMSNAPD_DBUS_LIBRARY": request.param}) as made:
        await made.create("one")
        await made.create("two")
        yield made


async def targets(wire: Wire, path: str = "/") -> list[Target]:
    """Return every method of every object, found from the top."""
    (text,) = await wire.call(BUS_NAME, path, INTROSPECTABLE_INTERFACE, "Introspect")
    root = ET.fromstring(text)
    found = [
        Target(path, interface.get("name", ""), method.get("name", ""), _in_signature(method))
        for interface in root.findall("interface")
        for method in interface.findall("method")
    ]
    for node in root.findall("node"):
        found += await targets(wire, f"{path.rstrip('/')}/{node.get('name')}")
    return found


def _in_signature(method: ET.Element) -> str:
    return "".join(each.get("type", "") for each in method.findall("arg") if each.get("direction") == "in")


def split(signature: str) -> list[str]:
    """Return the single complete types of a signature."""
    found: list[str] = []
    start = 0
    while start < len(signature):
        end = start
        while signature[end] == "a":
            end += 1
        depth = 0
        while True:
            depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[end], 0)
            end += 1
            if depth == 0:
                break
        found.append(signature[start:end])
        start = end
    return found


class Chance:
    """Random types and values."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def signature(self, depth: int = 3) -> str:
        kind = self.random.choice(["basic", "basic", "basic", "array", "dict", "struct", "variant"]) if depth else "basic"
        match kind:
            case "array":
                return "a" + self.signature(depth - 1)
            case "dict":
                return f"a{{{self.random.choice(BASIC)}{self.signature(depth - 1)}}}"
            case "struct":
                return "(" + "".join(self.signature(depth - 1) for _ in range(self.random.randint(1, 3))) + ")"
            case "variant":
                return "v"
        return self.random.choice(BASIC)

    def body(self, signature: str) -> list[Any]:
        return [self.value(each) for each in split(signature)]

    def value(self, kind: str) -> Any:
        choice = self.random
        if kind in INTEGERS:
            signed, bits = INTEGERS[kind]
            return choice.choice([0, 1, (1 << bits) - 1, -signed * (1 << bits), choice.getrandbits(bits)])
        if kind == "a{sv}":
            return {choice.choice([*OPTIONS, *WORDS]): self.option() for _ in range(choice.choice([0, 0, 1, 2, 5, 200]))}
        if kind == "ay":
            return choice.randbytes(choice.choice([0, 1, 100]))
        if kind.startswith("a{"):
            key, value = split(kind[2:-1])
            return {self.value(key): self.value(value) for _ in range(choice.choice([0, 1, 3]))}
        if kind.startswith("a"):
            return [self.value(kind[1:]) for _ in range(choice.choice([0, 1, 3, 20]))]
        if kind.startswith("("):
            return tuple(self.value(each) for each in split(kind[1:-1]))
        match kind:
            case "b":
                return choice.random() < 0.5
            case "d":
                return choice.choice([0.0, -1.5, math.inf, 1e308, choice.random()])
            case "s":
                return choice.choice(WORDS)
            case "o":
                return choice.choice(PATHS)
            case "g":
                return "".join(self.signature() for _ in range(choice.randint(0, 3)))
        inner = self.signature()
        return Variant(inner, self.value(inner))

    def option(self) -> Variant:
        """Return the value of an option: half of the time one that some option could have."""
        kind = self.random.choice(list(OPTIONS.values())) if self.random.random() < 0.5 else self.signature()
        return Variant(kind, self.value(kind))


async def outcome(call: Awaitable[Any]) -> str:
    """Return the name of the error that answers a call, or nothing. An error that must never come fails the test."""
    try:
        await call
    except CallError as error:
        assert error.name not in NEVER, error
        return error.name
    return ""


async def ask(wire: Wire, target: Target, signature: str, body: list[Any]) -> str:
    interface = cast("str", target.interface or None)
    return await outcome(
        wire.call(BUS_NAME, target.path, interface, target.member, signature, body, timeout_s=ANSWER_TIMEOUT_S)
    )


async def assert_well(stage: Scene) -> None:
    """The service answers promptly and has met no fault of its own."""
    async with asyncio.timeout(PROMPT_S):
        assert len((await stage.manager("ListDomains"))[0]) == 1
    assert "Traceback" not in stage.daemon.log
    assert "unexpected error" not in stage.daemon.log


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep."""
    statuses = [Path(f"/proc/{pid}/task/{task}/status").read_text() for task in os.listdir(f"/proc/{pid}/task")]
    return sum(int(line.split()[1]) for status in statuses for line in status.splitlines() if line.startswith("voluntary"))


async def fuzz(stage: Scene, seed: int) -> Counter[str]:
    """Make many random calls, some at once. Returns: how often each error came."""
    chance = Chance(seed)
    known = await targets(stage.wire)
    came: Counter[str] = Counter()
    for _ in range(CALLS // AT_ONCE):
        calls = []
        for _ in range(AT_ONCE):
            target = chance.random.choice(known)
            signature = target.signature
            if chance.random.random() < 0.2:
                signature = "".join(chance.signature() for _ in range(chance.random.randint(0, 4)))
            if chance.random.random() < 0.2:
                target = Target(chance.random.choice(PATHS), target.interface, target.member, target.signature)
            if chance.random.random() < 0.1:
                target = Target(target.path, chance.random.choice(["", "a.b", MANAGER_INTERFACE]), target.member, "")
            calls.append(ask(stage.wire, target, signature, chance.body(signature)))
        came.update(await asyncio.gather(*calls))
    return came


async def test_every_random_call_is_answered_and_none_leaves_a_mark(stage: Scene) -> None:
    print(f"seed {SEED}")
    came = await fuzz(stage, SEED)
    # The generator reaches every kind of answer.
    standard = {f"org.freedesktop.DBus.Error.{each}" for each in ("InvalidArgs", "UnknownObject", "UnknownInterface")}
    ours = {f"org.domsnap1.Error.{each}" for each in ("InvalidOption", "NoSuchSnapshot", "DomainBusy")}
    assert {"", *standard, *ours} <= set(came), came
    assert any(each.member == "JobAdded" for each in stage.signals)
    await assert_well(stage)
    before = resident_bytes(stage.daemon.pid)
    await fuzz(stage, SEED + 1)
    await assert_well(stage)
    grown = resident_bytes(stage.daemon.pid) - before
    assert grown < MOST_GROWTH_BYTES, f"the service grew by {grown >> 10} KiB"
    assert [disk["Eligible"] for disk in (await stage.properties())["Disks"]] == [True]


def nested(depth: int) -> Variant:
    value = Variant("s", "at the bottom")
    for _ in range(depth):
        value = Variant("v", value)
    return value


DEEP: list[tuple[str, Variant]] = [
    ("variants", nested(50)),
    ("arrays", Variant("a" * 28 + "y", [])),
    ("structs", Variant("(" * 28 + "y" + ")" * 28, eval("(" * 28 + "1" + ",)" * 28))),
    ("signature", Variant("g", "y" * 255)),
    ("long", Variant("s", "x" * 100_000)),
    ("bytes", Variant("ay", bytes(100_000))),
    ("strings", Variant("as", ["x"] * 15_000)),
    ("dictionary", Variant("a{sv}", {str(number): Variant("v", Variant("(ss)", ("a", "b"))) for number in range(2000)})),
]


@pytest.mark.parametrize("name", sorted({*OPTIONS, "unknown"}))
async def test_deep_and_large_options_are_refused_and_not_suffered(name: str, stage: Scene) -> None:
    for member in ("CreateSnapshot", "RevertSnapshot", "DeleteSnapshot"):
        for _, value in DEEP:
            if OPTIONS.get(name) == value.signature:
                continue
            called = stage.wire.call(BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, member, "sa{sv}", ("one", {name: value}))
            assert await outcome(called) == "org.domsnap1.Error.InvalidOption"
    await assert_well(stage)


async def test_messages_over_the_limit_are_refused_whatever_is_in_them(stage: Scene) -> None:
    for value in (Variant("s", "x" * (7 << 20)), Variant("av", [Variant("s", "x")] * 100_000), Variant("ay", bytes(1 << 20))):
        called = stage.wire.call(
            BUS_NAME, DOMAIN_PATH, DOMAIN_INTERFACE, "CreateSnapshot", "sa{sv}", ("x", {"description": value})
        )
        assert await outcome(called) == "org.freedesktop.DBus.Error.LimitsExceeded"
    await assert_well(stage)


async def test_a_thousand_calls_in_flight_are_all_answered(stage: Scene) -> None:
    wires = [await Wire.connect(stage.bus_address) for _ in range(10)]
    try:
        asked = [Target(DOMAIN_PATH, DOMAIN_INTERFACE, "ListSnapshots", "a{sv}")] * 50
        asked += [Target(ROOT_PATH, MANAGER_INTERFACE, "ListJobs", "")] * 50
        bodies: list[list[Any]] = [[{}] if each.signature else [] for each in asked]
        calls = [
            ask(wire, target, target.signature, body) for wire in wires for target, body in zip(asked, bodies, strict=True)
        ]
        came = Counter(await asyncio.gather(*calls))
    finally:
        for wire in wires:
            wire.close()
    assert came == {"": 1000}
    await assert_well(stage)


async def test_a_flood_that_wants_no_answer_does_not_keep_others_waiting(stage: Scene) -> None:
    flooding = await Wire.connect(stage.bus_address)
    silent = MessageFlag.NO_REPLY_EXPECTED
    before = resident_bytes(stage.daemon.pid)
    try:
        for number in range(5000):
            member = ("ListDomains", "ListJobs", "Explode")[number % 3]
            await flooding.send(Message(BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, member, flags=silent))
            if number % 500 == 0:
                await assert_well(stage)
    finally:
        flooding.close()
    await assert_well(stage)
    assert resident_bytes(stage.daemon.pid) - before < MOST_GROWTH_BYTES


async def test_messages_that_nobody_asked_for_are_passed_over(stage: Scene) -> None:
    chance = Chance(SEED)
    (owner,) = await stage.wire.call(BUS, BUS_PATH, BUS, "GetNameOwner", "s", (BUS_NAME,))
    for number in range(300):
        kind = (MessageType.METHOD_RETURN, MessageType.ERROR, MessageType.SIGNAL)[number % 3]
        signature = chance.signature()
        body = chance.body(signature)
        if kind is MessageType.SIGNAL:
            # As if the bus had said that the name is lost, for one.
            message = Message(owner, BUS_PATH, BUS, "NameLost", kind, signature="s", body=[BUS_NAME])
        else:
            error = "a.b.Error" if kind is MessageType.ERROR else None
            serial = chance.random.randint(1, 2000)
            message = Message(owner, message_type=kind, error_name=error, reply_serial=serial, signature=signature, body=body)
        await stage.wire.send(message)
    await assert_well(stage)


async def test_a_client_that_never_reads_holds_nobody_up(stage: Scene) -> None:
    before = resident_bytes(stage.daemon.pid)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(socket_path(stage.bus_address))
        deaf.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
        asked = [Message(BUS, BUS_PATH, BUS, "Hello")]
        asked += [Message(BUS_NAME, ROOT_PATH, None, "GetManagedObjects") for _ in range(100)]
        for serial, message in enumerate(asked, 1):
            message.serial = serial
            deaf.sendall(encode(message))
        for _ in range(20):
            await assert_well(stage)
        await stage.create("while one is deaf")
        await stage.delete("while one is deaf")
    await assert_well(stage)
    assert resident_bytes(stage.daemon.pid) - before < MOST_GROWTH_BYTES


async def test_after_all_this_the_service_is_small_and_sleeps(stage: Scene) -> None:
    """Run last. What is measured is that nothing happens, so the window is a time and not a condition."""
    pid = stage.daemon.pid
    assert resident_bytes(pid) < MOST_RESIDENT_BYTES, f"{resident_bytes(pid) >> 20} MiB"
    seen: list[int] = []
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while time.monotonic() < deadline:
        before = wake_ups(pid)
        await asyncio.sleep(QUIET_WINDOW_S)
        seen.append(wake_ups(pid) - before)
        if seen[-1] <= MOST_WAKE_UPS:
            break
    assert seen[-1] <= MOST_WAKE_UPS, f"wake-ups in windows of {QUIET_WINDOW_S:g} s: {seen}"
