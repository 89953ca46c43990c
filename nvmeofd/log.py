"""Logging: to systemd's journal with fields where stderr leads there, else to stderr with level prefixes.

A record's fields come from what it is about: from arguments that have ``log_fields`` (a job, an error), from
``extra=about(…)``, and from what is bound around the code that logs (the job that runs).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from nvmeofd.journald import JournalSocket, JournalStream, encode, is_journal

log = logging.getLogger("nvmeofd")
# Without :func:`setup`, as in the command-line client, nothing is written anywhere.
log.addHandler(logging.NullHandler())

_LONGEST = 4096  # characters, as many as a path has bytes

_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_NOTICE = 5
_FACILITY = "3"  # daemon, as SyslogFacility= of the unit has it for stderr


class Subject(Protocol):
    """What a record can be about."""

    @property
    def log_fields(self) -> Mapping[str, str]:
        """Fields of the journal, by name. Empty ones are left out."""
        ...


class _Binding:
    """Emptied at the end: a timer or task that was started inside has a copy of the context, and outlives it."""

    def __init__(self, subject: Subject) -> None:
        self.subject: Subject | None = subject


_bound: ContextVar[_Binding | None] = ContextVar("bound", default=None)


@contextmanager
def bound(subject: Subject) -> Iterator[None]:
    """Everything that is logged inside is about ``subject``."""
    binding = _Binding(subject)
    token = _bound.set(binding)
    try:
        yield
    finally:
        binding.subject = None
        _bound.reset(token)


def about(*, nqn: str = "", staging_path: str = "", step: str = "") -> dict[str, Mapping[str, str]]:
    """For ``extra=`` of a record: what it is about, where no argument of it tells."""
    return {"log_fields": {"NQN": nqn, "STAGING_PATH": staging_path, "STEP": step}}


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """What ``record`` is about, as fields of the journal. What is said for this record alone wins."""
    binding = _bound.get()
    sources = [binding.subject if binding else None, *(record.args if isinstance(record.args, tuple) else ())]
    found: dict[str, str] = {}
    for fields in [*(getattr(source, "log_fields", {}) for source in sources), getattr(record, "log_fields", {})]:
        found.update({name: value for name, value in fields.items() if value})
    return found


class _StreamFormatter(logging.Formatter):
    """Each line has its level, as in sd-daemon(3): journald takes every line of a stream for a record.

    So what callers sent, paths above all, must not bring lines of its own. Only a traceback has more than one.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = record.message.replace("\\", "\\\\") if "\n" in record.message else record.message
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, _NOTICE)}>"
        text = super().format(record)
        return "\n".join(prefix + line.encode("utf-8", "backslashreplace").decode() for line in text.split("\n"))


class _JournalHandler(logging.Handler):
    """One entry per record. Where the journal takes none, the text goes to its stream; where that is full, it is lost.

    So a journal that is restarted, or hangs, holds up nothing. How much was lost is told afterwards.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._socket = JournalSocket()
        self._stream = JournalStream(fd)
        self._lines = _StreamFormatter("%(message)s")
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(record)
        except OSError:
            self._lost += 1
            return
        except Exception:  # noqa: BLE001 - as any handler: what is wrong with a record is not its caller's trouble
            self.handleError(record)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self.emit(logging.makeLogRecord({"levelno": logging.WARNING, "msg": f"{lost} log records were lost"}))

    def _send(self, record: logging.LogRecord) -> None:
        # Last words go to the stream: journald knows which unit it belongs to. Of the sender of a datagram it has to
        # find that out, and cannot when the process has ended before it looks.
        if record.levelno < logging.CRITICAL:
            try:
                self._socket.send(encode(self._entry(record)))
            except OSError:
                pass
            else:
                return
        self._stream.send(self._lines.format(record).encode() + b"\n")

    def _entry(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        yield "MESSAGE", self.format(record)
        yield "PRIORITY", str(_PRIORITIES.get(record.levelno, _NOTICE))
        yield "SYSLOG_IDENTIFIER", "nvmeofd"
        yield "SYSLOG_FACILITY", _FACILITY
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", str(record.lineno)
        yield "CODE_FUNC", record.funcName or ""
        yield from fields_of(record).items()

    def close(self) -> None:
        self._socket.close()
        self._stream.close()
        super().close()


def setup(level: int) -> None:
    """Send the daemon's log to the journal, or to stderr."""
    handler: logging.Handler
    if is_journal(os.environ.get("JOURNAL_STREAM", ""), 2):
        handler = _JournalHandler(2)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_StreamFormatter("%(message)s"))
    for old in log.handlers:
        old.close()
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def quoted(text: str) -> str:
    """``text`` as one log-safe word: control characters and line ends cannot forge a log line.

    What a caller sent can be far longer than any name; then the end is left out.
    """
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"
