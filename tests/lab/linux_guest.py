# SPDX-License-Identifier: MIT
"""The Linux guest: Debian's kernel, busybox and the real guest agent, with an ext4 file system mounted on its first disk.

Not here: running it (``qemu``), and what it does after its boot (``linux_guest_init.sh``). It knows nothing of pytest.

- It is built once per machine and recipe, from packages that are downloaded and never installed; root is not needed.
- Builds at the same time do not disturb each other: each has a directory of its own, and the first one to end is kept.
- It ends by itself, and its console says why, when the first disk has no ext4 file system.
"""

import contextlib
import functools
import hashlib
import json
import lzma
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MEMORY_MIB = 256
FILE_SYSTEM_BYTES = 32 << 20
AGENT_TIMEOUT_S = 120.0
"""A boot takes 2 s under TCG on a machine that does nothing else."""

DOWNLOAD_TIMEOUT_S = 300.0
TOOL_TIMEOUT_S = 60.0

_INIT = Path(__file__).with_name("linux_guest_init.sh")
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_PROGRAM_PACKAGES = ("busybox-static", "qemu-guest-agent")
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
_AGENT_PORT = "org.qemu.guest_agent.0"
_SENTINEL = b"\xff"
_POLL_S = 0.02
_TAIL_BYTES = 4000


@dataclass(frozen=True)
class LinuxGuest:
    """What QEMU boots."""

    kernel: Path
    initrd: Path


@functools.cache
def linux_guest() -> LinuxGuest:
    """Return the guest, building it where this machine has none. Raises: RuntimeError with what a tool said."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + _INIT.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "domsnapd-lab"
    kept = cache / f"linux-guest-{recipe}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as name:
            made = Path(name, "guest")
            made.mkdir()
            _build(Path(name), made)
            try:
                made.rename(kept)
            except OSError:
                if not kept.exists():  # else another build was faster
                    raise
    return LinuxGuest(kept / "vmlinuz", kept / "initrd")


def linux_guest_arguments(directory: Path, guest: LinuxGuest, *, writes: bool = False) -> list[str]:
    """Return QEMU's arguments, but for memory (``MEMORY_MIB``) and disks.

    Args:
        directory: for the agent's socket and the console's log; its path is short enough for a socket.
        writes: whether the guest counts for ever in the file ``/counter`` of its first disk.
    """
    words = f"console=ttyS0 quiet {'WRITES=1' if writes else ''}"
    return [
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", words.strip()),
        *("-chardev", f"file,id=console,path={_console(directory)}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,path={agent_socket(directory)},server=on,wait=off", "-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev=agent,name={_AGENT_PORT}"),
    ]


def agent_socket(directory: Path) -> Path:
    """Return where the agent is reached, one client at a time."""
    return directory / "agent"


def wait_for_agent(directory: Path, timeout_s: float = AGENT_TIMEOUT_S) -> None:
    """Wait until the agent answers, so that the file system is mounted too.

    Raises: RuntimeError with the end of what the guest's console said, when it does not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    request = {"execute": "guest-sync-delimited", "arguments": {"id": secrets.randbits(48)}}
    try:
        with _connect(agent_socket(directory), deadline) as connection:
            # QEMU reads it once the agent has opened its port.
            connection.sendall(_SENTINEL + json.dumps(request).encode() + b"\n")
            _await_synchronised(connection, request["arguments"]["id"], deadline)  # type: ignore[index]
    except (OSError, EOFError) as error:
        raise RuntimeError(f"the guest's agent does not answer: {error!r}\n{console_tail(directory)}") from error


def console_tail(directory: Path) -> str:
    """Return the end of what the guest's console said."""
    console = _console(directory)
    return console.read_bytes()[-_TAIL_BYTES:].decode(errors="replace") if console.exists() else ""


def console_count(directory: Path) -> int:
    """Return the last count of a guest that writes, which is durable; 0 before the first."""
    counts = re.findall(r"^count (\d+)\r?$", console_tail(directory), re.MULTILINE)
    return int(counts[-1]) if counts else 0


