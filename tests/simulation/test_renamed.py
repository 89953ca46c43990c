"""A directory above a staging path is renamed, which its owner can do at any time and the kernel tells nobody of."""

from __future__ import annotations

import errno

import pytest

from nvmeofd.errors import AlreadyStaged, MountFailed, UnmountFailed
from nvmeofd.model import VolumeState
from tests.simulation.harness import Host
from tests.simulation.setting import EXT4, ONE, PATHS, XFS, simulated

HERE, THERE = "/srv/here", "/srv/there"
PATH = f"{HERE}/volume"


async def staged(host: Host) -> None:
    host.world.files.add(HERE)
    await host.stage(ONE, EXT4, PATHS, PATH)


def noticed(host: Host) -> None:
    """The table is read again for another reason."""
    host.world.files.add("/mnt/other")
    host.world.bind("/run", "/mnt/other")


@simulated()
async def test_unmounted_where_it_is(host: Host) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    assert await host.unstage(PATH) is True
    assert not host.world.mounts.at(f"{THERE}/volume")
    assert not host.world.connected(ONE)


@simulated()
async def test_unmounted_where_it_is_known_to_be(host: Host) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    noticed(host)
    await host.quiesce(1)
    assert host.engine.volume_state(PATH) is VolumeState.LOST
    assert await host.unstage(PATH) is True
    assert not host.world.mounts.at(f"{THERE}/volume")


@simulated()
async def test_renamed_back_unheard_of(host: Host) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    noticed(host)
    await host.quiesce(1)
    host.world.rename(THERE, HERE)
    assert await host.unstage(PATH) is True
    assert not host.world.mounts.at(PATH)


@simulated()
async def test_not_staged_twice(host: Host) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    noticed(host)
    host.world.files.add(HERE)
    with pytest.raises(AlreadyStaged, match=THERE):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert await host.unstage(PATH) is True


@simulated()
async def test_two_volumes_change_places(host: Host) -> None:
    """What is at the path is a volume of this daemon, and still not the one to be unmounted."""
    await staged(host)
    host.world.files.add(THERE)
    await host.stage(ONE, XFS, PATHS, f"{THERE}/volume")
    host.world.rename(HERE, "/srv/aside")
    host.world.rename(THERE, HERE)
    host.world.rename("/srv/aside", THERE)
    assert await host.unstage(PATH) is False
    (left,) = (mount for mount in host.world.mounts.mounts if mount.head)
    assert (left.mount_point, left.made_at) == (PATH, f"{THERE}/volume")
    assert await host.unstage(f"{THERE}/volume") is True


@simulated()
async def test_in_the_middle_of_a_stage(host: Host) -> None:
    host.world.files.add(HERE)

    def rename() -> None:
        host.world.rename(HERE, THERE)
        noticed(host)

    host.kernel.faults.hook("mount", rename, after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert not [mount for mount in host.world.mounts.mounts if mount.head]
    await host.quiesce(70)
    assert not host.world.connected(ONE)


@simulated()
async def test_after_the_last_look_of_a_stage_that_fails(host: Host) -> None:
    host.world.files.add(HERE)
    host.kernel.faults.hook("verify", lambda: host.world.rename(HERE, THERE), after=True)
    host.kernel.faults.fail("verify", OSError(errno.EIO, "simulated"), after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert not [mount for mount in host.world.mounts.mounts if mount.head]
    await host.quiesce(70)
    assert not host.world.connected(ONE)


@simulated()
async def test_busy_where_it_is(host: Host) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    host.world.mounts.busy.add(f"{THERE}/volume")
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH)
    assert PATH in host.engine.volumes
    host.world.mounts.busy.clear()
    assert await host.unstage(PATH) is True


@simulated()
async def test_mounted_by_somebody_else_while_nobody_looked(host: Host) -> None:
    await staged(host)
    mount_id = host.world.mounts.at(PATH)[-1].mount_id
    host.kill()
    host.world.unmount(PATH)
    host.world.files.add("/mnt/volume")
    host.world.mount(host.world.head(ONE, 1), "/mnt/volume")
    assert host.world.mounts.at("/mnt/volume")[-1].mount_id == mount_id
    await host.boot()
    assert await host.unstage(PATH) is False
    assert host.world.mounts.at("/mnt/volume")


@simulated()
async def test_mounted_by_somebody_else_under_the_same_name(host: Host) -> None:
    """It was unmounted and mounted elsewhere since, and the kernel gave the new mount the number of the old one."""
    await staged(host)
    mount_id = host.world.mounts.at(PATH)[-1].mount_id
    host.world.unmount(PATH)
    await host.quiesce(1)
    host.world.files.add("/mnt/volume")
    host.world.mount(host.world.head(ONE, 1), "/mnt/volume")
    assert host.world.mounts.at("/mnt/volume")[-1].mount_id == mount_id
    assert await host.unstage(PATH) is False
    assert host.world.mounts.at("/mnt/volume")
