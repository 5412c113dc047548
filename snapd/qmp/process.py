# SPDX-License-Identifier: MIT
"""The process at the other end of a monitor: how it was started, as far as we may read that.

Not here: what its arguments mean (``command_line``). Invariants:

- nothing is raised: a process that is gone, hidden, somebody else's, or that cannot be read in time shows nothing;
- nothing is kept: each look reads anew, so that it is of the QEMU that is connected.
"""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from qemu.qmp import StateError

from snapd.qmp.command_line import CommandLine, parse
from snapd.qmp.link import Link

READ_TIMEOUT_S = 2.0
"""Reading takes well below a millisecond, unless the kernel holds the memory of the process."""

_VARIABLE = re.compile(rb"DOMSNAP_[A-Z0-9_]+_FILE=")
_LINKS, _ENVIRONMENT_FILE = "disks", "disks.env"
_CREDENTIALS = "iII"
"""``struct ucred``: process, user and group."""


@dataclass(frozen=True)
class Process:
    """``has_our_variables`` is whether the environment that it was started with says which images are active.

    ``open_files`` are the paths of the files that it has open, all links followed; none where that may not be seen.
    """

    command_line: CommandLine = field(default_factory=CommandLine)
    has_our_variables: bool = False
    open_files: frozenset[str] = frozenset()


async def look(link: Link) -> Process:
    """Return how the QEMU that is connected now was started."""
    pid = _peer(link)
    if pid <= 0:
        return Process()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await asyncio.to_thread(_read, Path(f"/proc/{pid}"))
    except TimeoutError:
        return Process()


async def follows_active(process: Process, paths: Iterable[str]) -> bool:
    """Tell whether QEMU was told by files of ours which images to open: by its environment, or by our links.

    Args:
        paths: the names under which it has images open now; those in its command line are looked at as well.
    """
    if process.has_our_variables:
        return True
    names = {*paths, *(drive.path for drive in process.command_line.drives)}
    links = [PurePosixPath(name) for name in names if PurePosixPath(name).parent.name == _LINKS]
    if not links:
        return False
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await asyncio.to_thread(lambda: any(_is_ours(Path(link)) for link in links))
    except TimeoutError:
        return False


def _is_ours(link: Path) -> bool:
    try:
        return (link.parent.parent / _ENVIRONMENT_FILE).is_file()
    except OSError:
        return False


def _peer(link: Link) -> int:
    """Return the process that made the socket, as this process sees it, or 0."""
    try:
        connected: socket.socket = link._monitor.transport.get_extra_info("socket")
        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
    except (StateError, OSError):
        return 0
    return int(struct.unpack(_CREDENTIALS, credentials)[0])


def _read(process: Path) -> Process:
    arguments = _bytes(process / "cmdline").split(b"\0")
    variables = _bytes(process / "environ").split(b"\0")
    words = [word.decode(errors="surrogateescape") for word in arguments]
    return Process(parse(words), any(_VARIABLE.match(each) for each in variables), _open_files(process / "fd"))


def _open_files(descriptors: Path) -> frozenset[str]:
    found = set()
    try:
        for each in descriptors.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.add(str(each.readlink()))
    except OSError:
        return frozenset()
    return frozenset(path for path in found if path.startswith("/"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
