"""The verb monitor: what the daemon announces, one line each."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, NoReturn

from nvmeofd.bus.paths import ROOT
from nvmeofd.ctl.client import MANAGER, Client, Event, connected
from nvmeofd.ctl.outcome import OURS, Exit, Failure
from nvmeofd.ctl.output import Output
from nvmeofd.ctl.snapshot import Snapshot, job_number
from nvmeofd.ctl.text import Palette, name

KINDS = {"org.nvmeofd1.Subsystem": "subsystem", "org.nvmeofd1.Volume": "volume", "org.nvmeofd1.Job": "job"}


async def monitor(_: argparse.Namespace, output: Output, *, interactive: bool) -> NoReturn:
    """Until Ctrl-C, or until the bus is gone. The daemon may come and go meanwhile."""
    names = Names()
    async with connected(interactive=interactive) as client:
        running = await client.watch()
        if running:
            # Also tells whether this user may see signals: the bus just leaves them out for others.
            names.learn(await client.objects())
        await _report(client, Event("daemon", ROOT, "", {"Running": running}), names, output)
        while True:
            event = await client.event()
            names.take(event)
            await _report(client, event, names, output)
            names.forget(event)


async def _report(client: Client, event: Event, names: Names, output: Output) -> None:
    values = dict(event.values)
    if event.kind == "daemon" and values["Running"]:
        try:
            values["Version"] = (await client.properties(ROOT, MANAGER))["Version"]
            names.learn(await client.objects())
        except Failure as error:
            if error.code is not Exit.UNREACHABLE:  # gone again already, which is the next event
                raise
    now = time.time()
    if output.as_json:
        output.json(as_json(event, values, names, now), compact=True)
    else:
        output.line(as_line(event, values, names, now, output.palette))
        output.out.flush()


class Names:
    """What objects are called by people, by object path."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def learn(self, found: Snapshot) -> None:
        for interface, objects in zip(KINDS, (found.subsystems, found.volumes, found.jobs), strict=True):
            for path, values in objects.items():
                self._names[path] = _called(interface, path, values)

    def take(self, event: Event) -> None:
        if event.kind == "added":
            self._names[event.path] = _called(event.interface, event.path, event.values)
        elif event.kind == "daemon":
            self._names.clear()

    def forget(self, event: Event) -> None:
        if event.kind == "removed":
            self._names.pop(event.path, None)

    def of(self, event: Event) -> str:
        return self._names.get(event.path) or _called(event.interface, event.path, {})


def _called(interface: str, path: str, values: dict[str, Any] | Any) -> str:
    match interface:
        case "org.nvmeofd1.Subsystem":
            return str(values.get("NQN", path))
        case "org.nvmeofd1.Volume":
            return str(values.get("StagingPath", path))
        case "org.nvmeofd1.Job":
            return str(job_number(path))
    return path


def as_json(event: Event, values: dict[str, Any], names: Names, now: float) -> dict[str, Any]:
    """One event as an object. ``Time`` is in microseconds since 1970, as all times of the interface."""
    made: dict[str, Any] = {"Time": int(now * 1_000_000), "Event": event.kind}
    if event.kind == "daemon":
        return {**made, **values}
    made |= {"Kind": KINDS.get(event.interface, event.interface), "Name": names.of(event), "Path": event.path}
    if event.kind in ("added", "changed"):
        made["Properties"] = values
    elif event.kind == "completed":
        made |= values
    return made


def as_line(event: Event, values: dict[str, Any], names: Names, now: float, palette: Palette) -> str:
    clock = f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now * 1000) % 1000:03}"
    if event.kind == "daemon":
        version = f" {name(str(values['Version']))}" if "Version" in values else ""
        text = (
            palette.good(f"nvmeofd{version} is running") if values["Running"] else palette.bad("nvmeofd is not running")
        )
        return f"{clock}  {text}"
    kind = KINDS.get(event.interface, event.interface)
    paint = {"added": palette.good, "removed": palette.warning}.get(event.kind, palette.strong)
    if event.kind == "completed" and not values["Success"]:
        paint = palette.bad
    line = f"{clock}  {paint(f'{event.kind:9}')}  {name(kind)} {name(names.of(event))}"
    if event.kind in ("added", "changed"):
        return "  ".join([line, *(f"{name(key)}={_short(value)}" for key, value in values.items())])
    if event.kind == "completed":
        outcome = "success" if values["Success"] else f"{str(values['Error']).removeprefix(OURS)}: {values['Message']}"
        return f"{line}  {name(outcome)}"
    return line


def _short(value: Any) -> str:
    if isinstance(value, str):
        return name(value)
    return json.dumps(value, separators=(",", ":"))
