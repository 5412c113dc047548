# SPDX-License-Identifier: MIT
"""The text of libxl-json: bytes to plain values and back.

It does not know what a snapshot is (``libxl_snapshot``), nor where files lie (``store``).

- What is written is byte for byte what yajl of Xen 4.5 to 4.20 writes for the same value.
- All three generations of libxl are read; the writer's spacing carries no meaning.
- Whatever cannot be read is refused with its line; nothing is guessed, and nothing but ``StateDamaged`` is raised.
- What is written can be read: ``dumps`` keeps the limits that ``parse`` enforces.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from snapd.errors import StateDamaged

SIZE_LIMIT_BYTES = 16 * 2**20
NESTING_LIMIT = 32
INTEGER_LIMIT_CHARS = 1000
EXTENSION_KEY = "domsnap"

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
Keys: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A text that was read, kept so that a later complaint about any part of it can name the line."""

    path: str
    text: str
    value: dict[str, JsonValue]

    def line(self, *keys: str | int) -> int:
        """Return the line, from 1, of the value under ``keys``, or of the nearest thing around it when there is none."""
        return _Parser(self.text, self.path, sought=keys).line_sought()

    def damaged(self, reason: str, *keys: str | int) -> StateDamaged:
        """Make the error for the value under ``keys``; the caller raises it."""
        return StateDamaged(self.path, self.line(*keys), reason)

    def extension(self) -> Mapping[str, JsonValue] | None:
        """Return what stands under our own key, or None where libxl alone wrote the file.

        Raises: StateDamaged when it is not an object with a version of 1 or more.
        """
        if EXTENSION_KEY not in self.value:
            return None
        extension = self.value[EXTENSION_KEY]
        if not isinstance(extension, Mapping):
            raise self.damaged(f"{EXTENSION_KEY!r} must be an object", EXTENSION_KEY)
        version = extension.get("version")
        if type(version) is not int or version < 1:
            raise self.damaged(f"{EXTENSION_KEY!r} must have a 'version' of 1 or more", EXTENSION_KEY, "version")
        return extension


def loads(data: bytes, path: str) -> dict[str, JsonValue]:
    """Read a text of any generation; ``parse`` for those who only want the value."""
    return parse(data, path).value


def parse(data: bytes, path: str) -> Document:
    """Read a text of any generation.

    Args: ``path`` is for the error only.
    Raises: StateDamaged for anything but one JSON object in UTF-8 with distinct keys within the limits.
    Source: RFC 8259; libxl__set_domain_configuration stores the NUL that ends its C string, so one NUL at the end is no damage.
    """
    if len(data) > SIZE_LIMIT_BYTES:
        raise StateDamaged(path, 0, f"it has {len(data)} bytes, the limit is {SIZE_LIMIT_BYTES}")
    try:
        text = data.removesuffix(b"\0").decode("utf-8")
    except UnicodeDecodeError as cause:
        line = data.count(b"\n", 0, cause.start) + 1
        raise StateDamaged(path, line, f"the byte 0x{data[cause.start]:02X} is not UTF-8") from cause
    return Document(path, text, _Parser(text, path).document())


def dumps(value: Mapping[str, JsonValue]) -> bytes:
    """Write a value in the canonical form; keys keep their order, except that our own goes last.

    Raises: ValueError or TypeError for what no JSON text can hold (a lone surrogate, as file names that are not UTF-8
    have, NaN, a key that is no string) and for what ``parse`` would refuse.
    """
    ordered = dict(value)
    if EXTENSION_KEY in ordered:
        ordered[EXTENSION_KEY] = ordered.pop(EXTENSION_KEY)
    pieces: list[str] = []
    _write(ordered, 0, pieces)
    pieces.append("\n")
    data = "".join(pieces).encode("utf-8")
    if len(data) > SIZE_LIMIT_BYTES:
        raise ValueError(f"a text of {len(data)} bytes is over the limit of {SIZE_LIMIT_BYTES}")
    return data


# Writing

