"""What a job left half done: it is cleared away or goes on, and is never taken for something else.

Once a volume is unmounted, whoever mounts its device at its path is somebody else.
"""

from __future__ import annotations

import asyncio
import errno

import pytest

from nvmeofd.errors import Busy, InUse, MountFailed, NotStaged, NvmeofdError, UnmountFailed
from nvmeofd.journal import Phase
from nvmeofd.kernel.interface import CommandError
from nvmeofd.model import VolumeState
from tests.simulation.faults import FaultPlan
from tests.simulation.harness import Died, Host
from tests.simulation.setting import EXT4, ONE, OTHER, PATHS, TWO, XFS, simulated
from tests.simulation.test_misfortunes import AT, EIO, ENOSPC, all_paths, forcing_cut_short, mounted, no_path, undoing
from tests.simulation.test_renamed import HERE, PATH, THERE, cut_short, noticed, staged

ENOMEM = OSError(errno.ENOMEM, "simulated")


async def clearing_waits(host: Host) -> None:
    """The same, and the daemon is about to unmount it, which the kernel holds up."""
    await undoing(host)
    no_path(host)
    host.world.mounts.busy.clear()
    await host.quiesce(40)
    assert host.engine.all_jobs


async def unmounted(host: Host, path: str = PATH) -> None:
    """Unstaged, but for its directory; and somebody has mounted the namespace there."""
    host.world.files.add(HERE)
    await host.stage(ONE, EXT4, PATHS, path)
    host.kernel.faults.fail("remove_path", EIO)
    await host.unstage(path, keep_connected=True)
    assert host.journal().volumes[path].phase is Phase.UNMOUNTED


def mounted_by_somebody(host: Host, path: str) -> None:
    host.world.files.made.discard(path)
    host.world.mount(host.world.head(ONE, 1), path)


async def back_while_down(host: Host, path: str) -> None:
    """Lost, the daemon is stopped, it is mounted again, the daemon starts."""
    host.world.unmount(path)
    await host.quiesce(1)
    host.kill()
    host.world.mount(host.world.head(ONE, 1), path)
    await host.boot()
    await host.quiesce(70)
    assert host.engine.volume_state(path) is VolumeState.STAGED


# ---- lost, and back


@pytest.mark.parametrize("how", ["noticed", "forced"])
@simulated()
async def test_back_while_the_daemon_was_down_then_moved(host: Host, how: str) -> None:
    await staged(host)
    await back_while_down(host, PATH)
    host.world.rename(HERE, THERE)
    if how == "noticed":
        noticed(host)
        await host.quiesce(1)
    with pytest.raises(UnmountFailed, match=THERE):
        await host.unstage(PATH, force=how == "forced")


@pytest.mark.parametrize("call", ["delete_controller", "unmount"])
@simulated()
async def test_back_while_the_daemon_was_down_then_forced_and_cut_short(host: Host, call: str) -> None:
    await host.stage(ONE, EXT4, PATHS, AT)
    await back_while_down(host, AT)
    no_path(host)
    host.kernel.faults.crash(call)
    with pytest.raises(Died):
        await host.unstage(AT, force=True)
    all_paths(host)
    await host.boot()
    await host.quiesce(70)
    assert not mounted(host) or AT in host.journal().volumes


@simulated()
async def test_mounted_anew_at_once_then_unstaged_and_cut_short_then_moved(host: Host) -> None:
    await staged(host)
    host.world.unmount(PATH)
    noticed(host)
    host.world.mount(host.world.head(ONE, 1), PATH)
    await host.quiesce(1)
    await cut_short(host)
    host.world.rename(HERE, THERE)
    await host.boot()
    await host.quiesce(70)
    assert PATH in {*host.journal().volumes, *host.engine.volumes}