def wait_console_count(directory: Path, least: int, timeout_s: float = AGENT_TIMEOUT_S) -> int:
    """Wait until the guest has counted to ``least``. Returns: its count. Raises: TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while (count := console_count(directory)) < least:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the guest has counted to {count} and not {least}\n{console_tail(directory)}")
        time.sleep(_POLL_S)
    return count


def make_file_system(path: str | os.PathLike[str], image_format: str = "raw", size_bytes: int = FILE_SYSTEM_BYTES) -> Path:
    """Make an image that is an empty ext4 file system with a journal, and return its path."""
    path = Path(path)
    raw = path if image_format == "raw" else path.with_name(f"{path.name}.ext4")
    with raw.open("xb") as file:
        file.truncate(size_bytes)
    # All is written at once: a thread of the guest's kernel would go on for minutes otherwise.
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(raw))
    if raw is not path:
        try:
            _run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(path))
        finally:
            raw.unlink()
    return path


def needs_recovery(path: str | os.PathLike[str], image_format: str) -> bool:
    """Return whether the journal has to be replayed, as on every mounted file system that is not frozen.

    A QEMU may have the image open.
    """
    with _raw_copy(path, image_format) as raw:
        features = re.search(r"^Filesystem features:(.*)$", _run("dumpe2fs", "-h", str(raw)), re.MULTILINE)
    if features is None:
        raise RuntimeError(f"dumpe2fs shows no features of {path}")
    return "needs_recovery" in features[1].split()


def written_counts(path: str | os.PathLike[str], image_format: str) -> list[int]:
    """Return what the guest has written to its counter, read from a copy whose journal was replayed; 1, 2, 3, ... is right.

    Raises: RuntimeError when the file system is damaged beyond what its journal mends.
    """
    with _raw_copy(path, image_format) as raw:
        _run("e2fsck", "-p", str(raw), allowed=(0, 1))
        _run("e2fsck", "-f", "-n", str(raw))
        return [int(line) for line in _run("debugfs", "-R", "cat /counter", str(raw)).splitlines()]


@contextlib.contextmanager
def _raw_copy(path: str | os.PathLike[str], image_format: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ext4-") as directory:
        raw = Path(directory, "raw")
        _run("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", os.fspath(path), str(raw))
        yield raw


def _console(directory: Path) -> Path:
    return directory / "console.log"


def _connect(path: Path, deadline: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return connection


def _await_synchronised(connection: socket.socket, wanted: int, deadline: float) -> None:
    received = b""
    while True:
        connection.settimeout(max(_POLL_S, deadline - time.monotonic()))
        part = connection.recv(65536)
        if not part:
            raise EOFError("QEMU has closed the agent's socket")
        *lines, received = (received + part).split(b"\n")
        for line in lines:
            _, found, answer = line.rpartition(_SENTINEL)
            if found and json.loads(answer).get("return") == wanted:
                return


def _build(work: Path, made: Path) -> None:
    """Make ``vmlinuz`` and ``initrd`` in ``made``."""
    packages, root = work / "packages", work / "root"
    _download(work, packages)
    (kernel,) = (packages / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, made / "vmlinuz")
    (busybox,) = packages.glob("**/bin/busybox")  # newer Debians have it in /usr/bin
    agent = packages / "usr/sbin/qemu-ga"
    _place(busybox, root / "bin/busybox")
    _place(agent, root / "usr/sbin/qemu-ga")
    for library in _libraries(agent):
        _place(library, root / str(library).lstrip("/"))
    _place(_INIT, root / "init")
    modules = dict(_modules(packages))
    (root / "modules").mkdir()
    for name, content in modules.items():
        (root / "modules" / name).write_bytes(content)
    (root / "modules" / "order").write_text("".join(f"{name}\n" for name in modules))
    names = "".join(f"{each.relative_to(root)}\n" for each in sorted(root.rglob("*")))
    # Not compressed: unpacking is slow under TCG. The kernel has a /dev/console of its own.
    _run(str(busybox), "cpio", "-o", "-H", "newc", "-F", str(made / "initrd"), cwd=root, given=names)


def _download(work: Path, packages: Path) -> None:
    """Download what the guest is made of and unpack it into one tree."""
    lists = work / "lists"
    (lists / "partial").mkdir(parents=True)
    # Lists of our own: those of the system are absent or name packages that are gone, and only root may renew them.
    private = ("-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User=")
    _run("apt-get", "update", "-q", *private, timeout_s=DOWNLOAD_TIMEOUT_S)
    depends = _run("apt-cache", *private, "depends", _KERNEL_PACKAGE)
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if kernel is None:
        raise RuntimeError(f"{_KERNEL_PACKAGE} depends on no kernel: {depends}")
    _run("apt-get", "download", "-q", *private, kernel[1], *_PROGRAM_PACKAGES, cwd=work, timeout_s=DOWNLOAD_TIMEOUT_S)
    for package in work.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(packages))


def _libraries(program: Path) -> Iterator[Path]:
    """Return the shared libraries of a program, which are the system's."""
    listed = _run("ldd", str(program))
    if missing := re.findall(r"(\S+) => not found", listed):
        raise RuntimeError(f"the guest agent needs {', '.join(missing)}, which this system does not have; install them")
    return (Path(each) for each in re.findall(r"(/\S+\.so\S*)", listed))


def _modules(packages: Path) -> Iterator[tuple[str, bytes]]:
    """Give name and content of the modules that the kernel has not built in, each after those it depends on."""
    files = {each.name.partition(".")[0].replace("-", "_"): each for each in packages.rglob("*.ko*")}
    given: set[str] = set()

    def walk(names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            if name in given or name not in files:
                continue
            given.add(name)
            content = files[name].read_bytes()
            if files[name].suffix == ".xz":
                content = lzma.decompress(content)
            depends = re.search(rb"\0depends=([^\0]*)\0", content)
            yield from walk(depends[1].decode().replace("-", "_").split(",") if depends else ())
            yield f"{name}.ko", content

    return walk(_MODULES)


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o755)


def _run(
    *command: str,
    timeout_s: float = TOOL_TIMEOUT_S,
    cwd: Path | None = None,
    given: str = "",
    allowed: tuple[int, ...] = (0,),
) -> str:
    # The tools of file systems are where only root looks for programs.
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd, input=given, env=environment
    )
    if done.returncode not in allowed:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout
