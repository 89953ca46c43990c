"""Disconnects that have to wait: for the last user to go, or for a while because the configuration says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from nvmeofd.config import Config
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

    history()


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
        assert host.complaints() == []
        await host.stop()

    run(main())
