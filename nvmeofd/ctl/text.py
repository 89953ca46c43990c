"""Text for people: names that cannot harm a terminal, tables, colours, sizes and times."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def prose(text: str) -> str:
    r"""``text`` on one line, with what is not printable as ``\xNN`` or ``\uNNNN``: it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def name(text: str) -> str:
    """A name, so that different names stay different: as :func:`prose`, and a backslash is doubled."""
    return prose(text.replace("\\", "\\\\"))


def _escaped(one: str) -> str:
    code = ord(one)
    if one in _SHORT:
        return _SHORT[one]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shell_word(text: str) -> str:
    """``text`` as one word for a shell, printable whatever it holds."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + name(text).replace("'", "\\'") + "'"


class Palette:
    """Colours, or none."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Palette:
        """Colours for a terminal that has them, unless NO_COLOR (https://no-color.org) is set."""
        capable = environment.get("TERM", "dumb") != "dumb" and not environment.get("NO_COLOR")
        return cls(enabled=capable and stream.isatty())

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._enabled and text else text

    def good(self, text: str) -> str:
        return self._paint("32", text)

    def warning(self, text: str) -> str:
        return self._paint("33", text)

    def bad(self, text: str) -> str:
        return self._paint("1;31", text)

    def strong(self, text: str) -> str:
        return self._paint("1", text)

    def faint(self, text: str) -> str:
        return self._paint("2", text)

    def state(self, text: str) -> str:
        """The state of a controller or of a volume."""
        shown = name(text)
        if text in ("live", "staged"):
            return self.good(shown)
        if text in ("new", "connecting", "resetting", "degraded"):
            return self.warning(shown)
        return self.bad(shown)


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal. It must be printable, but for colours."""
    plain = _without_colours(text)
    if plain.isascii():
        return len(plain)
    import unicodedata

    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in plain
    )


def _without_colours(text: str) -> str:
    parts = text.split("\x1b[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of a table. An empty ``header`` is left out. The columns ``right`` are aligned to the right."""
    lines = [list(header)] if header else []
    lines += [list(row) for row in rows]
    if not lines:
        return []
    widths = [max(width(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(_aligned(line, widths, right)).rstrip() for line in lines]


def _aligned(line: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> list[str]:
    cells = []
    for column, cell in enumerate(line):
        space = " " * (widths[column] - width(cell))
        cells.append(space + cell if column in right else cell + space)
    return cells


class Tree:
    """A line with lines below it."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.children: list[Tree] = []

    def add(self, label: str) -> Tree:
        child = Tree(label)
        self.children.append(child)
        return child

    def lines(self, *, ascii_only: bool = False) -> list[str]:
        return [self.label, *self._below("", ("|-", "| ", "`-", "  ") if ascii_only else ("├─", "│ ", "└─", "  "))]

    def _below(self, indent: str, glyphs: tuple[str, str, str, str]) -> list[str]:
        lines = []
        for child in self.children:
            branch, trunk = glyphs[2:] if child is self.children[-1] else glyphs[:2]
            lines.append(f"{indent}{branch}{child.label}")
            lines += child._below(indent + trunk, glyphs)
        return lines


def size(count: int) -> str:
    """Bytes as 1.5 GiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as 3 s, 2 min 5 s, 1 h 2 min or 3 d 4 h."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def moment(microseconds: int) -> str:
    """Microseconds since 1970 in local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(microseconds // 1_000_000)).rstrip()
