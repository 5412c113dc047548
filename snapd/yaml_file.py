# SPDX-License-Identifier: MIT
"""YAML files that people write: nodes with their lines, sections with known keys, typed values, and what is wrong with them.

It does not know what the keys mean (``config``).

- All mistakes of a file are found in one reading; only what is no YAML ends it.
- No content of a file makes anything here raise, but ``WrongValue`` towards ``Section.value``.
"""

import difflib
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

FILE_LIMIT_BYTES = 1 << 20
NESTING_LIMIT = 8

_SHOWN_CHARS = 60
_TAGS = "tag:yaml.org,2002:"
_KINDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "timestamp": "a date",
    "null": "nothing",
}
_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,14}) ?([A-Za-z]*)")
_SIZES_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIMES_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_LONGEST_TIME_S = _TIMES_S["d"]

T = TypeVar("T")


@dataclass(frozen=True)
class Mistake:
    """What is wrong in which line of the file at ``path``, from 1; line 1 stands for the whole file too."""

    path: Path
    line: int
    sentence: str

    def __str__(self) -> str:
        return f"{bytes(self.path).decode('utf-8', 'backslashreplace')}:{self.line}: {self.sentence}"


class WrongValue(Exception):
    """What is wrong, to be said after what it is wrong with."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class YamlFile:
    """A file while it is read, and the mistakes found in it so far; ``readable`` until it turns out to be no YAML."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mistakes: list[Mistake] = []
        self.readable = True

    def mistake(self, line: int, sentence: str) -> None:
        self.mistakes.append(Mistake(self.path, line, sentence))

    def sorted_mistakes(self) -> list[Mistake]:
        return sorted(self.mistakes, key=lambda each: each.line)

    def root(self, known: Collection[str], later: Collection[str]) -> "Section":
        """Read the file; one that cannot be read is a mistake, and a section in which nothing is missing."""
        try:
            root = _compose(_read(self.path))
        except _Unreadable as error:
            self.readable = False
            self.mistake(error.line, error.reason)
            return Section(self, 1, {}, complete=False)
        return self.section(None if root is None or _is_null(root) else root, "the file", known, later)

    def section(self, node: yaml.Node | None, what: str, known: Collection[str], later: Collection[str] = ()) -> "Section":
        """Return what stands under the ``known`` keys; one of a ``later`` version is a mistake, and null is as if left out."""
        if node is None:
            return Section(self, 1, {})
        if not isinstance(node, yaml.MappingNode):
            self.mistake(line_of(node), f"{what} must be a mapping ('key: value'), and it is {kind_of(node)}")
            return Section(self, line_of(node), {}, complete=False)
        lines: dict[str, int] = {}
        nodes: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            line = line_of(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistake(line, f"a key must be a word, and this one is {kind_of(key_node)}")
                continue
            key: str = key_node.value
            if key in lines:
                self.mistake(line, f"{shown(key)} stands here a second time; the first is in line {lines[key]}")
            elif key not in known and key not in later:
                self.mistake(line, f"there is no key {shown(key)} here; {_suggestion(key, known)}")
            elif not _is_null(value):
                nodes[key] = value
                if key in later:
                    self.mistake(line, f"{key!r} is not available in this version; take it out")
            lines.setdefault(key, line)
        return Section(self, line_of(node), nodes)


@dataclass(frozen=True)
class Section:
    """A mapping with known keys; one that is not ``complete`` could not be read, and nothing is missing in it."""

    file: YamlFile
    line: int
    nodes: Mapping[str, yaml.Node]
    complete: bool = True

    def line_of(self, key: str) -> int:
        return line_of(self.nodes[key]) if key in self.nodes else self.line

    def section(self, key: str, known: Collection[str], later: Collection[str] = ()) -> "Section":
        return self.file.section(self.nodes.get(key), repr(key), known, later)

    def value(self, key: str, read: Callable[[yaml.Node], T], default: T, *, required: bool = False) -> T:
        """Return what ``read`` makes of the value, or the default where it is left out or wrong."""
        node = self.nodes.get(key)
        if node is None:
            if required and self.complete:
                self.file.mistake(self.line, f"{key!r} is missing")
            return default
        try:
            return read(node)
        except WrongValue as wrong:
            self.file.mistake(line_of(node), f"{key!r} {wrong.reason}")
            return default


# Values


def as_text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise WrongValue(f"must be text, and it is {kind_of(node)}")
    text: str = node.value
    if node.tag != f"{_TAGS}str":
        raise WrongValue(f"must be text, and YAML takes {shown(text)} for {kind_of(node)}; put it in quotes")
    if not text:
        raise WrongValue("is empty")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise WrongValue("has a NUL or half of a surrogate pair in it")
    return text


def as_path(node: yaml.Node) -> str:
    path = as_text(node)
    if not path.startswith("/"):
        raise WrongValue(f"must be an absolute path, and it is {shown(path)}")
    return path


def as_choice(*words: str, later: Collection[str] = ()) -> Callable[[yaml.Node], str]:
    """Make a reader of one of ``words``; a word of a ``later`` version is wrong. ``no`` and ``yes`` stand for booleans too."""

    def read(node: yaml.Node) -> str:
        # To YAML 1.1 a plain no, off or false is the same value, and none of them is text.
        is_bool = node.tag == f"{_TAGS}bool"
        word = ("yes" if yaml.SafeLoader.bool_values[node.value.lower()] else "no") if is_bool else as_text(node)
        if word in later:
            raise WrongValue(f"cannot be {node.value} in this version; take it out")
        if word not in words:
            raise WrongValue(f"must be {' or '.join(words)}, and it is {shown(node.value)}")
        return word

    return read


def as_count(most: int) -> Callable[[yaml.Node], int]:
    def read(node: yaml.Node) -> int:
        number = _amount(node, {"": 1}) if node.tag == f"{_TAGS}int" else None
        if number is None or not 1 <= number <= most:
            raise WrongValue(f"must be a number from 1 to {most}, and it is {_shown_node(node)}")
        return number

    return read


def as_size_bytes(node: yaml.Node) -> int:
    size_bytes = _amount(node, _SIZES_BYTES)
    if size_bytes is None:
        raise WrongValue(f"must be a size such as 1GiB (bytes, KiB, MiB, GiB or TiB), and it is {_shown_node(node)}")
    return size_bytes


def as_timeout_s(node: yaml.Node) -> int:
    timeout_s = _amount(node, _TIMES_S)
    if timeout_s is None or not 1 <= timeout_s <= _LONGEST_TIME_S:
        raise WrongValue(f"must be a time from 1s to 1d such as 5s (s, min, h or d), and it is {_shown_node(node)}")
    return timeout_s


def _amount(node: yaml.Node, units: Mapping[str, int]) -> int | None:
    """Read the characters themselves: to YAML 1.1 010 is eight and 1:30 is ninety."""
    match = _AMOUNT.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
    return int(match[1]) * units[match[2]] if match and match[2] in units else None


# Words


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def kind_of(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return _KINDS.get(node.tag.removeprefix(_TAGS), "a sign of its own")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == f"{_TAGS}null")


def shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "...")


