"""From a command line to an exit code. What a verb needs is imported when it is known: start is most of the cost."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvmeofd import __version__
from nvmeofd.ctl.verbs import COMMON_FLAGS, PROG, VERBS, overview, parser

if TYPE_CHECKING:
    import argparse

    from nvmeofd.ctl.outcome import Failure
    from nvmeofd.ctl.verbs import Verb

_FAILED, _INTERRUPTED, _BROKEN_PIPE = 1, 130, 141  # as in outcome.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Whatever the locale: a name that it cannot show is escaped, not an error.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on. What is buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return _FAILED
    return code


def _run(given: list[str]) -> int:
    if given[:1] == ["__complete"]:
        from nvmeofd.ctl.complete import complete

        return complete(given[1:])
    flags, verb, rest = split(given)
    if "--version" in flags:
        sys.stdout.write(f"{PROG} {__version__}\n")
        return 0
    if verb is None and {"--help", "-h"} & set(flags):
        sys.stdout.write(overview())
        return 0
    from nvmeofd.ctl.outcome import Failure

    try:
        return _perform(flags, verb, rest)
    except Failure as error:
        _complain(error, verb or "VERB")
        return int(error.code)


def split(given: list[str]) -> tuple[list[str], str | None, list[str]]:
    """Flags before the verb, the verb (None when there is none), and what follows it."""
    for position, word in enumerate(given):
        if not word.startswith("-"):
            return given[:position], word, given[position + 1 :]
    return given, None, []


def _perform(flags: list[str], name: str | None, rest: list[str]) -> int:
    from nvmeofd.ctl.outcome import Exit, Failure, Refusal

    hint = f"{PROG} --help lists the verbs."
    unknown = [flag for flag in flags if flag not in (*COMMON_FLAGS, "-h")]
    if unknown:
        raise Failure(f"{unknown[0]} is no option for every verb", Refusal(Exit.USAGE, hint))
    if name is None:
        raise Failure("which verb?", Refusal(Exit.USAGE, hint))
    verb = VERBS.get(name)
    if verb is None:
        from difflib import get_close_matches

        similar = get_close_matches(name[:64], VERBS, n=1)
        meant = f", did you mean {similar[0]}?" if similar else ""
        raise Failure(f"{name[:64]!r} is no verb{meant}", Refusal(Exit.USAGE, hint))
    return _act(verb, flags + rest)


def _act(verb: Verb, words: list[str]) -> int:
    before = words[: words.index("--")] if "--" in words else words
    reader = parser(verb)
    common = {flag: flag in before for flag in COMMON_FLAGS}
    if common["--help"] or "-h" in before:
        sys.stdout.write(reader.format_help())
        return 0
    own = [word for word in before if word not in COMMON_FLAGS] + words[len(before) :]
    arguments: argparse.Namespace = reader.parse_intermixed_args(own)

    import asyncio
    from importlib import import_module

    from nvmeofd.ctl.outcome import Failure
    from nvmeofd.ctl.output import Output

    output = Output(as_json=common["--json"], legend=not common["--no-legend"], quiet=common["--quiet"])
    module, function = verb.does
    action = getattr(import_module(f"nvmeofd.ctl.{module}"), function)
    try:
        return int(asyncio.run(action(arguments, output, interactive=not common["--no-ask-password"])))
    except Failure as error:
        sys.stdout.flush()
        _complain(error, verb.name, nqn=getattr(arguments, "NQN", ""), path=getattr(arguments, "PATH", ""))
        return int(error.code)


def _complain(error: Failure, verb: str = "VERB", *, nqn: str = "", path: str = "") -> None:
    """Say what is wrong, and what to do next."""
    from nvmeofd.ctl.text import Palette, prose, shell_word

    palette = Palette.of(sys.stderr)
    about = shell_word(nqn or path) if nqn or path else ""
    hint = error.hint.format(
        verb=verb, path=shell_word(path) if path else "PATH", status=f"{PROG} status {about}".rstrip()
    )
    name = palette.bad(prose(error.name)) + ": " if error.name else ""
    sys.stderr.write(f"{PROG}: {name}{prose(error.text)}\n{PROG}: {hint}\n")
