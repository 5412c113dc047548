# SPDX-License-Identifier: MIT
"""``make bench``: the service through its bus against bare QMP, in the same run, as ratios.

Each round takes a snapshot and goes back to it, first by the bare script on one QEMU, then by the service on another that was
started the same way; medians are compared.
"""

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.bare import BareScript
from tests.lab.guest import TinyGuest, make_disk, memory_rounds
from tests.lab.qemu import GuestDisk, QemuProcess, kvm_works
from tests.lab.scene import Scene, scene, short_directory

SIZES_MIB = (128, 2048)
TOUCH_TIMEOUT_S = 600.0
IDLE_S = 10.0
_POLL_S = 0.05


@dataclass
class Figures:
    pause_ms: list[float] = field(default_factory=list)
    create_ms: list[float] = field(default_factory=list)
    revert_ms: list[float] = field(default_factory=list)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--accel", choices=("kvm", "tcg"))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES_MIB), metavar="MIB")
    options = parser.parse_args()
    accel = options.accel or ("kvm" if kvm_works() else "tcg")
    print(f"{accel}, {options.rounds} rounds, one raw and one qcow2 disk; medians in ms, service / bare QMP\n")
    print(f"{'guest':>22} | {'pause':^24} | {'create, total':^31} | {'revert, total':^31}")
    for size_mib in options.sizes:
        for dirtying in (False, True):
            await _case(accel, size_mib, dirtying, options.rounds)
    await _idle(accel)


async def _case(accel: str, size_mib: int, dirtying: bool, rounds: int) -> None:
    guest = TinyGuest.dirtying(size_mib - 32) if dirtying else TinyGuest()
    with short_directory() as directory:
        disks = [
            GuestDisk(make_disk(directory / "disk0.raw", "raw", guest=guest), "raw", id="disk0"),
            GuestDisk(make_disk(directory / "disk1.qcow2", "qcow2", guest=guest), "qcow2", id="disk1"),
        ]
        with QemuProcess(directory, disks, accel=accel, memory_mib=size_mib) as bare_qemu:
            async with scene(guest=guest, accel=accel, memory_mib=size_mib) as ours:
                bare_qemu.wait_counting()
                if dirtying:
                    _wait_touched(bare_qemu)
                    _wait_touched(ours.qemu)
                bare = BareScript(bare_qemu.control, directory, size_mib << 20)
                limit, service = Figures(), Figures()
                for number in range(rounds):
                    # Two guests that never rest would take both processors of a small machine from whoever is measured.
                    with _alone(ours.qemu):
                        await _bare_round(bare, bare_qemu, f"s{number}", limit)
                    with _alone(bare_qemu):
                        await _service_round(ours, f"s{number}", service)
    name = f"{size_mib} MiB {'dirtying' if dirtying else 'idle'}"
    print(
        f"{name:>22} | {_ratio(service.pause_ms, limit.pause_ms)} | {_ratio(service.create_ms, limit.create_ms, True)}"
        f" | {_ratio(service.revert_ms, limit.revert_ms, True)}",
        flush=True,
    )


async def _bare_round(bare: BareScript, qemu: QemuProcess, name: str, figures: Figures) -> None:
    pause, total = await asyncio.to_thread(bare.create, name)
    figures.pause_ms.append(pause)
    figures.create_ms.append(total)
    figures.revert_ms.append(await asyncio.to_thread(bare.revert, name))
    await asyncio.to_thread(qemu.wait_counting)


async def _service_round(ours: Scene, name: str, figures: Figures) -> None:
    begun = time.perf_counter()
    await ours.create(name)
    figures.create_ms.append((time.perf_counter() - begun) * 1000)
    figures.pause_ms.append((await ours.properties(name))["PauseUSec"] / 1000)
    begun = time.perf_counter()
    await ours.revert(name)
    figures.revert_ms.append((time.perf_counter() - begun) * 1000)
    await asyncio.to_thread(ours.qemu.wait_counting)


@contextlib.contextmanager
def _alone(other: QemuProcess) -> Iterator[None]:
    """Keep another QEMU from running inside the block."""
    other.freeze()
    try:
        yield
    finally:
        other.thaw()


def _wait_touched(qemu: QemuProcess) -> None:
    deadline = time.monotonic() + TOUCH_TIMEOUT_S
    while not memory_rounds(qemu.control.hmp):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the guest did not touch all its memory within {TOUCH_TIMEOUT_S} s")
        time.sleep(_POLL_S)


def _ratio(ours: list[float], bare: list[float], difference: bool = False) -> str:
    service, limit = statistics.median(ours), statistics.median(bare)
    more = f" {service - limit:+6.0f}" if difference else ""
    return f"{service:7.1f} / {limit:7.1f} = {service / limit:4.2f}{more}"


async def _idle(accel: str) -> None:
    """Measure the idle daemon: its memory, and how often it wakes up."""
    async with scene(accel=accel, memory_mib=32) as ours:
        await ours.create("s0")
        process = Path(f"/proc/{ours.daemon.pid}")
        before = _switches(process)
        await asyncio.sleep(IDLE_S)
        woken = _switches(process) - before
        resident_kib = int(_status(process, "VmRSS").split()[0])
        print(f"\nidle daemon, one domain: {resident_kib / 1024:.1f} MiB resident, {woken} wake-ups in {IDLE_S:.0f} s")


def _switches(process: Path) -> int:
    tasks = (process / "task").iterdir()
    return sum(int(_status(task, "voluntary_ctxt_switches")) for task in tasks)


def _status(process: Path, key: str) -> str:
    for line in (process / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    raise KeyError(key)


if __name__ == "__main__":
    asyncio.run(main())
