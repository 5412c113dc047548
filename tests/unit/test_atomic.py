# SPDX-License-Identifier: MIT
"""The writer of state against full and read-only file systems, SIGKILL at every step, and readers meanwhile."""

import errno
import json
import os
import re
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from snapd.errors import NoSpace, StateDamaged
from snapd.state import atomic
from snapd.state.atomic import read_bounded, remove_durably, replace_symlink_atomically, sweep, write_atomically

SCRIPT_TIMEOUT_S = 60
REPOSITORY = Path(__file__).parents[2]


def run_script(script: str, *arguments: str | Path, within: tuple[str, ...] = ()) -> Any:
    """Run Python in a process of its own and return the JSON that it prints."""
    done = subprocess.run(
        [*within, sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def own_mounts() -> tuple[str, ...]:
    """Return the command under which a process may mount, and takes its mounts along when it ends."""
    return ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--user", "--map-root-user")


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


# Writing


@pytest.mark.parametrize("sync_directory", [True, False])
def test_the_content_is_replaced_and_nothing_else_is_left(tmp_path: Path, sync_directory: bool) -> None:
    path = tmp_path / "state"
    for content in (b"first", b"", b"x" * 3_000_000):
        write_atomically(path, content, sync_directory=sync_directory)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_holds_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "state", b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == mode


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"other")
    (tmp_path / "state").symlink_to("target")
    write_atomically(tmp_path / "state", b"new")
    assert not (tmp_path / "state").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"other"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127 + "x")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_failed_rename_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(StateDamaged, match="state: it cannot be written: Is a directory") as caught:
        write_atomically(tmp_path / "state", b"new")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StateDamaged, match="cannot be made a link"):
        replace_symlink_atomically(tmp_path / "state", "target")
    assert names(tmp_path) == ["state"]


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StateDamaged, match="No such file or directory"):
        write_atomically(tmp_path / "gone" / "state", b"new")


