# SPDX-License-Identifier: MIT
"""Image files made and looked at with `qemu-img` directly, apart from the code that is tested. It knows nothing of pytest."""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOOL_TIMEOUT_S = 60.0


def make_overlay(path: Path, backing: str | os.PathLike[str], backing_format: str) -> Path:
    """Make a qcow2 overlay on ``backing``, written into its header as it stands; a QEMU may have that open."""
    where = os.path.join(path.parent, backing)
    size = _info("-U", "-f", backing_format, where)["virtual-size"]
    _run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        os.fspath(backing),
        "-F",
        backing_format,
        "-u",
        os.fspath(path),
        str(size),
    )
    return path


def backing_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the backing file and its format as the qcow2 header has them, empty without one; a QEMU may have it open."""
    info = _info("-U", "-f", "qcow2", os.fspath(path))
    return info.get("backing-filename", ""), info.get("backing-filename-format", "")


def write(path: str | os.PathLike[str], image_format: str, *commands: str) -> None:
    """Run commands of qemu-io, which discards when told to, on an image that no QEMU has open."""
    _run("qemu-io", "-d", "unmap", "-f", image_format, *(word for each in commands for word in ("-c", each)), os.fspath(path))


def write_pattern(path: str | os.PathLike[str], image_format: str, pattern: int, offset: int, length: int) -> None:
    """Write bytes of one value into an image that no QEMU has open."""
    write(path, image_format, f"write -q -P {pattern} {offset} {length}")


def tags(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the internal snapshots in a qcow2 image, oldest first; a QEMU may have it open."""
    return [each["name"] for each in _info("-U", "-f", "qcow2", os.fspath(path)).get("snapshots", [])]


def make_tag(path: str | os.PathLike[str], tag: str) -> None:
    """Make an internal snapshot in a qcow2 image that no QEMU has open."""
    _run("qemu-img", "snapshot", "-q", "-c", tag, os.fspath(path))


def apply_tag(path: str | os.PathLike[str], tag: str) -> None:
    """Make an image that no QEMU has open what it was when that internal snapshot was made."""
    _run("qemu-img", "snapshot", "-q", "-a", tag, os.fspath(path))


def resize(path: str | os.PathLike[str], size_bytes: int) -> None:
    """Make a qcow2 image that no QEMU has open larger or smaller."""
    _run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", os.fspath(path), str(size_bytes))


def drop_tag(path: str | os.PathLike[str], tag: str) -> None:
    """Delete an internal snapshot in a qcow2 image that no QEMU has open."""
    _run("qemu-img", "snapshot", "-q", "-d", tag, os.fspath(path))


def content(path: str | os.PathLike[str], image_format: str, tag: str = "") -> bytes:
    """Return all that a guest would read, of an internal snapshot with ``tag``; a QEMU may have the image open.

    Of an internal snapshot this goes as far as the image does now.
    """
    with tempfile.TemporaryDirectory(prefix="content-") as directory:
        return _flat(path, image_format, Path(directory, "raw"), tag).read_bytes()


def digest(path: str | os.PathLike[str], image_format: str) -> str:
    """Return a digest of the content as a guest would read it; a QEMU may have it open."""
    with tempfile.TemporaryDirectory(prefix="digest-") as directory:
        raw = _flat(path, image_format, Path(directory, "raw"))
        with raw.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held_open(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a qcow2 image open for writing in another process, as QEMU does."""
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", os.fspath(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as holder:
        try:
            prompt = b""
            while not prompt.endswith(b"qemu-io> "):
                more = os.read(holder.stdout.fileno(), 64) if holder.stdout else b""
                if not more:
                    raise RuntimeError(f"qemu-io ended: {prompt!r}")
                prompt += more
            yield
        finally:
            holder.kill()


def check_image(path: str | os.PathLike[str], image_format: str = "qcow2") -> None:
    """Raise RuntimeError when something is wrong with an image that no QEMU has open."""
    _run("qemu-img", "check", "-q", "-f", image_format, os.fspath(path))


def _flat(path: str | os.PathLike[str], image_format: str, raw: Path, tag: str = "") -> Path:
    snapshot = ["-l", f"snapshot.name={tag.replace(',', ',,')}"] if tag else []
    _run("qemu-img", "convert", "-U", *snapshot, "-f", image_format, "-O", "raw", os.fspath(path), str(raw))
    return raw


def _info(*arguments: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(_run("qemu-img", "info", "--output=json", *arguments))
    return info


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout
