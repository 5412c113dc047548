# SPDX-License-Identifier: MIT
"""``make demo``: the main job on a tiny guest, with what was seen after each step and how to do the same by hand.

Everything is private: a bus, a QEMU and a daemon of its own, in a temporary directory, ended when the demonstration ends.
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.lab.guest import TinyGuest, disk_counter
from tests.lab.qemu import kvm_works, qemu_command
from tests.lab.scene import DOMAIN, Scene, scene

CALL = "busctl --user call org.domsnap1 /org/domsnap1 org.domsnap1.Manager"
_LET_IT_COUNT = 25
_BOLD, _DIM, _PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


async def main() -> None:
    begun = time.monotonic()
    accel = "kvm" if Path("/dev/kvm").exists() and await asyncio.to_thread(kvm_works) else "tcg"
    version = subprocess.run([*qemu_command(), "--version"], capture_output=True, text=True, check=True).stdout.split()[3]
    say(f"A guest that counts in memory and on two disks (raw and qcow2) as fast as it can: QEMU {version}, {accel}, 128 MiB.")
    async with scene(guest=TinyGuest.dirtying(64), accel=accel, memory_mib=128) as stage:
        say(f"QEMU has PID {stage.qemu.pid}; domsnapd looks after it on a bus of its own. To follow with busctl elsewhere:")
        hint(f"export DBUS_SESSION_BUS_ADDRESS={stage.bus_address}")
        hint("busctl --user tree org.domsnap1; busctl --user monitor org.domsnap1")
        await _take(stage)
        await _go_back_and_undo(stage)
        await _while_shut_off(stage)
        await _delete(stage)
    say(f"\nDone in {time.monotonic() - begun:.0f} s; bus, QEMU and daemon have ended.")


async def _take(stage: Scene) -> None:
    step("Create a snapshot of the running guest: each disk is covered by an overlay", verb("CreateSnapshot", "fresh"))
    await _create(stage, "fresh")
    step(
        "Another, at one instant: an overlay on the raw disk, an internal snapshot in the qcow2 image, and memory",
        f"{CALL} CreateSnapshot 'ssa{{sv}}' {DOMAIN} inside 2 wait b true disks 'a{{ss}}' 1 disk1 internal",
    )
    await _create(stage, "inside", "--disk", "disk1=internal")
    kept = (await stage.properties("inside"))["Disks"]
    seen("kept in " + " and ".join(f"{Path(each['Image']).name} ({each['Tag'] or 'all of it'})" for each in kept))


async def _go_back_and_undo(stage: Scene) -> None:
    pid = stage.qemu.pid
    step(
        "What going back to it would do",
        f"busctl --user call org.domsnap1 /org/domsnap1/domain/{DOMAIN} org.domsnap1.Domain "
        "Plan 'ssa{sv}' revert inside 1 undo-memory b true",
    )
    await tool(stage, "plan", "revert", "--undo-memory", DOMAIN, "inside")
    step(
        "Go back, in place; what is there now is kept as an undo point", verb("RevertSnapshot", "inside", "undo-memory b true")
    )
    before = await _revert(stage, pid, "--undo-memory", DOMAIN, "inside")
    step("List them as a tree", f"{CALL} ListSnapshots 'sa{{sv}}' {DOMAIN} 0")
    await tool(stage, "list", DOMAIN)
    step("Undo the revert: the guest goes on where it was", verb("RevertSnapshot", "''"))
    await _revert(stage, pid, "--undo", DOMAIN)
    seen(f"it had counted to {before} when the revert came")


async def _while_shut_off(stage: Scene) -> None:
    step("End QEMU, and take a snapshot of the domain while it is shut off", verb("CreateSnapshot", "cold"))
    await stage.shut_off()
    await tool(stage, "create", DOMAIN, "cold")
    cold = await stage.properties("cold")
    seen(f"it is {cold['Consistency']}: {len(cold['Disks'])} disks, memory {'kept' if cold['Memory'] else 'none'}")
    counters = [str(disk_counter(each["Image"], each["Format"], each["Tag"])) for each in cold["Disks"]]
    seen(f"guest counter on the disks that it keeps: {' and '.join(counters)}")
    step("Go back to the first one: the disks now, the memory when QEMU runs again", verb("RevertSnapshot", "fresh"))
    await tool(stage, "revert", "--yes", DOMAIN, "fresh")
    seen(f"waits for its memory to be loaded: {(await stage.properties())['PendingRevert']}")
    stage.signals.clear()
    begun = time.monotonic()
    await stage.start()
    await stage.wait_signal("SnapshotReverted")
    seen(f"QEMU started on the images of disks.env (PID {stage.qemu.pid}); memory loaded {_ms(begun)} after that")
    seen(f"guest counter {stage.qemu.counter()} now")


async def _delete(stage: Scene) -> None:
    step("Delete them all; what they held is merged down while the guest runs", verb("DeleteSnapshot", "fresh", "scope s tree"))
    await tool(stage, "delete", "--yes", "--children", DOMAIN, "fresh")
    disks = [disk["Image"] for disk in (await stage.properties())["Disks"]]
    seen(f"the disks are {', '.join(Path(disk).name for disk in disks)} again, the images the domain was defined with")
    seen(f"files left: {', '.join(sorted(each.name for each in stage.images.iterdir()))}")
    seen(f"the guest counts on ({await asyncio.to_thread(stage.qemu.wait_counting)})")


async def _create(stage: Scene, name: str, *options: str) -> None:
    before = stage.qemu.counter()
    await tool(stage, "create", *options, DOMAIN, name)
    taken = await stage.properties(name)
    seen(
        f"guest counter before {before}, now {stage.qemu.counter()}; "
        f"paused {taken['PauseUSec'] / 1000:.1f} ms, by QEMU's own clock"
    )
    seen(f"memory: {taken['MemoryBytes'] / 2**20:.1f} MiB, saved {taken['Method']} {taken['MethodReason']}".rstrip())
    await asyncio.to_thread(stage.qemu.wait_counting, _LET_IT_COUNT)


async def _revert(stage: Scene, pid: int, *words: str) -> int:
    """Revert and tell what the guest shows. Returns: its counter before."""
    before = stage.qemu.counter()
    await tool(stage, "revert", "--yes", *words)
    seen(
        f"guest counter {before} before, {stage.qemu.counter()} now; "
        f"QEMU's PID is {stage.qemu.pid} ({'the same' if stage.qemu.pid == pid else 'ANOTHER ONE'})"
    )
    return before


async def tool(stage: Scene, *words: str) -> None:
    """Run ``domsnap`` as a user would and show what it prints."""
    command = [sys.executable, "-m", "snapd.cli.main", "--bus", stage.bus_address, *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "COLUMNS": "110"}
    )
    printed, _ = await process.communicate()
    say(f"  $ domsnap {' '.join(words)}")
    for line in printed.decode().replace(f"{stage.images}/", "").replace(f"{stage.state}/", "").splitlines():
        say(f"    {line}")
    if process.returncode:
        raise SystemExit(f"domsnap {' '.join(words)} failed")


def verb(member: str, snapshot: str, *options: str) -> str:
    """Return the call that waits for a verb on a snapshot, as ``busctl`` takes it."""
    return " ".join([f"{CALL} {member} 'ssa{{sv}}' {DOMAIN} {snapshot} {len(options) + 1} wait b true", *options])


def step(title: str, command: str) -> None:
    print(f"\n{_BOLD}{title}{_PLAIN}", flush=True)
    hint(command)


def hint(text: str) -> None:
    print(f"  {_DIM}{text}{_PLAIN}", flush=True)


def seen(text: str) -> None:
    print(f"    -> {text}", flush=True)


def say(text: str) -> None:
    print(text, flush=True)


def _ms(begun: float) -> str:
    return f"{(time.monotonic() - begun) * 1000:.0f} ms"


if __name__ == "__main__":
    asyncio.run(main())
