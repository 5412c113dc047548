# SPDX-License-Identifier: MIT
"""A small file system that one process sees, in a mount namespace of its own; it ends with the process.

It knows nothing of pytest.

- Nothing is ever mounted where other processes see it.
"""

import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

TOOL_TIMEOUT_S = 10.0
BALLAST = "ballast"
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class SmallFileSystem:
    """A tmpfs at ``directory``, which exists; ``prefix`` starts the process that is to see it."""

    directory: Path
    size_bytes: int

    @property
    def prefix(self) -> list[str]:
        mount = f'mount -t tmpfs -o mode=0700,size={self.size_bytes} small "$0" && exec "$@"'
        own = [] if os.geteuid() == 0 else ["--map-root-user"]
        return ["unshare", *own, "--mount", "--propagation", "private", "sh", "-c", mount, str(self.directory)]

    def seen_by(self, pid: int) -> Path:
        """Return where others find it while the process runs."""
        return Path(f"/proc/{pid}/root{self.directory}")

    def files(self, pid: int) -> list[str]:
        seen = self.seen_by(pid)
        return sorted(str(each.relative_to(seen)) for each in seen.rglob("*") if each.is_file())

    def remount(self, pid: int, options: str) -> None:
        """Change its options, such as ``size=1m`` or ``ro``."""
        command = ["nsenter", "--target", str(pid), "--mount", "mount", "-o", f"remount,{options}", str(self.directory)]
        subprocess.run(command, check=True, timeout=TOOL_TIMEOUT_S)

    def fill(self, pid: int) -> None:
        """Leave no room in it."""
        with (self.seen_by(pid) / BALLAST).open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(_PIECE_BYTES))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self, pid: int) -> None:
        """Take back what ``fill`` did."""
        (self.seen_by(pid) / BALLAST).unlink()
