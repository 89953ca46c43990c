"""An alarm goes off once, at the soonest time that was asked for."""

from __future__ import annotations

import asyncio

from nvmeofd.alarm import Alarm


async def _gone_off(*delays: float) -> int:
    """How often an alarm goes off that is asked for these times, until the loop has nothing else to do."""
    times = 0
    done = asyncio.Event()

    def count() -> None:
        nonlocal times
        times += 1
        done.set()

    alarm = Alarm(count)
    now = asyncio.get_running_loop().time()
    for delay in delays:
        alarm.at(now + delay)
    assert alarm.is_set()
    async with asyncio.timeout(30):
        await done.wait()
    assert not alarm.is_set()
    return times


def test_the_soonest_time_counts() -> None:
    assert asyncio.run(_gone_off(3600, 0, 7200)) == 1
    assert asyncio.run(_gone_off(0, 3600)) == 1


def test_it_can_be_set_again_and_cancelled() -> None:
    async def run() -> None:
        alarm = Alarm(lambda: None)
        alarm.cancel()
        alarm.at(asyncio.get_running_loop().time() + 3600)
        alarm.cancel()
        assert not alarm.is_set()
        alarm.at(asyncio.get_running_loop().time() + 3600)
        assert alarm.is_set()
        alarm.cancel()

    asyncio.run(run())
