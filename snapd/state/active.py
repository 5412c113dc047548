# SPDX-License-Identifier: MIT
"""The active images for whoever starts QEMU: ``disks.env`` and the links in ``disks/``.

Not here: which images are active (``model.images``). Invariants:

- Each is wholly the old or wholly the new one at every instant; image and format change together.
- A link with a format that is not the present one does not exist: qcow2 opened as raw is destroyed.
- What cannot be said without doubt is left out, so that QEMU fails to start instead of opening the wrong image.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from snapd.errors import StateDamaged
from snapd.model.images import ImageGraph
from snapd.model.names import escape_for_file
from snapd.state.atomic import read_bounded, remove_durably, replace_symlink_atomically, write_atomically

ENVIRONMENT_FILE = "disks.env"
LINKS = "disks"

_LARGEST_ENVIRONMENT_BYTES = 1 << 20
_HEADER = "# Written by domsnapd for EnvironmentFile=; what is changed here is overwritten.\n"
_QUOTED = re.compile(r'["\\`$]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def refresh(directory: Path, graph: ImageGraph) -> None:
    """Make the file and the links say what is active in ``graph``.

    Effects: nothing is written where they say so already. The file outlasts a power cut from the next durable change in
    ``directory`` on; until then the old one may come back, as if this had not been called.
    Raises: NoSpace or StateDamaged.
    """
    active = {
        target: (path, graph.images[path].format) for target, path in sorted(graph.active.items()) if path in graph.images
    }
    _refresh_links(directory / LINKS, active)
    _refresh_environment(directory / ENVIRONMENT_FILE, environment(active))


def environment(active: Mapping[str, tuple[str, str]]) -> str:
    """Return the text of ``disks.env``; ``active`` gives image and format by target.

    Source: systemd.exec(5), EnvironmentFile=: inside double quotes a backslash escapes what it does in a shell.
    """
    lines = [_HEADER]
    stems = {target: re.sub(r"[^A-Z0-9]", "_", _upper(target)) for target in active}
    for target, (path, format_name) in active.items():
        stem = stems[target]
        if list(stems.values()).count(stem) > 1:
            lines.append(f"# Left out: another disk has the name DOMSNAP_{stem} too.\n")
        elif _CONTROL.search(path):
            # systemd drops a variable with a control character, and with a line break QEMU would not find the file either.
            lines.append(f"# Left out: the path of DOMSNAP_{stem}_FILE has a control character.\n")
        else:
            lines.append(f"DOMSNAP_{stem}_FILE={_quoted(path)}\n")
            lines.append(f"DOMSNAP_{stem}_FORMAT={_quoted(format_name)}\n")
    return "".join(lines)


def _upper(target: str) -> str:
    """Return ``target`` in upper case, leaving alone what is no ASCII letter."""
    return "".join(char.upper() if char.isascii() else "_" for char in target)


def _quoted(text: str) -> str:
    escaped = _QUOTED.sub(lambda match: "\\" + match[0], text)
    return f'"{escaped}"'


def _refresh_environment(path: Path, text: str) -> None:
    try:
        written = read_bounded(path, _LARGEST_ENVIRONMENT_BYTES)
    except FileNotFoundError:
        written = b""
    wanted = text.encode()
    # A domain that no image is known of has no file rather than one without variables: a unit then says what is missing.
    if wanted != written and (written or text != _HEADER):
        write_atomically(path, wanted, sync_directory=False)


def _refresh_links(links: Path, active: Mapping[str, tuple[str, str]]) -> None:
    wanted = {
        f"{escape_for_file(target)}.{escape_for_file(format_name)}": path for target, (path, format_name) in active.items()
    }
    try:
        if wanted:
            links.mkdir(mode=0o700, exist_ok=True)
        present = {each.name: each for each in links.iterdir() if each.is_symlink()} if links.is_dir() else {}
        targets = {name: str(link.readlink()) for name, link in present.items()}
    except OSError as cause:
        raise StateDamaged(str(links), 0, f"the links in it cannot be kept: {cause.strerror}") from cause
    # First what is wrong goes: between the two steps QEMU finds no link, and never two with different formats.
    for name, link in present.items():
        if name not in wanted:
            remove_durably(link)
    for name, path in wanted.items():
        if targets.get(name) != path:
            replace_symlink_atomically(links / name, path)
