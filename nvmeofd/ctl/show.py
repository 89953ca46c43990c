"""The verb show: the properties of one object."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nvmeofd.bus.paths import ROOT, job_path, subsystem_path, volume_path
from nvmeofd.ctl.client import JOB, MANAGER, SUBSYSTEM, VOLUME, connected, missing
from nvmeofd.ctl.outcome import Exit, Failure, Refusal
from nvmeofd.ctl.output import Output
from nvmeofd.ctl.text import moment, name, size

_BYTES = ("Size",)
_MOMENTS = ("StagedAt", "QueuedAt", "StartedAt")


async def show(arguments: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    path, interface, absent = resolve(arguments.OBJECT or "manager")
    async with connected(interactive=interactive) as client:
        try:
            found = await client.properties(path, interface)
        except Failure as error:
            if error.name == "UnknownObject":
                raise missing(absent, error.hint) from None
            raise
    if arguments.property:
        found = _only(found, arguments.property)
    if output.as_json:
        output.json(found)
    elif arguments.value:
        output.lines([line for key, value in found.items() for line in _lines(key, value, raw=True)])
    else:
        longest = max(map(len, found), default=0)
        for key, value in found.items():
            for number, line in enumerate(_lines(key, value)):
                head = f"{'' if number else key + ':':{longest + 1}}"
                output.line(f"{output.palette.strong(head)} {line}".rstrip())
    return Exit.OK


def resolve(wanted: str) -> tuple[str, str, str]:
    """Object path and interface of what ``wanted`` names, and what to say when it is not there. Raises Failure."""
    if wanted == "manager":
        return ROOT, MANAGER, "nvmeofd has no manager"
    if wanted.startswith("/"):
        return volume_path(wanted), VOLUME, f"nothing is staged at {name(wanted)}"
    if wanted.isascii() and wanted.isdecimal() and len(wanted) <= 19:
        return job_path(int(wanted)), JOB, f"there is no job {int(wanted)} any more"
    if wanted.startswith("nqn."):
        return subsystem_path(wanted), SUBSYSTEM, f"{name(wanted)} is not connected"
    raise Failure(
        f"{wanted[:256]!r} is none of a staging path, an NQN, the number of a job, and manager",
        Refusal(Exit.USAGE, "nvmeofctl show --help has examples."),
    )


def _only(found: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    unknown = [one for one in wanted if one not in found]
    if unknown:
        raise Failure(
            f"there is no property {unknown[0][:64]!r}",
            Refusal(Exit.USAGE, f"There are {', '.join(name(key) for key in found)}."),
        )
    return {key: found[key] for key in wanted}


def _lines(key: str, value: Any, *, raw: bool = False) -> list[str]:
    """A value for people, one line for each entry; ``raw``: without anything that is not in it."""
    match value:
        case dict():
            return [f"{name(str(one))} {_word(number)}" for one, number in value.items()]
        case list():
            return ["  ".join(map(_word, one)) if isinstance(one, list) else _word(one) for one in value] or [""] * (
                not raw
            )
        case int() if not raw and key in _BYTES and not isinstance(value, bool):
            return [f"{value} ({size(value)})"]
        case int() if not raw and key in _MOMENTS:
            return [moment(value) if value else "-"]
    return [_word(value)]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return name(value) if isinstance(value, str) else json.dumps(value)
