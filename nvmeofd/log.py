"""Logging to stderr with the level prefixes that journald reads, see sd-daemon(3)."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("nvmeofd")
# Without :func:`setup`, as in the command-line client, nothing is written anywhere.
log.addHandler(logging.NullHandler())

_LONGEST = 4096  # characters, as many as a path has bytes

_PREFIXES = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


class _JournalFormatter(logging.Formatter):
    """One line per record: journald would cut a record at its line ends and give the rest no level."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = _PREFIXES.get(record.levelno, "<5>")
        text = super().format(record)
        return "\n".join(prefix + line.encode("utf-8", "backslashreplace").decode() for line in text.split("\n"))


def setup(level: int) -> None:
    """Send the daemon's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def quoted(text: str) -> str:
    """``text`` as one log-safe word: control characters and line ends cannot forge a log line.

    What a caller sent can be far longer than any name; then the end is left out.
    """
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"
