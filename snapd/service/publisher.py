# SPDX-License-Identifier: MIT
"""The fan-out of events: who wants to know is told, at once and in order.

Nothing is queued here, so nothing can grow; a subscriber must return at once and bound what it keeps itself.
"""

import logging
from collections.abc import Callable

from snapd.model.events import Event

log = logging.getLogger(__name__)


class Publisher:
    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        self._subscribers.append(subscriber)

    def publish(self, event: Event) -> None:
        """Tell all subscribers; one that fails is logged and does not keep the others from knowing."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log.exception("announcing %s failed", event)
