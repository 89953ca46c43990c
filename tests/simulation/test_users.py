"""Users other than root, where they are let in: they get their turn, and root always has one."""

from __future__ import annotations

import asyncio

import pytest

from nvmeofd.errors import Busy, NamespaceNotFound
from nvmeofd.operations.volumes import Volume
from nvmeofd.requests import parse_stage
from tests.simulation.harness import Host, typed
from tests.simulation.setting import BLANK, EXT4, ONE, PATHS, simulated

USER, OTHER = 1000, 1001
PATH, PATHS_OF = "/srv/a", "/srv/{}"


def start(host: Host, sender: int, namespace: str, path: str, **options: object) -> asyncio.Task[Volume]:
    request = parse_stage(ONE, namespace, PATHS, path, typed(options))
    return host.submit(host.engine.stage(request, sender=sender))


@simulated()
async def test_root_finds_room_whatever_others_ask_for(host: Host) -> None:
    host.kernel.faults.delay("connect", 1)
    tasks = [start(host, 1000 + n % 2, f"nsid.{10 + n}", PATHS_OF.format(n)) for n in range(80)]
    await asyncio.sleep(0.5)
    refused = [task for task in tasks if task.done() and isinstance(task.exception(), Busy)]
    waiting = [job.sender for job in host.engine.jobs.values()]
    assert waiting.count(USER) == waiting.count(OTHER) == host.config.queue_limit // 4
    assert len(refused) == 80 - len(waiting)
    with pytest.raises(Busy):
        await host.answer(start(host, OTHER, EXT4, PATH))
    for job in list(host.engine.jobs.values()):
        job.cancel()
    await host.stage(ONE, EXT4, PATHS, PATH)
    await asyncio.gather(*map(host.answer, tasks), return_exceptions=True)
    assert await host.unstage(PATH) is True


@simulated()
async def test_nobody_but_root_waits_longer_than_configured(host: Host) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(NamespaceNotFound):
        await host.answer(start(host, USER, "nsid.77", PATH, timeout=86_400))
    assert asyncio.get_running_loop().time() - began <= host.config.timeout


@simulated()
async def test_deadline_of_another_user_is_not_ones_own(host: Host) -> None:
    """Whoever asks for the same with less time, or more, has a job of his own behind."""
    host.world.fabric.targets[ONE].silent = True  # found at half the time
    hasty = start(host, USER, EXT4, PATH, timeout=2)
    await asyncio.sleep(0.001)
    patient = start(host, 0, EXT4, PATH, timeout=60)
    done = await asyncio.gather(host.answer(hasty), host.answer(patient), return_exceptions=True)
    assert isinstance(done[1], Volume)
    assert await host.unstage(PATH) is True


@simulated()
async def test_same_request_of_two_users_is_one_job(host: Host) -> None:
    host.kernel.faults.delay("connect", 1)
    first, second = start(host, USER, EXT4, PATH), start(host, 0, EXT4, PATH)
    await asyncio.sleep(0.5)
    assert len(host.engine.jobs) == 1
    assert await host.answer(first) == await host.answer(second)
    assert await host.unstage(PATH) is True


@simulated()
async def test_formatting_is_not_joined_by_who_does_not_ask_for_it(host: Host) -> None:
    host.kernel.faults.delay("connect", 1)
    formatting = start(host, 0, BLANK, PATH, format="if-empty")
    await asyncio.sleep(0.5)
    with pytest.raises(Exception, match="being staged with another request"):
        await host.answer(start(host, USER, BLANK, PATH))
    await host.answer(formatting)
    assert await host.unstage(PATH) is True
