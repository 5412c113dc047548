# SPDX-License-Identifier: MIT
"""Values of a domain: when a memory state fits a machine, and which disks can take part in a snapshot."""

from dataclasses import replace

import pytest

from snapd.model.domain import Disk, Machine

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


def test_a_disk_with_an_obstacle_is_not_eligible() -> None:
    disk = Disk("vda", "/machine/x", "#block1", "/images/a.qcow2", "qcow2", ("/images/a.qcow2",), 1 << 30, writable=True)

    assert disk.eligible
    assert not replace(disk, obstacle="it has no medium").eligible
