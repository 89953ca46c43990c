"""The daemon as a service of systemd: stopped, started, killed; and waiting for what it does by itself."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

from . import bus, facts
from .waiting import command, wait_until

UNIT = "nvmeofd.service"
OWNER_CHANGED = f"type='signal',sender='{bus.DBUS}',member='NameOwnerChanged',arg0='{bus.DAEMON}'"


def systemctl(verb: str, timeout: float = 120.0) -> None:
    command(["systemctl", verb, UNIT], timeout)
    if verb in ("start", "restart"):
        # The limit on starts is for a daemon that fails, not for tests that restart it.
        command(["systemctl", "reset-failed", UNIT])


def show(name: str) -> str:
    """A property of the unit."""
    return command(["systemctl", "show", "--value", "--property", name, UNIT]).strip()


def wait_property(name: str, value: str, timeout: float = 60.0) -> None:
    """Wait until a property of the unit has this value."""
    wait_until(lambda: show(name) == value, timeout, f"{name}={value}")


def kill(timeout: float = 60.0) -> int:
    """SIGKILL, as if it had crashed; wait until systemd has started it again. Returns the new pid."""
    return _replaced(signal.SIGKILL, timeout)


def hang(timeout: float = 60.0) -> int:
    """Stop the process as if it hung; wait until the watchdog has had it replaced. Returns the new pid."""
    return _replaced(signal.SIGSTOP, timeout)


def _replaced(number: int, timeout: float) -> int:
    label = "kill"
    old = facts.daemon()["pid"]
    since = bus.subscribe(OWNER_CHANGED, label)
    os.kill(old, number)
    wait_started(since, label, timeout)
    command(["systemctl", "reset-failed", UNIT])
    new = facts.daemon()["pid"]
    if new in (0, old):
        raise RuntimeError(f"{old} was to be replaced, and now the daemon is {new}")
    return new


def wait_started(since: int, label: str, timeout: float) -> None:
    """Wait until the name has got a new owner."""
    deadline = time.monotonic() + timeout
    while True:
        news = bus.wait_signal("NameOwnerChanged", since=since, label=label, timeout=deadline - time.monotonic())
        if news["body"][2]:
            break
        since = news["number"] + 1
    bus.close(label)


def kill_at_step(step: str, call: str, signature: str, body: list[object], timeout: float = 60.0) -> bool:
    """Call a method of the Manager, and kill the daemon as soon as the job enters a step.

    Waits for the next life of the daemon. Returns whether the kill came before the answer.
    """
    label = "step"
    since = bus.subscribe(label=label)
    again = bus.subscribe(OWNER_CHANGED, label)
    pid = facts.daemon()["pid"]
    serial = bus.start(call, signature, body, label)
    deadline = time.monotonic() + timeout
    while True:
        news = bus.wait_signal("PropertiesChanged", "", since, label, deadline - time.monotonic())
        if news["body"][0] == "org.nvmeofd1.Job" and news["body"][1].get("Step") == step:
            break
        since = news["number"] + 1
    os.kill(pid, signal.SIGKILL)
    reply = bus.finish(serial, label, timeout)
    wait_started(again, label, timeout)
    command(["systemctl", "reset-failed", UNIT])
    return reply["error"] == "org.freedesktop.DBus.Error.NoReply"


def wait_gone(nqn: str, timeout: float = 30.0) -> None:
    """Wait until the host is not connected to a subsystem any more."""
    wait_until(lambda: facts.subsystem(nqn) is None, timeout, f"{nqn} to be disconnected")


def wait_path(nqn: str, address: str, timeout: float = 60.0) -> None:
    """Wait until somebody has connected this address of a subsystem."""

    def look() -> bool:
        found = facts.subsystem(nqn)
        controllers = found["controllers"] if found is not None else []
        return any(one["state"] == "live" and f"traddr={address}," in one["address"] for one in controllers)

    wait_until(look, timeout, f"{nqn} to be connected through {address}")


def stays(nqn: str, seconds: float) -> bool:
    """Watch a subsystem for this long. Returns whether it was connected all the time."""
    try:
        wait_gone(nqn, seconds)
    except TimeoutError:
        return True
    return False


def wait_removed(path: str, timeout: float = 30.0) -> None:
    """Wait until nothing is at a path."""
    wait_until(lambda: not os.path.lexists(path), timeout, f"{path} to be removed")


def wait_size(nqn: str, nsid: int, size: int, timeout: float = 30.0) -> None:
    """Wait until the host sees a namespace with this size."""

    def look() -> bool:
        found = facts.subsystem(nqn)
        spaces = found["namespaces"] if found is not None else []
        return any((space["nsid"], space["size"]) == (nsid, size) for space in spaces)

    wait_until(look, timeout, f"namespace {nsid} of {nqn} with {size} bytes")


def wait_counter(name: str, value: int, timeout: float = 30.0) -> None:
    """Wait until one of the daemon's counters is at least this."""
    wait_until(lambda: counters().get(name, 0) >= value, timeout, f"counter {name} to be {value}")


def loss_timeouts_stay(seconds: float) -> bool:
    """Watch the controllers for this long. Returns whether none went, and the kernel's patience stayed the same."""

    def look() -> dict[str, str]:
        return {str(path): path.read_text(encoding="ascii") for path in Path("/sys/class/nvme").glob("*/ctrl_loss_tmo")}

    before = look()
    try:
        wait_until(lambda: look() != before, seconds, "another timeout")
    except TimeoutError:
        return True
    return False


def counters() -> dict[str, int]:
    found: dict[str, int] = bus.properties(bus.ROOT, bus.MANAGER)["Counters"]
    return found


_listeners: dict[str, socket.socket] = {}


def silent_listener(address: str, port: int) -> None:
    """Something that accepts connections and never says a word."""
    listener = socket.create_server((address, port))
    _listeners[f"{address}:{port}"] = listener
    taken: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                taken.append(listener.accept()[0])
            except OSError:
                for connection in taken:
                    connection.close()
                return

    threading.Thread(target=accept, name="silent", daemon=True).start()


def stop_listener(address: str, port: int) -> None:
    listener = _listeners.pop(f"{address}:{port}")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
