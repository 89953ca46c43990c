"""A crash between two things that belong together, of which only the first has been done."""

from __future__ import annotations

import contextlib

from tests.simulation.harness import Died, Host
from tests.simulation.setting import EXT4, ONE, PATHS, XFS, simulated


@simulated()
async def test_owner_of_a_controller(host: Host) -> None:
    """The registry names the daemon as owner of what it connected right before it was killed."""
    await host.stage(ONE, EXT4, PATHS[:1], "/srv/a")
    host.kernel.faults.crash("journal_write", detail="subsystem", after=True, skip=1)
    with contextlib.suppress(Died):
        await host.stage(ONE, XFS, PATHS, "/srv/b")
    await host.boot()
    await host.quiesce(5)
    names = {controller.name for controller in host.world.fabric.controllers()}
    assert len(names) == len(PATHS)
    assert host.world.registry == dict.fromkeys(names, "nvmeofd")
