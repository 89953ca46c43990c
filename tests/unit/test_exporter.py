"""When the file of metrics is written: not too often, not for nothing, and never on the event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nvmeofd.exporter import HEARTBEAT, Exporter
from nvmeofd.kernel.textfile import TextFile
from nvmeofd.metrics import Snapshot
from nvmeofd.model import Subsystem
from tests.exposition import Metrics, parse
from tests.unit.test_metrics import NQN, subsystem

NEVER = 3600.0  # seconds: what waits for this long does not come


class Source:
    def __init__(self) -> None:
        self.events = 0
        self.connected: tuple[Subsystem, ...] | None = ()

    def snapshot(self) -> Snapshot:
        assert threading.current_thread() is threading.main_thread()
        return Snapshot(started=0, counters={"events": self.events})

    def subsystems(self) -> tuple[Subsystem, ...] | None:
        assert threading.current_thread() is not threading.main_thread()
        return self.connected


class Files:
    """Watches what is written, and can make it fail or hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: asyncio.Queue[str] = asyncio.Queue()
        self.attempts = 0
        self.error: OSError | None = None
        self.hang: threading.Event | None = None
        self._replace = TextFile.replace
        self._loop = asyncio.get_running_loop()

        def replace(file: TextFile, content: bytes) -> None:
            self._write(file, content)

        monkeypatch.setattr(TextFile, "replace", replace)

    def _write(self, file: TextFile, content: bytes) -> None:
        self.attempts += 1
        if self.hang is not None:
            self.hang.wait()
        try:
            if self.error is not None:
                raise self.error
            self._replace(file, content)
        finally:
            self._loop.call_soon_threadsafe(self.written.put_nowait, file.path)


def run(main: Callable[[Files, Source], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        await main(Files(monkeypatch), Source())
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left

    asyncio.run(whole())
    for thread in threading.enumerate():
        if "metrics" in thread.name:
            thread.join()


def read(path: Path) -> Metrics:
    return parse(path.read_bytes())


async def idle(exporter: Exporter) -> None:
    """Wait until no write is under way."""
    writer = vars(exporter)["_writer"]
    while writer.busy:
        await asyncio.wait({vars(writer)["_task"]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nvmeofd.prom"


def test_written_at_once_and_removed_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=NEVER)
        exporter.use(str(path))
        await files.written.get()
        assert read(path).value("nvmeofd_events_total") == 0
        assert await exporter.close(NEVER)
        assert os.listdir(path.parent) == []
        exporter.use(str(path))
        exporter.tick()
        exporter.changed()
        assert await exporter.close(NEVER)
        assert files.attempts == 1

    run(main, monkeypatch)


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0)
        exporter.use(None)
        exporter.changed()
        exporter.tick()
        assert vars(exporter)["_timer"] is None
        assert await exporter.close(0)
        assert files.attempts == 0

    run(main, monkeypatch)


def test_changes_come_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0.05)
        exporter.use(str(path))
        await files.written.get()
        for _ in range(100):
            source.events += 1
            exporter.changed()
        await files.written.get()
        assert read(path).value("nvmeofd_events_total") == 100
        assert files.attempts == 2
        assert await exporter.close(NEVER)

    run(main, monkeypatch)


def test_tick_writes_what_changed_unheard_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0)
        source.connected = (subsystem(NQN, "live"),)
        exporter.use(str(path))
        await files.written.get()
        await idle(exporter)
        for _ in range(3):
            exporter.tick()
            await idle(exporter)
        assert files.attempts == 1, "nothing has changed"
        source.connected = (subsystem(NQN, "connecting"),)
        exporter.tick()
        await files.written.get()
        assert read(path).value("nvmeofd_subsystem_paths", nqn=NQN, state="connecting") == 1
        await idle(exporter)
        vars(vars(exporter)["_writer"])["_written_at"] -= HEARTBEAT
        exporter.tick()
        await files.written.get()
        assert files.attempts == 3, "its age is to tell that the daemon lives"
        assert await exporter.close(NEVER)

    run(main, monkeypatch)


def test_ticks_that_are_too_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=NEVER)
        exporter.use(str(path))
        await files.written.get()
        await idle(exporter)
        source.events += 1
        exporter.tick()
        assert not vars(exporter)["_writer"].busy
        assert await exporter.close(NEVER)
        assert files.attempts == 1

    run(main, monkeypatch)


def test_another_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0)
        exporter.use(str(path))
        await files.written.get()
        other = path.with_name("other.prom")
        exporter.use(str(other))
        while await files.written.get() != str(other):
            pass
        read(other)
        exporter.use(None)
        assert await exporter.close(NEVER)
        assert os.listdir(path.parent) == []

    run(main, monkeypatch)


def test_failure_is_told_once(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0)
        levels: list[list[int]] = []

        async def attempt() -> None:
            exporter.tick()
            await idle(exporter)
            levels.append([record.levelno for record in caplog.records])
            caplog.clear()

        files.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        exporter.use(str(path))
        await idle(exporter)
        await attempt()
        await attempt()
        files.error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        await attempt()
        files.error = None
        await attempt()
        await attempt()
        assert levels == [[logging.WARNING], [], [logging.WARNING], [logging.INFO], []]
        read(path)
        assert await exporter.close(NEVER)

    caplog.set_level(logging.INFO, logger="nvmeofd")
    monkeypatch.setattr(logging.getLogger("nvmeofd"), "propagate", True)
    run(main, monkeypatch)


def test_sysfs_that_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0)
        source.connected = None
        exporter.use(str(path))
        await files.written.get()
        assert read(path).value("nvmeofd_subsystems_readable") == 0
        assert await exporter.close(NEVER)

    run(main, monkeypatch)


def test_file_system_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds one thread, and nothing else: another file is written meanwhile, and the end does not wait for it."""

    async def main(files: Files, source: Source) -> None:
        exporter = Exporter(source, delay=0)
        hang = files.hang = threading.Event()
        exporter.use(str(path))
        while not files.attempts:
            await asyncio.sleep(0)
        for _ in range(10):
            exporter.tick()
            exporter.changed()
            await asyncio.sleep(0)
        assert files.attempts == 1
        files.hang = None
        other = path.with_name("other.prom")
        exporter.use(str(other))
        assert await files.written.get() == str(other)
        assert await exporter.close(0.01) is False
        hang.set()
        assert await exporter.close(NEVER)
        assert os.listdir(path.parent) == []

    run(main, monkeypatch)
