# SPDX-License-Identifier: MIT
"""libxl-json against what Xen's own generator wrote, and against damage of every kind."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from snapd.errors import StateDamaged
from snapd.state import libxl_snapshot
from snapd.state.libxl_json import NESTING_LIMIT, SIZE_LIMIT_BYTES, JsonValue, dumps, loads, parse
from snapd.state.libxl_snapshot import (
    LibxlDiskFormat,
    LibxlDiskSnapshot,
    LibxlSnapshot,
    LibxlSnapshotType,
    decode_snapshot,
    encode_snapshot,
)

VECTORS = Path(__file__).parents[1] / "data" / "libxl-json"
GENERATIONS = ("2014branch", "yajl45to420", "jsonc421")

SAVES = "/var/lib/xen/snapshots/5c84adcc-bd59-788a-96d2-195f9b599cfe"
FULL = LibxlSnapshot(
    name="internal snapshot 20140710",
    description="Internal snapshot test",
    creation_time=1404984000,
    memory=f"{SAVES}/internal snapshot 20140710.save",
    type=LibxlSnapshotType.INTERNAL,
    running=True,
    disks=(
        LibxlDiskSnapshot(
            device="hda",
            name="internal snapshot 20140710",
            file="",
            format=LibxlDiskFormat.QCOW2,
            path="",
            type=LibxlSnapshotType.INTERNAL,
        ),
        LibxlDiskSnapshot(
            device="hdc",
            name="internal snapshot 20140710",
            file=f"{SAVES}/disk_hdc.qcow2",
            format=LibxlDiskFormat.QCOW2,
            path="",
            type=LibxlSnapshotType.EXTERNAL,
        ),
    ),
)
NO_DISKS = LibxlSnapshot(
    name="1397207577",
    description="",
    creation_time=1397207577,
    memory="",
    type=LibxlSnapshotType.INTERNAL,
    shutdown=True,
)
ZERO = LibxlSnapshot()
ESCAPES = LibxlSnapshot(
    name='q"b\\s/\b\f\n\r\t\x01\x1f\x7f café 中 ÿ',
    description="",
    creation_time=2**64 - 1,
    memory="",
    type=LibxlSnapshotType.EXTERNAL,
    paused=True,
    disks=(LibxlDiskSnapshot(),),
)
READABLE = {"full": FULL, "nodisks": NO_DISKS, "zero": ZERO}


def vector(generation: str, name: str) -> bytes:
    return (VECTORS / f"{generation}.{name}.libxl-json").read_bytes()


def refusal(data: bytes) -> StateDamaged:
    with pytest.raises(StateDamaged) as caught:
        decode_snapshot(data, "s.libxl-json")
    assert caught.value.path == "s.libxl-json"
    return caught.value


# The vectors


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_reads_as_the_same_value(generation: str, name: str) -> None:
    assert decode_snapshot(vector(generation, name), "v") == READABLE[name]


@pytest.mark.parametrize("name", READABLE)
def test_canonical_form_is_written_byte_for_byte(name: str) -> None:
    assert encode_snapshot(READABLE[name]) == vector("yajl45to420", name)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_raw_byte_that_libxl_writes_and_cannot_read_is_refused(generation: str) -> None:
    error = refusal(vector(generation, "escapes"))
    assert error.line == 2
    assert "0xFF is not UTF-8" in error.reason


@pytest.mark.parametrize("generation", GENERATIONS)
def test_escapes_read_the_same_when_the_raw_byte_is_text(generation: str) -> None:
    data = vector(generation, "escapes").replace(b"\xff", "ÿ".encode())
    assert decode_snapshot(data, "v") == ESCAPES


def test_escapes_are_written_byte_for_byte() -> None:
    assert encode_snapshot(ESCAPES) == vector("yajl45to420", "escapes").replace(b"\xff", "ÿ".encode())


def test_every_vector_is_tested() -> None:
    expected = {f"{generation}.{name}.libxl-json" for generation in GENERATIONS for name in (*READABLE, "escapes")}
    assert {each.name for each in VECTORS.glob("*.libxl-json")} == expected


def test_one_nul_at_the_end_is_no_damage_and_two_are() -> None:
    data = vector("jsonc421", "full")
    assert decode_snapshot(data + b"\0", "v") == FULL
    assert "where nothing after the object should be" in refusal(data + b"\0\0").reason


# Text


def test_scalars_and_empty_containers_are_written_as_yajl_does() -> None:
    value: dict[str, JsonValue] = {"a": [], "b": {}, "c": [{"d": None}, [True, False]], "e": -1, "f": 1.5, "g/é": "\x7f\x1e"}
    assert dumps(value).decode() == (
        '{\n    "a": [\n\n    ],\n    "b": {\n\n    },\n    "c": [\n        {\n            "d": null\n        },\n'
        '        [\n            true,\n            false\n        ]\n    ],\n    "e": -1,\n    "f": 1.5,\n'
        '    "g/é": "\x7f\\u001E"\n}\n'
    )


@pytest.mark.parametrize("code", range(0x20))
def test_every_control_character_is_escaped_and_comes_back(code: int) -> None:
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
    written = dumps({"a": chr(code)})
    assert written == f'{{\n    "a": "{short.get(code, f"{chr(92)}u{code:04X}")}"\n}}\n'.encode()
    assert loads(written, "t") == {"a": chr(code)}


def test_surrogate_pairs_are_joined() -> None:
    assert loads(b'{"\\ud83d\\ude00": "\\uD834\\uDD1E"}', "t") == {"\U0001f600": "\U0001d11e"}


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"", 1, "the end of the file where an object"),
        (b"\n\n", 3, "the end of the file where an object"),
        (b"[]", 1, "'[' where an object"),
        (b'\xef\xbb\xbf{"a": 1}', 1, "where an object"),
        (b'{\n"a": 1,\n"b" 2}', 3, "'2' where ':'"),
        (b'{\n"a": 1\n"b": 2}', 3, "'\"' where ',' or '}'"),
        (b'{\n"a": 1,\n}', 3, "'}' where a key"),
        (b'{\n"a": [1,\n]}', 3, "']' where a value"),
        (b'{\n"a": [1\n}', 3, "'}' where ',' or ']'"),
        (b"{\n'a': 1}", 2, "where a key"),
        (b'{\n\n"a', 3, "unterminated string"),
        (b'{"a": 1', 1, "the end of the file where ',' or '}'"),
        (b'{"a": 1}\n{}', 2, "'{' where nothing after the object"),
        (b'{"a":\n01}', 2, "'1' where ',' or '}'"),
        (b'{"a":\n1.}', 2, "'.' where ',' or '}'"),
        (b'{"a":\n+1}', 2, "'+' where a value"),
        (b'{"a":\n-}', 2, "expecting value"),
        (b'{"a":\ntru}', 2, "'t' where a value"),
        (b'{"a":\nNaN}', 2, "NaN is not a number"),
        (b'{"a":\nInfinity}', 2, "Infinity is not a number"),
        (b'{"a":\n-Infinity}', 2, "-Infinity is not a number"),
        (b'{"a":\n1e999}', 2, "out of range"),
        (b'{"a":\n' + b"1" * 1001 + b"}", 2, "an integer of 1001 digits"),
        (b'{"a":\n"x\ny"}', 2, "invalid control character"),
        (b'{"a":\n"\\x"}', 2, "invalid \\escape"),
        (b'{"a":\n"\\u12"}', 2, "invalid \\uxxxx escape"),
        (b'{"a":\n"\\ud800"}', 2, "half a surrogate pair"),
        (b'{\n"\\udc00": 1}', 2, "half a surrogate pair"),
        (b'{"a":\n"\\udc00\\ud800"}', 2, "half a surrogate pair"),
        (b'{"a":\n"\xed\xa0\x80"}', 2, "0xED is not UTF-8"),
        (b'{"a":\n"\xc0\xaf"}', 2, "0xC0 is not UTF-8"),
        (b'{"a": 1,\n"b": 2,\n"a": 3}', 3, "'a' stands there twice"),
        (b'{"a": 1,\n"\\u0061": 3}', 2, "'a' stands there twice"),
        (b'{"x": [{"a": 1,\n"a": 3}]}', 2, "'a' stands there twice"),
        (b'{"a": 1} // no', 1, "'/' where nothing after the object"),
        (b'{"a":\xc2\xa01}', 1, "where a value"),
    ],
)
def test_damaged_text_is_refused_with_its_line(data: bytes, line: int, reason: str) -> None:
    error = refusal(data)
    assert reason in error.reason
    assert error.line == line


def test_nesting_is_bounded_both_ways() -> None:
    inside = NESTING_LIMIT - 1
    assert loads(b'{"a":' + b"[" * inside + b"]" * inside + b"}", "t")
    error = refusal(b'{"a":\n' + b"[" * (inside + 1) + b"]" * (inside + 1) + b"}")
    assert (error.line, error.reason) == (2, "it is nested more than 32 deep")
    assert refusal(b'{"a":' + b"[" * 10**6).reason == "it is nested more than 32 deep"

    deep: JsonValue = []
    for _ in range(inside - 1):
        deep = [deep]
    assert loads(dumps({"a": deep}), "t") == {"a": deep}
    with pytest.raises(ValueError, match="nested more than 32 deep"):
        dumps({"a": [deep]})


def test_size_is_bounded_both_ways() -> None:
    around = len(dumps({"a": ""}))
    largest = dumps({"a": "x" * (SIZE_LIMIT_BYTES - around)})
    assert len(largest) == SIZE_LIMIT_BYTES
    assert loads(largest, "t") == {"a": "x" * (SIZE_LIMIT_BYTES - around)}
    with pytest.raises(ValueError, match="over the limit"):
        dumps({"a": "x" * (SIZE_LIMIT_BYTES - around + 1)})
    error = refusal(largest + b"\n")
    assert (error.line, error.reason) == (0, "it has 16777217 bytes, the limit is 16777216")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (float("-inf"), ValueError),
        ("\udcff", ValueError),
        (10**1000, ValueError),
        ([10**5000], ValueError),
        ({1: 2}, TypeError),
        (b"x", TypeError),
        ({"a"}, TypeError),
    ],
)
def test_what_no_reader_could_read_is_not_written(value: JsonValue, error: type[Exception]) -> None:
    with pytest.raises(error):
        dumps({"a": value})


def test_document_knows_the_line_of_every_part() -> None:
    document = parse(b'\n{\n"a": [\n{"b":\n1},\n2],\n"c": {}\n}', "t")
    assert [document.line(*keys) for keys in ((), ("a",), ("a", 0), ("a", 0, "b"), ("a", 1), ("c",))] == [2, 3, 4, 5, 6, 7]
    # A part that is missing is looked for where it should have been.
    assert [document.line(*keys) for keys in (("d",), ("a", 7), ("a", 0, "x"), ("c", "x"))] == [2, 3, 4, 7]
    assert str(document.damaged("no good", "a", 1)) == "t:6: no good."


# The type


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b'{\n"name": 1}', 2, "name must be a string"),
        (b'{\n"memory": ["x"]}', 2, "memory must be a string"),
        (b'{\n"description": "a\\u0000b"}', 2, "description has a NUL character, which ends a string of libxl"),
        (b'{\n"creation_time": "1"}', 2, "creation_time must be an integer"),
        (b'{\n"creation_time": 1.0}', 2, "creation_time must be an integer"),
        (b'{\n"creation_time": true}', 2, "creation_time must be an integer"),
        (b'{\n"creation_time": null}', 2, "creation_time must be an integer"),
        (b'{\n"creation_time": -1}', 2, f"creation_time is out of range, it must be from 0 to {2**64 - 1}"),
        (b'{\n"creation_time": 18446744073709551616}', 2, f"creation_time is out of range, it must be from 0 to {2**64 - 1}"),
        (b'{\n"type": "both"}', 2, "type is 'both', which is none of any, internal, external"),
        (b'{\n"type": 1}', 2, "type must be a string"),
        (b'{\n"type": null}', 2, "type must be a string"),
        (b'{\n"running": 1}', 2, "running must be true or false"),
        (b'{\n"dying": null}', 2, "dying must be true or false"),
        (b'{\n"disks": {}}', 2, "disks must be an array"),
        (b'{\n"disks": null}', 2, "disks must be an array"),
        (b'{\n"disks": [{},\n7]}', 3, "disks[1] must be an object"),
        (b'{"disks": [{},\n{"device": "a",\n"file": false}]}', 3, "disks[1].file must be a string"),
        (
            b'{"disks": [{},\n{"format":\n"vmdk"}]}',
            3,
            "disks[1].format is 'vmdk', which is none of unknown, qcow, qcow2, vhd, raw, empty, qed",
        ),
        (b'{\n"domsnap": []}', 2, "'domsnap' must be an object"),
        (b'{\n"domsnap": {}}', 2, "'domsnap' must have a 'version' of 1 or more"),
        (b'{\n"domsnap": {\n"version": true}}', 3, "'domsnap' must have a 'version' of 1 or more"),
        (b'{\n"domsnap": {\n"version": 0}}', 3, "'domsnap' must have a 'version' of 1 or more"),
    ],
)
def test_wrong_values_are_refused_with_their_line(data: bytes, line: int, reason: str) -> None:
    error = refusal(data)
    assert (error.line, error.reason) == (line, reason)


def test_enums_are_read_in_any_case_and_written_in_lower() -> None:
    snapshot = decode_snapshot(b'{"type": "INTERNAL", "disks": [{"format": "QCow2", "type": "External"}]}', "t")
    assert snapshot.type is LibxlSnapshotType.INTERNAL
    assert snapshot.disks == (LibxlDiskSnapshot(format=LibxlDiskFormat.QCOW2, type=LibxlSnapshotType.EXTERNAL),)
    assert b'"format": "qcow2"' in encode_snapshot(snapshot)


def test_a_null_string_is_no_empty_string() -> None:
    snapshot = decode_snapshot(b'{"name": null, "description": ""}', "t")
    assert (snapshot.name, snapshot.description, snapshot.memory) == (None, "", None)
    assert encode_snapshot(snapshot) == b'{\n    "description": ""\n}\n'


def test_unknown_keys_are_kept_and_our_own_goes_last() -> None:
    data = (
        b'{"z": 1, "domsnap": {"version": 1, "parent": "p"}, "name": "s", "a": [null, 1.5], "disks": [{"q": {}, "file": ""}]}'
    )
    snapshot = decode_snapshot(data, "t")
    assert snapshot.extra == {"z": 1, "domsnap": {"version": 1, "parent": "p"}, "a": [None, 1.5]}
    assert snapshot.disks[0].extra == {"q": {}}
    written = encode_snapshot(snapshot)
    assert list(json.loads(written)) == ["name", "disks", "z", "a", "domsnap"]
    assert list(json.loads(written)["disks"][0]) == ["file", "q"]
    assert decode_snapshot(written, "t") == snapshot


def test_an_unknown_key_may_have_the_name_of_our_own_field_for_them() -> None:
    data = b'{\n    "extra": {\n        "extra": 1\n    }\n}\n'
    assert encode_snapshot(decode_snapshot(data, "t")) == data


@pytest.mark.parametrize(
    "snapshot",
    [
        replace(ZERO, extra={"name": "again"}),
        replace(ZERO, disks=(LibxlDiskSnapshot(extra={"format": "raw"}),)),
        replace(ZERO, extra={"domsnap": {"parent": "no version"}}),
        replace(ZERO, creation_time=-1),
        replace(ZERO, creation_time=2**64),
        replace(ZERO, name="a\0b"),
        replace(ZERO, memory="not UTF-8: \udcff"),
    ],
)
def test_a_snapshot_that_could_not_be_read_back_is_not_written(snapshot: LibxlSnapshot) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        encode_snapshot(snapshot)


def test_every_field_has_a_reader_in_the_order_of_the_idl() -> None:
    for value, readers in (
        (LibxlSnapshot, libxl_snapshot._SNAPSHOT_READERS),
        (LibxlDiskSnapshot, libxl_snapshot._DISK_READERS),
    ):
        assert [each.name for each in fields(value)] == [*readers, "extra"]
