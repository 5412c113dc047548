# SPDX-License-Identifier: MIT
"""A real QEMU or a fake one, whichever a test is to run on. It knows nothing of pytest.

Not here: either of them (``lab.qemu``, ``process``).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.fake_qemu.process import FakeProcess
from tests.lab.fake_qemu.recording import VERSIONS
from tests.lab.qemu import GuestDisk, QemuProcess

REAL = "real"
KINDS = (*(f"fake {version}" for version in VERSIONS), REAL)

StartEither = Callable[..., QemuProcess | FakeProcess]
"""Starts one with the given disks; ``paused`` is whether the guest waits for ``cont``."""


@contextlib.contextmanager
def starting(kind: str, directory: Path) -> Iterator[StartEither]:
    """Give a function that starts QEMUs of a kind, which are ended with the block; what they said is printed then.

    Raises: AssertionError when a fake was told, or said, what fits no schema.
    """
    started: list[QemuProcess | FakeProcess] = []

    def start(*disks: GuestDisk, paused: bool = False) -> QemuProcess | FakeProcess:
        below = directory / f"qemu{len(started)}"
        below.mkdir()
        if kind == REAL:
            started.append(QemuProcess(below, disks, paused=paused))
        else:
            started.append(FakeProcess(below, disks, version=kind.removeprefix("fake "), paused=paused))
        return started[-1].start()

    try:
        yield start
    finally:
        for each in started:
            each.stop()
            print(each.story())
    complaints = [complaint for each in started if isinstance(each, FakeProcess) for complaint in each.complaints]
    assert not complaints, complaints
