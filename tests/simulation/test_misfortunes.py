"""Two things go wrong at once: what the first one leaves behind must outlive the second.

Mounts that somebody moved or made anew, together with a journal that cannot be written, a crash, or a lost device.
"""

from __future__ import annotations

import asyncio
import errno

import pytest

from nvmeofd.errors import MountFailed, NvmeofdError, UnmountFailed
from nvmeofd.journal import Phase
from nvmeofd.model import VolumeState
from tests.simulation.harness import Died, Host
from tests.simulation.setting import A1, A2, BLANK, EXT4, ONE, PATHS, XFS, simulated
from tests.simulation.test_renamed import HERE, PATH, THEIRS, THERE, cut_short, noticed, staged, swapped, theirs

AT = "/srv/a"
EIO = OSError(errno.EIO, "simulated")
ENOSPC = OSError(errno.ENOSPC, "simulated")


def mounted(host: Host) -> list[str]:
    return [mount.mount_point for mount in host.world.mounts.mounts if mount.head]


def no_path(host: Host) -> None:
    host.world.path_down(A1)
    host.world.path_down(A2)


def all_paths(host: Host) -> None:
    host.world.path_up(A1)
    host.world.path_up(A2)


async def undoing(host: Host) -> None:
    """A Stage failed, and its mount is busy."""
    host.world.files.add(HERE)
    host.kernel.faults.hook("verify", lambda: host.world.mounts.busy.add(PATH), after=True)
    host.kernel.faults.fail("verify", EIO, after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert host.journal().volumes[PATH].phase is Phase.UNDOING


async def mounted_anew(host: Host) -> None:
    """Somebody unmounts the volume and mounts it at its path again, with another identifier."""
    host.world.unmount(PATH)
    await host.quiesce(1)
    noticed(host)  # has the number now
    host.world.mount(host.world.head(ONE, 1), PATH)
    await host.quiesce(1)
    assert host.engine.volume_state(PATH) is VolumeState.STAGED


# ---- the record does not say what is there


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
@simulated()
async def test_the_identifier_of_a_moved_mount_could_not_be_written(host: Host, read_only: bool) -> None:
    host.world.files.add(HERE)

    def rename() -> None:
        host.world.rename(HERE, THERE)
        host.kernel.faults.fail("journal_write", ENOSPC)

    host.kernel.faults.hook("mount", rename, after=True)
    with pytest.raises(NvmeofdError):
        await host.stage(ONE, EXT4, PATHS, PATH, read_only=read_only)
    await host.quiesce(70)
    assert mounted(host) == [f"{THERE}/volume"]
    assert host.world.head(ONE, 1).read_only is read_only
    assert PATH in host.journal().volumes
    host.world.rename(THERE, HERE)
    await host.quiesce(70)
    assert not mounted(host)


@pytest.mark.parametrize("fault", ["write", "reads"])
@simulated()
async def test_a_lost_volume_is_staged_again_and_that_cannot_be_undone(host: Host, fault: str) -> None:
    """What is half done from then on is another mount than that of the lost volume."""
    await staged(host)
    host.world.unmount(PATH)
    await host.quiesce(1)

    def rename() -> None:
        host.world.rename(HERE, THERE)
        if fault == "write":
            host.kernel.faults.fail("journal_write", ENOSPC)
        else:
            done = len(host.kernel.faults.reads)
            host.kernel.faults.nothing_readable(range(done, done + 30))

    host.kernel.faults.hook("verify", rename, after=True)
    host.kernel.faults.fail("verify", EIO, after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH, read_only=True)
    host.kernel.faults.clear()
    await host.quiesce(70)
    assert mounted(host) == [f"{THERE}/volume"]
    assert PATH in host.journal().volumes
    host.world.rename(THERE, HERE)
    await host.quiesce(70)
    assert not mounted(host)


@simulated()
async def test_a_lost_volume_staged_again_is_not_what_it_was(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, AT)
    host.world.unmount(AT)
    await host.quiesce(1)

    def busy() -> None:
        host.world.mounts.busy.add(AT)
        host.kernel.faults.fail("journal_write", ENOSPC)

    host.kernel.faults.hook("verify", busy, after=True)
    host.kernel.faults.fail("verify", EIO, after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, AT, read_only=True)
    host.world.mounts.busy.clear()
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    await host.unstage(AT)
    assert not host.world.head(ONE, 1).read_only


# ---- forced, cut short, and alive after all


async def forcing_cut_short(host: Host) -> None:
    """The daemon died when it was about to disconnect. By now the directory and the paths are back."""
    await staged(host)
    no_path(host)
    host.kernel.faults.crash("delete_controller")
    with pytest.raises(Died):
        await host.unstage(PATH, force=True)
    host.world.rename(HERE, THERE)
    await host.boot()
    await host.quiesce(5)
    assert host.journal().volumes[PATH].phase is Phase.FORCING
    host.world.rename(THERE, HERE)
    all_paths(host)
    await host.quiesce(1)


@simulated()
async def test_unstage_of_what_was_to_be_forced(host: Host) -> None:
    await forcing_cut_short(host)
    assert await host.unstage(PATH) is True
    assert not mounted(host)


@simulated()
async def test_stage_of_what_was_to_be_forced(host: Host) -> None:
    await forcing_cut_short(host)
    await host.stage(ONE, EXT4, PATHS, PATH)
    assert mounted(host) == [PATH]
    assert await host.unstage(PATH) is True


@simulated()
async def test_the_clearing_of_a_stage_is_forced(host: Host) -> None:
    await undoing(host)
    no_path(host)
    host.world.mounts.busy.clear()
    await host.quiesce(40)
    assert host.engine.all_jobs  # it waits for the kernel
    assert await host.unstage(PATH, force=True) is True
    assert not mounted(host)


@simulated()
async def test_a_clearing_that_failed_keeps_nothing_connected(host: Host) -> None:
    host.world.files.add(HERE)
    host.kernel.faults.hook("verify", lambda: host.world.rename(HERE, THERE), after=True)
    host.kernel.faults.fail("verify", EIO, after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH)
    with pytest.raises(UnmountFailed):
        await host.unstage(PATH, keep_connected=True)
    host.world.unmount(f"{THERE}/volume")
    await host.quiesce(100)
    assert PATH not in host.journal().volumes
    assert not host.world.connected(ONE)


# ---- read-only


@pytest.mark.parametrize("left", ["mount", "path"])
@simulated()
async def test_read_only_elsewhere_before_the_first_is_cleared(host: Host, left: str) -> None:
    host.world.files.add(HERE)
    if left == "mount":
        host.kernel.faults.hook("verify", lambda: host.world.rename(HERE, THERE), after=True)
        host.kernel.faults.fail("verify", EIO, after=True)
        with pytest.raises(MountFailed):
            await host.stage(ONE, EXT4, PATHS, PATH, read_only=True)
        host.world.unmount(f"{THERE}/volume")  # as it says
    else:
        await host.stage(ONE, EXT4, PATHS, PATH, read_only=True)
        host.kernel.faults.fail("remove_path", EIO)
        await host.unstage(PATH, keep_connected=True)
    await host.stage(ONE, EXT4, PATHS, "/srv/b", read_only=True)
    await host.quiesce(70)
    assert PATH not in host.journal().volumes
    assert host.world.head(ONE, 1).read_only
    host.world.open(host.world.head(ONE, 1))  # keeps it connected
    await host.unstage("/srv/b")
    assert not host.world.head(ONE, 1).read_only


@simulated()
async def test_made_writable_at_the_second_attempt(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, AT, read_only=True)
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    host.kernel.faults.fail("lock_device", OSError(errno.ENOMEM, "simulated"))
    await host.unstage(AT)
    await host.quiesce(100)
    assert not host.world.head(ONE, 1).read_only
    assert AT not in host.journal().volumes


# ---- identifiers of mounts


@simulated()
async def test_unstaged_for_good_whoever_has_its_identifier(host: Host) -> None:
    mount_id = await staged(host)
    host.kernel.faults.fail("remove_path", EIO)
    await host.unstage(PATH, keep_connected=True)
    theirs(host, mount_id)
    await host.quiesce(70)
    assert PATH not in host.journal().volumes
    assert mounted(host) == [THEIRS]


@simulated()
async def test_lost_for_good_across_a_restart(host: Host) -> None:
    mount_id = await staged(host)
    host.world.unmount(PATH)
    await host.quiesce(1)
    theirs(host, mount_id)
    await host.quiesce(1)
    host.kill()
    await host.boot()
    await host.quiesce(1)
    assert await host.unstage(PATH) is False
    assert mounted(host) == [THEIRS]


@simulated()
async def test_mounted_anew_then_a_restart_then_moved(host: Host) -> None:
    await staged(host)
    await mounted_anew(host)
    host.kill()
    await host.boot()
    host.world.rename(HERE, THERE)
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH)


