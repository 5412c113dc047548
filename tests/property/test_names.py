# SPDX-License-Identifier: MIT
"""Names: which ones are allowed, and that the file names made of them are safe, short enough and never the same."""

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snapd.errors import InvalidName
from snapd.model.names import LONGEST_ESCAPED_BYTES, LONGEST_NAME_BYTES, check_name, escape_for_file, made_up_name

LONGEST_FILE_NAME_BYTES = 255


def _is_valid(name: str) -> bool:
    """Say by one pattern what the rules say one by one."""
    allowed = re.fullmatch(r"(?!\.{1,2}\Z)(?![0-9]{1,9}\Z)[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]+", name)
    return allowed is not None and len(name.encode()) <= LONGEST_NAME_BYTES


short = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=20)
long = st.text(st.sampled_from("ab%-.é€😀"), min_size=40, max_size=200)
valid = (short | long).filter(_is_valid)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is empty"),
        ("a" * 201, "it has 201 bytes, and 200 are allowed"),
        ("é" * 101, "it has 202 bytes"),
        ("a/b", "it has a '/'"),
        (".", "name of a directory"),
        ("..", "name of a directory"),
        ("a\nb", "control character"),
        ("a\0", "control character"),
        ("a\x7f", "control character"),
        ("a\x85", "control character"),
        ("1", "QEMU would take for an id"),
        ("123456789", "fewer than 10 digits"),
        ("\udc80", "not valid UTF-8"),
    ],
)
def test_a_refusal_names_the_broken_rule(name: str, reason: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        check_name("snapshot", name)

    assert reason in refusal.value.sentence
    assert "cannot be the name of a snapshot" in refusal.value.sentence
    refusal.value.sentence.encode()


@pytest.mark.parametrize(
    "name", ["a", "...", ".hidden", "1234567890", "1a", "-1", "a" * 200, "é" * 100, "before update", "%2F", "٣", "日本語"]
)
def test_ordinary_and_odd_names_are_allowed(name: str) -> None:
    assert check_name("domain", name) == name


@given(st.text(st.characters(), max_size=12) | st.text(st.sampled_from("0123456789./"), max_size=11))
def test_the_rules_are_these_and_no_others(name: str) -> None:
    if _is_valid(name):
        assert check_name("domain", name) == name
    else:
        with pytest.raises(InvalidName):
            check_name("domain", name)


@given(valid)
@example("." * 200)
@example("😀" * 50)
@example("%" * 200)
@example("a" * LONGEST_ESCAPED_BYTES)
@example("a" * (LONGEST_ESCAPED_BYTES + 1))
def test_an_escaped_name_is_a_safe_part_of_a_file_name(name: str) -> None:
    escaped = escape_for_file(name)

    assert re.fullmatch(r"(?!\.)[A-Za-z0-9._%-]+", escaped)
    assert len(escaped) <= LONGEST_ESCAPED_BYTES
    assert len(f"snapshotdata-{escaped}.libxl-json") <= LONGEST_FILE_NAME_BYTES
    if re.fullmatch(r"(?!\.)[A-Za-z0-9._-]+", name) and len(name) <= LONGEST_ESCAPED_BYTES:
        assert escaped == name


@given(valid)
def test_an_escaped_name_reads_back_unless_it_was_cut(name: str) -> None:
    escaped = escape_for_file(name)

    if "%-" in escaped:
        assert len(name) > LONGEST_ESCAPED_BYTES // 3 or len(name.encode()) > LONGEST_ESCAPED_BYTES // 3
    else:
        assert unquote_to_bytes(escaped) == name.encode()


@given(valid, st.data())
def test_two_names_never_share_a_file(name: str, data: st.DataObject) -> None:
    near = st.sampled_from([escape_for_file(name), name + "x", name[:-1] + "y", name.swapcase(), f"%{name}"])
    other = data.draw(valid | near)

    assert (escape_for_file(name) == escape_for_file(other)) == (name == other)


@given(st.sets(st.sampled_from(["t", "t-2", "t-3", "t-5", "u"])))
def test_a_made_up_name_is_free(taken: set[str]) -> None:
    name = made_up_name("t", frozenset(taken))

    assert name not in taken
    assert re.fullmatch(r"t(-[0-9]+)?", name)
    assert name == "t" or "t" in taken
