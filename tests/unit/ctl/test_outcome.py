"""Exit codes and hints: one for every error, and the manual says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvmeofd import errors
from nvmeofd.bus import messages
from nvmeofd.ctl.options import BY_VERB
from nvmeofd.ctl.outcome import (
    MEANINGS,
    NO_BUS,
    NOT_INSTALLED,
    OURS,
    REFUSALS,
    STANDARD,
    STANDARD_REFUSALS,
    Exit,
    Refusal,
    failure,
    refusal,
)
from nvmeofd.ctl.verbs import VERBS

ROOT = Path(__file__).parents[3]
MANUAL = (ROOT / "man/nvmeofctl.8").read_text()
ALL = [*REFUSALS.values(), *STANDARD_REFUSALS.values(), NO_BUS, NOT_INSTALLED]
PLACES = {"verb": "stage", "path": "/srv/one", "status": "nvmeofctl status"}


def test_every_error_of_the_daemon() -> None:
    assert REFUSALS.keys() == {one.__name__ for one in errors.NvmeofdError.__subclasses__()}


def test_every_error_of_the_interface() -> None:
    xml = (ROOT / "dbus/org.nvmeofd1.xml").read_text()
    listed = xml[xml.index("    InvalidArgument  ") : xml.index("Of the errors of the D-Bus specification")]
    assert REFUSALS.keys() == set(re.findall(r"^    (\w+) ", listed, re.MULTILINE))


def test_every_standard_error_that_the_daemon_sends() -> None:
    sent = {value for value in vars(messages).values() if isinstance(value, str) and value.startswith(STANDARD)}
    assert {f"{STANDARD}{short}" for short in STANDARD_REFUSALS} >= sent - {messages.PROPERTY_READ_ONLY}


@pytest.mark.parametrize("one", ALL)
def test_hints_are_advice(one: Refusal) -> None:
    """Something to type, or something to do, with nothing left to fill in that could be."""
    shown = one.hint.format(**PLACES)
    assert shown.endswith((".", "nvmeofd(8)."))
    assert "{" not in shown
    assert one.code not in (Exit.OK, Exit.INTERRUPTED)


def test_commands_in_hints_exist() -> None:
    options = {f"--{one.key}" for options in BY_VERB.values() for one in options} | {"--property", "--help", "--no-act"}
    for one in ALL:
        hint = one.hint.format(**PLACES)
        assert set(re.findall(r"nvmeofctl (\w+)", hint)) <= {*VERBS, "and"}
        assert set(re.findall(r"(?<=[ (])--[a-z-]+", hint)) <= options


def test_codes_are_for_good() -> None:
    """Scripts rely on them."""
    assert {one.name: int(one) for one in Exit} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "UNREACHABLE": 3,
        "DENIED": 4,
        "NOT_FOUND": 5,
        "IN_USE": 6,
        "PLACE": 7,
        "CONNECTION": 8,
        "CONTENT": 9,
        "TOOL": 10,
        "TIMEOUT": 11,
        "CANCELLED": 12,
        "TRY_LATER": 13,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
    }
    assert MEANINGS.keys() == set(Exit)


def test_the_manual_has_the_same_table() -> None:
    section = MANUAL[MANUAL.index(".Sh EXIT STATUS") : MANUAL.index(".Sh EXAMPLES")]
    found: dict[int, tuple[str, set[str]]] = {}
    for entry in section.split("\n.It ")[1:]:
        code, meaning, *rest = entry.splitlines()
        found[int(code)] = meaning, {line.split()[1] for line in rest if line.startswith(".Li ")}
    assert found == {
        int(code): (meaning, {name for name, one in REFUSALS.items() if one.code is code})
        for code, meaning in MEANINGS.items()
    }


def test_the_manual_has_every_verb_and_option() -> None:
    for verb in VERBS:
        assert re.search(rf"^\.It Cm {verb}\b", MANUAL, re.MULTILINE)
    for options in BY_VERB.values():
        for one in options:
            assert f"Fl -{'no-' if one.on else ''}{one.key}" in MANUAL


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (f"{OURS}InUse", Exit.IN_USE),
        (f"{OURS}FromALaterVersion", Exit.FAILED),
        (f"{STANDARD}AccessDenied", Exit.DENIED),
        (f"{STANDARD}ServiceUnknown", Exit.UNREACHABLE),
        (f"{STANDARD}Spawn.ChildExited", Exit.UNREACHABLE),
        (f"{STANDARD}FileExists", Exit.UNREACHABLE),  # a masked unit
        ("org.freedesktop.systemd1.UnitMasked", Exit.UNREACHABLE),
        ("com.example.Whatever", Exit.FAILED),
        ("", Exit.FAILED),
    ],
)
def test_names(name: str, code: Exit) -> None:
    assert refusal(name).code is code


def test_a_service_that_cannot_be_started() -> None:
    found = failure(f"{STANDARD}Spawn.ChildExited", "it exited with status 1")
    assert found.text == "nvmeofd cannot be started: it exited with status 1"
    assert "systemctl status nvmeofd" in found.hint


def test_an_error_without_a_text() -> None:
    assert failure(f"{OURS}Busy", "").text == "Busy"
