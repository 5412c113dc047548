# SPDX-License-Identifier: MIT
"""How far the long tests go, and under which accelerators."""

import os

import pytest

from tests.lab.qemu import kvm_works

IS_SOAK = os.environ.get("DOMSNAPD_TEST_PROFILE") == "soak"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``accel`` with every accelerator that this machine has."""
    if "accel" in metafunc.fixturenames:
        metafunc.parametrize("accel", ["tcg", "kvm"] if kvm_works() else ["tcg"])
