"""The configuration: every key with type, range, unit and default.

The format is systemd's: ``[Section]``, ``Key=value``, comments on lines of their own (``#`` or ``;``). Drop-ins are
read after the main file in the order of their names; what comes later wins, and an empty value goes back to the
default. Anything unknown or malformed is refused: a misspelt key that does nothing would be found out too late.

A new key goes into the template etc/nvmeofd.conf and the manual man/nvmeofd.conf.5, too; a test compares them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from nvmeofd.configfile import Place, Problems, assignments, config_files, printable, shown

MAX_SECONDS = 86_400
MAX_KERNEL_SECONDS = MAX_SECONDS * 365  # the kernel keeps these in an int, drivers/nvme/host/fabrics.c

_LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class Key(NamedTuple):
    """What a key accepts, for checking and for people to read."""

    name: str
    parse: Callable[[str], Any]
    accepts: str
    write: Callable[[Any], str] = str  # what ``parse`` reads


def _key(name: str, parse: Callable[[str], Any], accepts: str, write: Callable[[Any], str] = str) -> dict[str, Key]:
    return {"key": Key(name, parse, accepts, write)}


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


def _log_level_name(level: int) -> str:
    return next(name for name, value in _LOG_LEVELS.items() if value == level)


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
        default=logging.INFO, metadata=_key("LogLevel", _log_level, "one of " + ", ".join(_LOG_LEVELS), _log_level_name)
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
    # The files that were read, and what was set where; values are compared without.
    files: Sequence[Path] = field(default=(), compare=False)
    places: Mapping[tuple[str, str], Place] = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, paths: Iterable[Path] | None = None) -> Self:
        """Read the files, by default those of the host.

        Raises:
            ConfigError: a file cannot be read, or something in it is wrong; has every mistake with file and line.
        """
        paths = config_files() if paths is None else list(paths)
        problems = Problems()
        values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        places: dict[tuple[str, str], Place] = {}
        for path in paths:
            for section, key, text, place in assignments(path, SECTIONS, problems):
                attribute, what = SECTIONS[section][key]
                try:
                    parsed = what.parse(text) if text else None
                except ValueError:
                    problems.add(place, f"{key}={shown(text)} is not {what.accepts}")
                    continue
                # an empty value is the default again
                values[section].pop(attribute, None)
                places.pop((section, key), None)
                if text:
                    values[section][attribute] = parsed
                    places[section, key] = place
        problems.check()
        connect = ConnectConfig(**values.pop("Connect"))
        own = {attribute: value for section in values.values() for attribute, value in section.items()}
        return cls(connect=connect, files=tuple(paths), places=places, **own)

    def settings(self) -> list[Setting]:
        """Every key with its value, in the order in which they are documented."""
        return [
            Setting(section, key, None if value is None else what.write(value), self.places.get((section, key)))
            for section, keys in SECTIONS.items()
            for key, (attribute, what) in keys.items()
            for value in (getattr(self.connect if section == "Connect" else self, attribute),)
        ]


class Setting(NamedTuple):
    section: str
    key: str
    text: str | None  # None: left to the kernel
    place: Place | None  # None: the default


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


def effective(config: Config) -> str:
    """The values that count, as a configuration file, each below where it was set: for people to read."""
    lines = (
        ["# Read, in this order:", *(f"#   {printable(str(path))}" for path in config.files)] if config.files else []
    )
    section = ""
    for one in config.settings():
        if one.section != section:
            section = one.section
            lines += ["", f"[{section}]"]
        lines.append(f"# {one.place or ('default' if one.text is not None else 'left to the kernel')}")
        lines.append(f"{one.key}={one.text or ''}")
    return "\n".join(lines).lstrip("\n") + "\n"