def _shown_node(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return kind_of(node)
    return f"{shown(node.value)}{' in quotes' if node.style else ''}"


def _suggestion(key: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(key[:_SHOWN_CHARS].lower(), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"there can be {', '.join(known)}"


# From bytes to nodes


class _Unreadable(Exception):
    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason
        super().__init__(reason)


def _read(path: Path) -> str:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise _Unreadable(1, "the path of this file is not UTF-8, which D-Bus cannot carry; rename it") from error
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _Unreadable(1, "this is no regular file")
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise _Unreadable(1, f"the file cannot be read: {error.strerror}") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise _Unreadable(1, f"the file has more than {FILE_LIMIT_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Unreadable(line, f"the byte 0x{error.object[error.start]:02X} is not UTF-8") from error


def _compose(text: str) -> yaml.Node | None:
    """Return the root of the node tree, None where there is nothing but comments."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Unreadable(line, f"the character U+{ord(text[error.position]):04X} is not allowed") from error
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, last_line=text.rstrip("\n").count("\n") + 1) from error
    except (ValueError, OverflowError) as error:
        # PyYAML lets them through for "\UFFFFFFFF" and for a %YAML directive with a number of thousands of digits.
        raise _Unreadable(loader.line + 1, f"this is not YAML: {error}") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Makes nodes, not values. Without aliases and deep nesting a file cannot unfold into more than it is."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs know no types of events
        line = int(event.start_mark.line) + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            raise _Unreadable(line, "'*', '&' and '!' mean something to YAML that is not used here; quote text that begins so")
        if self._depth == NESTING_LIMIT:
            raise _Unreadable(line, f"this is nested more than {NESTING_LIMIT} deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _not_yaml(error: yaml.MarkedYAMLError, last_line: int) -> _Unreadable:
    """Say where the syntax is broken, and where that began which it breaks."""
    line = min(error.problem_mark.line + 1, last_line) if error.problem_mark else 1
    if error.problem and error.problem.startswith("found character '\\t'"):
        return _Unreadable(line, "a tab cannot indent or separate in YAML; use spaces")
    began = error.context_mark.line + 1 if error.context_mark else line
    where = f" from line {began}" if began != line else ""
    context = f" {error.context}{where}," if error.context else ""
    return _Unreadable(line, f"this is not YAML:{context} {error.problem}")
