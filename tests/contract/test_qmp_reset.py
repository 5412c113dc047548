# SPDX-License-Identifier: MIT
"""A reset of a real QEMU's guest."""

from pathlib import Path

import pytest

from snapd.errors import MonitorLost
from snapd.qmp.commands import reset
from snapd.qmp.qemu import Qemu
from tests.contract.conftest import StartQemu
from tests.lab.guest import COUNTS_ON_ONE, make_disk
from tests.lab.linked import connected
from tests.lab.qemu import GuestDisk


async def test_a_reset_is_done_when_it_returns(start_qemu: StartQemu, tmp_path: Path) -> None:
    qemu = start_qemu(GuestDisk(make_disk(tmp_path / "a.raw", guest=COUNTS_ON_ONE)))
    qemu.wait_counting(50)
    async with connected(qemu.monitor) as link:
        port = Qemu(link)
        for running in (True, False):
            if not running:
                await port.stop()
            with link.watch() as events:
                await port.reset()
                assert events.last("RESET") is not None
            assert (await port.inspect()).running is running
        await port.resume()
        qemu.wait_counting(5)


@pytest.mark.parametrize("words", [["-no-reboot"], ["-action", "reboot=shutdown,panic=pause"]], ids=str)
async def test_one_that_is_to_end_on_a_reset_goes_on(start_qemu: StartQemu, words: list[str]) -> None:
    """A guest that resets itself ends it afterwards, as before."""
    qemu = start_qemu(paused=True, extra=words)
    async with connected(qemu.monitor) as link:
        await Qemu(link).reset()
        assert (await Qemu(link).inspect()).running is False
        qemu.control.execute("system_reset")
    qemu.wait_ended()


async def test_a_qemu_that_ends_instead_is_lost(start_qemu: StartQemu) -> None:
    """With ``-no-reboot`` it takes a reset for the end, unless it is told otherwise before."""
    qemu = start_qemu(paused=True, extra=["-no-reboot"])
    async with connected(qemu.monitor) as link:
        with pytest.raises(MonitorLost, match="system_reset"):
            await reset(link)
    qemu.wait_ended()
