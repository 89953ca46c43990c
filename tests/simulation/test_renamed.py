"""A directory above a staging path is renamed, which its owner can do at any time and the kernel tells nobody of.

What is mounted at another path is never unmounted, however much it looks like the volume: the kernel gives identifiers
and device numbers of what is gone to the next that comes. It is not forgotten either.
"""

from __future__ import annotations

import errno

import pytest

from nvmeofd.errors import AlreadyStaged, MountFailed, NvmeofdError, Timeout, UnmountFailed
from nvmeofd.model import VolumeState
from tests.simulation.harness import Died, Host
from tests.simulation.setting import A1, A2, EXT4, ONE, OTHER, PATHS, TWO, XFS, simulated

HERE, THERE = "/srv/here", "/srv/there"
PATH = f"{HERE}/volume"
THEIRS = "/mnt/volume"


async def staged(host: Host) -> int:
    host.world.files.add(HERE)
    await host.stage(ONE, EXT4, PATHS, PATH)
    return host.world.mounts.at(PATH)[-1].mount_id


def noticed(host: Host) -> None:
    """The table is read again for another reason."""
    host.world.files.add("/mnt/other")
    host.world.bind("/run", "/mnt/other")


def theirs(host: Host, mount_id: int) -> None:
    """Somebody mounts the namespace at a place of the same name, and the kernel gives the number out again."""
    host.world.files.add(THEIRS)
    host.world.mount(host.world.head(ONE, 1), THEIRS)
    assert host.world.mounts.at(THEIRS)[-1].mount_id == mount_id


def swapped(host: Host) -> None:
    """Two directories change places."""
    host.world.rename(HERE, "/srv/aside")
    host.world.rename(THERE, HERE)
    host.world.rename("/srv/aside", THERE)


async def cut_short(host: Host) -> None:
    """The daemon dies in an Unstage, when it has written down that it is about to unmount."""
    host.kernel.faults.crash("journal_write", after=True)
    with pytest.raises(Died):
        await host.unstage(PATH)


# ---- it is where its directory is, and is waited for


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
@simulated()
async def test_not_unmounted_where_it_is_and_not_forgotten(host: Host, seen: bool) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    if seen:
        noticed(host)
        await host.quiesce(1)
        assert host.engine.volume_state(PATH) is VolumeState.LOST
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH)
    assert host.world.mounts.at(f"{THERE}/volume")
    assert PATH in host.engine.volumes
    host.world.rename(THERE, HERE)
    assert await host.unstage(PATH) is True
    assert not host.world.connected(ONE)


@pytest.mark.parametrize("back", [False, True], ids=["unmounted-there", "renamed-back"])
@simulated()
async def test_across_a_restart(host: Host, back: bool) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    host.kill()
    await host.boot()
    await host.quiesce(1)
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH)
    if back:
        host.world.rename(THERE, HERE)
    else:
        host.world.unmount(f"{THERE}/volume")
    assert await host.unstage(PATH) is True
    assert not [mount for mount in host.world.mounts.mounts if mount.head]


@simulated()
async def test_forced(host: Host) -> None:
    await staged(host)
    host.world.rename(HERE, THERE)
    host.world.path_down(A1)
    host.world.path_down(A2)
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH, force=True)
    host.world.rename(THERE, HERE)
    assert await host.unstage(PATH, force=True) is True


@simulated()
async def test_forced_and_moved_in_the_middle_of_it(host: Host) -> None:
    """What is not at its path is not let go: it may be somebody else's by now."""
    await staged(host)
    host.world.path_down(A1)
    host.world.path_down(A2)
    host.kernel.faults.hook("claim", lambda: host.world.rename(HERE, THERE))
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH, force=True)
    assert host.world.connected(ONE)
    host.world.rename(THERE, HERE)
    assert await host.unstage(PATH, force=True) is True


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
@simulated()
async def test_stage_does_not_say_yes_with_nothing_there(host: Host, seen: bool) -> None:
    """Its caller would go on to write into a directory of another filesystem."""
    await staged(host)
    host.world.rename(HERE, THERE)
    if seen:
        noticed(host)
        await host.quiesce(1)
    host.world.files.add(PATH)
    with pytest.raises(AlreadyStaged, match=THERE):
        await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.files.remove(HERE)
    host.world.rename(THERE, HERE)
    await host.stage(ONE, EXT4, PATHS, PATH)
    assert await host.unstage(PATH) is True


