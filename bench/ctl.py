"""How long the command-line client takes from its start to its end: `python3 -m bench.ctl`.

With the interpreter of the system, as it is installed, on a private bus with a service that has a number of volumes.
`--imports` shows what is imported for it, and how long each of that takes.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bus.ctl import SCRIPT, environment
from tests.bus.fake import FakeCore, subsystem, volume
from tests.bus.harness import PrivateBus, service

from .table import show, times

INTERPRETER = ["/usr/bin/python3", "-sP"]


def serve(address: str, volumes: int, ready: threading.Event, ended: threading.Event) -> None:
    """The service with a core that does nothing, until ``ended``."""

    async def main() -> None:
        core = FakeCore()
        core.connect(subsystem())
        for number in range(volumes):
            core.add_volume(volume(f"/srv/volume-{number}"))
        async with service(bus_at(address), core):
            ready.set()
            await asyncio.to_thread(ended.wait)

    asyncio.run(main())


def bus_at(address: str) -> PrivateBus:
    """A bus that runs already."""
    bus = PrivateBus.__new__(PrivateBus)
    bus.address = address
    return bus


def run(address: str, *words: str, options: tuple[str, ...] = ()) -> bytes:
    command = [*INTERPRETER, *options, str(SCRIPT), *words]
    done = subprocess.run(command, env=environment(address), capture_output=True, check=True)
    return done.stderr


def measure(address: str, volumes: int, repeats: int) -> None:
    actions: dict[str, Callable[[], object]] = {
        "the interpreter alone": lambda: subprocess.run([*INTERPRETER, "-c", ""], check=True),
        "nvmeofctl --version": lambda: run(address, "--version"),
        "nvmeofctl stage --help": lambda: run(address, "stage", "--help"),
        "completion of a verb": lambda: run(address, "__complete", "--", "st"),
        "completion of a staging path": lambda: run(address, "__complete", "--", "unstage", ""),
        f"nvmeofctl list, {volumes} volumes": lambda: run(address, "list"),
        "busctl tree --list, the same": lambda: busctl(address),
    }
    taken: list[tuple[str, list[float]]] = []
    worked: list[tuple[str, list[float]]] = []
    for label, action in actions.items():
        processor: list[float] = []
        taken.append((label, times(partial(work, action, processor), repeats)))
        worked.append((label, processor))
    show("from start to end", taken)
    show("processor time", worked)


def work(action: Callable[[], object], taken: list[float]) -> None:
    """Note the milliseconds of processor time that the processes of an action take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)


def busctl(address: str) -> None:
    command = ["busctl", f"--address={address}", "--no-pager", "tree", "--list", "org.nvmeofd1"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.ctl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--volumes", type=int, default=100, help="volumes of the service (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=21, help="runs of each (default: %(default)s)")
    parser.add_argument("--imports", action="store_true", help="show python3 -X importtime of nvmeofctl list instead")
    arguments = parser.parse_args()
    ready, ended = threading.Event(), threading.Event()
    with PrivateBus() as bus:
        serving = threading.Thread(target=serve, args=(bus.address, arguments.volumes, ready, ended))
        serving.start()
        try:
            ready.wait()
            if arguments.imports:
                sys.stderr.buffer.write(run(bus.address, "list", options=("-X", "importtime")))
            else:
                measure(bus.address, arguments.volumes, arguments.repeats)
        finally:
            ended.set()
            serving.join()
    return 0


if __name__ == "__main__":
    assert Path(INTERPRETER[0]).exists()
    sys.exit(main())
