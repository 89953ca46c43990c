"""One life of a volume, from connect to disconnect, timed: by the daemon, by tools, and by bare system calls.

Each function does one cycle on a namespace that holds an ext4 already and returns milliseconds by part, "all" included.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any

from . import bus
from .facts import subsystem
from .initiator import connect, delete_controller, device
from .waiting import command, wait_until

_libc = ctypes.CDLL(None, use_errno=True)


class _Watch:
    """Milliseconds of each part since the one before."""

    def __init__(self) -> None:
        self._begun = self._last = perf_counter()
        self._parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        now = perf_counter()
        self._parts[part] = (now - self._last) * 1000
        self._last = now

    def result(self) -> dict[str, float]:
        return {**self._parts, "all": (self._last - self._begun) * 1000}


def system_calls(nqn: str, nsid: int, addresses: list[str], path: str) -> dict[str, float]:
    """The least that has to be done, by one process: nothing is checked, nothing is written down."""
    os.makedirs(path, exist_ok=True)
    watch = _Watch()
    controllers = [connect(nqn, address) for address in addresses]
    watch.lap("connect")
    node = device(nqn, nsid)
    watch.lap("wait")
    _check(_libc.mount(node.encode(), path.encode(), b"ext4", ctypes.c_ulong(0), None), "mount")
    watch.lap("mount")
    _check(_libc.umount2(path.encode(), 0), "umount")
    watch.lap("umount")
    for name in controllers:
        delete_controller(name)
    wait_until(lambda: subsystem(nqn) is None, 30.0, f"{nqn} to be gone")
    watch.lap("disconnect")
    os.rmdir(path)
    return watch.result()


def tools(nqn: str, nsid: int, addresses: list[str], path: str) -> dict[str, float]:
    """As a script does it: nvme connect for each path, blkid, mount; umount, findmnt, nvme disconnect."""
    os.makedirs(path, exist_ok=True)
    watch = _Watch()
    for address in addresses:
        command(["nvme", "connect", "--transport=tcp", f"--traddr={address}", "--trsvcid=4420", f"--nqn={nqn}"])
    watch.lap("connect")
    node = device(nqn, nsid)
    watch.lap("wait")
    command(["blkid", "-p", node])
    watch.lap("blkid")
    command(["mount", node, path])
    watch.lap("mount")
    command(["umount", path])
    watch.lap("umount")
    table = json.loads(command(["findmnt", "-J", "--list"]))
    assert not any(entry["source"] == node for entry in table["filesystems"])
    watch.lap("findmnt")
    command(["nvme", "disconnect", f"--nqn={nqn}"])
    wait_until(lambda: subsystem(nqn) is None, 30.0, f"{nqn} to be gone")
    watch.lap("disconnect")
    os.rmdir(path)
    return watch.result()


def daemon(
    nqn: str, namespace: str, addresses: list[str], path: str, options: dict[str, Any] | None = None
) -> dict[str, float]:
    """Stage and Unstage, asked for over a connection to the bus that is open already."""
    urls = [f"tcp://{address}:4420" for address in addresses]
    watch = _Watch()
    _succeeded(bus.stage(nqn, namespace, urls, path, options))
    watch.lap("Stage")
    unstaged = bus.unstage(path)
    _succeeded(unstaged)
    watch.lap("Unstage")
    assert unstaged["body"] == [True], f"{nqn} is still connected"
    return watch.result()


def daemon_by_busctl(nqn: str, namespace: str, addresses: list[str], path: str) -> dict[str, float]:
    """The same, each call made by a busctl of its own."""
    call = ["busctl", "call", bus.DAEMON, bus.ROOT, bus.MANAGER]
    urls = [f"tcp://{address}:4420" for address in addresses]
    watch = _Watch()
    command([*call, "Stage", "ssassa{sv}", nqn, namespace, str(len(urls)), *urls, path, "0"])
    watch.lap("Stage")
    answer = command([*call, "Unstage", "sa{sv}", path, "0"])
    watch.lap("Unstage")
    assert answer == "b true\n", answer
    return watch.result()


def memory() -> dict[str, int]:
    """Resident and proportional memory of the daemon in KiB."""
    pid = int(command(["systemctl", "show", "--value", "--property=MainPID", "nvmeofd.service"]))
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return {name: int(fields[name].split()[0]) for name in ("Rss", "Pss")}


def restart() -> dict[str, float]:
    """Restart the daemon: milliseconds from its execution to READY=1, and the processor time spent until then."""
    unit = "nvmeofd.service"
    command(["systemctl", "restart", unit])
    wanted = "ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic,CPUUsageNSec"
    shown = command(["systemctl", "show", f"--property={wanted}", unit])
    values = {key: int(value) for key, value in (line.split("=", 1) for line in shown.splitlines())}
    begun, ready = values["ExecMainStartTimestampMonotonic"], values["ActiveEnterTimestampMonotonic"]
    return {"ready": (ready - begun) / 1000, "processor": values["CPUUsageNSec"] / 1_000_000}


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _succeeded(reply: bus.Reply) -> None:
    if reply["error"]:
        raise RuntimeError(f"{reply['error']}: {reply['message']}")
