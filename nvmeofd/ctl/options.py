"""The options of Stage, Unstage and Disconnect as options of a command line: one table for parser, help, completion.

A test holds it against the interface description.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any, NamedTuple, NoReturn

U32 = 0xFFFF_FFFF
I32 = 0x7FFF_FFFF


class Option(NamedTuple):
    """One key of an ``a{sv}``: its D-Bus type, how its value is called, what it means, and values to choose from."""

    key: str
    signature: str
    metavar: str
    help: str
    choices: tuple[str, ...] = ()
    on: bool = False  # of a boolean: what it is by default
    secret: bool = False  # never in the arguments of a process, where everybody could read it

    @property
    def flag(self) -> str:
        return f"--{self.key}"

    @property
    def takes_value(self) -> bool:
        return self.signature != "b" and not self.secret


_TIMEOUT = Option("timeout", "u", "SEC", "seconds for the whole operation, 1 to 86400")

STAGE = (
    Option("type", "s", "TYPE", "filesystem (default), or block: bind the device onto a file", ("filesystem", "block")),
    Option("fstype", "s", "FSTYPE", "ext4, xfs, btrfs, …; by default what is there, and ext4 when formatting"),
    Option("format", "s", "WHEN", "never (default), or if-empty: only a blank device", ("never", "if-empty")),
    Option("mkfs-options", "as", "ARGS", "arguments for mkfs, as in a shell; may be given several times"),
    Option("mount-options", "as", "OPT,...", "mount options; may be given several times"),
    Option("read-only", "b", "", "device and mount read-only, never formatted, never checked"),
    Option("fsck", "b", "", "check before mounting (default), or not", on=True),
    Option("min-paths", "u", "N", "live paths needed for success; default 1"),
    Option("host-nqn", "s", "NQN", "NQN of this host; default that of /etc/nvme/hostnqn"),
    Option("host-id", "s", "UUID", "identifier of this host; default that of /etc/nvme/hostid"),
    Option("dhchap-secret", "s", "", "ask for the secret of this host, or read it from standard input", secret=True),
    Option("dhchap-ctrl-secret", "s", "", "the same for the secret of the controller", secret=True),
    Option("dhchap-secret-file", "s", "FILE", "file of root's, mode 0600, with the secret of this host"),
    Option("dhchap-ctrl-secret-file", "s", "FILE", "the same for the secret of the controller"),
    Option("ctrl-loss-tmo", "i", "SEC", "until a lost controller is given up; -1 for ever"),
    Option("fast-io-fail-tmo", "i", "SEC", "until I/O on a lost controller fails; -1 for ever"),
    Option("reconnect-delay", "u", "SEC", "between two attempts to reconnect"),
    Option("keep-alive-tmo", "u", "SEC", "until a silent controller counts as lost"),
    Option("nr-io-queues", "u", "N", "I/O queues of a controller"),
    Option("queue-size", "u", "N", "commands in one queue"),
    Option("hdr-digest", "b", "", "header digest of NVMe/TCP"),
    Option("data-digest", "b", "", "data digest of NVMe/TCP"),
    _TIMEOUT,
)
UNSTAGE = (
    Option("force", "b", "", "let go of a filesystem that has no live path; LOSES what was not written"),
    Option("keep-connected", "b", "", "do not disconnect"),
    _TIMEOUT,
)
DISCONNECT = (_TIMEOUT,)

BY_VERB: dict[str, tuple[Option, ...]] = {"stage": STAGE, "unstage": UNSTAGE, "disconnect": DISCONNECT}


def text(value: str) -> str:
    """An argument that can go over the bus, which knows UTF-8 only."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8, which nvmeofd cannot take") from None
    return value


def path(value: str) -> str:
    """A staging path. The slash that completion leaves at the end of a directory is not part of it."""
    stripped = text(value).rstrip("/")
    return stripped if stripped.startswith("/") else value


def unsigned(value: str) -> int:
    return _number(value, 0, U32)


def signed(value: str) -> int:
    return _number(value, -I32 - 1, I32)


def _number(value: str, low: int, high: int) -> int:
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and low <= int(value) <= high):
        raise argparse.ArgumentTypeError(f"{value[:64]!r} is not a number between {low} and {high}")
    return int(value)


def comma_list(value: str) -> list[str]:
    return [part for part in text(value).split(",") if part]


def shell_words(value: str) -> list[str]:
    try:
        return shlex.split(text(value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}".lower()) from None


_TYPES: dict[str, Any] = {"s": text, "u": unsigned, "i": signed}


class Parser(argparse.ArgumentParser):
    """As the other tools: an error is one line and a way to more, and nothing is abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        from nvmeofd.ctl.outcome import Exit, Failure, Refusal

        raise Failure(message, Refusal(Exit.USAGE, f"{self.prog} --help has the form of every argument."))


def add_options(parser: argparse.ArgumentParser, options: tuple[Option, ...]) -> None:
    """Only options that are given end up in the result: the daemon has the defaults."""
    group = parser.add_argument_group("options of the operation")
    for option in options:
        common: dict[str, Any] = {"dest": option.key, "default": argparse.SUPPRESS, "help": option.help}
        if option.secret:
            group.add_argument(option.flag, action="store_true", **common)
        elif option.signature == "b":
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
        elif option.signature == "as":
            split = shell_words if option.key == "mkfs-options" else comma_list
            group.add_argument(option.flag, action="extend", metavar=option.metavar, type=split, **common)
        elif option.choices:
            group.add_argument(option.flag, choices=option.choices, metavar=option.metavar, **common)
        else:
            group.add_argument(option.flag, metavar=option.metavar, type=_TYPES[option.signature], **common)


def given(arguments: argparse.Namespace, options: tuple[Option, ...]) -> dict[str, tuple[str, Any]]:
    """The options that were given, as key to D-Bus type and value. Secrets are still to be asked for."""
    values = vars(arguments)
    return {one.key: (one.signature, values[one.key]) for one in options if one.key in values}