@simulated()
async def test_mounted_anew_then_a_restart_then_without_a_device(host: Host) -> None:
    await staged(host)
    await mounted_anew(host)
    host.kill()
    await host.boot()
    host.world.disconnect(ONE)
    await host.quiesce(1)
    assert await host.unstage(PATH) is True
    assert not mounted(host)


@simulated()
async def test_mounted_anew_then_forced_then_a_crash(host: Host) -> None:
    await staged(host)
    await mounted_anew(host)
    no_path(host)
    host.kernel.faults.crash("unmount")
    with pytest.raises(Died):
        await host.unstage(PATH, force=True)
    await host.boot()
    await host.quiesce(70)
    assert not mounted(host)
    assert PATH not in host.journal().volumes


@simulated()
async def test_not_known_after_a_crash_and_moved(host: Host) -> None:
    """Of two mounts on top of each other it is not known which is the volume's."""
    await staged(host)
    await cut_short(host)
    host.world.unmount(PATH)
    noticed(host)
    host.world.mount(host.world.head(ONE, 1), PATH)
    host.world.mount(host.world.head(ONE, 1), PATH)
    await host.boot()
    host.world.unmount(PATH)
    await host.quiesce(1)
    host.kernel.faults.hook("unmount", lambda: host.world.rename(HERE, THERE))
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH)


@pytest.mark.parametrize("how", ["crash", "busy"])
@simulated()
async def test_half_done_and_at_its_path_is_somebody_elses(host: Host, how: str) -> None:
    """Both are mounts of one namespace, and their directories have changed places."""
    if how == "crash":
        await staged(host)
    else:
        await undoing(host)
        host.world.mounts.busy.clear()
    host.world.files.add(f"{THERE}/volume", theirs=False)
    host.world.mount(host.world.head(ONE, 1), f"{THERE}/volume")
    if how == "crash":
        await cut_short(host)
    swapped(host)
    if how == "crash":
        await host.boot()
    await host.quiesce(70)
    with pytest.raises(UnmountFailed):
        await host.unstage(PATH)
    assert len(mounted(host)) == 2
    swapped(host)
    await host.quiesce(70)
    assert mounted(host) == [f"{THERE}/volume"]


# ---- the device


@simulated()
async def test_a_moved_block_volume_whose_device_went_away(host: Host) -> None:
    host.world.files.add(HERE)
    await host.stage(ONE, EXT4, PATHS, PATH, type="block")
    host.world.rename(HERE, THERE)
    for _ in range(2):
        with pytest.raises(UnmountFailed, match=THERE):
            await host.unstage(PATH)
        host.world.disconnect(ONE)
        await host.quiesce(2)
    host.world.rename(THERE, HERE)
    await host.unstage(PATH)
    assert not mounted(host)


@simulated()
async def test_half_done_and_moved_and_the_device_went_away(host: Host) -> None:
    await staged(host)
    await cut_short(host)
    host.world.rename(HERE, THERE)
    await host.boot()
    host.world.disconnect(ONE)
    await host.quiesce(70)
    assert PATH in host.journal().volumes
    host.world.rename(THERE, HERE)
    await host.quiesce(70)
    assert not mounted(host)
    assert PATH not in host.journal().volumes


@pytest.mark.parametrize("nsid", [3, 5])
@simulated()
async def test_what_mkfs_left_is_in_use_by_another_name(host: Host, nsid: int) -> None:
    """Without native multipath one namespace is a disk of each controller."""
    host.kernel.faults.crash("journal_delete")
    with pytest.raises(Died):
        await host.stage(ONE, BLANK, PATHS, AT, format="if-empty")
    disk = host.world.fabric.targets[ONE].namespaces[3]
    host.world.add_namespace(ONE, 5, disk)
    await asyncio.sleep(1)
    host.world.files.add("/mnt/x")
    host.world.mount(host.world.head(ONE, nsid), "/mnt/x")
    await host.boot()
    await host.quiesce(70)
    assert disk.fstype
