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


@simulated(seeds=8)
async def test_disconnect_of_what_somebody_else_connected(host: Host) -> None:
    """Not one path is left of two, whether or not the kernel was told of the second."""
    for address in PATHS:
        host.world.connect(ONE, address)
    await host.quiesce(5)
    host.kernel.faults.delay("delete_controller", 5, skip=1)
    host.kernel.faults.crash("delete_controller", after=True)
    with contextlib.suppress(Died):
        await host.disconnect(ONE)
    await host.boot()
    await host.quiesce(5)
    assert not host.world.connected(ONE)


@simulated()
async def test_disconnect_that_a_user_forestalls(host: Host) -> None:
    """What was not finished for a user's sake is not taken up again when he leaves: others have connected it."""
    for address in PATHS:
        host.world.connect(ONE, address)
    await host.quiesce(5)
    host.kernel.faults.crash("claim")
    with contextlib.suppress(Died):
        await host.disconnect(ONE)
    host.world.mount(host.world.head(ONE, 2), "/mnt/y")
    await host.boot()
    await host.quiesce(5)
    host.world.unmount("/mnt/y")
    await host.quiesce(70)
    assert host.world.connected(ONE)
    assert not host.journal().subsystems
    assert await host.disconnect(ONE)
