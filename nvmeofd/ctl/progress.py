"""What an operation does now: one line that changes on a terminal, plain lines elsewhere. Always to standard error."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from nvmeofd.ctl.client import JOB, Event
from nvmeofd.ctl.snapshot import job_number
from nvmeofd.ctl.text import duration, prose, width


class OwnJob:
    """Finds the job of a call that was just made, and follows its steps.

    The interface does not say which call a job belongs to. It is one that comes up after the call was sent, does the
    same and is the same user's. When somebody makes the same call at the same moment there are several of those; they
    are done in the order of their numbers. One that ends while the call still waits for its reply was not ours: the
    signal Completed is sent before the reply, so the end of our own is noticed here, too, right before the reply.
    """

    def __init__(self, operation: str, *, path: str = "", nqn: str = "", uid: int | None = None) -> None:
        self._operation = operation
        self._path = path
        self._nqn = nqn
        self._uid = os.geteuid() if uid is None else uid
        self._candidates: dict[str, dict[str, object]] = {}
        self._last: dict[str, object] = {}

    def take(self, event: Event) -> bool:
        """Look at an event; returns whether what is known has changed."""
        if event.kind == "added" and event.interface == JOB and self._matches(event.values):
            self._candidates[event.path] = self._last = dict(event.values)
        elif event.kind == "changed" and event.path in self._candidates:
            self._candidates[event.path].update(event.values)
        elif event.kind in ("completed", "removed") and event.path in self._candidates:
            del self._candidates[event.path]
        elif event.kind == "daemon":
            self._candidates.clear()
        else:
            return False
        return True

    def _matches(self, job: Mapping[str, object]) -> bool:
        return (
            job.get("Operation") == self._operation
            and job.get("Sender") == self._uid
            and job.get("StagingPath", "") == self._path
            and self._nqn in ("", job.get("NQN"))
        )

    @property
    def numbers(self) -> list[int]:
        """Of the jobs that it can be, in order."""
        return sorted(job_number(path) for path in self._candidates)

    @property
    def step(self) -> str:
        """What it does now, empty when there is no job."""
        if not self._candidates:
            return ""
        first = min(self._candidates, key=job_number)
        return str(self._candidates[first].get("Step", ""))

    @property
    def nqn(self) -> str:
        """The subsystem that it is about, empty when no job was seen."""
        return str(self._last.get("NQN", ""))


class Progress:
    """Shows the steps of one operation."""

    def __init__(self, stream: TextIO, what: str, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._what = prose(what)
        self.quiet = quiet
        self._clock = clock
        self._began = clock()
        self._shown = ""
        self.live = not quiet and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def show(self, step: str, numbers: list[int]) -> None:
        """Show the step that the job is in, and how long the operation has taken so far."""
        if self.quiet or not step:
            return
        number = f"job {' or '.join(map(str, numbers))}" if numbers else ""
        if self.live:
            line = f"{self._what}: {prose(step)} ({duration(self._clock() - self._began)}; {number})"
            columns = shutil.get_terminal_size().columns - 1
            while width(line) > columns:
                line = line[:-2] + "…" if len(line) > 2 else ""
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()
            self._shown = line
        elif step != self._shown:
            self._shown = step
            self._stream.write(f"nvmeofctl: {number}: {prose(step)}\n")
            self._stream.flush()

    def clear(self) -> None:
        """Take the line away: what follows begins at the left."""
        if self.live and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = ""
