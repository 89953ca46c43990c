"""Any calls of somebody whom the bus lets through and polkit does not: the answers do not depend on what is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeofd.bus.messages import DBusError, Message
from nvmeofd.bus.paths import ROOT
from tests.bus.fake import FakeCore, subsystem, volume
from tests.bus.harness import MANAGER, PrivateBus, client, service
from tests.bus.polkit import NO, POLICY, YES, Rule, authority
from tests.bus.refusals import check
from tests.bus.test_hostile import calls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

NOBODY = 65534
OPEN = (Path(__file__).parent / "open-to-all.conf").read_text() + POLICY

many = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


class World:
    """A host, its daemon, a polkit that always says the same, and a stranger. There is something on it, or nothing."""

    def __init__(self, bus: PrivateBus, rule: Rule, *, empty: bool) -> None:
        self.bus = bus
        self.core = FakeCore()
        self._rule = rule
        self._stack = AsyncExitStack()
        if not empty:
            self.core.connect(subsystem())
            self.core.add_volume(volume("/srv/one"))
            self.job = self.core.add_job(1)

    async def start(self) -> None:
        enter = self._stack.enter_async_context
        self.service = await enter(service(self.bus, self.core))
        self.polkit = await enter(authority(self.bus, self._rule))
        self.stranger = await enter(client(self.bus, uid=NOBODY))
        self.root = await enter(client(self.bus))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def ask(self, batch: list[Message]) -> list[Any]:
        """What the stranger gets: values, or name and text of an error. One after the other, so below every limit."""
        found: list[Any] = []
        for call in batch:
            try:
                found.append(await self.stranger.connection.call(call))
            except DBusError as error:
                check(error)
                found.append((error.name, error.text))
        assert await self.root.get(ROOT, MANAGER, "Version")
        assert self.service._dispatcher._tasks == {}
        return found


class Worlds:
    def __init__(self, stack: ExitStack, rule: Rule) -> None:
        self._runner = stack.enter_context(asyncio.Runner())
        self.full, self.empty = (
            World(stack.enter_context(PrivateBus(extra_policy=OPEN)), rule, empty=empty) for empty in (False, True)
        )
        for world in (self.full, self.empty):
            self._runner.run(world.start())
            stack.callback(self._stop, world)

    def _stop(self, world: World) -> None:
        self._runner.run(world.stop())

    def ask(self, batch: list[Message]) -> tuple[list[Any], list[Any]]:
        async def both() -> tuple[list[Any], list[Any]]:
            async with asyncio.timeout(30):
                return await self.full.ask(batch), await self.empty.ask(batch)

        return self._runner.run(both())


@pytest.fixture
def worlds(request: pytest.FixtureRequest) -> Iterator[Worlds]:
    rule: Rule = request.param
    with ExitStack() as stack:
        yield Worlds(stack, rule)


@pytest.mark.parametrize("worlds", [lambda _: NO], indirect=True, ids=["denied"])
@many
@given(st.lists(calls(), min_size=1, max_size=10))
def test_a_stranger_learns_and_does_nothing(worlds: Worlds, batch: list[Message]) -> None:
    scans = worlds.full.core.scans
    there, nothing = worlds.ask(batch)
    assert there == nothing
    assert worlds.full.core.requests == worlds.empty.core.requests == []
    assert not worlds.full.job.cancelled
    assert worlds.full.core.scans == scans


@pytest.mark.parametrize("worlds", [lambda _: YES], indirect=True, ids=["allowed"])
@many
@given(st.lists(calls(), min_size=1, max_size=10))
def test_whom_polkit_allows_everything_gets_known_errors(worlds: Worlds, batch: list[Message]) -> None:
    worlds.ask(batch)


@pytest.mark.parametrize(
    "worlds", [lambda question: NO if question.action == "org.nvmeofd1.read" else YES], indirect=True, ids=["blind"]
)
@many
@given(st.lists(calls(), min_size=1, max_size=10))
def test_who_may_act_and_not_look_stops_no_job(worlds: Worlds, batch: list[Message]) -> None:
    worlds.ask(batch)
    assert not worlds.full.job.cancelled
