# SPDX-License-Identifier: MIT
"""Image files made and looked at with `qemu-img` directly, apart from the code that is tested. It knows nothing of pytest."""

import hashlib
import json
import os
import subprocess
import tempfile
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


def write_pattern(path: str | os.PathLike[str], image_format: str, pattern: int, offset: int, length: int) -> None:
    """Write bytes of one value into an image that no QEMU has open."""
    _run("qemu-io", "-f", image_format, "-c", f"write -q -P {pattern} {offset} {length}", os.fspath(path))


def digest(path: str | os.PathLike[str], image_format: str) -> str:
    """Return a digest of the content as a guest would read it; a QEMU may have it open."""
    with tempfile.TemporaryDirectory(prefix="digest-") as directory:
        raw = Path(directory, "raw")
        _run("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", os.fspath(path), str(raw))
        with raw.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def check_image(path: str | os.PathLike[str], image_format: str = "qcow2") -> None:
    """Raise RuntimeError when something is wrong with an image that no QEMU has open."""
    _run("qemu-img", "check", "-q", "-f", image_format, os.fspath(path))


def _info(*arguments: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(_run("qemu-img", "info", "--output=json", *arguments))
    return info


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout
