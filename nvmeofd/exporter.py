"""Keeps the file of metrics current: the part of :mod:`nvmeofd.metrics` that has a clock and a file.

Nothing of it runs while there is no file, and it wakes nobody up: what changes is written some seconds later, and what
changes unheard of (the state of paths) is looked at when the daemon is awake anyway, for its watchdog.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from nvmeofd.kernel.textfile import TextFile
from nvmeofd.kernel.threads import in_thread
from nvmeofd.log import log, quoted
from nvmeofd.metrics import JobState, Snapshot, render, update_time

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.metrics import Operations
    from nvmeofd.model import Subsystem
    from nvmeofd.operations.engine import Engine

# Seconds from a change to the file, so at most one file in this time.
DELAY = 5.0
# After this many seconds the file is written even if nothing changed: its age tells whether the daemon is alive.
HEARTBEAT = 60.0


class Source(Protocol):
    """Where the metrics come from."""

    def snapshot(self) -> Snapshot:
        """Called on the event loop."""
        ...

    def subsystems(self) -> tuple[Subsystem, ...] | None:
        """Called in a thread: it reads only from the kernel. None when that cannot be read."""
        ...


class EngineSource:
    """The daemon as a source."""

    def __init__(self, engine: Engine, operations: Operations) -> None:
        self._engine = engine
        self._operations = operations
        self._started = round(time.time(), 3)
        self.config_valid = True  # as it was loaded last

    def snapshot(self) -> Snapshot:
        volumes, jobs = self._engine.volumes.values(), self._engine.all_jobs.values()
        return Snapshot(
            started=self._started,
            config_valid=self.config_valid,
            outcomes=dict(self._operations.outcomes),
            errors=dict(self._operations.errors),
            durations=dict(self._operations.durations),
            jobs=Counter(map(_state, jobs)),
            waiting=Counter(job.nqn for job in jobs if not job.started),
            volumes=Counter(volume.state for volume in volumes),
            volume_nqns=frozenset(volume.nqn for volume in volumes),
            counters=self._engine.counters,
        )

    def subsystems(self) -> tuple[Subsystem, ...] | None:
        try:
            return self._engine.subsystems()
        except OSError:
            return None


def _state(job: Job) -> JobState:
    if not job.started:
        return JobState.WAITING
    return JobState.OVERDUE if job.result.done() else JobState.RUNNING


class _Writer:
    """Writes one file, one content at a time, each in a thread: a file system that hangs holds up its thread only."""

    def __init__(self, path: str, source: Source) -> None:
        self._file = TextFile(path)
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self._written = ""
        self._written_at = 0.0  # by the clock of the loop, as the next one
        self.begun = 0.0  # when the last attempt began
        self._failure: str | None = None

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def write(self) -> None:
        """Bring the file up to date, unless the last attempt is still under way."""
        if not self.busy:
            self.begun = asyncio.get_running_loop().time()
            self._task = asyncio.create_task(self._write(), name="write metrics")

    async def remove(self) -> None:
        """Remove the file when the last attempt to write it has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})
        try:
            await in_thread(self._file.remove, name="remove metrics")
        except OSError as error:
            log.warning("cannot remove %s: %s", quoted(self.path), error.strerror)

    async def _write(self) -> None:
        snapshot = self._source.snapshot()
        old = "" if self.begun - self._written_at >= HEARTBEAT else self._written

        def update() -> str:
            text = render(snapshot, self._source.subsystems())
            if text != old:
                self._file.replace((text + update_time(round(time.time(), 3))).encode())
            return text

        try:
            text = await in_thread(update, name="write metrics")
        except OSError as error:
            self._fails(error)
            return
        if text != old:
            self._written, self._written_at = text, self.begun
            if self._failure is not None:
                self._failure = None
                log.info("the metrics are written to %s again", quoted(self.path))

    def _fails(self, error: OSError) -> None:
        """Told once, and again when it fails in another way."""
        self._written = ""
        reason = error.strerror or str(error)
        if reason != self._failure:
            self._failure = reason
            log.warning("cannot write the metrics to %s: %s", quoted(self.path), reason)


class Exporter:
    """Lives on the event loop. To be closed."""

    def __init__(self, source: Source, *, delay: float = DELAY) -> None:
        self._source = source
        self._delay = delay
        self._writer: _Writer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    def use(self, path: str | None) -> None:
        """Write to ``path`` from now on, and remove what was written elsewhere before. None: write nothing."""
        if self._closed:
            return
        if self._writer is not None and self._writer.path == path:
            self.changed()
            return
        if self._writer is not None:
            task = asyncio.create_task(self._writer.remove(), name="remove metrics")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        self._writer = _Writer(path, self._source) if path is not None else None
        if self._writer is not None:
            self._writer.write()

    def changed(self) -> None:
        """Something that the metrics show is not as it was."""
        if self._writer is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay, self._due)

    def tick(self) -> None:
        """Look at what changes unheard of, and write the file if anything did; not too often, however short a tick."""
        now = asyncio.get_running_loop().time()
        if self._writer is not None and self._timer is None and now - self._writer.begun >= self._delay:
            self._writer.write()

    async def close(self, timeout: float) -> bool:
        """Stop, and remove the file: what it says would only become untrue.

        Returns False when a file system still holds a thread after ``timeout`` seconds.
        """
        self.use(None)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._leaving:
            return True
        _, held = await asyncio.wait(set(self._leaving), timeout=timeout)
        return not held

    def _due(self) -> None:
        self._timer = None
        if self._writer is not None:
            self._writer.write()
