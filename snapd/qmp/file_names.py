# SPDX-License-Identifier: MIT
"""File names as QEMU takes and prints them, and the paths in them. Not here: whether there are such files."""

import json
from typing import Any

PROTOCOLS = frozenset(
    {
        "file",
        "host_device",
        "host_cdrom",
        "nbd",
        "rbd",
        "nfs",
        "iscsi",
        "http",
        "https",
        "ssh",
        "gluster",
        "null-co",
        "null-aio",
    }
)
"""The drivers below a format, and what a file name begins with that is none of a plain file."""


def path_of(name: str) -> str:
    """Return the path in a file name, or nothing when it is not a file or only a part of one."""
    if name.startswith("json:"):
        options = _options(name.removeprefix("json:"))
        while isinstance(options.get("file"), dict):
            if "offset" in options or "size" in options:
                return ""
            options = options["file"]
        return str(options.get("filename", ""))
    scheme = name.split(":", 1)[0]
    if scheme == "file":
        return name.removeprefix("file:")
    return "" if ":" in name and scheme in PROTOCOLS else name


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}
