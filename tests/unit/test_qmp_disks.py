# SPDX-License-Identifier: MIT
"""Disks as made of what QEMU shows, for what a test cannot have: block devices, and devices in places we do not know."""

from typing import Any

import pytest

from snapd.qmp.command_line import CommandLine
from snapd.qmp.disks import Surroundings, disk_of


def _disk(qdev: str, drive: str = "", path: str = "/i/a", image_format: str = "qcow2", below: str = "file") -> Any:
    inserted = {
        "node-name": "n",
        "drv": image_format,
        "file": path,
        "ro": False,
        "image": {"filename": path, "format": image_format, "virtual-size": 1 << 20},
    }
    nodes = {"n": {"drv": image_format, "file": path}, "f": {"drv": below, "file": path}}
    block = {"qdev": qdev, "device": drive, "removable": False, "inserted": inserted}
    return disk_of(block, Surroundings(nodes, CommandLine(), {}))


@pytest.mark.parametrize("path", ["/dev/vg/lv", "/links/to-a-volume"])
def test_a_block_device_has_internal_snapshots_only_with_qcow2_on_it(path: str) -> None:
    no_external = f"it lies on the block device {path}, beside which no overlay can lie"
    volume = _disk("a", path=path, below="host_device")
    assert (volume.eligible, volume.obstacle, volume.no_internal, volume.no_external) == (True, "", "", no_external)
    raw = _disk("a", path=path, image_format="raw", below="host_device")
    assert not raw.eligible
    assert raw.reason == f"{no_external}, and its format raw has no internal snapshots"


@pytest.mark.parametrize(
    ("qdev", "drive", "target", "is_flash"),
    [
        ("sda", "drive0", "sda", False),
        ("/machine/peripheral/vda/virtio-backend", "drive0", "vda", False),
        ("/machine/peripheral/vda", "", "vda", False),
        ("/machine/peripheral-anon/device[0]/virtio-backend", "drive0", "drive0", False),
        ("/machine/peripheral-anon/device[0]/virtio-backend", "", "device[0]", False),
        ("/machine/unattached/device[7]", "", "device[7]", False),
        ("/machine/system.flash1", "pflash1", "pflash1", True),
        ("/machine/system.flash1", "", "pflash1", True),
        ("/machine/virt.flash0", "", "pflash0", True),
        ("/machine/system.flash1", "nvram", "nvram", True),
        ("/machine/other", "", "other", False),
        ("/machine/peripheral", "", "peripheral", False),
        ("/odd", "", "odd", False),
        ("/", "", "", False),
    ],
)
def test_what_a_disk_is_called(qdev: str, drive: str, target: str, is_flash: bool) -> None:
    disk = _disk(qdev, drive)
    assert (disk.target, disk.device, disk.is_flash) == (target, qdev, is_flash)
