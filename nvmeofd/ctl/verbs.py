"""The verbs: their arguments, their help, and the module that each is done by, which is imported when it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nvmeofd.ctl.options import Parser

PROG = "nvmeofctl"
COMMON_FLAGS = ("--json", "--no-legend", "--quiet", "--no-ask-password", "--help")


# Not dataclasses, here and in options: importing those takes a quarter of the time of a start.
class Argument(NamedTuple):
    """A positional argument. ``nargs`` as in argparse; ``completes`` says what it is completed with."""

    name: str
    help: str
    nargs: str | None = None
    completes: tuple[str, ...] = ()


class Verb(NamedTuple):
    """``does`` is module and function, below nvmeofd.ctl. ``changes``: the bus may start the daemon for it."""

    name: str
    summary: str
    does: tuple[str, str]
    arguments: tuple[Argument, ...]
    examples: tuple[str, ...]
    text: str = ""
    changes: bool = False


_ONE_NQN = "nqn.2026-11.org.example:shelf1"
_UUID = "uuid.298f5754-a5d7-51e9-a836-b1e8fdc445b5"
_PATH = Argument("PATH", "the staging path", completes=("volumes",))
_SUBSYSTEM = Argument("NQN", "NQN of the subsystem", completes=("subsystems",))

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "stage",
            "connect, wait for the namespace, format if asked and blank, mount",
            ("work", "stage"),
            (
                Argument("NQN", "NQN of the subsystem", completes=("subsystems",)),
                Argument("NAMESPACE", "uuid.UUID, eui.HEX, a bare UUID, nvme.… or nsid.N", completes=("namespaces",)),
                Argument("ADDRESS", "tcp://HOST[:PORT], rdma://…, fc://… or loop://", "+", ("addresses",)),
                Argument("PATH", "where to mount; made if it is not there", completes=("directories",)),
            ),
            (
                f"stage {_ONE_NQN} {_UUID} tcp://192.0.2.1 tcp://192.0.2.2 /srv/vol1",
                f"stage {_ONE_NQN} nsid.1 tcp://192.0.2.1 /srv/vol1 --format=if-empty --fstype=xfs",
                f"stage {_ONE_NQN} nsid.1 tcp://192.0.2.1 /srv/vol1 --read-only --mount-options=noatime,nodev",
                f"stage {_ONE_NQN} nsid.2 tcp://192.0.2.1 /srv/disk2 --type=block",
            ),
            "The same volume at the same path once more is fine and changes nothing. A failure undoes what was done.",
            changes=True,
        ),
        Verb(
            "unstage",
            "unmount, and disconnect when nothing uses the subsystem any more",
            ("work", "unstage"),
            (_PATH,),
            ("unstage /srv/vol1", "unstage /srv/vol1 --keep-connected"),
            "A path that is not staged and not mounted is fine.",
            changes=True,
        ),
        Verb(
            "disconnect",
            "delete all controllers of a subsystem, if nothing uses it",
            ("work", "disconnect"),
            (_SUBSYSTEM,),
            (f"disconnect {_ONE_NQN}",),
            changes=True,
        ),
        Verb(
            "status",
            "subsystems with their paths, namespaces and users",
            ("status", "status"),
            (Argument("NQN|PATH", "only these subsystems (default: all)", "*", ("subsystems", "volumes")),),
            ("status", f"status {_ONE_NQN}", "status /srv/vol1 --json"),
            "Who uses a subsystem is asked of the kernel now, which may take a while.",
        ),
        Verb("list", "staged volumes", ("tables", "volumes"), (), ("list", "list --json", "list --no-legend")),
        Verb(
            "show",
            "properties of a volume, a subsystem, a job, or of the daemon",
            ("show", "show"),
            (
                Argument(
                    "OBJECT",
                    "a staging path, an NQN, the number of a job, or manager (default)",
                    "?",
                    ("subsystems", "volumes", "jobs", "manager"),
                ),
            ),
            ("show /srv/vol1", f"show {_ONE_NQN} --json", "show 7", "show --property=HostNQN"),
        ),
        Verb(
            "monitor",
            "what happens, as it happens, until Ctrl-C",
            ("monitor", "monitor"),
            (),
            ("monitor", "monitor --json | jq 'select(.Kind == \"volume\")'"),
            "Paths (controllers) come and go without an event; status shows them.",
        ),
        Verb("jobs", "operations that wait or run", ("tables", "jobs"), (), ("jobs", "jobs --json")),
        Verb(
            "cancel",
            "ask an operation to stop, and wait for its end",
            ("work", "cancel"),
            (Argument("JOB", "number of the job", completes=("jobs",)),),
            ("cancel 7",),
            "What it has done is undone. One that is past the point where it could stop ends as it would have.",
        ),
    )
}

_COMMON_HELP = """\
options for every verb:
  --json             JSON on standard output (monitor: one object a line)
  --no-legend        no header over tables
  --quiet            no progress and no remarks
  --no-ask-password  do not have the user asked to authenticate
  --help             this help
"""


def overview() -> str:
    """The help for nvmeofctl without a verb."""
    longest = max(map(len, VERBS))
    verbs = "\n".join(f"  {one.name:{longest}}  {one.summary}" for one in VERBS.values())
    return (
        f"usage: {PROG} [--json] [--no-legend] [--quiet] VERB ...\n\n"
        "Stage and unstage volumes on NVMe over Fabrics through nvmeofd, and look at them.\n\n"
        f"verbs ({PROG} VERB --help for each):\n{verbs}\n\n{_COMMON_HELP}"
        f"  --version          the version of {PROG}\n\nExit codes are in nvmeofctl(8).\n"
    )


def _usage(argument: Argument) -> str:
    """An argument as a line of usage has it."""
    match argument.nargs:
        case "+":
            return f" {argument.name}..."
        case "*":
            return f" [{argument.name}...]"
        case "?":
            return f" [{argument.name}]"
    return f" {argument.name}"


def parser(verb: Verb) -> Parser:
    """The parser for the arguments after ``verb``."""
    from nvmeofd.ctl.options import BY_VERB, Parser, add_options, path, text

    examples = "\n".join(f"  {PROG} {line}" for line in verb.examples)
    made = Parser(
        prog=f"{PROG} {verb.name}",
        usage=f"{PROG} {verb.name} [OPTION...]{''.join(map(_usage, verb.arguments))}",
        description="\n".join(filter(None, [f"{verb.summary[0].upper()}{verb.summary[1:]}.", verb.text])),
        epilog=f"{_COMMON_HELP}\nexamples:\n{examples}",
        add_help=False,
    )
    for argument in verb.arguments:
        kind = path if {"volumes", "directories"} & {*argument.completes} else text
        made.add_argument(argument.name, help=argument.help, type=kind, nargs=argument.nargs)
    if verb.name == "show":
        made.add_argument("--property", action="append", metavar="NAME", help="only this; may be given several times")
        made.add_argument("--value", action="store_true", help="values without their names")
    if verb.name in BY_VERB:
        add_options(made, BY_VERB[verb.name])
    return made