def test_a_write_that_breaks_off_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(StateDamaged, match="cannot be written: File too large"):
            write_atomically(path, b"n" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("sync_directory", [True, False])
def test_the_content_is_durable_before_it_has_the_name(tmp_path: Path, sync_directory: bool) -> None:
    calls: list[str] = []

    def record(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and frame.f_code.co_filename == atomic.__file__ and called in (os.write, os.fsync, os.rename):
            calls.append(called.__name__)

    sys.setprofile(record)
    try:
        write_atomically(tmp_path / "state", b"new", sync_directory=sync_directory)
    finally:
        sys.setprofile(None)
    assert calls == ["write", "fsync", "rename", *(["fsync"] if sync_directory else [])]


# Each of these mounts a tmpfs of its own, fills it or makes it read-only, tries every writer, and reports.
FULL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
from snapd.errors import NoSpace
from snapd.state.atomic import remove_durably, write_atomically
directory = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=True)
path = directory / "state"
write_atomically(path, b"old")
try:
    write_atomically(path, b"n" * 100_000)
except NoSpace as error:
    report = {"directory": error.directory, "needed": error.needed_bytes, "free": error.free_bytes}
report |= {"names": os.listdir(directory), "content": path.read_text()}
remove_durably(path)
write_atomically(path, b"n" * 50_000)
print(json.dumps(report | {"later": path.stat().st_size}))
"""

READ_ONLY = """
import json, os, subprocess, sys
from pathlib import Path
from snapd.errors import StateDamaged
from snapd.state.atomic import remove_durably, replace_symlink_atomically, sweep, write_atomically
directory = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
path = directory / "state"
stale = directory / ".state.0123456789abcdef.tmp"
write_atomically(path, b"old")
stale.touch()
subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
said = []
for attempt in (
    lambda: write_atomically(path, b"new"),
    lambda: replace_symlink_atomically(path, "target"),
    lambda: remove_durably(path),
    lambda: sweep(directory),
):
    try:
        attempt()
    except StateDamaged as error:
        said.append(str(error))
print(json.dumps({"said": said, "names": sorted(os.listdir(directory)), "content": path.read_text()}))
"""


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    report = run_script(FULL_DISK, tmp_path, within=own_mounts())
    assert report.pop("free") <= 65536
    assert report == {
        "directory": str(tmp_path),
        "needed": 100_000,
        "names": ["state"],
        "content": "old",
        "later": 50_000,
    }


def test_a_read_only_file_system_leaves_everything(tmp_path: Path) -> None:
    report = run_script(READ_ONLY, tmp_path, within=own_mounts())
    assert report == {
        "said": [
            f"{tmp_path}/state: it cannot be written: Read-only file system.",
            f"{tmp_path}/state: it cannot be made a link: Read-only file system.",
            f"{tmp_path}/state: it cannot be removed: Read-only file system.",
            f"{tmp_path}: it cannot be swept: Read-only file system.",
        ],
        "names": [".state.0123456789abcdef.tmp", "state"],
        "content": "old",
    }


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No file system here has quotas, so the system call is the one thing replaced.
    def no_quota(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", no_quota)
    with pytest.raises(NoSpace):
        write_atomically(tmp_path / "state", b"new")
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_synced_is_not_called_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No file system can be made to fail here and only here, so the system call is the one thing replaced.
    sync = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    with pytest.raises(StateDamaged, match="it was changed, but whether that outlasts a power cut is not known"):
        write_atomically(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"


# Readers and SIGKILL


def test_a_reader_meanwhile_meets_one_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_atomically(path, contents[0])
    failures: list[BaseException] = []
    enough = threading.Event()

    def write_often() -> None:
        try:
            while not enough.is_set():
                for content in contents:
                    write_atomically(path, content)
        except BaseException as error:  # noqa: BLE001  handed to the test's own thread
            failures.append(error)

    writer = threading.Thread(target=write_often)
    writer.start()
    met: list[bytes] = []
    try:
        while writer.is_alive() and (len(met) < 100 or set(met) != set(contents)):
            met.append(read_bounded(path, 200_000))
    finally:
        enough.set()
        writer.join()
    assert not failures
    assert set(met) == set(contents)


# Forks children that replace the content and are killed before (or after) their n-th call of a C function, for each n
# until one gets to its end.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from snapd.state import atomic
directory = Path(sys.argv[1])
path = directory / "state"
report = []
number = 0
ended = False
while not ended:
    number += 1
    atomic.write_atomically(path, b"old" * 1000)
    child = os.fork()
    if child == 0:
        calls = 0
        def count(frame, event, argument):
            global calls
            if event in ("c_call", "c_return") and frame.f_code.co_filename == atomic.__file__:
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        atomic.write_atomically(path, b"new" * 2000)
        os._exit(0)
    ended = os.waitpid(child, 0)[1] == 0
    content = path.read_bytes()
    swept = atomic.sweep(directory)
    whole = {b"old" * 1000: "old", b"new" * 2000: "new"}.get(content, "torn")
    report.append([whole, len(swept), sorted(os.listdir(directory))])
print(json.dumps(report))
"""


def test_a_writer_killed_at_any_step_leaves_one_whole_content(tmp_path: Path) -> None:
    report = run_script(KILLED, tmp_path)
    assert {tuple(listing) for _, _, listing in report} == {("state",)}
    contents = [whole for whole, _, _ in report]
    # First the old content for some steps, then the new one for ever.
    renamed = contents.index("new")
    assert set(contents[:renamed]) == {"old"}
    assert set(contents[renamed:]) == {"new"}
    # The steps before the rename have left something to sweep, those after it nothing.
    assert any(swept for _, swept, _ in report[:renamed])
    assert not any(swept for _, swept, _ in report[renamed:])


# The others


def test_a_link_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "hda.qcow2"
    for target in ("a", Path("/nowhere/b")):
        replace_symlink_atomically(path, target)
        assert path.readlink() == Path(target)
    assert names(tmp_path) == ["hda.qcow2"]


def test_a_file_is_removed_and_one_that_is_missing_is_as_good(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()
    for _ in range(2):
        remove_durably(path)
        assert names(tmp_path) == []
    remove_durably(tmp_path / "gone" / "state")
    assert names(tmp_path) == []


def test_what_cannot_be_removed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StateDamaged, match=f"{re.escape(str(tmp_path))}: it cannot be removed"):
        remove_durably(tmp_path)
    assert tmp_path.is_dir()


def test_sweep_takes_only_what_a_killed_writer_left(tmp_path: Path) -> None:
    stale = tmp_path / ".domain.libxl-json.0123456789abcdef.tmp"
    link = tmp_path / ".hda.raw.fedcba9876543210.tmp"
    stale.touch()
    link.symlink_to("nowhere")
    (tmp_path / ".directory.0123456789abcdef.tmp").mkdir()
    kept = [
        "domain.libxl-json",
        ".notes.tmp",
        "a.0123456789abcdef.tmp",
        ".domain.0123456789abcdeg.tmp",
        ".x.0123456789abcdef.tmpx",
    ]
    for name in kept:
        (tmp_path / name).touch()
    assert sweep(tmp_path) == [stale, link]
    assert names(tmp_path) == sorted([*kept, ".directory.0123456789abcdef.tmp"])
    assert sweep(tmp_path) == []


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"x" * 3_000_000)
    assert read_bounded(path, 3_000_000) == b"x" * 3_000_000
    with pytest.raises(StateDamaged, match="it has more than 2999999 bytes"):
        read_bounded(path, 2_999_999)


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "state", 1)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(StateDamaged, match="it is no regular file"):
            read_bounded(path, 1)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StateDamaged, match="it cannot be read: Too many levels"):
        read_bounded(tmp_path / "loop", 1)