_INDENT = "    "
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_ESCAPES = {chr(code): f"\\u{code:04X}" for code in range(0x20)} | {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


def _write(value: JsonValue, level: int, pieces: list[str]) -> None:
    if isinstance(value, str):
        pieces.append(_quoted(value))
    elif isinstance(value, Mapping):
        items = [(f"{_quoted(key)}: ", each) for key, each in value.items()]
        _write_container("{", items, "}", level, pieces)
    elif isinstance(value, list | tuple):
        _write_container("[", [("", each) for each in value], "]", level, pieces)
    else:
        pieces.append(_scalar(value))


def _write_container(opening: str, items: list[tuple[str, JsonValue]], closing: str, level: int, pieces: list[str]) -> None:
    if level >= NESTING_LIMIT:
        raise ValueError(f"a value nested more than {NESTING_LIMIT} deep")
    separator = f"{opening}\n"
    for label, each in items:
        pieces.append(f"{separator}{_INDENT * (level + 1)}{label}")
        _write(each, level + 1, pieces)
        separator = ",\n"
    if not items:
        pieces.append(separator)
    pieces.append(f"\n{_INDENT * level}{closing}")


def _quoted(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} cannot be a key")
    return f'"{_ESCAPED.sub(lambda match: _ESCAPES[match[0]], text)}"'


def _scalar(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    if isinstance(value, int):
        digits = int.__repr__(value)
        if len(digits) > INTEGER_LIMIT_CHARS:
            raise ValueError(f"an integer of {len(digits)} digits")
        return digits
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number in JSON")
        return float.__repr__(value)
    raise TypeError(f"{value!r} is not a value in JSON")


# Reading


def _integer(digits: str) -> int:
    if len(digits) > INTEGER_LIMIT_CHARS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:40]} is out of range")
    return number


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")


# The standard library reads the scalars. Containers are read here because it reports neither where a key stands, nor
# that it stands twice, nor how deep it is.
_SCALARS = json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=_no_constant)
_SPACE = re.compile(r"[ \t\n\r]*")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Parser:
    """One pass over one text, which may look out for the place of one value on its way."""

    def __init__(self, text: str, path: str, sought: Keys = ()) -> None:
        self._text, self._path, self._position = text, path, 0
        self._sought, self._found = sought, 0

    def document(self) -> dict[str, JsonValue]:
        if self._next() != "{":
            raise self._unexpected("an object")
        self._found = self._position
        value = self._object(())
        if self._next():
            raise self._unexpected("nothing after the object")
        return value

    def line_sought(self) -> int:
        self.document()
        return self._line(self._found)

    def _value(self, keys: Keys) -> JsonValue:
        start = self._next()
        # The way to the value sought leads through the containers around it: the last one met is the nearest.
        if keys == self._sought[: len(keys)]:
            self._found = self._position
        if start == "{":
            return self._object(keys)
        if start == "[":
            return self._array(keys)
        return self._scalar(start)

    def _object(self, keys: Keys) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        self._enter(keys)
        if self._next() == "}":
            self._position += 1
            return found
        while True:
            if self._next() != '"':
                raise self._unexpected("a key")
            start = self._position
            key = str(self._scalar('"'))
            if key in found:
                raise self._damaged(start, f"the key {key[:80]!r} stands there twice")
            self._pass(":", "':'")
            found[key] = self._value((*keys, key))
            if self._pass(",}", "',' or '}'") == "}":
                return found

    def _array(self, keys: Keys) -> list[JsonValue]:
        found: list[JsonValue] = []
        self._enter(keys)
        if self._next() == "]":
            self._position += 1
            return found
        while True:
            found.append(self._value((*keys, len(found))))
            if self._pass(",]", "',' or ']'") == "]":
                return found

    def _scalar(self, start: str) -> JsonValue:
        begin = self._position
        try:
            value, self._position = _SCALARS.raw_decode(self._text, begin)
        except json.JSONDecodeError as cause:
            if start in '"-':
                reason = cause.msg.removesuffix(" at").removesuffix(" starting").lower()
                raise self._damaged(cause.pos, f"not JSON: {reason}") from cause
            raise self._unexpected("a value") from cause
        except ValueError as cause:
            raise self._damaged(begin, str(cause)) from cause
        # UTF-8 has none and pairs have been joined: it was written as \uD8xx alone, and no file could hold it again.
        if start == '"' and _LONE_SURROGATE.search(value):
            raise self._damaged(begin, "a string has half a surrogate pair")
        return value  # type: ignore[no-any-return]

    def _enter(self, keys: Keys) -> None:
        if len(keys) >= NESTING_LIMIT:
            raise self._damaged(self._position, f"it is nested more than {NESTING_LIMIT} deep")
        self._position += 1

    def _pass(self, allowed: str, wanted: str) -> str:
        """Step over one of the characters allowed and return it."""
        character = self._next()
        if not character or character not in allowed:
            raise self._unexpected(wanted)
        self._position += 1
        return character

    def _next(self) -> str:
        """Step over white space and return the character that follows, or "" at the end."""
        match = _SPACE.match(self._text, self._position)
        self._position = match.end() if match else self._position
        return self._text[self._position : self._position + 1]

    def _unexpected(self, wanted: str) -> StateDamaged:
        character = self._next()
        met = repr(character) if character else "the end of the file"
        return self._damaged(self._position, f"not JSON: {met} where {wanted} should be")

    def _damaged(self, position: int, reason: str) -> StateDamaged:
        return StateDamaged(self._path, self._line(position), reason)

    def _line(self, position: int) -> int:
        return self._text.count("\n", 0, position) + 1
