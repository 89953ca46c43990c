"""Kernel and udev events, recorded: what was announced between two moments."""

from __future__ import annotations

import os
import select
import socket
import threading
import time

from .waiting import NETLINK_KOBJECT_UEVENT

Event = dict[str, str]


class Recorder:
    """A thread that keeps every uevent of the kernel."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.events: list[Event] = []
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sock.bind((0, 1))
        threading.Thread(target=self._read, name="uevents", daemon=True).start()

    def _read(self) -> None:
        while True:
            parts = self._sock.recv(1 << 16).decode(errors="replace").split("\0")
            event = dict(part.split("=", 1) for part in parts[1:] if "=" in part)
            with self.changed:
                self.events.append(event)
                self.changed.notify_all()


_recorder: list[Recorder] = []


def mark() -> int:
    """Record from now on, at the latest. Returns the mark that `since` takes."""
    if not _recorder:
        _recorder.append(Recorder())
    return len(_recorder[0].events)


def since(start: int, subsystems: list[str]) -> list[Event]:
    """The events of some subsystems after a mark."""
    return [event for event in _recorder[0].events[start:] if event.get("SUBSYSTEM") in subsystems]


def wait(start: int, wanted: Event, timeout: float = 30.0) -> Event:
    """The first event after the mark that has all these properties, waiting for it."""
    deadline = time.monotonic() + timeout
    recorder = _recorder[0]
    with recorder.changed:
        while True:
            for event in recorder.events[start:]:
                if wanted.items() <= event.items():
                    return event
            if not recorder.changed.wait(deadline - time.monotonic()):
                raise TimeoutError(f"no event {wanted} within {timeout} s; seen: {recorder.events[start:]}")


_tables: dict[str, int] = {}


def open_table(label: str) -> None:
    """Open the mount table and read it to its end: from here on, changes are news."""
    fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    _tables[label] = fd
    while os.read(fd, 1 << 16):
        pass
    table_changed(label)


def table_changed(label: str) -> bool:
    """Has the mount table changed since the last time this was asked? One poll, no waiting."""
    poll = select.poll()
    poll.register(_tables[label], select.POLLPRI)
    return bool(poll.poll(0))
