"""Blocking system calls as coroutines: one daemon thread for each call, and no call is ever abandoned.

A pool would let calls that the kernel holds (state D) use up its workers, and the interpreter joins the threads of
``concurrent.futures`` at exit: one stuck call would keep the daemon from ending. A daemon thread does neither.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def outlast(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until ``future`` is done, through any number of cancellations of the caller.

    Returns the first of those cancellations, which the caller then has to raise or to answer for, or None. The future
    itself is neither cancelled nor asked for its result.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled


class CannotStart(OSError):
    """EAGAIN: there is no thread for the call, and nothing of it was done."""


class _Outcome(Generic[T]):
    """What the thread leaves behind. A Future could not carry it: set_exception refuses StopIteration."""

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        self.value: T | None = None
        self.error: BaseException | None = None

    def get(self) -> T:
        error, self.error = self.error, None
        if error is None:
            return self.value  # type: ignore[return-value]
        try:
            raise error
        finally:
            del error

    def dispose(self, dispose: Callable[[T], object] | None) -> None:
        if self.error is None and dispose is not None:
            dispose(self.value)  # type: ignore[arg-type]


async def in_thread(
    call: Callable[[], T],
    *,
    name: str,
    dispose: Callable[[T], object] | None = None,
    keep_result: bool = False,
) -> T:
    """Run ``call`` in a thread of its own and return what it returns, or raise what it raises.

    When the coroutine is cancelled it goes on waiting until the thread has ended, however long that takes. Then it
    raises CancelledError, after ``dispose`` got the result, if there is one. With ``keep_result`` a result is returned
    all the same: the cancellation is then not lost but visible in ``Task.cancelling()``, and asyncio.timeout() still
    reports itself expired. A call that failed meanwhile raises CancelledError, with the failure as its cause.

    Args:
        call: the blocking call.
        name: of the thread, for people who look at a stuck daemon.
        dispose: gets rid of a result that nobody will receive, e.g. os.close. Called in the thread or on the loop,
            must not block.
        keep_result: the side effect of the call matters more than its cancellation.

    Raises:
        CannotStart: nothing was called; and whatever ``call`` raises.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    outcome: _Outcome[T] = _Outcome()

    def main() -> None:
        try:
            outcome.value = call()
        except BaseException as error:  # noqa: BLE001 - everything goes to the coroutine that waits
            outcome.error = error
        try:
            loop.call_soon_threadsafe(_finish, ended)
        except RuntimeError:
            # The loop is closed: the daemon has ended without waiting for this call.
            outcome.dispose(dispose)

    try:
        threading.Thread(target=main, name=name, daemon=True).start()
    except RuntimeError as error:
        raise CannotStart(errno.EAGAIN, f"cannot start a thread: {error}") from error
    cancelled = await outlast(ended)
    if cancelled is None or (keep_result and outcome.error is None):
        return outcome.get()
    outcome.dispose(dispose)
    raise cancelled from outcome.error


def _finish(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
