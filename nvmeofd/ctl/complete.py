"""The hidden verb __complete, which the completions of the shells call: what could stand where the cursor is.

``nvmeofctl __complete -- WORD... CURRENT`` takes the words after ``nvmeofctl`` up to the cursor; the last one is what
was typed of the current word, maybe nothing. It prints a candidate on each line, with a description after a tab; the
line ``:directories`` stands for directories. It starts nothing, waits for nobody, and says nothing about failures.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nvmeofd.ctl.options import BY_VERB, Option
from nvmeofd.ctl.verbs import VERBS, Argument, Verb

if TYPE_CHECKING:
    from nvmeofd.ctl.snapshot import Snapshot

PATIENCE = 2.0  # seconds: whoever waits for a completion does not wait longer
DIRECTORIES = ":directories"

_COMMON = {
    "--json": "JSON on standard output",
    "--no-legend": "no header over tables",
    "--quiet": "no progress and no remarks",
    "--no-ask-password": "do not have the user asked to authenticate",
    "--help": "help",
}
_SHOW = (
    Option("property", "s", "NAME", "only this property"),
    Option("value", "b", "", "values without their names"),
)

Candidates = list[tuple[str, str]]


def complete(words: list[str]) -> int:
    """Print the candidates; always succeeds."""
    if words[:1] == ["--"]:
        words = words[1:]
    try:
        found = candidates(words or [""])
        sys.stdout.write("".join(f"{value}\t{text}\n" if text else f"{value}\n" for value, text in found))
        sys.stdout.flush()
    except Exception:  # noqa: BLE001 - a shell that completes must not be disturbed, whatever is wrong
        return 0
    return 0


def candidates(words: list[str]) -> Candidates:
    """What could stand in place of the last word."""
    *before, current = words
    position = next((number for number, word in enumerate(before) if not word.startswith("-")), None)
    if position is None:
        if current.startswith("-"):
            return [*_COMMON.items(), ("--version", "the version")]
        return [(verb.name, verb.summary) for verb in VERBS.values()]
    verb = VERBS.get(before[position])
    if verb is None:
        return []
    options = {one.flag: one for one in (_SHOW if verb.name == "show" else BY_VERB.get(verb.name, ()))}
    values, waiting = _values(before[position + 1 :], options)
    if waiting is not None:
        return [(choice, "") for choice in waiting.choices]
    if current.startswith("-"):
        return _flags(options, current)
    return _arguments(verb, values)


def _values(words: list[str], options: dict[str, Option]) -> tuple[list[str], Option | None]:
    """The positional arguments among ``words``, and the option whose value comes next, if there is one."""
    values: list[str] = []
    waiting: Option | None = None
    for word in words:
        if waiting is not None:
            waiting = None
        elif not word.startswith("-"):
            values.append(word)
        else:
            option = options.get(word)
            waiting = option if option is not None and option.takes_value else None
    return values, waiting


def _flags(options: dict[str, Option], current: str) -> Candidates:
    flag, equals, _ = current.partition("=")
    if equals:
        option = options.get(flag)
        return [(f"{flag}={choice}", "") for choice in option.choices] if option else []
    found: Candidates = []
    for one in options.values():
        shown = f"{one.flag}=" if one.takes_value else f"--no-{one.key}" if one.on else one.flag
        found.append((shown, one.help))
    return [*found, *_COMMON.items()]


def _arguments(verb: Verb, values: list[str]) -> Candidates:
    """Candidates for the next positional argument, from the live daemon."""
    kinds = _kinds(verb.arguments, len(values))
    static = [kind for kind in ("manager", "directories") if kind in kinds]
    found: Candidates = []
    if set(kinds) - set(static):
        snapshot = _snapshot()
        if snapshot is not None:
            nqn = values[0] if values else ""
            found = [one for kind in kinds for one in live(snapshot, kind, nqn) if one[0] not in values]
    if "manager" in static:
        found.append(("manager", "the daemon itself"))
    if "directories" in static:
        found.append((DIRECTORIES, ""))
    return [(value, " ".join(text.split())) for value, text in found if value.isprintable() and text.isprintable()]


def _kinds(arguments: tuple[Argument, ...], number: int) -> tuple[str, ...]:
    """What the argument with this number can be; after one that may be repeated, that one or the next."""
    for position, argument in enumerate(arguments):
        if argument.nargs in ("+", "*"):
            following = arguments[position + 1].completes if position + 1 < len(arguments) else ()
            first = number == position and argument.nargs == "+"
            return argument.completes if first else (*argument.completes, *following)
        if position == number:
            return argument.completes
    return ()


def live(found: Snapshot, kind: str, nqn: str) -> Candidates:
    """Names of one kind; namespaces and addresses are those of one subsystem."""
    subsystems = found.subsystems.values()
    mine = [one for one in subsystems if one.get("NQN") == nqn]
    match kind:
        case "subsystems":
            return [(one, "") for one in found.nqns()]
        case "volumes":
            return [(str(one["StagingPath"]), str(one.get("Device", ""))) for one in found.volumes.values()]
        case "jobs":
            jobs = ((path.rpartition("/")[2], one) for path, one in found.jobs.items())
            return [
                (number, f"{one.get('Operation')} {one.get('StagingPath') or one.get('NQN')}") for number, one in jobs
            ]
        case "namespaces":
            return [(str(entry[1]), str(entry[0])) for one in mine for entry in one.get("Namespaces", [])]
        case "addresses":
            return [(str(entry[2]), str(entry[0])) for one in mine for entry in one.get("Controllers", [])]
    return []


def _snapshot() -> Snapshot | None:
    """What the daemon shows, None when it is not there or does not answer at once."""
    import asyncio

    from nvmeofd.ctl.client import connected

    async def ask() -> Snapshot:
        async with asyncio.timeout(PATIENCE), connected() as client:
            return await client.objects(timeout=PATIENCE)

    return asyncio.run(ask())
