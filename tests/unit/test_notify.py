# SPDX-License-Identifier: MIT
"""What the service tells its manager, over real sockets."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd import notify
from snapd.notify import Notifier

TIMEOUT_S = 5.0


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The address as in ``$NOTIFY_SOCKET``, and the socket that listens there."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@domsnapd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        listening.settimeout(TIMEOUT_S)
        yield address, listening


def test_assignments_arrive_in_one_message(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    Notifier(address).send("READY=1", "STATUS=Looking after 2 domains.")
    assert listening.recv(4096) == b"READY=1\nSTATUS=Looking after 2 domains."


def test_each_message_arrives(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    notifier = Notifier(address)
    notifier.send("READY=1")
    notifier.send("STOPPING=1")
    assert [listening.recv(4096), listening.recv(4096)] == [b"READY=1", b"STOPPING=1"]


def test_the_address_is_taken_out_of_the_environment(
    manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, listening = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    Notifier.from_environment().send("READY=1")
    assert listening.recv(4096) == b"READY=1"
    assert "NOTIFY_SOCKET" not in os.environ


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier.from_environment().send("READY=1")
    assert caplog.records == []


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@domsnapd-nobody-listens", "/" + "x" * 200])
def test_a_manager_that_does_not_listen_is_logged(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Notifier(address).send("READY=1")
    assert "cannot be told" in caplog.text


def test_a_manager_that_does_not_read_does_not_hold_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SEND_TIMEOUT_S", 0.05)
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, caplog.at_level(logging.WARNING):
        listening.bind(address)
        notifier = Notifier(address)
        for _ in range(1000):
            notifier.send("STATUS=" + "x" * 4096)
            if caplog.records:
                break
    assert "cannot be told" in caplog.text