@simulated()
async def test_two_volumes_change_places(host: Host) -> None:
    """What is at the path is a volume of this daemon, and still not the one to be unmounted."""
    await staged(host)
    host.world.files.add(THERE)
    await host.stage(ONE, XFS, PATHS, f"{THERE}/volume")
    swapped(host)
    for path in (PATH, f"{THERE}/volume"):
        with pytest.raises(UnmountFailed):
            await host.unstage(path)
    swapped(host)
    assert await host.unstage(PATH) is False
    assert await host.unstage(f"{THERE}/volume") is True


@simulated()
async def test_somebodys_mount_of_the_same_volume_changes_places_with_it(host: Host) -> None:
    await staged(host)
    host.world.files.add(f"{THERE}/volume", theirs=False)
    host.world.mount(host.world.head(ONE, 1), f"{THERE}/volume")
    swapped(host)
    noticed(host)
    with pytest.raises(UnmountFailed):
        await host.unstage(PATH)
    assert len([mount for mount in host.world.mounts.mounts if mount.head]) == 2
    host.world.unmount(PATH)
    host.world.unmount(f"{THERE}/volume")
    assert await host.unstage(PATH) is True


@simulated()
async def test_identifier_is_learnt_again(host: Host) -> None:
    """Unmounted and mounted again by somebody, it is the volume's mount, also when its device goes away after that."""
    await staged(host)
    host.world.unmount(PATH)
    await host.quiesce(1)
    noticed(host)  # has the number now
    host.world.mount(host.world.head(ONE, 1), PATH)
    await host.quiesce(1)
    assert host.engine.volume_state(PATH) is VolumeState.STAGED
    host.world.disconnect(ONE)
    await host.quiesce(1)
    assert await host.unstage(PATH) is True
    assert not host.world.mounts.at(PATH)


# ---- in the middle of an Unstage: it is gone on with as soon as it is back


@simulated()
async def test_crash_in_the_middle_of_an_unstage(host: Host) -> None:
    await staged(host)
    await cut_short(host)
    host.world.rename(HERE, THERE)
    await host.boot()
    await host.quiesce(70)
    assert host.world.mounts.at(f"{THERE}/volume")
    assert PATH in host.journal().volumes
    host.world.rename(THERE, HERE)
    await host.quiesce(70)
    assert not host.world.mounts.at(PATH)
    assert PATH not in host.journal().volumes
    assert not host.world.connected(ONE)


@simulated()
async def test_refused_and_the_journal_cannot_be_written(host: Host) -> None:
    """That it stays staged is written down later, and it does not count as unstaged until then."""
    await staged(host)

    def rename() -> None:
        host.world.rename(HERE, THERE)
        host.kernel.faults.fail("journal_write", OSError(errno.ENOSPC, "simulated"))

    host.kernel.faults.hook("unmount", rename)
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH)
    await host.quiesce(70)
    assert PATH in host.engine.volumes
    host.world.rename(THERE, HERE)
    assert await host.unstage(PATH) is True


@simulated()
async def test_out_of_time_and_the_mount_is_elsewhere(host: Host) -> None:
    await staged(host)
    host.world.path_down(A1)
    host.world.path_down(A2)
    with pytest.raises(Timeout):
        await host.unstage(PATH, timeout=5)
    host.world.rename(HERE, THERE)
    noticed(host)
    host.world.path_up(A1)
    await host.quiesce(5)
    assert PATH in host.engine.volumes
    host.world.rename(THERE, HERE)
    assert await host.unstage(PATH) is True


# ---- in the middle of a Stage: it is undone as soon as it is back


@pytest.mark.parametrize("step", ["mount", "verify"])
@simulated()
async def test_in_the_middle_of_a_stage(host: Host, step: str) -> None:
    host.world.files.add(HERE)

    def rename() -> None:
        host.world.rename(HERE, THERE)
        noticed(host)

    host.kernel.faults.hook(step, rename, after=True)
    host.kernel.faults.fail("verify", OSError(errno.EIO, "simulated"), after=True)
    with pytest.raises(MountFailed, match=r"not undone.*" + THERE):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert not host.engine.volumes
    host.world.rename(THERE, HERE)
    await host.quiesce(70)
    assert not host.world.mounts.at(PATH)
    assert not host.world.connected(ONE)


