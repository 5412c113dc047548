# SPDX-License-Identifier: MIT
"""The options of a verb: an ``a{sv}`` made into typed values, every surprise refused by name."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from snapd.bus.wire import Variant
from snapd.errors import InvalidOption

_WORDS = {"s": "a string", "b": "a boolean", "u": "a number", "a{ss}": "a dictionary of strings"}

Choice = TypeVar("Choice", bound=StrEnum)


class Options:
    """Options that are taken one after the other; what nobody takes is unknown."""

    def __init__(self, verb: str, given: Mapping[str, Variant], known: Mapping[str, str]) -> None:
        """Check names and types.

        Args:
            known: the D-Bus type of each option that ``verb`` has.

        Raises: InvalidOption.
        """
        self._given = given
        for name, value in given.items():
            if name not in known:
                raise InvalidOption(name, f"is not known to {verb}, which has {', '.join(sorted(known))}")
            if value.signature != known[name]:
                raise InvalidOption(
                    name, f"has the type '{value.signature}' and must be {_WORDS[known[name]]} ('{known[name]}')"
                )

    def value(self, name: str, default: Any) -> Any:
        return self._given[name].value if name in self._given else default

    def choice(self, name: str, default: Choice) -> Choice:
        """Return one of the values of an enumeration. Raises: InvalidOption naming them."""
        given = self.value(name, default.value)
        try:
            return type(default)(given)
        except ValueError as error:
            names = ", ".join(type(default))
            raise InvalidOption(name, f"is {given!r} and must be one of {names}") from error
