# SPDX-License-Identifier: MIT
"""A private bus, and `snapd.bus` on either D-Bus library."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.lab.bus import Bus
from tests.lab.bus import private_bus as run_private_bus

_PACKAGE = "snapd.bus"
_loaded: dict[str, dict[str, ModuleType]] = {}


def _ours() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.startswith(f"{_PACKAGE}.")}


def _exchange(modules: dict[str, ModuleType]) -> None:
    """Make these the loaded modules of the package, and no others."""
    package = importlib.import_module(_PACKAGE)
    for name in _ours():
        del sys.modules[name]
    sys.modules.update(modules)
    for name, module in modules.items():
        setattr(package, name.rpartition(".")[2], module)


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """A running `dbus-daemon` that allows everything."""
    with run_private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@pytest.fixture
def private_bus(bus: Bus) -> str:
    """The address of that bus."""
    return bus.address


@pytest.fixture(params=["dbus-fast", "dbus-next"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once with each library: what it imports from `snapd.bus` while it runs uses the named one."""
    name: str = request.param
    before = _ours()
    monkeypatch.setenv("DOMSNAPD_DBUS_LIBRARY", name)
    _exchange(_loaded.get(name, {}))
    try:
        yield name
    finally:
        _loaded[name] = _ours()
        _exchange(before)


@pytest.fixture
def wire(library: str) -> ModuleType:
    """The module `snapd.bus.wire` on that library."""
    module = importlib.import_module(f"{_PACKAGE}.wire")
    assert library == module.LIBRARY
    return module
