# SPDX-License-Identifier: MIT
"""Record what a real QEMU says of itself, for ``fake_qemu`` to play it: its QMP schema, and answers that hardly ever change.

    python -m tests.lab.record_schema

records the QEMU on PATH, or the one that DOMSNAPD_TEST_QEMU starts, as ``tests/data/qapi/qemu-MAJOR.MINOR.json.gz``. On an
older Debian, QEMU 10.0 is had from a root file system of Debian 13, made in DIR by

    debootstrap --variant=minbase --include=qemu-system-x86,qemu-utils trixie DIR

and started with the loader, the libraries and the firmware of that:

    L=usr/lib/x86_64-linux-gnu
    DOMSNAPD_TEST_QEMU="DIR/lib64/ld-linux-x86-64.so.2 --library-path DIR/$L:DIR/lib/x86_64-linux-gnu
        DIR/usr/bin/qemu-system-x86_64 -L DIR/usr/share/qemu -L DIR/usr/share/seabios" (in one line)

Not here: reading it (``fake_qemu.recording``). Invariants:

- the schema is a part of QEMU's own answer to ``query-qmp-schema``, unchanged: the commands and events below, with all that
  they refer to;
- the same QEMU gives the same bytes.
"""

import gzip
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.lab.qemu import QemuProcess
from tests.lab.qmp import Qmp, QmpError

DIRECTORY = Path(__file__).parents[1] / "data" / "qapi"

COMMANDS = (
    *("qmp_capabilities", "query-status", "query-uuid", "query-version", "query-name", "query-command-line-options"),
    *("query-cpus-fast", "query-memory-size-summary", "qom-get", "qom-list", "qom-set"),
    *("stop", "cont", "system_reset", "set-action", "quit", "human-monitor-command"),
    *("query-block", "query-named-block-nodes", "query-block-exports", "x-debug-query-block-graph"),
    *("blockdev-add", "blockdev-del", "block_resize", "transaction", "blockdev-snapshot", "blockdev-snapshot-internal-sync"),
    "blockdev-snapshot-delete-internal-sync",
    *("block-commit", "block-stream", "query-jobs"),
    *("job-complete", "job-finalize", "job-dismiss", "job-cancel"),
    *("query-migrate", "query-migrate-capabilities", "query-migrate-parameters", "migrate"),
    *("migrate-set-capabilities", "migrate-set-parameters", "snapshot-save", "snapshot-load"),
    *("getfd", "closefd", "add-fd", "remove-fd", "query-fdsets"),
)
EVENTS = (
    *("STOP", "RESUME", "RESET", "SHUTDOWN", "MIGRATION", "MIGRATION_PASS", "JOB_STATUS_CHANGE"),
    *("BLOCK_JOB_READY", "BLOCK_JOB_PENDING", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"),
)

_ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "query-version": ("query-version", {}),
    "query-cpus-fast": ("query-cpus-fast", {}),
    "query-migrate-capabilities": ("query-migrate-capabilities", {}),
    "query-migrate-parameters": ("query-migrate-parameters", {}),
    "machine type": ("qom-get", {"path": "/machine", "property": "type"}),
    "/machine/unattached": ("qom-list", {"path": "/machine/unattached"}),
}

Info = dict[str, Any]
"""An entry of ``query-qmp-schema``."""


def reachable(schema: Iterable[Info], roots: Iterable[str]) -> list[Info]:
    """Return the entries called ``roots``, and all that they refer to, in the order of ``schema``. Raises: KeyError."""
    by_name = {info["name"]: info for info in schema}
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _references(by_name[name])
    return [info for name, info in by_name.items() if name in found]


def _references(info: Info) -> Iterator[str]:
    yield from (info[key] for key in ("arg-type", "ret-type", "element-type") if key in info)
    if info["meta-type"] != "enum":
        yield from (each["type"] for key in ("members", "variants") for each in info.get(key, ()))


def conflicts(control: Qmp, capability: str, others: Iterable[str]) -> dict[str, str]:
    """Return what QEMU says of each of ``others`` that it does not let be on together with ``capability``; all are off."""
    said = {}
    for other in others:
        if other == capability:
            continue
        try:
            _switch(control, {capability: True, other: True})
        except QmpError as error:
            said[other] = str(error).removeprefix("migrate-set-capabilities: ")
        else:
            _switch(control, {capability: False, other: False})
    return said


def _switch(control: Qmp, states: dict[str, bool]) -> None:
    named = [{"capability": name, "state": state} for name, state in states.items()]
    control.execute("migrate-set-capabilities", capabilities=named)


def record(control: Qmp) -> dict[str, Any]:
    """Return all that is recorded of the QEMU behind ``control``."""
    answers = {name: control.execute(command, **arguments) for name, (command, arguments) in _ANSWERS.items()}
    capabilities = [each["capability"] for each in answers["query-migrate-capabilities"]]
    return {
        "schema": reachable(control.execute("query-qmp-schema"), (*COMMANDS, *EVENTS)),
        "answers": answers,
        "conflicts with background-snapshot": conflicts(control, "background-snapshot", capabilities),
    }


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="schema-") as directory, QemuProcess(Path(directory), paused=True) as qemu:
        recorded = record(qemu.control)
    for each in recorded["answers"]["query-cpus-fast"]:
        each["thread-id"] = 0  # another one each time
    version = recorded["answers"]["query-version"]["qemu"]
    path = DIRECTORY / f"qemu-{version['major']}.{version['minor']}.json.gz"
    text = json.dumps(recorded, sort_keys=True, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path}: {path.stat().st_size} bytes, {len(recorded['schema'])} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
