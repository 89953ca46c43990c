"""A crash between two things that belong together, of which only the first has been done."""

from __future__ import annotations

import contextlib
import errno

import pytest

from nvmeofd.errors import Failed, MountFailed, UnmountFailed
from nvmeofd.journal import Phase
from tests.simulation.harness import Died, Host
from tests.simulation.setting import BLANK, EXT4, ONE, PATHS, XFS, simulated


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


@simulated()
async def test_unstage_whose_record_cannot_be_removed(host: Host) -> None:
    """It is unmounted, so that is what the caller hears; the record goes later, and a restart does not mind it."""
    await host.stage(ONE, EXT4, PATHS, "/srv/new")
    host.kernel.faults.fail("journal_delete", OSError(errno.EIO, "simulated"), detail="volume")
    assert await host.unstage("/srv/new")
    assert not host.engine.volumes
    await host.quiesce(70)
    assert not host.journal().volumes
    await host.stage(ONE, EXT4, PATHS, "/srv/new")
    host.kernel.faults.fail("journal_delete", OSError(errno.EIO, "simulated"), detail="volume")
    assert await host.unstage("/srv/new")
    host.kill()
    await host.boot()
    assert not host.engine.volumes


@simulated()
async def test_unstage_that_cannot_write_that_it_failed(host: Host) -> None:
    """The caller hears why it failed, not that the journal could not be written then."""
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    host.world.mounts.busy.add("/srv/a")

    def full() -> None:
        host.kernel.faults.fail("journal_write", OSError(errno.ENOSPC, "simulated"))

    host.kernel.faults.hook("unmount", full)
    with pytest.raises(UnmountFailed, match="busy"):
        await host.unstage("/srv/a")
    await host.quiesce(70)
    assert host.journal().volumes["/srv/a"].phase is Phase.STAGED
    host.world.mounts.busy.clear()
    assert await host.unstage("/srv/a")


@simulated()
async def test_lost_volume_whose_unstage_cannot_be_written_down(host: Host) -> None:
    """Nothing has changed."""
    await host.stage(ONE, EXT4, PATHS, "/srv/new")
    host.world.unmount("/srv/new")
    host.kernel.faults.fail("journal_write", OSError(errno.ENOSPC, "simulated"), detail="volume")
    with pytest.raises(Failed):
        await host.unstage("/srv/new")
    assert "/srv/new" in host.engine.volumes
    assert "/srv/new" in host.world.files.nodes
    assert await host.unstage("/srv/new")


@simulated()
async def test_filesystem_whose_note_cannot_be_removed(host: Host) -> None:
    """A Stage that fails because of that leaves no filesystem: the note would have it wiped off after a restart."""
    host.kernel.faults.fail("journal_delete", OSError(errno.EIO, "simulated"), detail="format")
    with pytest.raises(MountFailed):
        await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
    disk = host.world.fabric.targets[ONE].namespaces[3]
    assert not disk.fstype
    await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
    assert await host.unstage("/srv/a")
