"""Talking to the service manager: readiness, status, watchdog. See sd_notify(3).

The library sends; this module adds what it lacks: ASCII only, never blocking, and the watchdog's environment.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping

import sdnotify

from nvmeofd.log import log

BARRIER_SECONDS = 5.0


class ServiceManager:
    """The service manager that started this process, or nobody: then every call does nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        if self._notifier.socket is not None:
            # a service manager that does not read must not stop the daemon
            self._notifier.socket.setblocking(False)
        self.watchdog_interval = _watchdog_interval(environment)
        self._status = ""

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    @property
    def present(self) -> bool:
        return self._notifier.socket is not None

    def replace_main(self, pid: int) -> None:
        """Have another process of the unit taken for its main one, and wait for that. Raises OSError."""
        self._send(f"MAINPID={pid}")
        if self._notifier.socket is None:
            return
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            # the service manager closes the descriptor when it has dealt with all messages before: sd_notify_barrier(3)
            socket.send_fds(self._notifier.socket, [b"BARRIER=1"], [writer])
        finally:
            os.close(writer)
        select.select([reader], [], [], BARRIER_SECONDS)
        os.close(reader)

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + text.encode("ascii", "backslashreplace").decode().replace("\n", " "))

    def close(self) -> None:
        if self._notifier.socket is not None:
            self._notifier.socket.close()
            self._notifier.socket = None

    def _send(self, state: str) -> None:
        self._notifier.notify(state)


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life: half of what the service manager allows, as sd_watchdog_enabled(3) advises."""
    try:
        if int(environment.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
        allowed = int(environment["WATCHDOG_USEC"])
    except KeyError:
        return None
    except ValueError:
        log.warning("WATCHDOG_USEC or WATCHDOG_PID is not a number, so there is no watchdog")
        return None
    return allowed / 2_000_000 if allowed > 0 else None
