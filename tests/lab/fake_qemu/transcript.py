# SPDX-License-Identifier: MIT
"""What a QEMU answered, written down so that a real one and a fake one can be compared.

Not here: what they are asked (the tests). What differs from run to run is left out: made-up names, times, counts and sizes.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.lab.qmp import Qmp, QmpError

WAIT_TIMEOUT_S = 30.0
_POLL_S = 0.01

_VARYING = frozenset(
    {"actual-size", "thread-id", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec", "vm-state-size", "fd"}
    | {"current-progress", "total-progress", "len", "offset", "total-time", "setup-time", "downtime", "expected-downtime"}
)
_MADE_UP = re.compile(r"#block\d+")
_NOT_PLAYED = frozenset({"MIGRATION_PASS"})


class Transcript:
    """Runs commands on ``control`` and takes down what comes of them; ``directory`` is where the images are."""

    def __init__(self, control: Qmp, directory: Path) -> None:
        self._control, self._directory = control, directory
        self.lines: list[tuple[str, object]] = []

    def run(self, command: str, descriptor: int | None = None, **arguments: Any) -> Any:
        """Run a command and take down what it was and what was answered. Returns: the answer, or None where it was refused."""
        try:
            answer = self._control.execute(command, descriptor, **arguments)
            shown = answer
        except QmpError as error:
            answer, shown = None, f"refused: {str(error).removeprefix(f'{command}: ')}"
        self.lines.append((f"{command} {json.dumps(self._plain(arguments))}", self._plain(shown)))
        return answer

    def wait_job(self, job: str, status: str) -> None:
        """Wait until a job is in a state, and take down how it is shown. Raises: TimeoutError."""
        self._wait(lambda: any(each["id"] == job and each["status"] == status for each in self._control.execute("query-jobs")))
        self.run("query-jobs")

    def wait_migrated(self) -> None:
        """Wait until a migration has ended one way or the other. Raises: TimeoutError."""
        self._wait(lambda: self._control.execute("query-migrate").get("status") in ("completed", "failed"))

    def root(self, drive: str) -> str:
        """Return the name of the node that a drive has now."""
        blocks = self._control.execute("query-block")
        return str(next(block["inserted"]["node-name"] for block in blocks if block["device"] == drive))

    def events(self) -> list[object]:
        """Return the events so far, but for what the guest does.

        That a job stands by for a moment is left out, which comes of nearly every command.
        """
        found: list[object] = []
        stands_by = False
        for event in self._control.events:
            is_of_job = event["event"] == "JOB_STATUS_CHANGE"
            goes_on, stands_by = stands_by and is_of_job, is_of_job and event["data"]["status"] == "standby"
            is_of_guest = event.get("data", {}).get("guest", False)
            if not (goes_on or stands_by or is_of_guest or event["event"] in _NOT_PLAYED):
                found.append(self._plain([event["event"], event.get("data", {})]))
        return found

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {self.lines[-1]} the next did not come: {self._control.execute('query-jobs')}")
            time.sleep(_POLL_S)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            plain = {name: self._plain_member(name, each) for name, each in value.items()}
            return plain | ({"virtual-size": "int"} if value.get("format") == "file" else {})  # as long as the file is now
        if isinstance(value, list):
            return [self._plain(each) for each in value]
        if isinstance(value, str):
            if value.startswith("json:"):
                return self._plain(json.loads(value.removeprefix("json:")))
            return _MADE_UP.sub("#", value.replace(str(self._directory), "DIR"))
        return value

    def _plain_member(self, name: str, value: Any) -> Any:
        if name == "ram":
            return sorted(value)
        return type(value).__name__ if name in _VARYING else self._plain(value)


def differences(real: object, fake: object, where: str = "") -> Iterator[str]:
    """Yield what differs in two answers, and where."""
    if isinstance(real, dict) and isinstance(fake, dict):
        for name in sorted({*real, *fake}):
            yield from differences(real.get(name, "nothing"), fake.get(name, "nothing"), f"{where}.{name}")
    elif isinstance(real, list) and isinstance(fake, list) and len(real) == len(fake):
        for number, (one, other) in enumerate(zip(real, fake, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif real != fake:
        yield f"{where}: real {real!r}, fake {fake!r}"