@simulated()
async def test_a_full_disk_holds_up_nobody_else(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, AT)
    await host.stage(TWO, OTHER, PATHS, "/srv/b")
    host.kernel.faults.fail("journal_write", ENOSPC, times=10**6)
    host.world.unmount(AT)
    await host.quiesce(5)
    host.world.unmount("/srv/b")
    await host.quiesce(5)
    assert {volume.state for volume in host.engine.volumes.values()} == {VolumeState.LOST}
    before = host.kernel.faults.calls["journal_write"]
    await host.quiesce(300)
    assert host.kernel.faults.calls["journal_write"] - before < 100
    assert not host.world.connected(TWO)
    host.kernel.faults.clear()
    await host.quiesce(40)


# ---- unmounted for good


@simulated()
async def test_somebodys_mount_where_it_was_is_not_unstaged(host: Host) -> None:
    await unmounted(host)
    mounted_by_somebody(host, PATH)
    with pytest.raises(NotStaged):
        await host.unstage(PATH)
    assert mounted(host) == [PATH]


@simulated()
async def test_nor_disconnected_by_force(host: Host) -> None:
    await unmounted(host)
    mounted_by_somebody(host, PATH)
    no_path(host)
    with pytest.raises(NotStaged):
        await host.unstage(PATH, force=True)
    assert host.world.connected(ONE)


@simulated()
async def test_nor_taken_for_the_volume_by_the_next_life(host: Host) -> None:
    await unmounted(host)
    host.kill()
    mounted_by_somebody(host, PATH)
    await host.boot()
    await host.quiesce(1)
    assert not host.engine.volumes


@simulated()
async def test_its_directory_goes_with_the_next_volume(host: Host) -> None:
    await unmounted(host)
    host.kernel.faults.fail("remove_path", EIO)
    await host.stage(ONE, EXT4, PATHS, PATH)
    await host.unstage(PATH)
    assert PATH not in host.world.files.nodes


# ---- forced


@simulated()
async def test_a_failed_stage_does_not_come_back_as_staged(host: Host) -> None:
    await undoing(host)
    no_path(host)
    host.kernel.faults.fail("delete_controller", EIO, times=2)
    with pytest.raises(NvmeofdError):
        await host.unstage(PATH, force=True)
    all_paths(host)
    host.world.mounts.busy.clear()
    await host.quiesce(70)
    assert not host.engine.volumes
    assert not mounted(host)


@pytest.mark.parametrize("how", ["failed", "crash"])
@simulated()
async def test_nor_when_its_clearing_was_forced(host: Host, how: str) -> None:
    await clearing_waits(host)
    if how == "crash":
        host.kernel.faults.crash("delete_controller")
        with pytest.raises(Died):
            await host.unstage(PATH, force=True)
        all_paths(host)
        await host.boot()
    else:
        host.kernel.faults.fail("delete_controller", EIO, times=2)
        with pytest.raises(NvmeofdError):
            await host.unstage(PATH, force=True)
        all_paths(host)
    await host.quiesce(70)
    assert not host.engine.volumes
    assert not mounted(host)


@simulated()
async def test_a_stage_that_hangs_in_its_rollback_is_forced(host: Host) -> None:
    host.world.files.add(HERE)
    host.kernel.faults.hook("verify", lambda: no_path(host), after=True)
    host.kernel.faults.fail("verify", EIO, after=True)
    staging = host.start_stage(ONE, EXT4, PATHS, PATH, ctrl_loss_tmo=-1)
    await asyncio.sleep(10)
    assert await host.unstage(PATH, force=True) is True
    with pytest.raises(MountFailed):
        await host.answer(staging)
    assert not mounted(host)


@simulated()
async def test_force_that_was_refused_is_over(host: Host) -> None:
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    await clearing_waits(host)
    with pytest.raises(InUse):
        await host.unstage(PATH, force=True)
    all_paths(host)
    await host.quiesce(70)
    assert mounted(host) == ["/srv/b"]
    assert host.world.connected(ONE)


