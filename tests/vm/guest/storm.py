"""Mounts and device events as fast as they can be made, and callers who ask all the while."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import Any

from . import bus, facts

PLACES = 50  # directories; the mounts are stacked on them
MS_BIND = 4096
MS_PRIVATE = 1 << 18
PEER = "org.freedesktop.DBus.Peer"
QUESTIONS: tuple[tuple[str, str, str, list[Any]], ...] = (
    (PEER, "Ping", "", []),
    (bus.PROPERTIES, "Get", "ss", [bus.MANAGER, "Counters"]),
)

_libc = ctypes.CDLL(None, use_errno=True)


def prepare(tree: str) -> None:
    # In a shared mount each bind is made in all binds before it, too: with every one there would be twice as many.
    _check(_libc.mount(None, tree.encode(), None, ctypes.c_ulong(MS_PRIVATE), None), tree.encode())
    for number in range(PLACES):
        os.mkdir(f"{tree}/{number}")


def up(tree: str, mounts: int, uevent: str, uevents: int) -> dict[str, Any]:
    """Bind a tree below itself, again and again, with device events in between. See _asked for what is returned."""

    def rain() -> None:
        file = os.open(uevent, os.O_WRONLY)
        try:
            for number in range(mounts):
                place = f"{tree}/{number % PLACES}".encode()
                _check(_libc.mount(tree.encode(), place, None, ctypes.c_ulong(MS_BIND), None), place)
                for _ in range(uevents // mounts):
                    os.write(file, b"change")
        finally:
            os.close(file)

    return _asked(rain)


def down(tree: str, mounts: int) -> dict[str, Any]:
    def clear() -> None:
        for number in reversed(range(mounts)):
            place = f"{tree}/{number % PLACES}".encode()
            _check(_libc.umount2(place, 0), place)

    return _asked(clear)


def _check(status: int, place: bytes) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fsdecode(place))


def _asked(storm: Any) -> dict[str, Any]:
    """While it goes on and until the daemon has seen the end of it: how many calls were answered, and what failed."""
    wrong: list[str] = []
    answered = 0
    ended = threading.Event()

    def ask() -> None:
        nonlocal answered
        while not ended.is_set():
            for interface, member, signature, body in QUESTIONS:
                reply = bus.call(bus.ROOT, interface, member, signature, list(body), label="asker")
                if reply["error"]:
                    wrong.append(f"{member}: {reply['error']}: {reply['message']}")
                answered += 1

    asker = threading.Thread(target=ask, name="asker")
    asker.start()
    began = time.monotonic()
    try:
        storm()
    finally:
        ended.set()
        asker.join(60.0)
    if asker.is_alive():
        wrong.append("a call is not answered")
    bus.close("asker")
    return {"answered": answered, "wrong": wrong, "seconds": time.monotonic() - began}


def memory() -> int:
    """Of the daemon, in KiB."""
    with open(f"/proc/{facts.daemon()['pid']}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))
