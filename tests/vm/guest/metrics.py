"""The file of metrics, and what the daemon says of it."""

from __future__ import annotations

from pathlib import Path

from .service import UNIT
from .waiting import command, wait_until


def wait_line(file: str, line: str, timeout: float = 90.0) -> str:
    """Wait until the file has this line. Returns all of it."""
    path = Path(file)

    def look() -> str:
        text = path.read_text() if path.exists() else ""
        return text if line in text.splitlines() else ""

    return wait_until(look, timeout, f"{line} in {file}")


def cursor() -> str:
    """A place in the journal: its end."""
    command(["journalctl", "--sync"])
    text = command(["journalctl", "--lines", "0", "--show-cursor", "--quiet"])
    return text.removeprefix("-- cursor: ").strip()


def warnings(since: str) -> int:
    """How many warnings about the file came after a place in the journal."""
    command(["journalctl", "--sync"])
    fields = ["--output", "cat", "--output-fields", "CODE_FILE"]
    shown = command(["journalctl", "--quiet", "--unit", UNIT, "--after-cursor", since, *fields, "PRIORITY=4"])
    return sum(line.endswith("/exporter.py") for line in shown.splitlines())


def wait_warning(since: str, timeout: float = 60.0) -> None:
    wait_until(lambda: warnings(since), timeout, "a warning about the file of metrics")
