"""A job: one accepted piece of work, its steps and its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nvmeofd.errors import Cancelled, Failed, NvmeofdError, ShuttingDown, Timeout
from nvmeofd.kernel.threads import outlast
from nvmeofd.log import about, bound, log, quoted
from nvmeofd.model import OperationKind, Step

# A quarter of the time, at most this many seconds, is kept back for undoing, so that the usual failure is undone by
# the time the caller hears of it.
ROLLBACK_RESERVE = 10.0


def now_us() -> int:
    """Realtime clock, microseconds."""
    return time.time_ns() // 1000


class Job:
    """One accepted piece of work on one subsystem.

    The caller's answer (:attr:`result`) and the work are two things: at the deadline the caller gets its Timeout even
    if the kernel still holds the work, and the queue waits until the work has really ended.
    """

    def __init__(
        self,
        operation: OperationKind,
        nqn: str,
        work: Callable[[Job], Awaitable[Any]],
        *,
        timeout: float,
        staging_path: str = "",
        sender: int = 0,
        request: object = None,
        visible: bool = True,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.number = 0  # given at admission
        self.operation = operation
        self.nqn = nqn
        self.staging_path = staging_path
        self.sender = sender
        self.request = request
        self.visible = visible
        self.queued_at = now_us()
        self.started_at = 0
        self.step = Step.QUEUED
        self.detail = ""  # what the current step is about, for messages
        self.leftovers: list[str] = []  # undos that failed, for the message of the error
        reserve = min(ROLLBACK_RESERVE, timeout / 4)
        self.timeout = timeout
        self.accepted = loop.time()
        self.deadline = self.accepted + timeout
        self.soft_deadline = self.deadline - reserve
        self.result: asyncio.Future[Any] = loop.create_future()
        # nobody may be left to ask for it (the client went away)
        self.result.add_done_callback(_retrieve)
        self.forced: asyncio.Future[None] = loop.create_future()  # see force()
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._stop_reason: NvmeofdError | None = None
        self._protected = False
        self._failed_step: Step | None = None  # where undoing began
        self._failure: NvmeofdError | None = None  # why undoing began
        self._timers: list[asyncio.TimerHandle] = []
        self._on_step: Callable[[Job], None] = lambda _: None
        self._on_dequeue: Callable[[Job, NvmeofdError], None] = lambda _, __: None

    def __str__(self) -> str:
        where = f" {quoted(self.staging_path)}" if self.staging_path else ""
        return f"job {self.number} {self.operation} {quoted(self.nqn)}{where}"

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log record about the job has, see :mod:`nvmeofd.log`."""
        return {
            "JOB": str(self.number),
            "OPERATION": self.operation,
            "NQN": self.nqn,
            "STAGING_PATH": self.staging_path,
            "STEP": self.step,
        }

    @property
    def failed_step(self) -> Step:
        """The step in which a job failed that failed: not the one in which that was undone."""
        return self._failed_step or self.step

    @property
    def started(self) -> bool:
        return self._task is not None

    @property
    def stopping(self) -> bool:
        """Whether the work was told to stop (deadline or Cancel)."""
        return self._stop_reason is not None

    def enter(self, step: Step, detail: str = "") -> None:
        """Begin a step. Raises CancelledError when the job was told to stop.

        While undoing, the step stays ROLLING_BACK whatever is done for it, and nothing is raised.
        """
        self.checkpoint()
        self.detail = detail
        if step is not self.step and self.step is not Step.ROLLING_BACK:
            self.step = step
            self._on_step(self)

    def roll_back(self, why: BaseException | None = None) -> None:
        """Begin to undo, or to see to the end what cannot be undone: from here on the job is not to be stopped."""
        if self.step is not Step.ROLLING_BACK:
            self._failed_step = self.step
            if isinstance(why, NvmeofdError):
                self._failure = why
            self.step = Step.ROLLING_BACK
            self._on_step(self)

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Part of the work that is seen to its end: a stop that comes meanwhile takes effect after it."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False

    def checkpoint(self) -> None:
        """Raise CancelledError when the job was told to stop.

        For use after a call that finished its side effect although it was cancelled.
        """
        if self._stop_reason is not None and self.step is not Step.ROLLING_BACK and not self._protected:
            raise asyncio.CancelledError

    def cancel(self) -> None:
        """Ask the job to stop. It is undone, and its caller gets Cancelled. No effect once it is stopping or done."""
        self._stop(Cancelled(f"cancelled in step {self.step}"))

    def force(self) -> None:
        """Let the work do what it does only when it is forced. For work that is under way, too."""
        if not self.forced.done():
            self.forced.set_result(None)

    def take_force(self) -> bool:
        """Whether the job was forced since this was last asked."""
        if not self.forced.done():
            return False
        self.forced = asyncio.get_running_loop().create_future()
        return True

    # ---- for the queue

    def arm(self, on_step: Callable[[Job], None], on_dequeue: Callable[[Job, NvmeofdError], None]) -> None:
        """Start the clocks. ``on_dequeue`` is called when the job ends before its work began."""
        loop = asyncio.get_running_loop()
        self._on_step, self._on_dequeue = on_step, on_dequeue
        self._timers = [
            loop.call_at(self.soft_deadline, self._soft_timeout),
            loop.call_at(self.deadline, self._hard_timeout),
        ]

    def stop_if_queued(self, reason: NvmeofdError) -> None:
        """End the job with ``reason`` if its work has not begun."""
        if not self.started:
            self._stop(reason)

    async def run(self) -> NvmeofdError | None:
        """Do the work to its real end and return the error it ended with, which the caller has got too."""
        if asyncio.get_running_loop().time() >= self.soft_deadline and not self.result.done():
            # what is left of the time is for undoing: nothing is begun in it
            expired = Timeout(f"the deadline of {self.timeout:g} s passed in step queued")
            self._disarm()
            self.result.set_exception(expired)
            return expired
        self.started_at = now_us()
        self._task = asyncio.ensure_future(self._bound_work())
        error: NvmeofdError | None = None
        value: Any = None
        try:
            # wait() and not await: the work is told to stop by its own clocks only
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            # the queue is abandoned: see to the end of the work, however long the kernel takes
            self._stop(ShuttingDown("the daemon is stopping"))
            await outlast(self._task)
        try:
            value = self._task.result()
        except asyncio.CancelledError:
            error = self._stop_reason or Failed("the work was cancelled")
        except NvmeofdError as exception:
            error = exception
        except OSError as exception:
            step = self.failed_step
            log.error("%s: step %s: %s", self, step, exception, extra=about(step=step))
            error = Failed(f"step {step}: {exception}")
        except Exception:  # noqa: BLE001 - the caller gets an answer and the queue goes on, whatever is wrong
            step = self.failed_step
            log.exception("%s: unexpected error in step %s", self, step, extra=about(step=step))
            error = Failed(f"internal error in step {step}, see the log of the daemon")
        finally:
            self._disarm()
        if error is not None and self.leftovers:
            error = type(error)(f"{error}; not undone: {'; '.join(self.leftovers)}")
        if not self.result.done():
            if error is None:
                self.result.set_result(value)
            else:
                self.result.set_exception(error)
        elif error is None and (late := self.result.exception()) is not None:
            # the caller was told Timeout, then the kernel came back and the work succeeded after all
            log.warning("%s: succeeded after its caller was told: %s", self, late)
        return error

    async def _bound_work(self) -> Any:
        with bound(self):
            return await self._work(self)

    def _soft_timeout(self) -> None:
        if self.started:
            self._stop(Timeout(f"the deadline of {self.timeout:g} s passed in step {self._where()}"))

    def _hard_timeout(self) -> None:
        if not self.started:
            self._stop(Timeout(f"the deadline of {self.timeout:g} s passed in step queued"))
        elif not self.result.done():
            reason = self._failure or self._stop_reason or Timeout(f"the deadline of {self.timeout:g} s passed")
            self.result.set_exception(Timeout(f"{reason}; still running: {self._where()}"))

    def _where(self) -> str:
        return f"{self.step} ({self.detail})" if self.detail else str(self.step)

    def _stop(self, reason: NvmeofdError) -> None:
        if self._stop_reason is not None or self.result.done() or self.step is Step.ROLLING_BACK:
            return
        self._stop_reason = reason
        if self._task is not None:
            if not self._protected:
                self._task.cancel()
        else:
            self._disarm()
            self.result.set_exception(reason)
            self._on_dequeue(self, reason)

    def _disarm(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = []


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
