"""What people see: safe for a terminal, and unambiguous."""

from __future__ import annotations

import io
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.ctl.text import Palette, Tree, duration, moment, name, prose, shell_word, size, table, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/vol1", "/srv/vol1"),
        ("/srv/ä 漢", "/srv/ä 漢"),
        ("/srv/a\nb", "/srv/a\\nb"),
        ("/srv/\x1b[31m", "/srv/\\x1b[31m"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("a\u202eb", "a\\u202eb"),  # turns the text after it around
        ("\U000e0001", "\\U000e0001"),
        ("C:\\x1b", "C:\\\\x1b"),
    ],
)
def test_name(text: str, shown: str) -> None:
    assert name(text) == shown


@given(st.text())
def test_nothing_reaches_the_terminal_that_steers_it(text: str) -> None:
    assert name(text).isprintable()
    assert prose(text).isprintable()
    assert shell_word(text).isprintable()


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_different_names_stay_different(texts: list[str]) -> None:
    assert name(texts[0]) != name(texts[1])


def test_prose_does_not_double_what_is_quoted_already() -> None:
    assert prose("option 'a\\x07' is unknown\n") == "option 'a\\x07' is unknown\\n"


@pytest.mark.parametrize("word", ["/srv/vol1", "/srv/a b", "it's", "a\nb", "x\x1b'\\y", "/srv/ä", "$(reboot)", "-n"])
def test_shell_word(word: str) -> None:
    command = ["bash", "-c", f"printf %s {shell_word(word)}"]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode() == word


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours(environment: dict[str, str], coloured: bool) -> None:
    assert ("\x1b" in Palette.of(Terminal(), environment).good("live")) is coloured
    assert Palette.of(io.StringIO(), environment).good("live") == "live"


def test_states() -> None:
    palette = Palette(enabled=True)
    assert len({palette.state(state)[:6] for state in ("live", "connecting", "dead")}) == 3
    assert palette.state("\x1b[2J") == palette.bad("\\x1b[2J")


def test_table() -> None:
    red = Palette(enabled=True).bad("lost")
    lines = table(["PATH", "SIZE", "STATE"], [["/a", "1 B", red], ["/漢字", "10 B", "x"]], right=(1,))
    assert lines == [
        "PATH   SIZE  STATE",
        f"/a      1 B  {red}",
        "/漢字  10 B  x",
    ]
    assert table([], []) == []
    assert table([], [["a", "b"]]) == ["a  b"]


def test_width() -> None:
    assert (width("abc"), width("漢"), width("e\u0301"), width(Palette(enabled=True).good("ab"))) == (3, 2, 1, 2)


def test_tree() -> None:
    tree = Tree("root")
    tree.add("a").add("b")
    tree.add("c").add("d")
    assert tree.lines() == ["root", "├─a", "│ └─b", "└─c", "  └─d"]
    assert tree.lines(ascii_only=True) == ["root", "|-a", "| `-b", "`-c", "  `-d"]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 40, "1.0 TiB"), (1 << 62, "4096.0 PiB")]
)
def test_size(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 s"), (59.9, "59 s"), (125, "2 min 5 s"), (3_720, "1 h 2 min"), (100_000, "1 d 3 h")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_moment() -> None:
    assert moment((1 << 64) - 1).startswith("586524-01-")  # the largest that fits into the property
    assert moment(1_700_000_000_000_000).startswith("2023-11-1")
