# SPDX-License-Identifier: MIT
"""libxl-json over generated values and generated damage."""

import contextlib
import json
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from snapd.errors import StateDamaged
from snapd.state.libxl_json import dumps, loads, parse
from snapd.state.libxl_snapshot import (
    LibxlDiskFormat,
    LibxlDiskSnapshot,
    LibxlSnapshot,
    LibxlSnapshotType,
    decode_snapshot,
    encode_snapshot,
)

VECTORS = sorted((Path(__file__).parents[1] / "data" / "libxl-json").glob("*.libxl-json"))
KNOWN = {
    *("name", "description", "creation_time", "memory", "type", "running", "blocked", "paused", "shutdown", "dying"),
    *("disks", "device", "file", "format", "path", "domsnap"),
}

any_text = st.text(st.characters(exclude_categories=["Cs"]))
c_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4), max_leaves=20
)
objects = st.dictionaries(any_text, values, max_size=5)
unknown_keys = st.dictionaries(any_text.filter(lambda key: key not in KNOWN), values, max_size=3)
extensions = st.builds(
    lambda version, rest: {"domsnap": {**rest, "version": version}}, st.integers(min_value=1, max_value=2**31), objects
)
disks = st.builds(
    LibxlDiskSnapshot,
    device=st.none() | c_text,
    name=st.none() | c_text,
    file=st.none() | c_text,
    format=st.sampled_from(LibxlDiskFormat),
    path=st.none() | c_text,
    type=st.sampled_from(LibxlSnapshotType),
    extra=unknown_keys,
)
snapshots = st.builds(
    LibxlSnapshot,
    name=st.none() | c_text,
    description=st.none() | c_text,
    creation_time=st.integers(min_value=0, max_value=2**64 - 1),
    memory=st.none() | c_text,
    type=st.sampled_from(LibxlSnapshotType),
    running=st.booleans(),
    blocked=st.booleans(),
    paused=st.booleans(),
    shutdown=st.booleans(),
    dying=st.booleans(),
    disks=st.lists(disks, max_size=3).map(tuple),
    extra=st.builds(lambda ours, others: ours | others, extensions | st.just({}), unknown_keys),
)


def exactly(value: object) -> str:
    """Show a value with its types and the order of its keys, which == does not compare."""
    return repr(value)


@given(any_text)
def test_any_text_comes_back(text: str) -> None:
    assert loads(dumps({text: text}), "t") == {text: text}


@given(objects)
def test_any_value_comes_back_and_json_reads_it_the_same(value: dict[str, Any]) -> None:
    ordered = {key: each for key, each in value.items() if key != "domsnap"} | {
        key: each for key, each in value.items() if key == "domsnap"
    }
    data = dumps(value)
    assert exactly(loads(data, "t")) == exactly(ordered)
    assert exactly(json.loads(data)) == exactly(ordered)
    assert data.endswith(b"}\n")


@given(objects, st.booleans(), st.sampled_from([None, 0, 1, "\t"]), st.sampled_from([(",", ":"), (" , ", "\r\n: ")]))
def test_what_json_writes_reads_the_same(
    value: dict[str, Any], ascii_only: bool, indent: int | str | None, separators: tuple[str, str]
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=separators)
    assert exactly(loads(text.encode(), "t")) == exactly(json.loads(text))


@given(snapshots)
def test_any_snapshot_comes_back_and_is_written_the_same(snapshot: LibxlSnapshot) -> None:
    data = encode_snapshot(snapshot)
    again = decode_snapshot(data, "t")
    assert again == snapshot
    assert encode_snapshot(again) == data


@given(snapshots)
def test_every_key_can_be_found_again(snapshot: LibxlSnapshot) -> None:
    data = encode_snapshot(snapshot)
    document = parse(data, "t")
    lines = data.decode().split("\n")
    for key in document.value:
        written_key = dumps({key: 0}).decode().split("\n")[1].removesuffix("0")
        assert lines[document.line(key) - 1].startswith(written_key)


@given(st.binary())
@example(b"{" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"a": ' + b"9" * 100_000 + b"}")
@example(b'{"a": ' + b"9" * 100_000 + b".5e" + b"9" * 100_000 + b"}")
@example(b'{"a": "' + b"\\ud800" * 100_000 + b'"}')
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(StateDamaged):
        decode_snapshot(data, "t")


@given(st.text(alphabet='{}[]:,"\\u0dfnN-+.eE1 \ntrue\x00é', max_size=60))
def test_nearly_json_is_read_as_json_does_or_refused(text: str) -> None:
    data = f'{{"a":{text}}}'.encode()
    try:
        value = loads(data, "t")
    except StateDamaged as refused:
        assert 1 <= refused.line <= data.count(b"\n") + 1
    else:
        assert exactly(value) == exactly(json.loads(data))


@given(st.sampled_from(VECTORS), st.data())
def test_damaged_vectors_are_read_or_refused(vector: Path, data: st.DataObject) -> None:
    damaged = bytearray(vector.read_bytes())
    for _ in range(data.draw(st.integers(min_value=1, max_value=4))):
        start = data.draw(st.integers(min_value=0, max_value=len(damaged)))
        length = data.draw(st.integers(min_value=0, max_value=8))
        damaged[start : start + length] = data.draw(st.binary(max_size=8))
    try:
        snapshot = decode_snapshot(bytes(damaged), "t")
    except StateDamaged as refused:
        assert refused.line <= damaged.count(b"\n") + 1
    else:
        assert decode_snapshot(encode_snapshot(snapshot), "t") == snapshot
