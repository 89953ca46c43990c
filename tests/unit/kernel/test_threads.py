"""Blocking calls in threads: results, errors, cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvmeofd.kernel.threads import in_thread, outlast


def test_result_and_error() -> None:
    async def main() -> None:
        assert await in_thread(lambda: 7, name="seven") == 7
        assert await in_thread(lambda: threading.current_thread().name, name="named") == "named"
        assert await in_thread(lambda: threading.current_thread().daemon, name="daemon")
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0, name="error")
        # What Python makes of it; the point is that the call comes back.
        with pytest.raises(RuntimeError, match="StopIteration"):
            await in_thread(lambda: next(iter(())), name="stop")

    asyncio.run(main())


class Blocked:
    """A call that blocks until it is let go."""

    def __init__(self, result: int = 5, error: Exception | None = None) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        self.ended = False
        self.result = result
        self.error = error

    def __call__(self) -> int:
        self.started.set()
        assert self.go.wait(10)
        self.ended = True
        if self.error:
            raise self.error
        return self.result


async def cancelled_midway(task: asyncio.Task[int], blocked: Blocked, times: int = 1) -> None:
    """Cancel the task while its call blocks, see that it waits, and let the call end."""
    await asyncio.to_thread(blocked.started.wait)
    for _ in range(times):
        task.cancel()
        done, _pending = await asyncio.wait({task}, timeout=0.02)
        assert not done
    blocked.go.set()
    await asyncio.wait({task})
    assert blocked.ended


def test_cancelling_waits_for_the_thread_and_disposes() -> None:
    async def main() -> None:
        blocked = Blocked()
        disposed: list[int] = []
        task = asyncio.create_task(in_thread(blocked, name="call", dispose=disposed.append))
        await cancelled_midway(task, blocked, times=3)
        assert task.cancelled()
        assert disposed == [5]

    asyncio.run(main())


def test_a_failed_call_has_nothing_to_dispose() -> None:
    async def main() -> None:
        blocked = Blocked(error=OSError(5, "no"))
        disposed: list[int] = []
        task = asyncio.create_task(in_thread(blocked, name="call", dispose=disposed.append, keep_result=True))
        await cancelled_midway(task, blocked)
        assert task.cancelled()
        assert disposed == []

    asyncio.run(main())


def test_a_kept_result_survives_cancellation_which_stays_visible() -> None:
    async def main() -> None:
        blocked = Blocked()
        seen = []

        async def caller() -> int:
            result = await in_thread(blocked, name="call", keep_result=True)
            task = asyncio.current_task()
            assert task
            seen.append(task.cancelling())
            return result

        task = asyncio.create_task(caller())
        await cancelled_midway(task, blocked)
        assert task.result() == 5
        assert seen == [1]

    asyncio.run(main())


def test_timeout_around_a_kept_result() -> None:
    async def main() -> None:
        blocked = Blocked()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(0.05) as timeout:
            loop.call_later(0.15, blocked.go.set)
            assert await in_thread(blocked, name="call", keep_result=True) == 5
        assert timeout.expired()
        task = asyncio.current_task()
        assert task
        assert task.cancelling() == 0

    asyncio.run(main())


def test_timeout_becomes_a_timeout_error() -> None:
    async def main() -> None:
        blocked = Blocked()
        asyncio.get_running_loop().call_later(0.15, blocked.go.set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_thread(blocked, name="call")
        assert blocked.ended

    asyncio.run(main())


def test_outlast_returns_the_first_cancellation() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(outlast(future))
        await asyncio.sleep(0)
        task.cancel("one")
        await asyncio.sleep(0)
        task.cancel("two")
        await asyncio.sleep(0)
        future.set_result(None)
        error = await task
        assert error is not None
        assert error.args == ("one",)

    asyncio.run(main())


def test_a_stuck_thread_does_not_keep_the_interpreter() -> None:
    script = (
        "import asyncio, time\n"
        "from nvmeofd.kernel.threads import in_thread\n"
        "async def main():\n"
        "    task = asyncio.ensure_future(in_thread(lambda: time.sleep(60), name='stuck'))\n"
        "    await asyncio.wait({task}, timeout=0.1)\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(main())\n"
        "print('ended')\n"
    )
    started = time.monotonic()
    root = Path(__file__).parents[3]
    said = subprocess.check_output([sys.executable, "-c", script], cwd=root, text=True, timeout=30)
    assert said == "ended\n"
    assert time.monotonic() - started < 20
