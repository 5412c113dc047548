# SPDX-License-Identifier: MIT
"""The size of a disk, as a guest of a real QEMU reads it, when the disk is put on an image of another size."""

import subprocess
import time
from pathlib import Path

import pytest

from snapd.qmp.blocks import swap
from snapd.qmp.commands import reset
from tests.contract.conftest import StartQemu
from tests.contract.disks import only_disk, qemu_img
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk, QemuProcess

_GUEST = """
.code16
.globl _start
_start:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7000, %sp
    movw $answer, %si
    movw $30, (%si)
    movb $0x48, %ah             # extended drive parameters
    movb $0x80, %dl
    int $0x13
    movl answer + 16, %eax      # how many sectors there are
    movl %eax, 0x7e00           # where the lab looks for a counter
stay: jmp stay
.align 4
answer: .skip 32
. = 510
.word 0xaa55
"""
ANSWER_TIMEOUT_S = 30.0


def _make_disk(path: Path, size_bytes: int) -> Path:
    """Make a disk whose guest only asks how large that is."""
    source, code, raw = (path.with_suffix(suffix) for suffix in (".o", ".bin", ".raw"))
    linking = ["ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext=0x7c00", "-o", str(code), str(source)]
    subprocess.run(["as", "--32", "-o", str(source)], input=_GUEST.encode(), check=True, timeout=60)
    subprocess.run(linking, check=True, timeout=60)
    with raw.open("xb") as file:
        file.write(code.read_bytes())
        file.truncate(size_bytes)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    return path


def _assert_seen(qemu: QemuProcess, size_bytes: int) -> None:
    """Fail unless the guest comes to see that size."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while (seen := qemu.counter()) != size_bytes // 512:
        assert time.monotonic() < deadline, f"the guest sees {seen} sectors"
        time.sleep(0.01)


@pytest.mark.parametrize("bus", ["virtio", "virtio-iothread", "scsi", "ide"])
async def test_a_disk_has_the_size_of_what_it_is_put_on(start_qemu: StartQemu, tmp_path: Path, bus: str) -> None:
    """IDE keeps the size that it began with unless it is told: the guest could go past the end, or not reach it."""
    small, large = _make_disk(tmp_path / "small.qcow2", 1 << 20), _make_disk(tmp_path / "large.qcow2", 4 << 20)
    qemu = start_qemu(GuestDisk(small, "qcow2", bus, "blockdev"))
    _assert_seen(qemu, 1 << 20)
    async with connected(qemu.monitor) as link:
        disk = await only_disk(link)
        await link.execute("stop")
        await link.execute("blockdev-add", driver="qcow2", node_name="large", file={"driver": "file", "filename": str(large)})
        for node, size_bytes in (("large", 4 << 20), (disk.node, 1 << 20)):
            await swap(link, disk, node)
            await reset(link)
            await link.execute("cont")
            _assert_seen(qemu, size_bytes)
            await link.execute("stop")
