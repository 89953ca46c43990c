"""The files of the configuration: which there are, in which order they count, and their syntax.

Everything that is wrong is collected: who repairs a file wants to hear of all of it at once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

MAIN = "etc/nvmeofd/nvmeofd.conf"
# Later ones win, and a file takes the place of one with the same name in an earlier directory, as with systemd's own
# configuration: systemd.unit(5), systemd-system.conf(5). /run/nvmeofd is the daemon's own.
DROP_INS = ("usr/lib/nvmeofd/nvmeofd.conf.d", "run/nvmeofd.conf.d", "etc/nvmeofd/nvmeofd.conf.d")

MAX_BYTES = 1 << 20
MAX_PROBLEMS = 50


class ConfigError(Exception):
    """The configuration cannot be used. ``problems`` has a line for each reason, with file, line and key."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{self.problems[0]}{more}")


class Place(NamedTuple):
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{printable(str(self.path))}:{self.line}"


class Assignment(NamedTuple):
    section: str
    key: str
    value: str
    place: Place


class Problems:
    """What is wrong, up to a limit: a file that is no configuration at all would have an endless list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def full(self) -> bool:
        return len(self.lines) >= MAX_PROBLEMS

    def add(self, where: Place | Path, text: str) -> None:
        if not self.full:
            self.lines.append(f"{printable(str(where))}: {text}")

    def check(self) -> None:
        """Raises ConfigError if there are any."""
        if self.lines:
            raise ConfigError(self.lines)


def config_files(root: Path = Path("/")) -> list[Path]:
    """The main file, if there is one, and the drop-ins in the order in which they are read. Raises ConfigError."""
    main = root / MAIN
    drop_ins: dict[str, Path] = {}
    try:
        found = [main] if os.path.lexists(main) else []
        for directory in (root / name for name in DROP_INS):
            if directory.is_dir():
                drop_ins |= {path.name: path for path in directory.iterdir() if _is_drop_in(path.name)}
    except OSError as error:
        raise ConfigError([f"{error.filename or root}: {error.strerror}"]) from error
    return found + [drop_ins[name] for name in sorted(drop_ins)]


def _is_drop_in(name: str) -> bool:
    return name.endswith(".conf") and not name.startswith(".")


def assignments(path: Path, known: Mapping[str, Collection[str]], problems: Problems) -> Iterator[Assignment]:
    """Every assignment of a file to a known key of a known section."""
    try:
        lines = _read(path).split(b"\n")
    except OSError as error:
        problems.add(path, error.strerror or str(error))
        return
    section: str | None = ""
    seen: dict[tuple[str, str], int] = {}
    for number, raw in enumerate(lines, 1):
        if problems.full:
            return
        place = Place(path, number)
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            problems.add(place, "not valid UTF-8")
            continue
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = _section(line, known, place, problems)
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            problems.add(place, f"{shown(line)} is neither a section nor Key=value")
        elif section == "":
            problems.add(place, f"{shown(key)} comes before any section")
        elif section is None:
            continue  # what an unknown section would have known cannot be told
        elif key not in known[section]:
            problems.add(place, f"unknown key {shown(key)} in section [{section}], {_hint(key, section, known)}")
        elif (section, key) in seen:
            problems.add(place, f"{key} is already set in line {seen[section, key]}")
        else:
            seen[section, key] = number
            yield Assignment(section, key, value, place)


def _read(path: Path) -> bytes:
    """Raises OSError."""

    def nonblocking(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold up the daemon

    with open(path, "rb", opener=nonblocking) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) and not os.path.samestat(status, Path(os.devnull).stat()):
            raise OSError(errno.EINVAL, "neither a file nor /dev/null")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_BYTES} bytes")
    return content


def _section(line: str, known: Mapping[str, Collection[str]], place: Place, problems: Problems) -> str | None:
    name = line[1:-1]
    if line.endswith("]") and name in known:
        return name
    similar = _similar(name, known)
    hint = f"did you mean [{similar}]?" if similar else f"known are {', '.join(known)}"
    problems.add(place, f"unknown section {shown(line)}, {hint}")
    return None


def _hint(key: str, section: str, known: Mapping[str, Collection[str]]) -> str:
    for other, keys in known.items():
        if key in keys:
            return f"it belongs to [{other}]"
    similar = _similar(key, known[section])
    return f"did you mean {similar}?" if similar else f"known are {', '.join(known[section])}"


def _similar(name: str, known: Iterable[str]) -> str | None:
    folded = {one.casefold(): one for one in known}
    found = get_close_matches(name[:64].casefold(), folded, n=1)
    return folded[found[0]] if found else None


def shown(text: str) -> str:
    """``text`` for a message: not endless, and without control characters."""
    return printable(text if len(text) <= 64 else text[:63] + "…")


def printable(text: str) -> str:
    """``text`` without anything that a terminal or a log would take for more than text."""
    return text if text.isprintable() else ascii(text)
