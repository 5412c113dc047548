# SPDX-License-Identifier: MIT
"""What QEMU's command line says that QMP does not show: ``aio`` and ``discard`` of its drives, and what a reset does.

Not here: getting hold of it (``process``). Invariants:

- whatever stands in a command line, nothing is raised: what cannot be read is left out;
- a mode that is not said, or that is not one of QEMU's, is empty.

Source: qemu-options.hx (``-drive``, ``-blockdev``, ``-device``) and docs of QEMU's keyval and JSON forms.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from snapd.qmp.file_names import path_of

AIO_MODES = frozenset({"threads", "native", "io_uring"})
_DISCARD_MODES = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
_SINGLE_COMMA = re.compile(r"((?:[^,]|,,)*)(?:,|$)")


@dataclass(frozen=True)
class Drive:
    """A ``-drive`` by its id, or a ``-blockdev`` by its node's name; both may be empty."""

    name: str
    path: str
    aio: str
    discard: str


@dataclass(frozen=True)
class CommandLine:
    """``devices`` has the drive of each device that has an id, by name; ``ends_on_reset`` is what ``-no-reboot`` asks for."""

    drives: tuple[Drive, ...] = ()
    devices: Mapping[str, str] = field(default_factory=dict)
    ends_on_reset: bool = False

    def drive(self, device: str, names: Iterable[str], paths: Iterable[str]) -> Drive:
        """Return the drive that the device with that id was given; else one of ``names``; else one on one of ``paths``."""
        wanted = [self.devices.get(device, ""), *names]
        for name in filter(None, wanted):
            for each in self.drives:
                if each.name == name:
                    return each
        for path in filter(None, paths):
            for each in self.drives:
                if each.path == path:
                    return each
        return Drive("", "", "", "")


def parse(arguments: Sequence[str]) -> CommandLine:
    """Read the words that QEMU was started with, the first of which is its own path."""
    drives: list[Drive] = []
    nodes: dict[str, dict[str, str]] = {}
    devices: dict[str, str] = {}
    ends_on_reset = False
    for option, value in _options(arguments):
        options = _pairs(value)
        if option == "no-reboot" or (option == "action" and "reboot" in options):
            ends_on_reset = options.get("reboot", "shutdown") == "shutdown"
        if option == "drive" and options:
            drives.append(_drive(options))
        elif option == "device" and "id" in options and "drive" in options:
            devices[options["id"]] = options["drive"]
        elif option == "blockdev" and "node-name" in options:
            nodes[options["node-name"]] = options
    return CommandLine((*drives, *_formats(nodes)), devices, ends_on_reset)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return the options that matter here with their values; QEMU takes them with one dash and with two."""
    words = iter(arguments[1:])
    for word in words:
        option = word.removeprefix("-").removeprefix("-")
        if word.startswith("-") and option == "no-reboot":
            yield option, ""
        elif word.startswith("-") and option in ("drive", "blockdev", "device", "action"):
            yield option, next(words, "")


def _drive(options: Mapping[str, str]) -> Drive:
    path = options.get("file", "") or options.get("file.filename", "")
    return Drive(options.get("id", ""), path_of(path), _aio(options.get("aio") or options.get("file.aio")), _discard(options))


def _formats(nodes: Mapping[str, Mapping[str, str]]) -> Iterator[Drive]:
    """Return the nodes that lie on a file, each with what the node of its file says, inside it or beside it."""
    for name, options in nodes.items():
        below = nodes.get(options.get("file", ""), {})
        path = options.get("file.filename") or below.get("filename", "")
        if path:
            yield Drive(name, path_of(path), _aio(options.get("file.aio") or below.get("aio")), _discard(options))


def _aio(mode: str | None) -> str:
    return mode if mode in AIO_MODES else ""


def _discard(options: Mapping[str, str]) -> str:
    return _DISCARD_MODES.get(options.get("discard", ""), "")


def _pairs(value: str) -> dict[str, str]:
    """Return the options in a value in either form, nested ones with dots in their names."""
    if value.startswith("{"):
        try:
            return dict(_flat("", json.loads(value)))
        except (ValueError, RecursionError):
            return {}
    words = [match.replace(",,", ",") for match in _SINGLE_COMMA.findall(value) if match]
    return {name: text for name, sign, text in (word.partition("=") for word in words) if sign}


def _flat(prefix: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}.", value)
        elif isinstance(value, str):
            yield f"{prefix}{name}", value
