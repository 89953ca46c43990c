"""The verbs that change something: stage, unstage, disconnect, cancel."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from nvmeofd.bus.dbusnext import variant
from nvmeofd.bus.paths import ROOT, job_path
from nvmeofd.ctl.client import JOB, MANAGER, Client, Event, connected, missing, reply_timeout
from nvmeofd.ctl.options import DISCONNECT, STAGE, UNSTAGE, given, text
from nvmeofd.ctl.outcome import NOT_FOUND, OURS, STANDARD, Exit, Failure, Refusal, failure
from nvmeofd.ctl.output import Output
from nvmeofd.ctl.progress import OwnJob, Progress
from nvmeofd.ctl.text import name, prose, shell_word

TICK = 1.0  # seconds between two looks at the clock


async def stage(arguments: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    values = given(arguments, STAGE)
    for option in STAGE:
        if option.secret and option.key in values:
            values[option.key] = (option.signature, _secret(option.key))
    call = (arguments.NQN, arguments.NAMESPACE, arguments.ADDRESS, arguments.PATH, _variants(values))
    job = OwnJob("stage", path=arguments.PATH, nqn=arguments.NQN)
    progress = Progress(output.err, f"stage {name(arguments.PATH)}", quiet=output.quiet)
    async with connected(interactive=interactive) as client:
        volume, device = await _perform(client, job, progress, "Stage", "ssassa{sv}", call, values)
    if output.as_json:
        output.json({"Volume": volume, "Device": device})
    else:
        output.line(f"Staged {name(device)} at {name(arguments.PATH)}")
    return Exit.OK


async def unstage(arguments: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    values = given(arguments, UNSTAGE)
    job = OwnJob("unstage", path=arguments.PATH)
    progress = Progress(output.err, f"unstage {name(arguments.PATH)}", quiet=output.quiet)
    async with connected(interactive=interactive) as client:
        call = (arguments.PATH, _variants(values))
        (disconnected,) = await _perform(client, job, progress, "Unstage", "sa{sv}", call, values)
    if output.as_json:
        output.json({"Disconnected": disconnected})
        return Exit.OK
    if not (disconnected or job.nqn or progress.quiet):  # there was nothing to be done: no job was seen
        output.line(f"Nothing is staged at {name(arguments.PATH)}")
        return Exit.OK
    output.line(f"Unstaged {name(arguments.PATH)}")
    if disconnected:
        output.remark("its subsystem is not connected any more")
    elif values.get("keep-connected", ("b", False))[1]:
        output.remark("its subsystem stays connected, as asked")
    else:
        which = f" {shell_word(job.nqn)}" if job.nqn else ""
        output.remark(f"its subsystem stays connected: nvmeofctl status{which} shows who uses it")
    return Exit.OK


async def disconnect(arguments: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    values = given(arguments, DISCONNECT)
    job = OwnJob("disconnect", nqn=arguments.NQN)
    progress = Progress(output.err, f"disconnect {name(arguments.NQN)}", quiet=output.quiet)
    async with connected(interactive=interactive) as client:
        call = (arguments.NQN, _variants(values))
        (controllers,) = await _perform(client, job, progress, "Disconnect", "sa{sv}", call, values)
    if output.as_json:
        output.json({"Controllers": controllers})
    elif controllers:
        output.line(f"Disconnected {', '.join(map(name, controllers))}")
    else:
        output.line(f"{name(arguments.NQN)} was not connected")
    return Exit.OK


async def cancel(arguments: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    if not (arguments.JOB.isascii() and arguments.JOB.isdecimal() and len(arguments.JOB) <= 19):
        raise Failure(f"{arguments.JOB[:64]!r} is not the number of a job", Refusal(Exit.USAGE, NOT_FOUND.hint))
    number = int(arguments.JOB)
    path = job_path(number)
    async with connected(interactive=interactive) as client:
        await client.watch()
        try:
            await client.call(path, JOB, "Cancel")
        except Failure as error:
            if error.name == "UnknownObject":
                raise missing(f"there is no job {number} any more", "See what there is with nvmeofctl jobs.") from None
            raise
        output.remark(f"job {number} was asked to stop; Ctrl-C ends waiting for it")
        outcome = await _end_of(client, path)
    if output.as_json:
        output.json({"Job": number, **outcome})
    if outcome["Success"]:
        raise Failure(
            f"job {number} was past the point where it could stop, and has succeeded",
            Refusal(Exit.FAILED, "See what is there with nvmeofctl status."),
        )
    if not output.as_json:
        why = str(outcome["Error"]).removeprefix(OURS)
        output.line(f"Job {number} has ended: {name(why)}: {prose(str(outcome['Message']))}")
    return Exit.OK


async def _end_of(client: Client, path: str) -> dict[str, Any]:
    while True:
        event = await client.event()
        if event.kind == "completed" and event.path == path:
            return event.values
        if event.kind == "daemon":
            raise failure(f"{STANDARD}NoReply", "nvmeofd ended meanwhile")


async def _perform(
    client: Client,
    job: OwnJob,
    progress: Progress,
    member: str,
    signature: str,
    call: tuple[Any, ...],
    values: dict[str, tuple[str, Any]],
) -> list[Any]:
    """Make the call, and show how it gets on until its reply is there."""

    def listen(event: Event) -> None:
        if job.take(event):
            progress.show(job.step, job.numbers)

    if not progress.quiet:
        await client.watch(listen)
    timeout = reply_timeout(values["timeout"][1] if "timeout" in values else None)
    clock = asyncio.create_task(_tick(job, progress), name="clock") if progress.live else None
    try:
        return await client.call(ROOT, MANAGER, member, signature, *call, timeout=timeout, start=True)
    except asyncio.CancelledError:
        progress.clear()
        _say_it_goes_on(job)
        raise
    finally:
        if clock is not None:
            clock.cancel()
            await asyncio.gather(clock, return_exceptions=True)
        progress.clear()


async def _tick(job: OwnJob, progress: Progress) -> None:
    """Keep the time that is shown current."""
    while True:
        await asyncio.sleep(TICK)
        progress.show(job.step, job.numbers)


def _say_it_goes_on(job: OwnJob) -> None:
    """After Ctrl-C: as with systemctl, only the waiting ends."""
    if job.numbers:
        commands = " or ".join(f"nvmeofctl cancel {number}" for number in job.numbers)
        lines = f"the operation goes on. Watch it with nvmeofctl jobs; stop and undo it with {commands}"
    else:
        lines = "what was asked for goes on. See with nvmeofctl jobs"
    start = "\n" if sys.stderr.isatty() else ""  # the terminal shows ^C
    sys.stderr.write(f"{start}nvmeofctl: {lines}\n")


def _variants(values: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {key: variant(signature, value) for key, (signature, value) in values.items()}


def _secret(key: str) -> str:
    """A secret that is typed in without being shown, or the next line of standard input."""
    if sys.stdin.isatty():
        import getpass

        found = getpass.getpass(f"{key}: ")
    else:
        found = sys.stdin.readline().rstrip("\r\n")
    if not found:
        raise Failure(f"--{key}: no secret was given", Refusal(Exit.USAGE, "Type it in, or pipe it to nvmeofctl."))
    try:
        return text(found)
    except argparse.ArgumentTypeError as error:
        raise Failure(f"--{key}: {error}", Refusal(Exit.USAGE, "A secret looks like DHHC-1:00:…:")) from None
