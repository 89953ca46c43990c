"""Messages to the service manager, which here is a socket."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeofd.config import Config
from nvmeofd.daemon import Daemon
from nvmeofd.exporter import Exporter
from nvmeofd.notify import ServiceManager

HANGS = 10  # seconds; reached only when something hangs


class Ticks(Exporter):
    """What the daemon does at each tick besides."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def tick(self) -> None:
        self.heard.set()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(HANGS)
        yield made


@pytest.fixture
def manager(listener: socket.socket) -> Iterator[ServiceManager]:
    made = ServiceManager({"WATCHDOG_USEC": "20000"})
    assert made.present
    yield made
    made.close()


def test_another_main_process_is_waited_for(listener: socket.socket, manager: ServiceManager) -> None:
    done = threading.Event()

    def replace() -> None:
        manager.replace_main(4711)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    assert listener.recv(100) == b"MAINPID=4711"
    message, (barrier,), _, _ = socket.recv_fds(listener, 100, 1)
    assert message == b"BARRIER=1"
    assert not done.wait(0.1)
    os.close(barrier)
    assert done.wait(2)
    thread.join()


def test_what_is_said(listener: socket.socket, manager: ServiceManager) -> None:
    manager.ready()
    assert listener.recv(100) == b"READY=1"
    before = time.monotonic_ns() // 1000
    manager.reloading()
    word, when = listener.recv(100).splitlines()
    assert word == b"RELOADING=1"
    key, _, value = when.partition(b"=")
    assert key == b"MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000
    manager.stopping()
    assert listener.recv(100) == b"STOPPING=1"
    manager.watchdog()
    assert listener.recv(100) == b"WATCHDOG=1"


def test_status_is_one_line_of_ascii_and_not_repeated(listener: socket.socket, manager: ServiceManager) -> None:
    for _ in range(2):
        manager.status("näher\nREADY=1")
    manager.ready()
    assert listener.recv(100) == b"STATUS=n\\xe4her READY=1"
    assert listener.recv(100) == b"READY=1"


def test_one_that_does_not_read_is_not_waited_for(listener: socket.socket, manager: ServiceManager) -> None:
    def talk() -> None:
        for number in range(2000):
            manager.status(f"{number}")

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive()


# sdnotify leaves the socket that it made in vain to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager({})
    assert not manager.present
    manager.ready()
    manager.status("nobody reads this")
    manager.replace_main(4711)
    manager.close()


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"}, None),
    ],
)
def test_interval_of_the_watchdog(listener: socket.socket, environment: dict[str, str], interval: float | None) -> None:
    manager = ServiceManager(environment)
    manager.close()
    assert manager.watchdog_interval == interval


def test_watchdog_is_fed_by_the_loop(listener: socket.socket, manager: ServiceManager) -> None:
    """Signs of life come while it turns, and none while it is held up."""

    async def signs(number: int) -> None:
        async with asyncio.timeout(HANGS):
            for _ in range(number):
                assert await asyncio.get_running_loop().sock_recv(listener, 100) == b"WATCHDOG=1"

    def drain() -> int:
        count = 0
        while True:
            try:
                listener.recv(100)
            except BlockingIOError:
                return count
            count += 1

    async def main() -> None:
        listener.setblocking(False)
        feeding = asyncio.create_task(Daemon(Config(), Config, manager)._tick(Ticks()))
        await signs(3)
        drain()
        assert manager.watchdog_interval
        time.sleep(10 * manager.watchdog_interval)  # this is what holds it up
        assert drain() == 0
        await signs(3)
        feeding.cancel()
        await asyncio.wait({feeding})

    asyncio.run(main())


def test_without_a_watchdog_nothing_is_sent(listener: socket.socket) -> None:
    manager = ServiceManager({})

    async def main() -> None:
        ticks = Ticks()
        ticking = asyncio.create_task(Daemon(Config(), Config, manager)._tick(ticks))
        async with asyncio.timeout(HANGS):
            await ticks.heard.wait()
        ticking.cancel()
        await asyncio.wait({ticking})

    asyncio.run(main())
    manager.ready()
    assert listener.recv(100) == b"READY=1"
    manager.close()