@simulated()
async def test_read_only_stays_so_in_the_middle_of_a_stage(host: Host) -> None:
    """What is mounted read-only expects the device to refuse writes, wherever it is mounted by now."""
    host.world.files.add(HERE)
    host.kernel.faults.hook("verify", lambda: host.world.rename(HERE, THERE), after=True)
    host.kernel.faults.fail("verify", OSError(errno.EIO, "simulated"), after=True)
    with pytest.raises(MountFailed, match=r"not undone.*" + THERE):
        await host.stage(ONE, EXT4, PATHS, PATH, read_only=True)
    assert host.world.head(ONE, 1).read_only
    host.world.open(host.world.head(ONE, 1))  # keeps it connected
    host.world.rename(THERE, HERE)
    await host.quiesce(70)
    assert not host.world.mounts.at(PATH)
    assert not host.world.head(ONE, 1).read_only


@simulated()
async def test_staged_again_after_that(host: Host) -> None:
    """What is left of the first time is cleared away before."""
    host.world.files.add(HERE)
    host.kernel.faults.hook("verify", lambda: host.world.rename(HERE, THERE), after=True)
    host.kernel.faults.fail("verify", OSError(errno.EIO, "simulated"), after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH)
    with pytest.raises(UnmountFailed, match=THERE):
        await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.rename(THERE, HERE)
    await host.stage(ONE, EXT4, PATHS, PATH)
    assert len([mount for mount in host.world.mounts.mounts if mount.head]) == 1
    assert await host.unstage(PATH) is True


# ---- what only looks like it


@simulated()
async def test_unmounted_and_mounted_by_somebody_else_at_once(host: Host) -> None:
    """Before the daemon has seen the first of it."""
    mount_id = await staged(host)
    host.world.unmount(PATH)
    theirs(host, mount_id)
    with pytest.raises(UnmountFailed, match=THEIRS):
        await host.unstage(PATH)
    host.world.unmount(THEIRS)
    assert await host.unstage(PATH) is True


@simulated()
async def test_mounted_by_somebody_else_later(host: Host) -> None:
    mount_id = await staged(host)
    host.world.unmount(PATH)
    await host.quiesce(1)
    theirs(host, mount_id)
    assert await host.unstage(PATH) is False
    assert host.world.mounts.at(THEIRS)


@simulated()
async def test_mounted_by_somebody_else_while_the_umount_comes_to_its_end(host: Host) -> None:
    mount_id = await staged(host)
    host.kernel.faults.hook("unmount", lambda: theirs(host, mount_id), after=True)
    assert await host.unstage(PATH) is False
    assert host.world.mounts.at(THEIRS)


@simulated()
async def test_mounted_by_somebody_else_after_a_crash(host: Host) -> None:
    """Nobody can tell any more, so it is kept in mind as long as they stay."""
    mount_id = await staged(host)
    host.kernel.faults.crash("unmount", after=True)
    with pytest.raises(Died):
        await host.unstage(PATH)
    theirs(host, mount_id)
    await host.boot()
    await host.quiesce(70)
    assert host.world.mounts.at(THEIRS)
    host.world.unmount(THEIRS)
    await host.quiesce(70)
    assert PATH not in host.journal().volumes
    assert not host.world.connected(ONE)


@simulated()
async def test_another_volume_gets_all_its_numbers(host: Host) -> None:
    """The staging path could not be removed; by the time of the next attempt all of it belongs to somebody else."""
    await staged(host)
    host.kernel.faults.fail("remove_path", OSError(errno.EIO, "simulated"))
    assert await host.unstage(PATH) is True
    host.world.files.add(THERE)
    await host.stage(TWO, OTHER, PATHS, f"{THERE}/volume")
    await host.quiesce(70)
    assert host.world.mounts.at(f"{THERE}/volume")
    assert host.engine.volume_state(f"{THERE}/volume") is VolumeState.STAGED
    assert PATH not in host.journal().volumes


@simulated()
async def test_renamed_all_the_time(host: Host) -> None:
    """Whoever does that gets errors, and holds up nobody."""
    await staged(host)
    places = [HERE, THERE]

    def rename() -> None:
        host.world.rename(*places)
        places.reverse()

    host.kernel.faults.hook("unmount", rename, times=1000)
    for _ in range(10):
        with pytest.raises(NvmeofdError):
            await host.unstage(PATH)
        if places[0] == THERE:
            rename()
    host.kernel.faults.clear()
    assert await host.unstage(PATH) is True
