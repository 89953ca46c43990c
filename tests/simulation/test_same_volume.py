"""Somebody else mounts the very volume that the daemon is at work on, at the very same place."""

from __future__ import annotations

import contextlib
import errno

import pytest

from nvmeofd.errors import Cancelled, MountFailed, NvmeofdError, WrongFilesystem
from tests.simulation.faults import EventFaults
from tests.simulation.harness import Died, Host
from tests.simulation.setting import EXT4, FILE, ONE, PATHS, XFS, simulated

PATH = "/srv/a"


@simulated()
async def test_what_a_stage_did_not_get_to_mount_is_somebody_elses(host: Host) -> None:
    """It knew the device already, to make it read-only, but had not come to mounting."""
    host.kernel.faults.hook("probe", lambda: host.world.mount(host.world.head(ONE, 1), PATH), after=True)
    with pytest.raises(WrongFilesystem):
        await host.stage(ONE, EXT4, PATHS, PATH, read_only=True, fstype="xfs")
    await host.quiesce(70)
    assert len(host.world.mounts.at(PATH)) == 1
    assert PATH not in host.journal().volumes
    host.world.unmount(PATH)


@simulated()
async def test_nor_is_it_after_a_crash(host: Host) -> None:
    host.kernel.faults.crash("set_read_only", after=True)
    with contextlib.suppress(Died):
        await host.stage(ONE, EXT4, PATHS, PATH, read_only=True)
    host.world.mount(host.world.head(ONE, 1), PATH)
    await host.boot()
    assert not host.engine.volumes
    await host.quiesce(70)
    assert len(host.world.mounts.at(PATH)) == 1
    assert not host.world.head(ONE, 1).read_only
    host.world.unmount(PATH)


@simulated()
async def test_what_a_failed_stage_left_is_unmounted_as_often_as_it_is_there(host: Host) -> None:
    host.kernel.faults.fail("mount", OSError(errno.EIO, "simulated"), after=True)
    host.kernel.faults.fail("unmount", OSError(errno.EIO, "simulated"))
    with pytest.raises(MountFailed, match="not undone"):
        await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.bind(PATH, PATH)
    await host.quiesce(70)
    assert not host.world.mounts.at(PATH)
    assert not host.world.connected(ONE)


@simulated()
async def test_mounted_back_after_a_stage_that_could_not_be_undone(host: Host) -> None:
    """It is the staged volume again, and a restart finds it."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.unmount(PATH)

    def full() -> None:
        host.kernel.faults.fail("journal_write", OSError(errno.ENOSPC, "simulated"), times=2)

    host.kernel.faults.hook("probe", full)
    with pytest.raises(MountFailed, match="restore the journal"):
        await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.mount(host.world.head(ONE, 1), PATH)
    await host.quiesce(5)
    host.kill()
    await host.boot()
    assert PATH in host.engine.volumes
    assert await host.unstage(PATH)


@simulated()
async def test_connected_after_all_although_it_was_cancelled(host: Host) -> None:
    """What the kernel answered at the end is lost with the cancellation."""
    host.kernel.faults.hook("connect", lambda: next(iter(host.engine.jobs.values())).cancel())
    host.kernel.faults.fail("connect", OSError(errno.EPROTO, "simulated"), after=True)
    with pytest.raises(Cancelled):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert not host.world.connected(ONE)


@simulated()
async def test_unstage_disconnects_what_could_not_be_written_down(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS[:1], PATH)

    def full() -> None:
        host.kernel.faults.fail("journal_write", OSError(errno.ENOSPC, "simulated"), detail="subsystem", times=2)

    host.kernel.faults.hook("connect", full, after=True)
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    assert await host.unstage(PATH) is False
    assert await host.unstage("/srv/b") is True


@simulated()
async def test_bound_over_by_somebody_and_found_again(host: Host) -> None:
    """After a crash in an Unstage, the daemon's own mount is the one below; the other is not mistaken for it."""
    await host.stage(ONE, EXT4, PATHS, FILE, type="block")
    host.world.bind_device(host.world.head(ONE, 1), FILE)
    host.kernel.faults.crash("unmount")
    with contextlib.suppress(Died):
        await host.unstage(FILE)
    await host.boot()
    host.world.disconnect(ONE)
    host.world.unmount(FILE)
    await host.unstage(FILE)
    assert not host.world.mounts.at(FILE)


@simulated()
async def test_number_of_the_mount_passes_to_another(host: Host) -> None:
    """What somebody else bound there has the number, and a device of the same name, that the lost volume had."""
    await host.stage(ONE, EXT4, PATHS, FILE, type="block")
    name, mount_id = host.engine.volumes[FILE].device, host.engine.volumes[FILE].mount_id
    host.world.unmount(FILE)
    await host.quiesce(20)
    host.world.connect(ONE, PATHS[0])
    await host.quiesce(5)
    head = next(head for head in host.world.fabric.heads() if head.path == name)
    host.world.bind_device(head, FILE)
    assert host.world.mounts.at(FILE)[0].mount_id == mount_id
    host.world.disconnect(ONE)
    with contextlib.suppress(NvmeofdError):
        await host.unstage(FILE)
    assert host.world.mounts.at(FILE)
    host.world.unmount(FILE)
    await host.unstage(FILE)


@simulated()
async def test_device_of_a_bind_goes_away_and_nobody_says_so(host: Host) -> None:
    """That shows in the mount table, but it does not count as changed for that."""
    await host.stage(ONE, EXT4, PATHS, FILE, type="block")
    host.kernel.faults.events = EventFaults(silence=1.0)
    host.world.disconnect(ONE)
    await host.unstage(FILE)
    assert not host.world.mounts.at(FILE)


@simulated()
async def test_device_of_a_bind_goes_away_in_the_middle_of_a_stage(host: Host) -> None:
    host.kernel.faults.events = EventFaults(silence=1.0)
    host.kernel.faults.hook("verify", lambda: host.world.disconnect(ONE))
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, FILE, type="block")
    assert not host.world.mounts.at(FILE)


@simulated()
async def test_bound_over_by_somebody_before_a_stage_is_cut_short(host: Host) -> None:
    """Which of the two is the daemon's was not written down: what is there when the other has gone."""
    host.kernel.faults.hook("bind_device", lambda: host.world.bind_device(host.world.head(ONE, 1), FILE), after=True)
    host.kernel.faults.crash("verify")
    with contextlib.suppress(Died):
        await host.stage(ONE, EXT4, PATHS, FILE, type="block")
    host.world.disconnect(ONE)
    await host.boot()
    host.world.unmount(FILE)
    await host.quiesce(70)
    with contextlib.suppress(NvmeofdError):
        await host.unstage(FILE)
    assert not host.world.mounts.at(FILE)
