# SPDX-License-Identifier: MIT
"""What a command line says of the modes of its drives, in every form that QEMU takes."""

import pytest

from snapd.qmp.command_line import CommandLine, Drive, parse
from snapd.qmp.file_names import path_of


def _parsed(*words: str) -> CommandLine:
    return parse(["/usr/bin/qemu-system-x86_64", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-drive", "file=/i/a,id=d,aio=native,discard=unmap"], Drive("d", "/i/a", "native", "unmap")),
        (["--drive", "id=d,file=/i/a"], Drive("d", "/i/a", "", "")),
        (["-drive", "file.filename=/i/a,file.aio=io_uring,discard=off"], Drive("", "/i/a", "io_uring", "ignore")),
        (["-drive", "file=/i/a,,b,discard=on,if=none"], Drive("", "/i/a,b", "", "unmap")),
        (["-drive", 'file=json:{"driver":"file",,"filename":"/i/a"},id=d'], Drive("d", "/i/a", "", "")),
        (["-drive", "file=file:/i/a,aio=threads"], Drive("", "/i/a", "threads", "")),
        (["-blockdev", "qcow2,node-name=n,file.filename=/i/a,file.aio=native"], Drive("n", "/i/a", "native", "")),
        (
            [
                "-blockdev",
                "driver=file,filename=/i/a,node-name=f,aio=native",
                "-blockdev",
                "raw,node-name=n,file=f,discard=ignore",
            ],
            Drive("n", "/i/a", "native", "ignore"),
        ),
        (
            [
                *("-blockdev", '{"driver":"qcow2","node-name":"n","file":"f","discard":"unmap","cache":{"direct":true}}'),
                *("-blockdev", '{"driver":"file","filename":"/i/a","node-name":"f","aio":"io_uring"}'),
            ],
            Drive("n", "/i/a", "io_uring", "unmap"),
        ),
        (
            ["-blockdev", '{"driver":"qcow2","node-name":"n","file":{"driver":"file","filename":"/i/a","aio":"threads"}}'],
            Drive("n", "/i/a", "threads", ""),
        ),
    ],
)
def test_a_drive_in_each_form(words: list[str], expected: Drive) -> None:
    assert _parsed(*words).drives == (expected,)


def test_a_disk_is_found_by_its_device_then_its_drive_then_its_path() -> None:
    found = _parsed(
        *("-drive", "file=/i/a,id=a,aio=native", "-drive", "file=/i/b,id=b,aio=threads", "-drive", "file=/i/c,aio=io_uring"),
        *("-device", "virtio-blk-pci,drive=a,id=vda", "-device", '{"driver":"ide-hd","drive":"b","id":"vdb"}'),
        *("-device", "virtio-rng-pci,id=rng", "-device", "ide-hd,drive=c"),
    )
    assert found.devices == {"vda": "a", "vdb": "b"}
    assert found.drive("vda", ("b",), ("/i/c",)).aio == "native"
    assert found.drive("vdb", (), ()).aio == "threads"
    assert found.drive("none", ("", "b"), ("/i/a",)).aio == "threads"
    assert found.drive("none", ("#block1",), ("/i/overlay", "", "/i/c")).aio == "io_uring"
    assert found.drive("", ("",), ("",)) == Drive("", "", "", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-drive"],
        ["-blockdev", "{"],
        ["-blockdev", "{" + '"a":{' * 100_000],
        ["-blockdev", "{}"],
        ["-blockdev", '{"node-name":7,"file":[],"driver":null}'],
        ["-blockdev", "driver=null-co,node-name=n"],
        ["-device", "id=x", "-device", ",,,=,"],
        ["/i/a", "drive", "file=/i/a"],
    ],
)
def test_what_cannot_be_read_is_left_out(words: list[str]) -> None:
    assert _parsed(*words) == CommandLine()


def test_no_words_at_all() -> None:
    assert parse([]) == CommandLine()


@pytest.mark.parametrize("mode", ["", "Native", "epoll", "true"])
def test_a_mode_that_qemu_does_not_have_is_none(mode: str) -> None:
    assert _parsed("-drive", f"file=/i/a,aio={mode},discard={mode}").drives == (Drive("", "/i/a", "", ""),)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/i/a", "/i/a"),
        ("a:b", "a:b"),
        ("file:/i/a", "/i/a"),
        ("nbd://host/a", ""),
        ("null-co://", ""),
        ('json:{"driver":"raw","file":{"driver":"file","filename":"/i/a"}}', "/i/a"),
        ('json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/i/a"}}', ""),
        ("json:{", ""),
        ("json:[]", ""),
    ],
)
def test_the_path_in_a_file_name(name: str, path: str) -> None:
    assert path_of(name) == path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["-no-reboot"], True),
        (["--no-reboot", "-no-shutdown"], True),
        (["-action", "panic=pause,reboot=shutdown"], True),
        (["-action", "panic=pause"], False),
        (["-no-reboot", "-action", "reboot=reset"], False),
        (["-name", "-no-reboot-vm"], False),
    ],
)
def test_what_a_reset_does(words: list[str], expected: bool) -> None:
    assert _parsed(*words).ends_on_reset is expected
