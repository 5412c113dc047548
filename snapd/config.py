# SPDX-License-Identifier: MIT
"""The configuration: the main file and the domain files to frozen values, and every mistake in them with its line.

Not here: how YAML is read (``yaml_file``), what follows from a mistake (``daemon``), and whether there is what a path names.

- Nothing is passed over: an unknown key is a mistake, and so is a value that this version would not act on.
- A domain file with a mistake leaves out its own domain and no other.
- What two domain files both claim stays with the first in the order of their names.
"""

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from snapd.errors import InvalidName
from snapd.model.domain import DiskDefinition, DiskPolicy, DomainDefinition
from snapd.model.names import check_name
from snapd.model.plan import CHAIN_LIMIT, Live, Quiesce
from snapd.model.snapshot import SnapshotType
from snapd.yaml_file import (
    Mistake,
    Section,
    WrongValue,
    YamlFile,
    as_choice,
    as_count,
    as_path,
    as_size_bytes,
    as_text,
    as_timeout_s,
    kind_of,
    line_of,
    shown,
)

__all__ = ["Config", "Limits", "Mistake", "Timeouts", "check", "load"]

MOST_JOBS = 10_000
LONGEST_CHAIN = 1024
SOCKET_PATH_LIMIT_BYTES = 107
"""What ``sockaddr_un`` of Linux holds beside the NUL."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Limits:
    """``free_bytes`` is what must stay free where memory files and overlays go."""

    jobs: int = 200
    jobs_per_caller: int = 10
    chain: int = CHAIN_LIMIT
    free_bytes: int = 1 << 30


@dataclass(frozen=True)
class Timeouts:
    monitor_s: int = 5
    agent_s: int = 5
    freeze_s: int = 10


@dataclass(frozen=True)
class Config:
    """The main file; ``snapshots_directory`` is where memory files go, None for the state directory of their domain."""

    snapshots_directory: str | None = None
    type: SnapshotType = SnapshotType.ANY
    live: Live = Live.AUTO
    quiesce: Quiesce = Quiesce.AUTO
    undo: bool = True
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)


def load(config_path: Path, *, required: bool = False) -> tuple[Config, list[DomainDefinition], list[Mistake]]:
    """Read the main file and every ``domains.d/*.yaml`` beside it. Belongs in a thread: 1 MiB can take 20 seconds.

    Args: ``required`` makes it a mistake that there is no main file, which else means its defaults.
    Returns: the configuration, with defaults in place of what is wrong; the domains without a mistake in the order of their
    files' names; and the mistakes, those of the main file with ``config_path`` as their path.
    """
    main = YamlFile(config_path)
    config = _read_main(main) if required or _is_there(config_path) else Config()
    domains, mistakes = _read_domains(config_path.parent / "domains.d")
    return config, domains, main.sorted_mistakes() + mistakes


def check(config_path: Path, *, required: bool = False) -> list[Mistake]:
    """Return every mistake in the main file and in the domain files beside it."""
    return load(config_path, required=required)[2]


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # reading it says why it cannot be read
    return True


def _read_main(file: YamlFile) -> Config:
    top = file.root(("snapshots", "limits", "timeouts"), later=("monitors",))
    snapshots = top.section("snapshots", ("directory", "live", "type", "undo", "quiesce"), later=("image_directory",))
    limits = top.section("limits", ("jobs", "jobs_per_caller", "chain", "free_bytes"))
    timeouts = top.section("timeouts", ("monitor", "agent", "freeze"), later=("migrate",))
    default = Limits()
    waits = Timeouts()
    return Config(
        snapshots_directory=snapshots.value("directory", as_path, "") or None,
        type=SnapshotType(snapshots.value("type", as_choice(*SnapshotType), SnapshotType.ANY.value)),
        live=Live(snapshots.value("live", as_choice(*Live), Live.AUTO.value)),
        quiesce=Quiesce(snapshots.value("quiesce", as_choice(*Quiesce), Quiesce.AUTO.value)),
        undo=snapshots.value("undo", as_choice("yes", "no"), "yes") == "yes",
        limits=Limits(
            jobs=limits.value("jobs", as_count(MOST_JOBS), default.jobs),
            jobs_per_caller=limits.value("jobs_per_caller", as_count(MOST_JOBS), default.jobs_per_caller),
            chain=limits.value("chain", as_count(LONGEST_CHAIN), default.chain),
            free_bytes=limits.value("free_bytes", as_size_bytes, default.free_bytes),
        ),
        timeouts=Timeouts(
            monitor_s=timeouts.value("monitor", as_timeout_s, waits.monitor_s),
            agent_s=timeouts.value("agent", as_timeout_s, waits.agent_s),
            freeze_s=timeouts.value("freeze", as_timeout_s, waits.freeze_s),
        ),
    )


def _read_domains(directory: Path) -> tuple[list[DomainDefinition], list[Mistake]]:
    try:
        paths = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [Mistake(directory, 1, f"the directory cannot be read: {error.strerror}")]
    domains: list[DomainDefinition] = []
    mistakes: list[Mistake] = []
    taken: dict[tuple[str, str], str] = {}
    for path in paths:
        file = YamlFile(path)
        if path.suffix == ".yml":
            file.mistake(1, "only files that end in .yaml are read; rename it")
        elif path.suffix == ".yaml":
            domain, claims = _read_domain(file)
            for (key, value), line in claims.items():
                if (key, value) in taken:
                    file.mistake(line, f"{key!r} is {shown(value)}, which {taken[key, value]} has already")
            if not file.mistakes:
                domains.append(domain)
                taken.update({claim: f"{path}:{line}" for claim, line in claims.items()})
        mistakes += file.sorted_mistakes()
    return domains, mistakes


def _read_domain(file: YamlFile) -> tuple[DomainDefinition, dict[tuple[str, str], int]]:
    """Return the domain, of use where the file has no mistake, and the lines of what no other domain may have too."""
    top = file.root(("name", "uuid", "monitor", "agent", "disks"), later=("unit", "owners"))
    name = top.value("name", _as_domain_name, "") if "name" in top.nodes else _name_of_file(file)
    monitor = top.value("monitor", _as_socket_path, "", required=True)
    uuid = top.value("uuid", _as_domain_uuid, "")
    agent = top.value("agent", _as_socket_path, "")
    unique = {"name": name, "uuid": uuid, "monitor": _plain(monitor), "agent": _plain(agent)}
    claims = {(key, value): top.line_of(key) for key, value in unique.items() if value}
    return DomainDefinition(name, monitor, uuid, _read_disks(top), str(file.path.absolute()), agent), claims


def _name_of_file(file: YamlFile) -> str:
    name = file.path.name.removesuffix(".yaml")
    try:
        return check_name("domain", name)
    except InvalidName as error:
        if file.readable:
            file.mistake(1, f"the domain cannot be called {shown(name)} after its file: {error.reason}; give it a 'name'")
        return ""


def _read_disks(top: Section) -> tuple[DiskDefinition, ...]:
    node = top.nodes.get("disks")
    if node is None:
        return ()
    if not isinstance(node, yaml.SequenceNode):
        top.file.mistake(line_of(node), f"'disks' must be a list, and it is {kind_of(node)}")
        return ()
    disks: list[DiskDefinition] = []
    taken: dict[tuple[str, str], int] = {}
    for item in node.value:
        disk = top.file.section(item, "a disk", ("target", "image", "format", "snapshot"))
        target = disk.value("target", as_text, "", required=True)
        image = disk.value("image", as_path, "", required=True)
        image_format = disk.value("format", as_choice("raw", "qcow2"), "", required=True)
        policy = DiskPolicy(disk.value("snapshot", as_choice(*DiskPolicy), DiskPolicy.ANY.value))
        disks.append(DiskDefinition(target, image, image_format, policy))
        for key, value in (("target", target), ("image", _plain(image))):
            line = disk.line_of(key)
            if (key, value) in taken:
                top.file.mistake(line, f"{key!r} is {shown(value)}, which the disk of line {taken[key, value]} has already")
            elif value:
                taken[key, value] = line
    return tuple(disks)


def _plain(path: str) -> str:
    """Return the one spelling of a path among those with ``//``, ``.`` and ``..``; symbolic links are not followed."""
    return "/" + posixpath.normpath(path).lstrip("/") if path else ""


def _as_domain_name(node: yaml.Node) -> str:
    name = as_text(node)
    try:
        return check_name("domain", name)
    except InvalidName as error:
        raise WrongValue(f"cannot be {shown(name)}: {error.reason}") from error


def _as_socket_path(node: yaml.Node) -> str:
    path = as_path(node)
    if len(path.encode()) > SOCKET_PATH_LIMIT_BYTES:
        raise WrongValue(f"has {len(path.encode())} bytes, and the path of a Unix socket {SOCKET_PATH_LIMIT_BYTES} at most")
    return path


def _as_domain_uuid(node: yaml.Node) -> str:
    uuid = as_text(node).lower()
    if not _UUID.fullmatch(uuid):
        raise WrongValue(f"must look like a4eb4367-b880-3b11-d1e8-d5d2b2c1a3aa, and it is {shown(uuid)}")
    if uuid == _NO_UUID:
        raise WrongValue("cannot be all zeros, which is what QEMU answers without '-uuid'")
    return uuid
