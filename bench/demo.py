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

from tests.lab.guest import TinyGuest
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
        pid = stage.qemu.pid
        say(f"QEMU has PID {pid}; domsnapd looks after it on a bus of its own. To follow with busctl in another terminal:")
        hint(f"export DBUS_SESSION_BUS_ADDRESS={stage.bus_address}")
        hint("busctl --user tree org.domsnap1; busctl --user monitor org.domsnap1")

        step("Create a snapshot of the running guest", busctl("CreateSnapshot", "fresh"))
        await _create(stage, "fresh")
        await asyncio.to_thread(stage.qemu.wait_counting, _LET_IT_COUNT)
        step("Let it count on, and create another", busctl("CreateSnapshot", "later"))
        await _create(stage, "later")
        await asyncio.to_thread(stage.qemu.wait_counting, _LET_IT_COUNT)

        step(
            "List them as a tree",
            f"{CALL} ListSnapshots 'sa{{sv}}' {DOMAIN} 0",
        )
        await tool(stage, "list", DOMAIN)

        step("Go back to the first, in place", busctl("RevertSnapshot", "fresh"))
        await _revert(stage, "fresh", pid)
        step("And forward to the second", busctl("RevertSnapshot", "later"))
        await _revert(stage, "later", pid)

        step("Delete both while the guest runs; what they held is merged down", busctl("DeleteSnapshot", "fresh"))
        await tool(stage, "delete", "--yes", DOMAIN, "fresh")
        await tool(stage, "delete", "--yes", DOMAIN, "later")
        disks = [disk["Image"] for disk in (await stage.properties())["Disks"]]
        seen(f"the disks are {', '.join(Path(disk).name for disk in disks)} again, the images the domain was defined with")
        seen(f"files left: {', '.join(sorted(each.name for each in stage.images.iterdir()))}")
        counter = await asyncio.to_thread(stage.qemu.wait_counting)
        seen(f"the guest counts on ({counter}) in the same QEMU (PID {stage.qemu.pid}, {same(stage.qemu.pid == pid)})")
    say(f"\nDone in {time.monotonic() - begun:.0f} s; bus, QEMU and daemon have ended.")


async def _create(stage: Scene, name: str) -> None:
    before = stage.qemu.counter()
    await tool(stage, "create", DOMAIN, name)
    taken = await stage.properties(name)
    seen(
        f"guest counter before {before}, now {stage.qemu.counter()}; "
        f"paused {taken['PauseUSec'] / 1000:.1f} ms, by QEMU's own clock"
    )
    seen(f"memory: {taken['MemoryBytes'] / 2**20:.1f} MiB, saved {taken['Method']} {taken['MethodReason']}".rstrip())


async def _revert(stage: Scene, name: str, pid: int) -> None:
    before = stage.qemu.counter()
    await tool(stage, "revert", "--yes", DOMAIN, name)
    seen(
        f"guest counter {before} before, {stage.qemu.counter()} now; "
        f"QEMU's PID is {stage.qemu.pid} ({same(stage.qemu.pid == pid)})"
    )


async def tool(stage: Scene, *words: str) -> None:
    """Run ``domsnap`` as a user would and show what it prints."""
    command = [sys.executable, "-m", "snapd.cli.main", "--bus", stage.bus_address, *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "COLUMNS": "110"}
    )
    printed, _ = await process.communicate()
    say(f"  $ domsnap {' '.join(words)}")
    for line in printed.decode().splitlines():
        say(f"    {line}")
    if process.returncode:
        raise SystemExit(f"domsnap {' '.join(words)} failed")


def busctl(member: str, snapshot: str) -> str:
    return f"{CALL} {member} 'ssa{{sv}}' {DOMAIN} {snapshot} 1 wait b true"


def step(title: str, command: str) -> None:
    print(f"\n{_BOLD}{title}{_PLAIN}", flush=True)
    hint(command)


def hint(text: str) -> None:
    print(f"  {_DIM}{text}{_PLAIN}", flush=True)


def seen(text: str) -> None:
    print(f"    -> {text}", flush=True)


def say(text: str) -> None:
    print(text, flush=True)


def same(is_same: bool) -> str:
    return "the same" if is_same else "ANOTHER ONE"


if __name__ == "__main__":
    asyncio.run(main())
