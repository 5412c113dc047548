# SPDX-License-Identifier: MIT
"""The intent record: which operation was begun, its plan, and how far it came.

Not here: settling it. Invariants: there is at most one in a directory; what it says was durable before the world was changed;
one that cannot be read still says that something was begun.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from snapd.errors import StateDamaged
from snapd.state.atomic import read_bounded, write_atomically
from snapd.state.libxl_json import SIZE_LIMIT_BYTES, dumps, loads

INTENT_FILE = "intent.json"
VERSION = 1
UNREADABLE = "an operation whose record cannot be read"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intent:
    """An operation that was begun and has not ended; ``begun`` names its steps so far, the last one perhaps half done."""

    operation: str
    subject: str
    begun: tuple[str, ...]
    path: str

    @property
    def title(self) -> str:
        return f"{self.operation} {self.subject}".strip()


class IntentRecord(msgspec.Struct, frozen=True):
    """What the file holds; ``plan`` is the plan's dataclass as plain values."""

    version: int
    operation: str
    subject: str
    started_usec: int
    plan: Any
    begun: tuple[str, ...] = ()

    @classmethod
    def new(cls, operation: str, subject: str, plan: object) -> "IntentRecord":
        """Return the record of an operation that begins now. Raises: TypeError for a plan that has no plain values."""
        return cls(VERSION, operation, subject, time.time_ns() // 1000, msgspec.to_builtins(plan, enc_hook=_plain))

    def with_step(self, name: str) -> "IntentRecord":
        return msgspec.structs.replace(self, begun=(*self.begun, name))

    def text(self) -> bytes:
        """Return the record as JSON. Raises: ValueError or TypeError for what none can hold, such as names not in UTF-8."""
        return dumps(msgspec.to_builtins(self))

    def shown(self, path: Path) -> Intent:
        return Intent(self.operation, self.subject, self.begun, str(path))


def _plain(value: object) -> object:
    """Return what stands for a value that msgspec has no plain one for."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is no plain value")


def write_intent(path: Path, text: bytes) -> None:
    """Make ``text`` the durable intent. Raises: NoSpace or StateDamaged."""
    write_atomically(path, text)


def read_intent(path: Path) -> tuple[IntentRecord | None, Intent | None]:
    """Return the record and what to show of it: neither when there is none, only the latter when it cannot be read."""
    try:
        record = msgspec.convert(loads(read_bounded(path, SIZE_LIMIT_BYTES), str(path)), IntentRecord)
    except FileNotFoundError:
        return None, None
    except (StateDamaged, msgspec.ValidationError) as error:
        log.error("%s cannot be read, and its domain stays as it is: %s", path, error)  # noqa: TRY400  no fault of ours
        return None, Intent(UNREADABLE, "", (), str(path))
    return record, record.shown(path)
