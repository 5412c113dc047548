# SPDX-License-Identifier: MIT
"""What the parts of a fake QEMU and its server say to each other: requests, refusals, events, and the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """QEMU answers with an error."""

    def __init__(self, text: str, error_class: str = "GenericError") -> None:
        self.error_class = error_class
        super().__init__(text)


class Died(Exception):
    """QEMU ends itself, as where an assertion of its own does not hold."""


@dataclass(frozen=True)
class Request:
    """A command; ``take_descriptor`` gives the descriptor that came before it, which is then the taker's to close."""

    arguments: Mapping[str, Any]
    take_descriptor: Callable[[], int | None]


Handler = Callable[[Request], Any]
"""Does what a command asks and returns the answer. Raises: Refused, Died."""

Emit = Callable[..., None]
"""Sends an event to all clients: its name, and its data as keywords, ``_`` in their names standing for ``-``."""
