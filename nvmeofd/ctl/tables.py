"""The verbs that show tables: list and jobs."""

from __future__ import annotations

import argparse
import time

from nvmeofd.ctl.client import connected
from nvmeofd.ctl.outcome import Exit
from nvmeofd.ctl.output import Output
from nvmeofd.ctl.snapshot import Properties, Snapshot, job_number
from nvmeofd.ctl.text import duration, name, size


async def volumes(_: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    async with connected(interactive=interactive) as client:
        found = await client.objects()
    if output.as_json:
        output.json(list(found.volumes.values()))
    else:
        show_volumes(found, output)
    return Exit.OK


async def jobs(_: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    async with connected(interactive=interactive) as client:
        found = await client.objects()
    if output.as_json:
        output.json([{"Job": job_number(path), **one} for path, one in found.jobs.items()])
    else:
        show_jobs(found, output, time.time())
    return Exit.OK


def show_volumes(found: Snapshot, output: Output) -> None:
    rows = [
        [
            name(str(one.get("StagingPath", ""))),
            name(str(one.get("Device", ""))),
            name(str(one.get("Filesystem") or one.get("Type", ""))),
            "ro" if one.get("ReadOnly") else "rw",
            size(int(one.get("Size", 0))),
            output.palette.state(str(one.get("State", ""))),
            name(str(one.get("NQN", ""))),
        ]
        for one in found.volumes.values()
    ]
    output.table(["PATH", "DEVICE", "TYPE", "MODE", "SIZE", "STATE", "SUBSYSTEM"], rows, right=(4,))
    if not rows:
        output.remark("no volumes are staged")


def show_jobs(found: Snapshot, output: Output, now: float) -> None:
    rows = [
        [
            str(job_number(path)),
            name(str(one.get("Operation", ""))),
            name(str(one.get("Step", ""))),
            duration(elapsed(one, now)),
            str(one.get("Sender", "")),
            name(str(one.get("StagingPath") or "-")),
            name(str(one.get("NQN", ""))),
        ]
        for path, one in found.jobs.items()
    ]
    output.table(["JOB", "OPERATION", "STEP", "SINCE", "UID", "PATH", "SUBSYSTEM"], rows, right=(0, 3))
    if not rows:
        output.remark("nothing waits or runs")


def elapsed(job: Properties, now: float) -> float:
    """Seconds since the job was accepted, by the clock of this host, which may have been set meanwhile."""
    return max(now - int(job.get("QueuedAt", 0)) / 1_000_000, 0.0)
