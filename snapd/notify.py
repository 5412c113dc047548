# SPDX-License-Identifier: MIT
"""What the service tells its manager: the protocol of ``sd_notify(3)``, which does nothing where no manager listens.

Source: systemd, sd_notify(3).
"""

import logging
import os
import socket
from typing import Self

SEND_TIMEOUT_S = 1.0
"""A manager that is busy reads a little later; one that is stuck must not hold the service."""

log = logging.getLogger(__name__)


class Notifier:
    def __init__(self, address: str) -> None:
        self._address = address

    @classmethod
    def from_environment(cls) -> Self:
        """Make one for ``$NOTIFY_SOCKET``, which is then taken out so that no child of ours speaks for us."""
        return cls(os.environ.pop("NOTIFY_SOCKET", ""))

    def send(self, *assignments: str) -> None:
        """Tell the manager; a manager that does not listen is logged and nothing else."""
        if not self._address:
            return
        # A leading @ stands for the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.connect(address)
                sender.sendall("\n".join(assignments).encode())
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", assignments, error)
