# SPDX-License-Identifier: MIT
"""Descriptors handed to a fake QEMU: by name for a migration, and in sets that are opened as ``/dev/fdset/N``.

Not here: how they come in (``client``). Invariant: what was handed over is closed when it is removed, in any case at the end.

Source: QEMU monitor/fds.c.
"""

import fcntl
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab.fake_qemu.protocol import Handler, Refused, Request
from tests.lab.fake_qemu.recording import Recording

_SET = re.compile(r"/dev/fdset/(\d+)$")


@dataclass(eq=False)
class Held:
    """A descriptor in a set."""

    descriptor: int
    opaque: str | None
    is_removed: bool = False


@dataclass(eq=False)
class DescriptorSet:
    """``users`` is how many nodes have opened it."""

    id: int
    held: list[Held]
    users: int = 0


class Descriptors:
    """All that was handed over, and the ``Files`` of the block graph.

    Args:
        is_running: tells whether the guest runs.
    """

    def __init__(self, recording: Recording, is_running: Callable[[], bool]) -> None:
        self._recording, self._is_running = recording, is_running
        self._named: dict[str, int] = {}
        self._sets: list[DescriptorSet] = []

    def handlers(self) -> dict[str, Handler]:
        return {
            "getfd": self._get,
            "closefd": lambda request: os.close(self._take_named(request.arguments["fdname"], "not found")),
            "add-fd": self._add,
            "remove-fd": self._remove,
            "query-fdsets": lambda _: [_show(each) for each in self._sets],
        }

    def take(self, name: str) -> int:
        """Return the descriptor of that name, which is the caller's from now on. Raises: Refused."""
        return self._take_named(name, "has not been found")

    def open(self, path: str, *, writable: bool) -> int:
        """Open a file, or one of a set in the same mode. Raises: Refused."""
        if match := _SET.match(path):
            return self._open_set(int(match[1]), path, writable=writable)
        try:
            return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"Could not open '{path}': {error.strerror}") from error

    def close(self, path: str, descriptor: int) -> None:
        os.close(descriptor)
        if match := _SET.match(path):
            for each in self._sets:
                each.users -= each.id == int(match[1])
            self._drop_removed()

    def close_all(self) -> None:
        """Close everything, as when QEMU has ended."""
        for descriptor in (*self._named.values(), *(held.descriptor for each in self._sets for held in each.held)):
            os.close(descriptor)
        self._named, self._sets = {}, []

    def _open_set(self, number: int, path: str, *, writable: bool) -> int:
        wanted = os.O_RDWR if writable else os.O_RDONLY
        for each in self._sets:
            for held in each.held:
                if each.id == number and not held.is_removed and _mode(held.descriptor) == wanted:
                    each.users += 1
                    return os.dup(held.descriptor)
        raise Refused(f"Could not dup FD for {path} flags {wanted:x}: No such file or directory")

    def _get(self, request: Request) -> None:
        descriptor = _taken(request)
        name = request.arguments["fdname"]
        if name[:1].isdigit():
            os.close(descriptor)
            raise Refused("Parameter 'fdname' expects a name not starting with a digit")
        if name in self._named:
            os.close(self._named[name])
        self._named[name] = descriptor

    def _take_named(self, name: str, what: str) -> int:
        if name not in self._named:
            raise Refused(f"File descriptor named '{name}' {what}")
        return self._named.pop(name)

    def _add(self, request: Request) -> dict[str, int]:
        held = Held(_taken(request), request.arguments.get("opaque"))
        used = {each.id for each in self._sets}
        number = request.arguments.get("fdset-id", next(each for each in range(len(used) + 1) if each not in used))
        found = next((each for each in self._sets if each.id == number), None)
        if found is None:
            self._sets.insert(0, found := DescriptorSet(number, []))
        found.held.append(held)
        return {"fdset-id": number, "fd": held.descriptor}

    def _remove(self, request: Request) -> None:
        number, descriptor = request.arguments["fdset-id"], request.arguments.get("fd")
        held = [held for each in self._sets if each.id == number for held in each.held]
        if descriptor is not None:
            held = [each for each in held if each.descriptor == descriptor]
        if not held:
            which = f"fdset-id:{number}" if descriptor is None else f"fdset-id:{number}, fd:{descriptor}"
            raise Refused(f"File descriptor named '{which}' not found")
        for each in held:
            each.is_removed = True
        self._drop_removed()

    def _drop_removed(self) -> None:
        if self._recording.keeps_descriptors_while_stopped and not self._is_running():
            return
        for each in list(self._sets):
            for held in [held for held in each.held if held.is_removed]:
                os.close(held.descriptor)
                each.held.remove(held)
            if not each.held and not each.users:
                self._sets.remove(each)


def _taken(request: Request) -> int:
    descriptor = request.take_descriptor()
    if descriptor is None:
        raise Refused("No file descriptor supplied via SCM_RIGHTS")
    return descriptor


def _mode(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE


def _show(each: DescriptorSet) -> dict[str, Any]:
    shown = [{"fd": held.descriptor} | ({} if held.opaque is None else {"opaque": held.opaque}) for held in each.held]
    return {"fdset-id": each.id, "fds": shown}
