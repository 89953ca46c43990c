"""Undo: each step registers how to take it back before it acts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nvmeofd.errors import NvmeofdError
from nvmeofd.kernel.interface import KernelError
from nvmeofd.log import log

if TYPE_CHECKING:
    from types import TracebackType

    from nvmeofd.jobs import Job


class Transaction:
    """``async with``: leaving with an exception (a cancelled job included) runs the undos in reverse order.

    An undo that fails is noted on the job, for the message of its error, and the remaining ones still run. What is
    left over then is found again by the daemon's own tidying.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._undos: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._failed: set[str] = set()

    def on_failure(self, what: str, undo: Callable[[], Awaitable[None]]) -> None:
        """Register an undo. ``what`` names it in messages: "disconnect …"."""
        self._undos.append((what, undo))

    def could_not(self, what: str) -> bool:
        """Whether this undo has failed: undos that come after it can depend on it."""
        return what in self._failed

    async def __aenter__(self) -> Transaction:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or not self._undos:
            return
        self._job.roll_back(error)
        log.info("%s: rolling back: %s", self._job, error if isinstance(error, NvmeofdError) else "stopped")
        for what, undo in reversed(self._undos):
            self._job.detail = what
            try:
                await undo()
            except (NvmeofdError, KernelError, OSError) as failure:
                log.warning("%s: could not %s: %s", self._job, what, failure)
                self._failed.add(what)
                self._job.leftovers.append(f"{what}: {failure}")
