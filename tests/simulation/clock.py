"""A virtual-time event loop: deterministic, never sleeps, and knows processes that can be killed.

When nothing is ready the clock jumps to the next timer. When there is no timer either, nothing can ever happen again:
that raises :class:`Deadlock`. A killed :class:`Process` never runs another line: its callbacks are set aside as if a
SIGKILL had hit it, and only after the test its frozen tasks are unwound so that nothing leaks.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Deadlock(Exception):
    """Nothing is ready and no timer is set: every task waits for ever."""


class ProcessKilled(BaseException):
    """Raised into code of a killed process that still gets to run, wherever it tries to reach the world."""


class LeakedTasks(Exception):
    """The test ended with tasks that nobody awaited."""


class UnhandledErrors(Exception):
    """Errors that only reached the loop's exception handler."""


class Process:
    """Everything that runs on behalf of one process lifetime. Tasks it makes belong to it, too."""

    def __init__(self) -> None:
        self.dead = False
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.frozen: list[tuple[Callable[..., object], tuple[Any, ...], contextvars.Context]] = []

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run ``coro`` as a task of this process."""
        return asyncio.get_running_loop().create_task(coro, name=name, context=self.context)

    def owns(self, context: contextvars.Context) -> bool:
        """Whether a callback with this context belongs to the process."""
        return context.get(_PROCESS) is self

    def kill(self) -> None:
        """Stop it as SIGKILL does. On other loops than :class:`VirtualLoop` its code may run on."""
        self.dead = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if isinstance(loop, VirtualLoop):
            loop.freeze(self)


def _owner(context: contextvars.Context | None) -> Process | None:
    return _PROCESS.get() if context is None else context.get(_PROCESS)


class _Selector:
    """Stands in for the selector of an event loop: waiting means moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            waiting = [repr(task) for task in asyncio.all_tasks(self._loop)]
            raise Deadlock("all tasks wait for ever:\n" + "\n".join(waiting))
        if timeout > 0:
            self._loop.now += timeout
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without file descriptors, threads or real time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.errors: list[str] = []
        self._selector = _Selector(self)
        # The base class waits for less than this, and would take a jump that ends just short of a timer as no jump.
        self._clock_resolution = 1e-6
        self._killed: list[Process] = []
        self.set_exception_handler(self._note_error)

    def time(self) -> float:
        return self.now

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _note_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, ProcessKilled):
            self.errors.append(f"{context['message']}: {error!r} {context.get('task') or context.get('future') or ''}")

    def run_in_executor(self, _executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run ``func`` on the spot: a thread would bring real time back in."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller
            future.set_exception(error)
        return future

    # ---- processes

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None, **kwargs: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, name=name, context=context, **kwargs)
        if (process := _owner(context)) is not None:
            process.tasks.add(task)
            if not process.dead:
                task.add_done_callback(process.tasks.discard, context=contextvars.Context())
        return task

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        process = _owner(context)
        if process is not None and process.dead:
            context = contextvars.copy_context() if context is None else context
            process.frozen.append((callback, args, context))
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(callback, *args, context=context)

    def freeze(self, process: Process) -> None:
        """Set aside all that ``process`` would still have run."""
        self._killed.append(process)
        insides: Any = self  # what the base class keeps, typed nowhere
        for handle in [*insides._ready, *insides._scheduled]:
            context: contextvars.Context = handle._context
            if handle.cancelled() or context.get(_PROCESS) is not process:
                continue
            if not isinstance(handle, asyncio.TimerHandle):
                process.frozen.append((handle._callback, handle._args, context))
            handle.cancel()

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        process = _owner(context)
        if process is not None and process.dead:
            handle.cancel()
        return handle

    async def _unwind(self, tasks: list[asyncio.Task[Any]]) -> None:
        for _ in range(100):
            pending = [task for task in tasks if not task.done()]
            if not pending:
                break
            for task in pending:
                task.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()

    def reap(self) -> None:
        """Unwind what killed processes left. Whatever their code still tries to do raises ProcessKilled."""
        for process in self._killed:
            tasks = list(process.tasks)
            process.dead = False
            for callback, args, context in process.frozen:
                self.call_soon(callback, *args, context=context)
            process.frozen.clear()
            self.run_until_complete(self._unwind(tasks))
        self._killed.clear()

    def finish(self) -> list[asyncio.Task[Any]]:
        """Unwind everything that is left; returns the tasks of living processes that nobody awaited."""
        errors = list(self.errors)
        self.reap()
        left = [task for task in asyncio.all_tasks(self) if not task.done()]
        self.run_until_complete(self._unwind(left))
        self.run_until_complete(self.shutdown_asyncgens())
        self.errors[:] = errors
        self.close()
        return left


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` in virtual time. Leaked tasks and errors that nobody saw fail the test."""
    loop = VirtualLoop()
    task = loop.create_task(main, name="main")
    try:
        result: T = loop.run_until_complete(task)
    except BaseException:
        loop.finish()
        raise
    leaked = loop.finish()
    if loop.errors:
        raise UnhandledErrors("\n".join(loop.errors))
    if leaked:
        raise LeakedTasks("\n".join(map(repr, leaked)))
    return result
