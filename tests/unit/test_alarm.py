"""An alarm goes off once, at the soonest time that was asked for."""

from __future__ import annotations

import asyncio
from itertools import permutations

from nvmeofd.alarm import Alarm


def test_the_soonest_time_counts() -> None:
    """Every order of three times; it goes off at the first, and the others are no occasions of their own."""

    async def run(*delays: float) -> list[bool]:
        loop = asyncio.get_running_loop()
        calls: list[bool] = []
        alarm = Alarm(lambda: calls.append(first <= loop.time() + 0.001 and not soonest.done()))
        soonest = loop.create_future()
        after = loop.create_future()
        begun = loop.time()
        first = begun + min(delays)
        for delay in delays:
            alarm.at(begun + delay)
        assert alarm.is_set()
        # Timers go off in the order of their times, however late.
        loop.call_at(first + 0.001, soonest.set_result, None)
        loop.call_at(begun + max(delays) + 0.001, after.set_result, None)
        await after
        assert not alarm.is_set()
        return calls

    for delays in permutations((0.01, 0.02, 0.03)):
        assert asyncio.run(run(*delays)) == [True]


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