@pytest.mark.parametrize("waits", [False, True], ids=["before", "while-it-is-cleared"])
@simulated()
async def test_a_block_volume_does_not_wait_for_its_device(host: Host, waits: bool) -> None:
    host.world.files.add(HERE)
    host.kernel.faults.fail("unmount", CommandError("umount", 32, "simulated"))
    host.kernel.faults.fail("verify", EIO, after=True)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, PATH, type="block")
    no_path(host)
    if waits:
        host.kernel.faults.delay("unmount", 5)
        while not host.engine.all_jobs:
            await asyncio.sleep(0.1)
    await host.unstage(PATH, force=True)
    assert not mounted(host)


@simulated()
async def test_force_for_what_a_stage_did_not_get_to_mount(host: Host) -> None:
    """What is there now is somebody else's."""
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    host.kernel.faults.crash("set_read_only", after=True)
    with pytest.raises(Died):
        await host.stage(ONE, EXT4, PATHS, AT, read_only=True)
    plan = FaultPlan()
    plan.fail("lock_device", ENOMEM, times=10)
    await host.boot(plan)
    await host.unstage("/srv/b", keep_connected=True)
    await host.quiesce(2)
    host.world.mounts.mount(host.world.head(ONE, 1), AT, "ext4", ("ro",))
    no_path(host)
    with pytest.raises(NvmeofdError):
        await host.unstage(AT, force=True)
    assert mounted(host) == [AT]
    assert host.world.connected(ONE)
    host.kernel.faults.clear()
    all_paths(host)
    host.world.unmount(AT)


# ---- whether it is kept connected


@pytest.mark.parametrize("before", [forcing_cut_short, undoing], ids=["forcing", "undoing"])
@pytest.mark.parametrize("written", [True, False], ids=["written", "not-written"])
@simulated()
async def test_kept_as_before_when_it_failed(host: Host, before: object, written: bool) -> None:
    await before(host)  # type: ignore[operator]
    host.world.mounts.busy.add(PATH)
    if not written:
        host.kernel.faults.fail("journal_write", ENOSPC, detail="subsystem", skip=1)
    with pytest.raises(UnmountFailed):
        await host.unstage(PATH, keep_connected=True)
    host.world.mounts.busy.clear()
    host.world.unmount(PATH)
    await host.quiesce(120)
    assert not host.world.connected(ONE)


# ---- read-only


@simulated()
async def test_a_failed_stage_makes_it_writable_at_the_second_attempt(host: Host) -> None:
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    host.kernel.faults.fail("verify", EIO, after=True)
    host.kernel.faults.fail("lock_device", ENOMEM, skip=1)
    with pytest.raises(MountFailed):
        await host.stage(ONE, EXT4, PATHS, AT, read_only=True)
    await host.quiesce(100)
    assert AT not in host.journal().volumes
    assert not host.world.head(ONE, 1).read_only


@simulated()
async def test_its_path_is_not_given_to_another_before_that(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, AT, read_only=True)
    host.kernel.faults.fail("lock_device", ENOMEM, times=2)
    await host.unstage(AT, keep_connected=True)
    with pytest.raises(Busy):
        await host.stage(ONE, XFS, PATHS, AT)
    await host.quiesce(100)
    assert not host.world.head(ONE, 1).read_only
    await host.stage(ONE, XFS, PATHS, AT)


@simulated()
async def test_lost_read_only_then_staged_writable_in_vain(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, AT, read_only=True)
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    host.world.unmount(AT)
    await host.quiesce(1)

    def unreadable() -> None:
        done = len(host.kernel.faults.reads)
        host.kernel.faults.nothing_readable(range(done, done + 30))

    host.kernel.faults.hook("mount", unreadable)
    with pytest.raises(NvmeofdError):
        await host.stage(ONE, EXT4, PATHS, AT)
    host.kernel.faults.clear()
    await host.quiesce(70)
    await host.unstage(AT)
    assert not host.world.head(ONE, 1).read_only
