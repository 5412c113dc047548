# SPDX-License-Identifier: MIT
"""Values of a domain: when a memory state fits a machine, and which disks can take part in a snapshot."""

from dataclasses import replace

import pytest

from snapd.model.domain import Disk, DomainState, Inspection, Machine, no_external, no_internal

MACHINE = Machine("pc-q35-7.2", 1 << 30, 2, ("/machine/unattached/device[1]", "net0", "disk0"))


def test_a_memory_state_fits_the_machine_it_came_from_whatever_the_order_of_devices() -> None:
    assert MACHINE.difference(MACHINE) == ""
    assert MACHINE.difference(replace(MACHINE, devices=tuple(reversed(MACHINE.devices)))) == ""


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (replace(MACHINE, type="pc-q35-10.0"), "its machine type is pc-q35-10.0 and was pc-q35-7.2"),
        (replace(MACHINE, memory_bytes=2 << 30), "it has 2048 MiB of memory and had 1024 MiB"),
        (replace(MACHINE, cpus=4), "it has 4 processors and had 2"),
        (replace(MACHINE, devices=MACHINE.devices[:2]), "its device disk0 is missing"),
        (replace(MACHINE, devices=(*MACHINE.devices, "usb0")), "its device usb0 is new"),
        (replace(MACHINE, devices=(*MACHINE.devices, "net0")), "its device net0 is new"),
    ],
)
def test_the_difference_is_named(now: Machine, sentence: str) -> None:
    assert MACHINE.difference(now) == sentence


def test_one_of_two_devices_alike_is_missed() -> None:
    both = replace(MACHINE, devices=("virtio-blk", "virtio-blk"))

    assert both.difference(replace(both, devices=("virtio-blk",))) == "its device virtio-blk is missing"


@pytest.mark.parametrize(
    ("obstacle", "no_internal", "no_external", "reason"),
    [
        ("", "", "", ""),
        ("", "raw", "", ""),
        ("", "", "a block device", ""),
        ("it has no medium", "", "", "it has no medium"),
        ("it has no medium", "raw", "a block device", "it has no medium"),
        ("", "raw", "a block device", "a block device, and raw"),
    ],
)
def test_a_disk_is_eligible_that_can_have_a_snapshot_of_any_kind(
    obstacle: str, no_internal: str, no_external: str, reason: str
) -> None:
    disk = Disk("vda", "/machine/x", "#block1", "/images/a.qcow2", "qcow2", ("/images/a.qcow2",), 1 << 30, writable=True)

    disk = replace(disk, obstacle=obstacle, no_internal=no_internal, no_external=no_external)

    assert (disk.eligible, disk.reason) == (not reason, reason)


def test_formats_and_places_that_rule_out_a_kind() -> None:
    assert (no_internal("qcow2"), no_external("/images/dev/a.raw")) == ("", "")
    assert no_internal("raw") == "its format raw has no internal snapshots"
    assert no_external("/dev/vg/a") == "it lies on the block device /dev/vg/a, beside which no overlay can lie"


@pytest.mark.parametrize("state", DomainState)
def test_what_is_seen_tells_whether_there_is_a_guest(state: DomainState) -> None:
    seen = Inspection(state, "u", None, (), {}, {}, (7, 2, 0))

    assert (seen.running, seen.shut_off) == (state is DomainState.RUNNING, state is DomainState.SHUTOFF)
