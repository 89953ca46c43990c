"""Log lines as journald reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.log import log, quoted, setup


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.DEBUG, "<7>"),
        (logging.INFO, "<6>"),
        (logging.WARNING, "<4>"),
        (logging.ERROR, "<3>"),
        (logging.CRITICAL, "<2>"),
        (logging.INFO + 5, "<5>"),
    ],
)
def test_prefix(capsys: pytest.CaptureFixture[str], level: int, prefix: str) -> None:
    setup(logging.DEBUG)
    log.log(level, "%s is %s", "a", "b")
    assert capsys.readouterr().err == f"{prefix}a is b\n"


def test_every_line_has_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    setup(logging.INFO)
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        log.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


@pytest.mark.parametrize("text", ["a\njob 7 disconnect", "a\r\nb", "\n", "\\n and\n"])
def test_what_callers_send_is_no_line_of_its_own(capsys: pytest.CaptureFixture[str], text: str) -> None:
    setup(logging.INFO)
    log.info("%s: %s", "job 1", text)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "\r" not in written
    assert written.endswith("\n")


def test_level_and_no_doubles(capsys: pytest.CaptureFixture[str]) -> None:
    setup(logging.DEBUG)
    setup(logging.WARNING)
    log.info("hidden")
    log.warning("shown")
    assert capsys.readouterr().err == "<4>shown\n"


def test_undecodable_names_do_not_stop_logging(capsys: pytest.CaptureFixture[str]) -> None:
    setup(logging.INFO)
    log.info("%s", "a\udc80b")
    assert capsys.readouterr().err == "<6>a\\udc80b\n"


@given(st.text())
def test_quoted_is_one_line(text: str) -> None:
    shown = quoted(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", ["x" * 100_000, "\n" * 100_000])
def test_quoted_leaves_out_the_end_of_what_is_too_long(text: str) -> None:
    assert len(quoted(text)) < 5000
    assert quoted(text).endswith("…")
