# SPDX-License-Identifier: MIT
"""The options of a verb: typed values, and every surprise refused by name."""

from typing import Any

import pytest

from snapd.bus import verbs
from snapd.bus.options import Options
from snapd.bus.wire import Variant
from snapd.errors import InvalidOption
from snapd.model.plan import Live

KNOWN = {"description": "s", "wait": "b", "limit": "u", "disks": "a{ss}", "live": "s"}

WRONG = [
    ("wait", "s", "yes", "'wait' has the type 's' and must be a boolean"),
    ("wait", "u", 1, "'wait' has the type 'u' and must be a boolean"),
    ("description", "as", ["a"], "'description' has the type 'as' and must be a string"),
    ("description", "v", Variant("s", "a"), "'description' has the type 'v' and must be a string"),
    ("limit", "t", 1, "'limit' has the type 't' and must be a number"),
    ("limit", "i", 1, "'limit' has the type 'i' and must be a number"),
    ("disks", "a{sv}", {"a": Variant("s", "no")}, "'disks' has the type 'a{sv}' and must be a dictionary of strings"),
    ("disks", "as", [], "'disks' has the type 'as' and must be a dictionary of strings"),
]


def test_what_is_given_is_taken_and_what_is_not_has_its_default() -> None:
    given = {"wait": Variant("b", True), "disks": Variant("a{ss}", {"disk0": "no"}), "limit": Variant("u", 0)}
    options = Options("CreateSnapshot", given, KNOWN)
    assert options.value("wait", default=False) is True
    assert options.value("disks", {}) == {"disk0": "no"}
    assert options.value("limit", None) == 0
    assert options.value("description", "none") == "none"
    assert options.choice("live", Live.AUTO) is Live.AUTO


def test_an_unknown_option_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidOption) as refused:
        Options("CreateSnapshot", {"Wait": Variant("b", True)}, KNOWN)
    assert refused.value.option == "Wait"
    assert str(refused.value) == "Option 'Wait' is not known to CreateSnapshot, which has " + ", ".join(sorted(KNOWN)) + "."


@pytest.mark.parametrize(("name", "signature", "value", "complaint"), WRONG)
def test_a_wrong_type_is_refused_and_both_types_are_named(name: str, signature: str, value: Any, complaint: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        Options("CreateSnapshot", {name: Variant(signature, value)}, KNOWN)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("live", list(Live))
def test_a_choice_is_one_of_an_enumeration(live: Live) -> None:
    assert Options("CreateSnapshot", {"live": Variant("s", live.value)}, KNOWN).choice("live", Live.AUTO) is live


@pytest.mark.parametrize("word", ["", "AUTO", "maybe", " auto", "auto\n"])
def test_another_word_is_refused_and_the_choices_are_named(word: str) -> None:
    with pytest.raises(InvalidOption, match="must be one of auto, require, no"):
        Options("CreateSnapshot", {"live": Variant("s", word)}, KNOWN).choice("live", Live.AUTO)


@pytest.mark.parametrize(
    "known", [verbs.CREATE_OPTIONS, verbs.REVERT_OPTIONS, verbs.DELETE_OPTIONS, verbs.LIST_OPTIONS], ids=str
)
def test_each_option_of_a_verb_can_be_refused_in_words(known: dict[str, str]) -> None:
    for name in known:
        with pytest.raises(InvalidOption, match=f"'{name}' has the type 'd' and must be"):
            Options("Verb", {name: Variant("d", 0.5)}, known)
