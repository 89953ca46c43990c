"""Coroutines as tests, and a private bus for each of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bus import broker
from tests.bus.harness import PrivateBus
from tests.bus.polkit import POLICY

TIMEOUT = 120.0  # seconds; reached only when something hangs


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in a loop of its own, and hold it to leave nothing behind in it."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    complaints: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(TIMEOUT):
            await pyfuncitem.obj(**arguments)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"

    asyncio.run(run())
    assert not complaints, complaints
    return True


def _buses() -> list[Any]:
    why = broker.missing()
    skipped = [pytest.mark.skipif(bool(why), reason=why)]
    return [pytest.param(PrivateBus, id="daemon"), pytest.param(broker.PrivateBroker, id="broker", marks=skipped)]


@pytest.fixture(params=_buses())
def bus(request: pytest.FixtureRequest) -> Iterator[PrivateBus]:
    """A bus with the policy of the system bus and that of the service: dbus-daemon, and again dbus-broker."""
    with request.param() as private:
        yield private


@pytest.fixture(params=_buses())
def open_bus(request: pytest.FixtureRequest) -> Iterator[PrivateBus]:
    """The same after an administrator has let everybody in."""
    with request.param(extra_policy=(Path(__file__).parent / "open-to-all.conf").read_text()) as private:
        yield private


@pytest.fixture(params=_buses())
def polkit_bus(request: pytest.FixtureRequest) -> Iterator[PrivateBus]:
    """The same with polkit's policy, where anybody can be polkit, and with the limit of replies of the system bus."""
    opened = (Path(__file__).parent / "open-to-all.conf").read_text()
    with request.param(extra_policy=opened + POLICY, max_replies=128) as private:
        yield private
