"""The configuration: /etc/nvmeofd/nvmeofd.conf and the drop-ins nvmeofd.conf.d/*.conf.

The format is systemd's: ``[Section]``, ``Key=value``, comments on lines of their own (``#`` or ``;``). Drop-ins are
read after the main file in the order of their names; what comes later wins, and an empty value goes back to the
default. Anything unknown or malformed is refused: a misspelt key that does nothing would be found out too late.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

DIRECTORY = Path("/etc/nvmeofd")
MAX_SECONDS = 86_400
MAX_KERNEL_SECONDS = MAX_SECONDS * 365  # the kernel keeps these in an int, drivers/nvme/host/fabrics.c

_LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class ConfigError(Exception):
    """The configuration cannot be used. The message names file, line and key."""


class Key(NamedTuple):
    """What a key accepts, for checking and for people to read."""

    name: str
    parse: Callable[[str], Any]
    accepts: str


def _key(name: str, parse: Callable[[str], Any], accepts: str) -> dict[str, Key]:
    return {"key": Key(name, parse, accepts)}


def _number(name: str, low: int, high: int, unit: str = "") -> dict[str, Key]:
    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and low <= int(text) <= high):
            raise ValueError
        return int(text)

    return _key(name, parse, f"a whole number{unit and f' of {unit}'} between {low} and {high}")


def _log_level(text: str) -> int:
    if text not in _LOG_LEVELS:
        raise ValueError
    return _LOG_LEVELS[text]


def _metrics_file(text: str) -> str:
    # The ending keeps a slip from replacing something else, and node_exporter reads no other files.
    if not (text.startswith("/") and text.endswith(".prom") and text.isprintable() and os.path.normpath(text) == text):
        raise ValueError
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectConfig:
    """Section [Connect]: what connections get when a request does not say. None: the kernel's default."""

    # seconds until the kernel gives up a lost controller; -1: never
    ctrl_loss_tmo: int | None = field(
        default=1800, metadata=_number("CtrlLossTimeoutSec", -1, MAX_KERNEL_SECONDS, "seconds")
    )
    # seconds until I/O to a lost controller fails; -1: never
    fast_io_fail_tmo: int | None = field(
        default=None, metadata=_number("FastIOFailTimeoutSec", -1, MAX_KERNEL_SECONDS, "seconds")
    )
    # seconds between two attempts to reconnect
    reconnect_delay: int | None = field(default=None, metadata=_number("ReconnectDelaySec", 1, MAX_SECONDS, "seconds"))
    # seconds until a silent controller counts as lost; 0: keep-alive is off
    keep_alive_tmo: int | None = field(default=None, metadata=_number("KeepAliveSec", 0, 65_535, "seconds"))
    nr_io_queues: int | None = field(default=None, metadata=_number("NrIOQueues", 1, 65_535))
    # commands per queue
    queue_size: int | None = field(default=None, metadata=_number("QueueSize", 16, 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. Without any file they have their defaults."""

    # [Daemon]
    # a level of Python's logging
    log_level: int = field(
        default=logging.INFO, metadata=_key("LogLevel", _log_level, "one of " + ", ".join(_LOG_LEVELS))
    )
    # where the metrics are written, in Prometheus' text format; None: nowhere
    metrics_file: str | None = field(
        default=None, metadata=_key("MetricsFile", _metrics_file, "an absolute path that ends in .prom")
    )
    # [Operation]
    # seconds that a job may take, queueing included, when the request does not say
    timeout: int = field(default=60, metadata=_number("TimeoutSec", 1, MAX_SECONDS, "seconds"))
    # jobs waiting for one subsystem
    queue_limit: int = field(default=64, metadata=_number("QueueLimit", 1, 100_000))
    # jobs queued or running for all subsystems
    total_limit: int = field(default=1024, metadata=_number("TotalLimit", 1, 1_000_000))
    # seconds that a subsystem stays connected after its last volume was unstaged
    disconnect_delay: int = field(default=0, metadata=_number("DisconnectDelaySec", 0, MAX_SECONDS, "seconds"))
    connect: ConnectConfig = field(default_factory=ConnectConfig)

    @classmethod
    def load(cls, paths: Iterable[Path] | None = None) -> Self:
        """Read the files, by default those below /etc/nvmeofd.

        Raises:
            ConfigError: a file cannot be read, or something in it is wrong; names file, line and key.
        """
        values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for path in config_files() if paths is None else paths:
            for section, key, text, place in _assignments(path):
                attribute, what = SECTIONS[section][key]
                if not text:
                    values[section].pop(attribute, None)
                    continue
                try:
                    values[section][attribute] = what.parse(text)
                except ValueError:
                    raise ConfigError(f"{place}: {key}={_shown(text)} is not {what.accepts}") from None
        connect = ConnectConfig(**values.pop("Connect"))
        return replace(cls(connect=connect), **{k: v for section in values.values() for k, v in section.items()})


def _keys(cls: type[Any], *names: str) -> dict[str, tuple[str, Key]]:
    found = {}
    for item in fields(cls):
        key: Key | None = item.metadata.get("key")
        if key is not None and (not names or key.name in names):
            found[key.name] = (item.name, key)
    return found


# section → key → (attribute, what it accepts)
SECTIONS = {
    "Daemon": _keys(Config, "LogLevel", "MetricsFile"),
    "Operation": _keys(Config, "TimeoutSec", "QueueLimit", "TotalLimit", "DisconnectDelaySec"),
    "Connect": _keys(ConnectConfig),
}


def config_files(directory: Path = DIRECTORY) -> list[Path]:
    """The main file, if there is one, and the drop-ins in the order in which they are read. Raises ConfigError."""
    main = directory / "nvmeofd.conf"
    drop_ins = directory / "nvmeofd.conf.d"
    try:
        found = [main] if main.exists() else []
        if drop_ins.is_dir():
            found += sorted(p for p in drop_ins.iterdir() if p.suffix == ".conf" and not p.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{error.filename or directory}: {error.strerror}") from error
    return found


def _assignments(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(section, key, value, "file:line") of every assignment of a file, sections and keys being known ones."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    section = ""
    seen: dict[tuple[str, str], int] = {}
    for number, raw in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{place}: not valid UTF-8") from None
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line[1:-1]
            if not line.endswith("]") or section not in SECTIONS:
                raise ConfigError(f"{place}: unknown section {_shown(line)}, known are {_listed(SECTIONS)}")
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise ConfigError(f"{place}: {_shown(line)} is neither a section nor Key=value")
        if not section:
            raise ConfigError(f"{place}: {_shown(key)} comes before any section")
        if key not in SECTIONS[section]:
            known = _listed(SECTIONS[section])
            raise ConfigError(f"{place}: unknown key {_shown(key)} in section [{section}], known are {known}")
        if (section, key) in seen:
            raise ConfigError(f"{place}: {key} is already set in line {seen[section, key]}")
        seen[section, key] = number
        yield section, key, value, place


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(text: str) -> str:
    text = text if len(text) <= 64 else text[:63] + "…"
    return text if text.isprintable() else ascii(text)
