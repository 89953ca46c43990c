"""The virtual clock and the killing of processes."""

from __future__ import annotations

import asyncio

import pytest

from tests.simulation.clock import Deadlock, LeakedTasks, Process, UnhandledErrors, run


def test_time_jumps() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(asyncio.sleep(7.5))
        return loop.time() - started

    assert run(main()) == pytest.approx(3600)


def test_timeout_works() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(100)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(5)


def test_waiting_for_ever_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="main"):
        run(main())


def test_leaked_task_fails() -> None:
    async def main() -> None:
        main.task = asyncio.ensure_future(asyncio.sleep(1000))  # type: ignore[attr-defined]

    with pytest.raises(LeakedTasks, match="sleep"):
        run(main())


def test_error_in_callback_fails() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(UnhandledErrors, match="ZeroDivisionError"):
        run(main())


def test_executor_runs_on_the_spot() -> None:
    async def main() -> int:
        return await asyncio.to_thread(lambda: 42)

    assert run(main()) == 42


def test_killed_process_never_runs_again() -> None:
    seen: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(2)
            seen.append("child woke")
        finally:
            if not process.dead:
                seen.append("unwound")
            else:
                seen.append("ran on")

    async def daemon() -> None:
        asyncio.get_running_loop().call_later(3, seen.append, "timer")
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())

    process = Process()

    async def main() -> None:
        process.spawn(daemon())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(10)
        assert seen == []

    run(main())
    assert seen == ["unwound", "unwound"]  # after the test, so that nothing leaks
