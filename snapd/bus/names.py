# SPDX-License-Identifier: MIT
"""Owns the names on the bus: the bus name, the interfaces, and object paths both ways.

It does not know which objects exist, nor which names a domain or a snapshot may have.

- A path made here parses back to exactly what it was made of.
- Only the one spelling that is made here parses: an object has one path and never two.
"""

import re
from dataclasses import dataclass

BUS_NAME = "org.domsnap1"
ROOT_PATH = "/org/domsnap1"
NO_OBJECT = "/"  # a property or argument of type `o` that names nothing

MANAGER_INTERFACE = "org.domsnap1.Manager"
DOMAIN_INTERFACE = "org.domsnap1.Domain"
SNAPSHOT_INTERFACE = "org.domsnap1.Snapshot"
JOB_INTERFACE = "org.domsnap1.Job"

PEER_INTERFACE = "org.freedesktop.DBus.Peer"
INTROSPECTABLE_INTERFACE = "org.freedesktop.DBus.Introspectable"
PROPERTIES_INTERFACE = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER_INTERFACE = "org.freedesktop.DBus.ObjectManager"

ERROR_PREFIX = "org.domsnap1.Error."

DOMAINS_PATH = f"{ROOT_PATH}/domain"
JOBS_PATH = f"{ROOT_PATH}/job"

_ESCAPE = re.compile(rb"_([0-9a-fA-F]{2})")
_JOB_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class DomainPath:
    """The path of a domain, by the domain's name."""

    domain: str


@dataclass(frozen=True, slots=True)
class SnapshotPath:
    """The path of a snapshot, by the names of its domain and its own."""

    domain: str
    snapshot: str


@dataclass(frozen=True, slots=True)
class JobPath:
    """The path of a job, by its number."""

    number: int


def encode_path_element(text: str) -> str:
    """Escape any text into one element of an object path.

    Source: ``sd_bus_path_encode(3)``: ASCII letters, and digits that are not first, stand for themselves, each other byte of
    the UTF-8 is ``_`` and two lower-case hexadecimal digits, and the empty text is ``_``.
    """
    if not text:
        return "_"
    parts: list[str] = []
    for position, byte in enumerate(text.encode()):
        character = chr(byte)
        plain = character.isascii() and (character.isalpha() or (position > 0 and character.isdigit()))
        parts.append(character if plain else f"_{byte:02x}")
    return "".join(parts)


def decode_path_element(element: str) -> str:
    """Undo the escaping of one path element; an underscore that starts no escape stands for itself, as in systemd.

    Raises: ValueError when the bytes are not UTF-8.
    Source: ``sd_bus_path_decode(3)``.
    """
    if element == "_":
        return ""
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), element.encode()).decode()


def domain_path(domain: str) -> str:
    """Return the object path of a domain."""
    return f"{DOMAINS_PATH}/{encode_path_element(domain)}"


def snapshot_path(domain: str, snapshot: str) -> str:
    """Return the object path of a snapshot, which lies under that of its domain."""
    return f"{domain_path(domain)}/snapshot/{encode_path_element(snapshot)}"


def job_path(number: int) -> str:
    """Return the object path of a job."""
    return f"{JOBS_PATH}/{number}"


def parse_path(path: str) -> DomainPath | SnapshotPath | JobPath | None:
    """Tell which object a path means; None for the root, for paths between objects, and for everything else."""
    if not path.startswith(ROOT_PATH + "/"):
        return None
    match path.removeprefix(ROOT_PATH + "/").split("/"):
        case ["domain", domain]:
            name = _decode_exact(domain)
            return None if name is None else DomainPath(name)
        case ["domain", domain, "snapshot", snapshot]:
            name, own = _decode_exact(domain), _decode_exact(snapshot)
            return None if name is None or own is None else SnapshotPath(name, own)
        case ["job", number] if _JOB_NUMBER.fullmatch(number):
            return JobPath(int(number))
        case _:
            return None


def _decode_exact(element: str) -> str | None:
    try:
        name = decode_path_element(element)
    except ValueError:
        return None
    return name if encode_path_element(name) == element else None
