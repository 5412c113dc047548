# SPDX-License-Identifier: MIT
"""What was recorded of real QEMUs, by version, and how those differ where no answer tells.

Not here: recording (``lab.record_schema``).
"""

import functools
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.fake_qemu.schema import Schema

DIRECTORY = Path(__file__).parents[2] / "data" / "qapi"
VERSIONS = ("7.2", "10.0")

CHOSEN_BY_VERSION = frozenset({("migrate-set-capabilities", "capability")})
"""Commands, each with a parameter whose value is taken from an answer of this very QEMU: another need not know it."""


@dataclass(frozen=True)
class Recording:
    """One QEMU; ``answers`` are real ones, ``conflicts`` what each capability says beside a background snapshot."""

    version: str
    schema: Schema
    answers: Mapping[str, Any]
    conflicts: Mapping[str, str]

    @property
    def number(self) -> tuple[int, int, int]:
        qemu = self.answers["query-version"]["qemu"]
        return qemu["major"], qemu["minor"], qemu["micro"]

    @property
    def resumes_after_arming(self) -> bool:
        """Whether the guest of a background snapshot runs on by itself once its memory is protected."""
        return self.number < (8, 0, 0)

    @property
    def shows_active(self) -> bool:
        """Whether each node says if it is active."""
        return self.number >= (10, 0, 0)

    @property
    def shows_singlestep(self) -> bool:
        return self.number < (9, 0, 0)

    @property
    def shows_skipped(self) -> bool:
        """Whether a migration counts pages that it skipped."""
        return self.number < (10, 0, 0)

    @property
    def keeps_descriptors_while_stopped(self) -> bool:
        """Whether a removed descriptor stays open as long as the guest does not run."""
        return self.number < (9, 0, 0)


@functools.cache
def recording(version: str) -> Recording:
    """Read the recording of a version. Raises: FileNotFoundError."""
    recorded = json.loads(gzip.decompress((DIRECTORY / f"qemu-{version}.json.gz").read_bytes()))
    return Recording(version, Schema(recorded["schema"]), recorded["answers"], recorded["conflicts with background-snapshot"])
