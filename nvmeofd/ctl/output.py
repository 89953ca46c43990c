"""Where a command writes to."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from nvmeofd.ctl.text import Palette, prose, table


class Output:
    """Lines or JSON to ``out``; remarks, which no program reads, to ``err``."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        legend: bool = True,
        quiet: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.as_json = as_json
        self.legend = legend
        self.quiet = quiet
        self.out = sys.stdout if out is None else out
        self.err = sys.stderr if err is None else err
        self.palette = Palette.of(self.out)

    @property
    def ascii_only(self) -> bool:
        return (self.out.encoding or "").lower().replace("-", "") not in ("utf8", "utf8sig")

    def line(self, text: str) -> None:
        """One line. Whoever calls has made it safe for a terminal."""
        self.out.write(text + "\n")

    def lines(self, lines: list[str]) -> None:
        for line in lines:
            self.line(line)

    def table(self, header: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> None:
        """A table with its legend: the header, and nothing else."""
        heading = [self.palette.strong(cell) for cell in header] if self.legend and rows else []
        self.lines(table(heading, rows, right=right))

    def json(self, value: Any, *, compact: bool = False) -> None:
        """``value`` exactly, in ASCII. ``compact``: on one line, which is out at once."""
        if compact:
            self.line(json.dumps(value, separators=(",", ":")))
            self.out.flush()
        else:
            self.line(json.dumps(value, indent=2))

    def remark(self, text: str) -> None:
        """Something that is good to know, unless --quiet."""
        if not self.quiet:
            self.err.write(f"nvmeofctl: {prose(text)}\n")
            self.err.flush()
