"""Waiting for the kernel: wake up on its events, look again, give up at a deadline."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

NETLINK_KOBJECT_UEVENT = 15
# Some states change without any event (a controller's, a process's): then this decides how late it is seen.
UNANNOUNCED = 0.1


def wait_until(look: Callable[[], T], timeout: float, what: str) -> T:
    """Call `look` until it returns something true, again after each uevent, mount change and kernel message."""
    deadline = time.monotonic() + timeout
    uevents = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT)
    mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    messages = os.open("/dev/kmsg", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        uevents.bind((0, 1))
        uevents.setblocking(False)
        os.lseek(messages, 0, os.SEEK_END)
        poll = select.poll()
        poll.register(uevents, select.POLLIN)
        poll.register(mounts, select.POLLPRI | select.POLLERR)
        poll.register(messages, select.POLLIN)
        while True:
            found = look()
            if found:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {timeout} s: {what}")
            ready = {fd for fd, _ in poll.poll(min(left, UNANNOUNCED) * 1000)}
            if uevents.fileno() in ready:
                _drain(lambda: uevents.recv(65536))
            if messages in ready:
                _drain(lambda: os.read(messages, 8192))
    finally:
        uevents.close()
        os.close(mounts)
        os.close(messages)


def _drain(read: Callable[[], bytes]) -> None:
    while True:
        try:
            read()
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS, EPIPE: events were lost, and we are about to look anyway
            continue


def command(argv: Sequence[str], timeout: float = 60.0) -> str:
    """Run a program; an error carries what it printed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    return done.stdout
