# SPDX-License-Identifier: MIT
"""Owns how the tool writes single values, and how it lays text out on a screen of 80 columns.

It knows nothing of domains and snapshots; every function is pure.

- No text of others reaches a terminal with a control character in it, once it went through ``printable``.
"""

import shlex
import textwrap
import unicodedata
from collections.abc import Iterable

COLUMNS = 80
GAP = "  "

_MINUTE, _HOUR, _DAY, _WEEK, _MONTH, _YEAR = 60, 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400
_AGES = [(_YEAR, "year"), (_MONTH, "month"), (_WEEK, "week"), (_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")]
_UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]


def printable(text: str) -> str:
    """Return the text with control characters, and those that turn the direction of writing, shown as escapes."""
    return "".join(
        each if unicodedata.category(each) not in ("Cc", "Cf", "Cs") else each.encode("unicode_escape").decode()
        for each in text
    )


def size(size_bytes: int) -> str:
    """Write a size with at most one decimal: ``0 B``, ``96 MiB``, ``1.1 GiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _UNITS:
        value /= 1024
        if value < 9.95:
            return f"{value:.1f} {unit}"
        if value < 1023.5:
            break
    return f"{value:.0f} {unit}"


def age(then_usec: int, now_usec: int) -> str:
    """Write how long ago an instant was, in one unit: ``just now``, ``yesterday``, ``3 weeks ago``."""
    seconds = (now_usec - then_usec) // 1_000_000
    for length, unit in _AGES:
        number = seconds // length
        if number == 1 and unit == "day":
            return "yesterday"
        if number >= 1:
            return f"{count(number, unit)} ago"
    return "just now"


def duration(length_s: float) -> str:
    """Write a length of time: ``8 ms``, ``4.8 s``, ``3 min 20 s``."""
    if length_s < 0.9995:
        return f"{length_s * 1000:.0f} ms"
    if length_s < 59.95:
        return f"{length_s:.1f} s"
    minutes, seconds = divmod(round(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def count(number: int, thing: str) -> str:
    """Write a number of things: ``1 disk``, ``2 disks``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def command(*arguments: str) -> str:
    """Write a command line of the tool as a shell takes it."""
    return printable(shlex.join(["domsnap", *arguments]))


def packed(pieces: Iterable[str], columns: int = COLUMNS, gap: str = " ") -> str:
    """Put pieces on as few lines as hold them within ``columns``; only between two pieces a line ends."""
    lines: list[str] = []
    for piece in map(printable, filter(None, pieces)):
        if lines and cells(lines[-1] + gap + piece) <= columns:
            lines[-1] += gap + piece
        else:
            lines.append(piece)
    return "\n".join(lines)


def fields(named: Iterable[tuple[str, str]]) -> list[str]:
    """Write a name and a value to a line, the values below each other; what is empty is left out."""
    shown = [(name, value) for name, value in named if value]
    width = max(cells(name) for name, _ in shown)
    lines = []
    for name, value in shown:
        first, *others = paragraph(value, indent=len(GAP) * 2 + width)
        lines += [GAP + name + " " * (width - cells(name)) + GAP + first.lstrip(), *others]
    return lines


def paragraph(text: str, indent: int) -> list[str]:
    """Break text between words into lines of 80 columns, ``indent`` of them empty; no word is broken."""
    space = " " * indent
    broken = textwrap.wrap(
        printable(text),
        max(COLUMNS, 2 * indent),
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return broken or [space]


def table(rows: list[list[str]], right: int | None = None) -> str:
    """Align columns by what a terminal shows, the one at ``right`` to the right.

    A row of one cell does not count, and a column that is empty in all others takes no room.
    """
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row if len(row) > 1 else []):
            widths[column] = max(widths.get(column, 0), cells(cell))
    lines = []
    for row in rows:
        padded = []
        for column, cell in enumerate(row):
            space = " " * (widths.get(column, 0) - cells(cell))
            if widths.get(column) or len(row) == 1:
                padded.append(space + cell if column == right else cell + space)
        lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def cells(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) != 0 for each in text)
