# SPDX-License-Identifier: MIT
"""How to take back what an operation has done: each step that succeeds says how it is undone.

Invariants: undoing runs in the reverse order; a step that cannot be undone does not keep the others in QEMU from it; but files
stay, and the intent with them, once something in QEMU could not be undone, because it may have them in use.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from snapd.errors import DomainUnreachable, Internal, MonitorLost, SnapdError, UndoFailed

log = logging.getLogger(__name__)

Undoing = Callable[[], Awaitable[object]]


class UndoStack:
    """The way back, as far as it is known."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._steps: list[tuple[str, Undoing, bool]] = []

    def push(self, what: str, undoing: Undoing, *, in_qemu: bool = False) -> None:
        """Remember that ``undoing`` takes back ``what``; with ``in_qemu`` it ends by itself when QEMU does."""
        self._steps.append((what, undoing, in_qemu))

    async def undo(self, cause: SnapdError) -> None:
        """Take back everything, newest first; after a lost monitor, all but what only QEMU knew.

        Raises: UndoFailed with what was undone and what is left, when something could not be.
        """
        undone: list[str] = []
        left: list[str] = []
        in_use = False
        while self._steps:
            what, undoing, in_qemu = self._steps.pop()
            if in_qemu and isinstance(cause, MonitorLost):
                continue
            if in_use and not in_qemu:
                left.append(what)
                continue
            try:
                await undoing()
            except SnapdError as error:
                log.warning("undoing %s on domain %s failed: %s", what, self._domain, error)
                left.append(f"{what} ({error.sentence.rstrip('.')})")
                in_use = in_use or in_qemu
            else:
                undone.append(what)
        if left:
            raise UndoFailed(self._domain, str(cause), undone, left) from cause


async def all_done(*works: Awaitable[object]) -> None:
    """Do several things at once, and wait for the end of all before the first failure is raised.

    So whoever undoes finds everything that was done on its stack.
    """
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def as_failure(error: Exception) -> SnapdError:
    """Return ``error`` as one of ours: a fault in our own code must not leave a guest paused either."""
    return error if isinstance(error, SnapdError) else Internal(type(error).__name__)


@contextlib.contextmanager
def connected(domain: str, operation: str) -> Iterator[None]:
    """Make a monitor that is not connected any more one that was lost: what came before has been done.

    Raises: MonitorLost.
    """
    try:
        yield
    except DomainUnreachable as error:
        raise MonitorLost(domain, operation, error.reason) from error
