"""Many callers at once, and a stranger who mounts in between: what each of them may rely on is checked as it runs."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from . import bus, facts, initiator
from .waiting import command

Plan = dict[str, Any]
# Seconds. How long they wait for each other on a busy machine is not what these tests are about.
PATIENT = {"timeout": 600}
REPLY = 660.0


def run(plans: list[Plan], strangers: list[Plan], rounds: int, timeout: float = 240.0) -> dict[str, Any]:
    """Stage, use and unstage every planned volume again and again, each in a thread of its own.

    Meanwhile a stranger per entry of `strangers` mounts a namespace of a subsystem whenever it is there, and asks for
    the subsystem to be disconnected. The callers go on until each stranger has come to mount, after all rounds still.
    Returns what went wrong, and how often the strangers came to mount.
    """
    until = time.monotonic() + timeout
    wrong: list[str] = []
    mounted = {plan["nqn"]: 0 for plan in strangers}
    ended = threading.Event()

    def caller(plan: Plan) -> None:
        for number in count():
            if number >= rounds and (all(mounted.values()) or wrong or time.monotonic() >= until):
                break
            _one_round(plan, f"{plan['path']} {number}", wrong)

    def stranger(plan: Plan) -> None:
        while not ended.is_set():
            mounted[plan["nqn"]] += _visit(plan, wrong)
            reply = bus.call(
                bus.ROOT, bus.MANAGER, "Disconnect", "sa{sv}", [plan["nqn"], PATIENT], label=plan["path"], timeout=REPLY
            )
            if reply["error"] not in ("", "org.nvmeofd1.Error.InUse"):
                wrong.append(f"Disconnect {plan['nqn']}: {reply['error']}: {reply['message']}")

    callers = [_start(caller, plan, wrong) for plan in plans]
    others = [_start(stranger, plan, wrong) for plan in strangers]
    for thread in callers:
        thread.join(timeout)
    ended.set()
    for thread in others:
        thread.join(timeout)
    wrong += [f"{thread.name} not done within {timeout} s" for thread in callers + others if thread.is_alive()]
    for plan in plans + strangers:
        bus.close(plan["path"])
    return {"wrong": wrong, "mounted": mounted}


def look_while_it_changes(nqn: str, addresses: list[str], rounds: int, timeout: float = 240.0) -> dict[str, Any]:
    """Connect and delete all paths again and again, and read sysfs meanwhile with what the daemon reads it with.

    Returns how often that was, and what it could not read.
    """
    from nvmeofd.kernel.sysfs import Sysfs  # noqa: PLC0415 - guests without the daemon load this file, too

    wrong: list[str] = []
    ended = threading.Event()
    until = time.monotonic() + timeout

    def change() -> None:
        try:
            for done in range(rounds):
                if time.monotonic() >= until:
                    raise TimeoutError(f"{done} of {rounds} rounds in {timeout} s")
                for name in [initiator.connect(nqn, address) for address in addresses]:
                    initiator.delete_controller(name)
        finally:
            ended.set()

    changes = threading.Thread(target=_guarded(change, "changes", wrong))
    changes.start()
    looks = 0
    while not ended.is_set():
        looks += 1
        try:
            Sysfs("/sys").subsystems()
        except OSError as error:
            wrong.append(str(error))
    changes.join()
    return {"looks": looks, "wrong": wrong}


def _start(work: Callable[[Plan], None], plan: Plan, wrong: list[str]) -> threading.Thread:
    thread = threading.Thread(target=_guarded(lambda: work(plan), plan["path"], wrong), name=plan["path"])
    thread.start()
    return thread


def _guarded(work: Callable[[], None], title: str, wrong: list[str]) -> Callable[[], None]:
    def guarded() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the host wants to know
            wrong.append(f"{title}: {type(error).__name__}: {error}")

    return guarded


def _one_round(plan: Plan, mark: str, wrong: list[str]) -> None:
    path = plan["path"]
    body = [plan["nqn"], plan["namespace"], plan["addresses"], path, PATIENT]
    reply = bus.call(bus.ROOT, bus.MANAGER, "Stage", "ssassa{sv}", body, label=path, timeout=REPLY)
    if reply["error"]:
        wrong.append(f"Stage {mark}: {reply['error']}: {reply['message']}")
        return
    _use(path, mark)
    reply = bus.call(bus.ROOT, bus.MANAGER, "Unstage", "sa{sv}", [path, PATIENT], label=path, timeout=REPLY)
    if reply["error"]:
        wrong.append(f"Unstage {mark}: {reply['error']}: {reply['message']}")
    if os.path.exists(path):
        wrong.append(f"Unstage {mark}: the path is still there")


def _use(path: str, mark: str) -> None:
    """Write through to the device and read back: fails if it was taken away."""
    if not os.path.ismount(path):
        raise RuntimeError(f"{path} is not mounted")
    with open(f"{path}/mark", "w", encoding="ascii") as file:
        file.write(mark)
        file.flush()
        os.fsync(file.fileno())
    with open(f"{path}/mark", encoding="ascii") as file:
        found = file.read()
    if found != mark:
        raise RuntimeError(f"{path}/mark says {found}, not {mark}")


def _visit(plan: Plan, wrong: list[str]) -> bool:
    """Mount, use, unmount. That the device is not there, or just being taken away, is fine; that it goes is not."""
    found = facts.subsystem(plan["nqn"])
    spaces = found["namespaces"] if found is not None else []
    device = next((space["device"] for space in spaces if space["wwid"] == plan["namespace"]), "")
    if not device:
        return False
    os.makedirs(plan["path"], exist_ok=True)
    if subprocess.run(["mount", device, plan["path"]], capture_output=True, check=False).returncode != 0:
        return False
    # The name may have passed to another namespace since it was looked up: then it was that one that was mounted.
    try:
        _use(plan["path"], "stranger")
    except (OSError, RuntimeError) as error:
        wrong.append(f"{device} was taken away from {plan['path']}: {error}")
    command(["umount", plan["path"]])
    return True
