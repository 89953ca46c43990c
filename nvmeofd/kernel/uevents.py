"""Events of the kernel: devices through netlink, and the mount table through poll."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pyudev

from nvmeofd.kernel.interface import Event, EventKind

SUBSYSTEMS = ("block", "nvme", "nvme-subsystem")
# The loop runs other things after so many events; the rest keeps the socket readable. One event takes about 40 µs, and
# an answer several turns of the loop.
_EVENTS_PER_TURN = 16
# For thousands of events while the daemon does not get to run. Pages are only used while events wait.
_RECEIVE_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h; needs CAP_NET_ADMIN

_MOUNTS_EVENT = Event(EventKind.MOUNTS)
_OVERFLOW_EVENT = Event(EventKind.OVERFLOW)


class DeviceMonitor:
    """Device events as the kernel sends them, delivered on the event loop.

    The source is the kernel and not udev: everything the daemon looks at is in sysfs and devtmpfs, complete when the
    kernel announces it, and so a stuck or stopped udevd holds up nothing. That udev may still be probing a new device
    is taken care of where it matters, by locking the device.
    """

    def __init__(self, callback: Callable[[Event], None]) -> None:
        """Start receiving; delivery starts with :meth:`attach`. Raises OSError."""
        self._callback = callback
        self._monitor: Any = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in SUBSYSTEMS:
            self._monitor.filter_by(subsystem)
        # fromfd() duplicates the descriptor: closing this socket leaves the monitor's open, and both are one socket.
        self._socket = socket.fromfd(self._monitor.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:
            # As much as net.core.rmem_max allows; an overflow is noticed and repaired.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._monitor.start()

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Deliver events until the context ends, then stop receiving."""
        loop = asyncio.get_running_loop()
        fd = self._socket.fileno()
        loop.add_reader(fd, self._drain)
        try:
            yield
        finally:
            loop.remove_reader(fd)
            self._socket.close()
            # The descriptor goes with the last reference.
            self._monitor = None

    def _drain(self) -> None:
        for _ in range(_EVENTS_PER_TURN):
            try:
                device = self._monitor.poll(timeout=0)
            except OSError:
                # ENOBUFS: events were lost. poll() reports the pending error again and again until it is fetched; the
                # events that did fit into the buffer are still there.
                self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._callback(_OVERFLOW_EVENT)
                return
            if device is None:
                return
            self._callback(_event(device))


def _event(device: Any) -> Event:
    return Event(EventKind.DEVICE, device.action or "", device.subsystem or "", device.sys_name)


class MountWatcher:
    """Changes of the mount table, delivered on the event loop.

    mountinfo is always readable, so the loop cannot wait for it directly. An inner epoll waits for EPOLLPRI alone, and
    the loop waits for the inner one. The kernel forgets a change once it has reported it (mounts_poll,
    fs/proc_namespace.c), and it does so when the loop's epoll looks into the inner one: being called is the event, and
    the inner one has nothing more to tell. This takes a file of its own, or one poll would hide the change from
    another.
    """

    def __init__(self, callback: Callable[[Event], None], proc: str) -> None:
        """Start watching; delivery starts with :meth:`attach`. Raises OSError."""
        self._callback = callback
        self._fd = os.open(f"{proc}/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._fd, select.EPOLLPRI | select.EPOLLERR)
        except BaseException:
            os.close(self._fd)
            raise

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Deliver events until the context ends, then stop watching."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._epoll.fileno(), self._ready)
        try:
            yield
        finally:
            loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)

    def _ready(self) -> None:
        # Should a kernel leave the event in the inner epoll, fetching it keeps the loop from spinning.
        self._epoll.poll(0)
        self._callback(_MOUNTS_EVENT)


@asynccontextmanager
async def watch(callback: Callable[[Event], None], proc: str) -> AsyncIterator[None]:
    """Deliver device and mount events to ``callback``. Entering raises OSError."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(DeviceMonitor(callback).attach())
        stack.enter_context(MountWatcher(callback, proc).attach())
        yield
