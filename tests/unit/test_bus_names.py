# SPDX-License-Identifier: MIT
"""Object paths: escaped as systemd does, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.bus import names

# The first four are from sd_bus_path_encode(3) and systemd's own test of it.
ENCODED = [
    ("", "_"),
    ("foo.bar", "foo_2ebar"),
    ("foo.bar$", "foo_2ebar_24"),
    ("1name", "_31name"),
    ("a1", "a1"),
    ("_", "_5f"),
    ("vm-ü", "vm_2d_c3_bc"),
    ("\N{ARABIC-INDIC DIGIT ONE}", "_d9_a1"),
    ("a/b", "a_2fb"),
]


@pytest.mark.parametrize(("text", "element"), ENCODED)
def test_elements_are_encoded_as_systemd_does(text: str, element: str) -> None:
    assert names.encode_path_element(text) == element
    assert names.decode_path_element(element) == text


@pytest.mark.parametrize(("element", "text"), [("a_", "a_"), ("a_g1", "a_g1"), ("a_2", "a_2"), ("a_2E", "a."), ("__", "__")])
def test_decoding_takes_what_systemd_takes(element: str, text: str) -> None:
    assert names.decode_path_element(element) == text


def test_bytes_that_are_no_text_do_not_decode() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        names.decode_path_element("_ff")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(TEXT, TEXT, st.integers(0, 2**63 - 1))
def test_paths_parse_back_to_what_they_were_made_of(domain: str, snapshot: str, number: int) -> None:
    assert names.parse_path(names.domain_path(domain)) == names.DomainPath(domain)
    assert names.parse_path(names.snapshot_path(domain, snapshot)) == names.SnapshotPath(domain, snapshot)
    assert names.parse_path(names.job_path(number)) == names.JobPath(number)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/org/domsnap1",
        "/org/domsnap1/domain",
        "/org/domsnap1/domain/vm1/snapshot",
        "/org/domsnap1/domain/vm1/snapshot/a/b",
        "/org/domsnap1/domain/vm1/other/a",
        "/org/domsnap1/domain/_ff",
        "/org/domsnap1/domain/a/snapshot/_ff",
        "/org/domsnap1/job/",
        "/org/domsnap1/job/007",
        "/org/domsnap1/job/x",
        "/org/domsnap1/job/99999999999999999999",
        "/org/domsnap10/domain/vm1",
        "",
    ],
)
def test_other_paths_mean_nothing(path: str) -> None:
    assert names.parse_path(path) is None


@pytest.mark.parametrize("element", ["a_2E", "a_", "1a", "_61"])
def test_a_second_spelling_of_a_name_is_no_path(element: str) -> None:
    assert names.parse_path(f"/org/domsnap1/domain/{element}") is None
    assert names.parse_path(f"/org/domsnap1/domain/a/snapshot/{element}") is None
