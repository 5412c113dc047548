# SPDX-License-Identifier: MIT
"""Names: which ones domains and snapshots may have, and the file names that are made of them.

Not here: D-Bus object paths (``bus.names``).
"""

import hashlib
import string

from snapd.errors import InvalidName

LONGEST_NAME_BYTES = 200
SHORTEST_NUMBER = 10
"""QEMU looks an internal snapshot up by id before name, and its ids are short numbers."""

LONGEST_ESCAPED_BYTES = 180
"""What is left of the 255 bytes of a file name for ``snapshotdata-``, the disk's own name and every suffix."""

_PLAIN = frozenset((string.ascii_letters + string.digits + "._-").encode())
_FIRST_PRINTABLE = 0x20
_DELETE = 0x7F


def check_name(what: str, name: str) -> str:
    """Return ``name`` if a ``what`` (``domain`` or ``snapshot``) may be called so.

    Raises: InvalidName, with the rule that is broken.
    """
    reason = _why_not(name)
    if reason:
        raise InvalidName(what, name, reason)
    return name


def _why_not(name: str) -> str:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if not encoded:
        return "it is empty"
    if len(encoded) > LONGEST_NAME_BYTES:
        return f"it has {len(encoded)} bytes, and {LONGEST_NAME_BYTES} are allowed"
    if any(ord(char) < _FIRST_PRINTABLE or _DELETE <= ord(char) < 0xA0 for char in name):
        return "it has a control character"
    if "/" in name:
        return "it has a '/'"
    if name in (".", ".."):
        return "it is the name of a directory"
    if name.isascii() and name.isdigit() and len(name) < SHORTEST_NUMBER:
        return f"it is a number of fewer than {SHORTEST_NUMBER} digits, which QEMU would take for an id"
    return ""


def escape_for_file(name: str) -> str:
    """Return ``name`` as a part of a file name: bytes outside ``A-Za-z0-9._-`` and a leading ``.`` become ``%XX``.

    An escaped form that would not fit a file name is cut and ends in ``%-`` and a digest, which no plain escape contains; the
    whole name stands inside the file.
    """
    escaped = "".join(
        chr(byte) if byte in _PLAIN and not (index == 0 and byte == ord(".")) else f"%{byte:02X}"
        for index, byte in enumerate(name.encode())
    )
    if len(escaped) <= LONGEST_ESCAPED_BYTES:
        return escaped
    return f"{escaped[: LONGEST_ESCAPED_BYTES - 40]}%-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def made_up_name(stamp: str, taken: frozenset[str]) -> str:
    """Return a name made of ``stamp`` (a time, ``2026-01-31T12-00-00``) that is not in ``taken``."""
    candidate, number = stamp, 1
    while candidate in taken:
        number += 1
        candidate = f"{stamp}-{number}"
    return candidate
