"""The verb status: each subsystem with its paths, its namespaces, and who uses them."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvmeofd.ctl.client import Client, connected, missing
from nvmeofd.ctl.outcome import Exit, Failure
from nvmeofd.ctl.output import Output
from nvmeofd.ctl.snapshot import Properties, Snapshot
from nvmeofd.ctl.tables import elapsed
from nvmeofd.ctl.text import Palette, Tree, duration, name, size

# ListUsers looks at every process of the host. So many at a time are far below the daemon's bound on calls.
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Users:
    """Kind, device and detail of each user; or why they cannot be told."""

    entries: Sequence[Sequence[str]] = ()
    error: str = ""


async def status(arguments: argparse.Namespace, output: Output, *, interactive: bool) -> int:
    async with connected(interactive=interactive) as client:
        found = await client.objects()
        nqns = chosen(found, getattr(arguments, "NQN|PATH"))
        users = await _all_users(client, found, nqns)
    if output.as_json:
        output.json([as_json(found, nqn, users) for nqn in nqns])
        return Exit.OK
    now = time.time()
    for position, nqn in enumerate(nqns):
        if position:
            output.line("")
        output.lines(tree(found, nqn, users, output.palette, now).lines(ascii_only=output.ascii_only))
    if not nqns:
        output.remark("no subsystem is connected")
    return Exit.OK


def chosen(found: Snapshot, wanted: Sequence[str]) -> list[str]:
    """The NQNs that are asked for, by NQN or by staging path. Raises Failure for what is not there."""
    if not wanted:
        return found.nqns()
    paths = {one.get("StagingPath"): str(one.get("NQN", "")) for one in found.volumes.values()}
    known = set(found.nqns())
    nqns = []
    for one in wanted:
        nqn = paths.get(one, one)
        if nqn not in known:
            what = f"nothing is staged at {name(one)}" if one.startswith("/") else f"{name(one)} is not connected"
            raise missing(what, "See what there is with nvmeofctl status and nvmeofctl list.")
        nqns.append(nqn)
    return list(dict.fromkeys(nqns))


async def _all_users(client: Client, found: Snapshot, nqns: Sequence[str]) -> dict[str, Users]:
    """Who uses these subsystems, by object path. What cannot be told of one is no reason to show nothing."""
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(path: str) -> tuple[str, Users]:
        async with room:
            try:
                return path, Users(await client.users(path))
            except Failure as error:
                if error.code in (Exit.UNREACHABLE, Exit.DENIED):
                    raise
                return path, Users(error=error.text)

    paths = [path for path, one in found.subsystems.items() if one.get("NQN") in nqns]
    tasks = [asyncio.create_task(ask(path)) for path in paths]
    try:
        return dict([await task for task in tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def as_json(found: Snapshot, nqn: str, users: Mapping[str, Users]) -> dict[str, Any]:
    """Everything about one subsystem; names as in the interface."""
    result: dict[str, Any] = {"NQN": nqn, "Connected": False}
    for path, one in found.subsystems.items():
        if one.get("NQN") != nqn:
            continue
        result.update(one)
        result["Connected"] = True
        result["Controllers"] = _named(one.get("Controllers", []), ("Name", "Transport", "Address", "State"))
        result["Namespaces"] = _named(one.get("Namespaces", []), ("Device", "WWID", "Size"))
        known = users.get(path, Users())
        result["Users"] = None if known.error else _named(known.entries, ("Kind", "Device", "Detail"))
        if known.error:
            result["UsersError"] = known.error
    result["Volumes"] = found.volumes_of(nqn)
    result["Jobs"] = [{"Job": number, **one} for number, one in found.jobs_of(nqn)]
    return result


def _named(entries: Sequence[Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, entry, strict=False)) for entry in entries]


def tree(found: Snapshot, nqn: str, users: Mapping[str, Users], palette: Palette, now: float) -> Tree:
    """One subsystem for people to look at."""
    connected_as = [(path, one) for path, one in found.subsystems.items() if one.get("NQN") == nqn]
    path, subsystem = connected_as[0] if connected_as else ("", {})
    root = Tree(f"{palette.strong(name(nqn))}  {_state(subsystem, palette)}")
    for controller in subsystem.get("Controllers", []):
        label, _, address, state = (*controller, "", "", "", "")[:4]
        root.add(f"path {name(label)}  {name(address)}  {palette.state(state)}")
    known = users.get(path, Users())
    left = [list(entry) for entry in known.entries]
    volumes = found.volumes_of(nqn)
    for device, wwid, bytes_ in (entry[:3] for entry in subsystem.get("Namespaces", [])):
        branch = root.add(f"{palette.strong(name(device))}  {name(wwid)}  {size(bytes_)}")
        mine = [one for one in volumes if one.get("Device") == device]
        volumes = [one for one in volumes if one not in mine]
        _add_users(branch, mine, [entry for entry in left if entry[1] == device], palette)
        left = [entry for entry in left if entry[1] != device]
    # What has no namespace here: lost volumes, users of partitions and of devices on top, jobs.
    _add_users(root, volumes, [entry for entry in left if entry[0] != "job"], palette)
    if known.error:
        root.add(palette.bad(f"users cannot be told: {name(known.error)}"))
    for number, job in found.jobs_of(nqn):
        where = f" {name(str(job.get('StagingPath')))}" if job.get("StagingPath") else ""
        since = duration(elapsed(job, now))
        root.add(
            f"job {number}  {name(str(job.get('Operation', '')))}{where}  {name(str(job.get('Step', '')))}, {since}"
        )
    return root


def _state(subsystem: Properties, palette: Palette) -> str:
    if not subsystem:
        return palette.bad("not connected")
    by = "connected by nvmeofd" if subsystem.get("Owned") else "connected by somebody else"
    return f"{name(str(subsystem.get('Name', '')))}, {by}"


def _add_users(branch: Tree, volumes: Sequence[Properties], users: Sequence[Sequence[str]], palette: Palette) -> None:
    staged = set()
    for one in volumes:
        path = str(one.get("StagingPath", ""))
        staged.add(path)
        kind = f"{name(str(one.get('Filesystem') or one.get('Type', '')))}{', ro' if one.get('ReadOnly') else ''}"
        branch.add(f"staged at {palette.strong(name(path))}  {kind}  {palette.state(str(one.get('State', '')))}")
    for kind, device, detail in users:
        if kind in ("mount", "block-mount") and detail in staged:
            continue  # that is the volume itself
        branch.add(f"{name(kind)}  {name(device)}  {name(detail)}".rstrip())
