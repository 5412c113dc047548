# SPDX-License-Identifier: MIT
"""UEFI firmware with flash of its own for what it keeps, as Debian's package ``ovmf`` has it. It knows nothing of pytest."""

import subprocess
from pathlib import Path

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
MEMORY_MIB = 128
"""What the firmware needs to start."""

TOOL_TIMEOUT_S = 60.0


def make_vars(path: Path, image_format: str = "raw") -> Path:
    """Make the writable half, as it is before the first boot."""
    command = ["qemu-img", "convert", "-f", "raw", "-O", image_format, str(_VARS), str(path)]
    subprocess.run(command, check=True, timeout=TOOL_TIMEOUT_S)
    return path


def flash_arguments(path: Path, image_format: str = "raw", via: str = "drive", drive_id: str = "") -> list[str]:
    """Return QEMU's arguments for both halves, as ``-drive`` or as ``-blockdev``."""
    if via == "drive":
        name = f",id={drive_id}" if drive_id else ""
        code = ["-drive", f"if=pflash,format=raw,readonly=on,file={CODE}"]
        return [*code, "-drive", f"if=pflash,format={image_format},file={path}{name}"]
    return [
        *("-blockdev", f"driver=raw,node-name=code,read-only=on,file.driver=file,file.filename={CODE}"),
        *("-blockdev", f"driver={image_format},node-name=vars,file.driver=file,file.filename={path}"),
        *("-machine", "q35,pflash0=code,pflash1=vars"),
    ]
