# SPDX-License-Identifier: MIT
"""Walks that have failed once, shortened: each is replayed step for step and must be free of faults for ever.

Not here: finding them (``test_model``, ``soak``), which print them as they stand here. A step that makes no sense where its
walk is would mean that the walk tests nothing any more; that fails too.
"""

import asyncio

import pytest

from tests.model.soak import replay
from tests.model.steps import Create, Delete, Pause, Protect, RestartService, Resume, Revert, Setup, ShutOff, Start, Step, Write

WALKS: dict[str, tuple[Setup, list[Step]]] = {
    "QEMU started through our links, without and with snapshots": (
        Setup(("raw", "qcow2")),
        [ShutOff(), Start(links=True), Create("s1"), ShutOff(kill=True), Start(links=True), RestartService(), Revert("s1")],
    ),
    "a revert across two images above those that the disks run on": (
        Setup(("raw", "qcow2-on-qcow2", "qcow2")),
        [
            Create("s2", type="external", memory=True),
            Create("s3", memory=True, disks=(("disk0", "internal"),)),
            Revert("s2", state="running", undo=False),
            Revert("s3"),
        ],
    ),
    "the same after a start that has loaded a memory": (
        Setup(("raw", "qcow2")),
        [
            Create("s9", type="external", memory=True),
            Create("s11", disks=(("disk1", "internal"),)),
            ShutOff(),
            Revert("s9", state="running"),
            Start(paused=True),
            Revert("s11", state="running", undo_memory=True),
        ],
    ),
    "the undo point of a revert that left a disk as it was": (
        Setup(("qcow2-on-qcow2", "raw", "qcow2")),
        [
            Create("s2", type="external", memory=False, disks=(("disk2", "no"),)),
            Write("disk2", 7, pattern=7),
            Revert("s2"),
            Revert(""),
        ],
    ),
    "an undo point with memory, loaded when the domain starts": (
        Setup(("qcow2", "raw")),
        [
            Create("s1", memory=False),
            Write("disk0", 9, pattern=9),
            Revert("s1", undo_memory=True),
            ShutOff(),
            Revert(""),
            Start(),
        ],
    ),
    "the descriptors of an undo point's memory": (
        Setup(("qcow2", "raw")),
        [Create("s1", memory=False), Revert("s1", state="running", undo_memory=True)],
    ),
    "merges below what QEMU was started on, after reverts to and fro": (
        Setup(("raw", "qcow2")),
        [
            Create(name="s3", type="internal", memory=None, disks=(("disk0", "external"),), live="auto"),
            Revert(name="s3", state="as-taken", undo=True, undo_memory=False, force=False),
            Write(target="disk1", unit=250, units=1, pattern=0, how="zero"),
            Create(name="s4", type="any", memory=False, disks=(("disk0", "external"),), live="auto"),
            Write(target="disk0", unit=238, units=1, pattern=159, how="write"),
            ShutOff(kill=False),
            Start(paused=False, links=False, memory_mib=16),
            Revert(name="s4", state="paused", undo=True, undo_memory=False, force=True),
            Create(name="s5", type="any", memory=False, disks=(("disk1", "external"),), live="auto"),
            Write(target="disk0", unit=29, units=16, pattern=249, how="write"),
            Revert(name="s3", state="running", undo=True, undo_memory=False, force=False),
            Write(target="disk1", unit=175, units=1, pattern=0, how="discard"),
            Write(target="disk1", unit=250, units=6, pattern=7, how="write"),
            Protect(name="s4", protected=True),
            Create(name="s6", type="internal", memory=None, disks=(), live="no"),
            Delete(name="s3", scope="one"),
            Delete(name="s6", scope="one"),
            Revert(name="s5", state="as-taken", undo=True, undo_memory=False, force=False),
            Create(name="'\"s7", type="external", memory=None, disks=(), live="auto"),
            Create(name="s8", type="internal", memory=True, disks=(), live="auto"),
            Resume(),
            Revert(name="s4", state="as-taken", undo=True, undo_memory=False, force=True),
            Create(name="-s9", type="any", memory=False, disks=(("disk1", "no"),), live="auto"),
            Write(target="disk0", unit=39, units=3, pattern=3, how="write"),
            Revert(name="-s9", state="running", undo=True, undo_memory=False, force=False),
            Revert(name="", state="as-taken", undo=True, undo_memory=False, force=False),
            Write(target="disk0", unit=214, units=40, pattern=0, how="unmap"),
            Revert(name="s8", state="as-taken", undo=False, undo_memory=False, force=False),
        ],
    ),
    "a paused domain that is reverted, and goes on": (
        Setup(("raw", "qcow2")),
        [Create("s1"), Revert("s1", state="paused"), Resume(), Pause(), Revert("s1", state="running")],
    ),
    "a merge where QEMU has an image open by two nodes": (
        Setup(("qcow2-on-qcow2", "raw", "qcow2")),
        [
            Create("s2", memory=False, disks=(("disk0", "no"), ("disk2", "no"))),
            Revert("s2", state="paused"),
            Create("s6", type="external", memory=True),
            Create("s8", type="internal", memory=False, disks=(("disk0", "internal"), ("disk2", "external"))),
            Revert("", state="running", force=True),
            Revert("s6", state="paused", force=True),
            Revert("s8", state="paused", undo=False),
            Delete("s2"),
        ],
    ),
}


@pytest.mark.parametrize("name", WALKS)
def test_what_failed_once(name: str) -> None:
    setup, steps = WALKS[name]

    assert asyncio.run(replay(setup, steps)) == steps
