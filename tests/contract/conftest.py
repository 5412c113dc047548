# SPDX-License-Identifier: MIT
"""Real QEMUs, ended with the test; what they said is shown when it fails."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapd.qmp import link as link_module
from tests.lab.qemu import GuestDisk, QemuProcess

StartQemu = Callable[..., QemuProcess]


@pytest.fixture
def start_qemu(tmp_path: Path) -> Iterator[StartQemu]:
    """A function that starts a QEMU with the given disks; its keywords are those of ``QemuProcess``."""
    started: list[QemuProcess] = []

    def start(*disks: GuestDisk, **options: Any) -> QemuProcess:
        directory = tmp_path / f"qemu{len(started)}"
        directory.mkdir()
        started.append(QemuProcess(directory, disks, **options))
        return started[-1].start()

    yield start
    for each in started:
        each.stop()
        print(each.story())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let links try again sooner."""
    monkeypatch.setattr(link_module, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(link_module, "LONGEST_RETRY_S", 0.05)
