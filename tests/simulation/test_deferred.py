"""Disconnects that have to wait: for the last user to go, or for a while because the configuration says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from nvmeofd.config import Config
from nvmeofd.operations.tidy import FIRST_INTERVAL, GRACE
from tests.simulation.clock import run
from tests.simulation.harness import Host
from tests.simulation.setting import EXT4, ONE, PATHS, XFS, make_world, simulated
from tests.simulation.state import SimHead
from tests.simulation.world import SimWorld

# Users of the second namespace who leave with an event: how they come, and go.
HEARD: dict[str, tuple[Callable[[SimWorld, SimHead], object], Callable[[SimWorld], object]]] = {
    "mount": (lambda w, h: w.mount(h, "/mnt/y"), lambda w: w.unmount("/mnt/y")),
    "block-bind": (lambda w, h: w.bind_device(h, "/srv/file"), lambda w: w.unmount("/srv/file")),
    "holder": (lambda w, h: w.hold(h), lambda w: w.release(w.holders[0])),
}


@pytest.mark.parametrize("user", HEARD)
def test_within_a_second_of_the_last_user(user: str) -> None:
    @simulated()
    async def history(host: Host) -> None:
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
        come, leave = HEARD[user]
        come(host.world, host.world.head(ONE, 2))
        assert not await host.unstage("/srv/a")
        await host.quiesce(100)
        leave(host.world)
        await host.quiesce(1)
        assert not host.world.connected(ONE)
        await host.quiesce(100)
        assert host.engine.counters["disconnects-done"] == 1

    history()


async def fruitless_attempts(host: Host) -> None:
    """Somebody has a device open, and events tell of it: attempts become rare. Returns right after one of them."""
    for _ in range(100):
        host.world.emit_device("change", "block", "nvme0n1")
        await host.quiesce(1)
    before = attempts = host.engine.counters["disconnects-deferred"]
    while attempts == before:
        host.world.emit_device("change", "block", "nvme0n1")
        await host.quiesce(1)
        attempts = host.engine.counters["disconnects-deferred"]


@pytest.mark.parametrize("user", HEARD)
def test_within_a_second_also_after_many_attempts(user: str) -> None:
    """Others made them rare. A user who is seen and leaves has nothing to do with that."""

    @simulated()
    async def history(host: Host) -> None:
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
        come, leave = HEARD[user]
        opener = host.world.open(host.world.head(ONE, 2))
        assert not await host.unstage("/srv/a")
        await fruitless_attempts(host)
        come(host.world, host.world.head(ONE, 2))
        await host.quiesce(1)
        host.world.close(opener)
        await host.quiesce(1)
        assert host.world.connected(ONE)
        leave(host.world)
        await host.quiesce(1)
        assert not host.world.connected(ONE)
        await host.quiesce(100)
        assert host.engine.counters["disconnects-done"] == 1

    history()


@simulated()
async def test_a_volume_that_was_there_again(host: Host) -> None:
    """Its mount goes, comes back and goes: each time the wait begins anew, whatever was tried before."""
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    opener = host.world.open(host.world.head(ONE, 2))
    host.world.unmount("/srv/a")
    await host.quiesce(GRACE + 1)
    await fruitless_attempts(host)
    host.world.mount(host.world.head(ONE, 1), "/srv/a")
    await host.quiesce(1)
    host.world.close(opener)
    host.world.unmount("/srv/a")
    await host.quiesce(GRACE + 1)
    assert not host.world.connected(ONE)
    assert host.engine.counters["disconnects-done"] == 1
    assert await host.unstage("/srv/a")


@simulated()
async def test_a_user_who_comes_and_goes_costs_little(host: Host) -> None:
    """Beside another one who stays: the processes are not looked at each time."""
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    opener = host.world.open(host.world.head(ONE, 2))
    assert not await host.unstage("/srv/a")
    before = host.engine.counters["disconnects-deferred"]
    for _ in range(600):
        host.world.mount(host.world.head(ONE, 2), "/mnt/y")
        await host.quiesce(0.1)
        host.world.unmount("/mnt/y")
        await host.quiesce(0.1)
    assert host.engine.counters["disconnects-deferred"] - before <= 120 / FIRST_INTERVAL + 1
    host.world.close(opener)
    await host.quiesce(31)
    assert not host.world.connected(ONE)


@simulated()
async def test_a_user_who_stays_costs_little(host: Host) -> None:
    """An hour in use, with an event every second: the processes are not looked at each time."""
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    opener = host.world.open(host.world.head(ONE, 2))
    assert not await host.unstage("/srv/a")
    before = host.engine.counters["disconnects-deferred"]
    for _ in range(3600):
        host.world.emit_device("change", "block", "nvme0n1")
        await host.quiesce(1)
    assert host.engine.counters["disconnects-deferred"] - before < 200
    host.world.close(opener)
    await host.quiesce(31)
    assert not host.world.connected(ONE)


def test_delay_after_many_attempts() -> None:
    """They were made for an earlier volume: the delay after another one is what the configuration says."""

    async def main() -> None:
        host = Host(make_world(1), replace(Config(), disconnect_delay=2))
        await host.boot()
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
        opener = host.world.open(host.world.head(ONE, 2))
        assert not await host.unstage("/srv/a")
        await fruitless_attempts(host)
        await host.stage(ONE, XFS, PATHS, "/srv/b")
        host.world.close(opener)
        assert not await host.unstage("/srv/b")
        await host.quiesce(3)
        assert not host.world.connected(ONE)
        assert host.engine.counters["disconnects-done"] == 1
        assert host.complaints() == []
        await host.stop()

    run(main())


def test_delay() -> None:
    async def main() -> None:
        host = Host(make_world(1), replace(Config(), disconnect_delay=20))
        await host.boot()
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
        assert not await host.unstage("/srv/a")
        await host.quiesce(15)
        assert host.world.connected(ONE)
        await host.stage(ONE, XFS, PATHS, "/srv/b")
        assert not await host.unstage("/srv/b")
        await host.quiesce(18)
        assert host.world.connected(ONE), "it begins anew with each volume"
        await host.quiesce(3)
        assert not host.world.connected(ONE)
        assert host.engine.counters["disconnects-done"] == 1
        assert host.complaints() == []
        await host.stop()

    run(main())
