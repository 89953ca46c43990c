"""Unstage with force: what is dead is let go, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from nvmeofd.config import Config
from nvmeofd.errors import DisconnectFailed, InUse, InvalidArgument, NvmeofdError, Shared, Timeout, UnmountFailed
from nvmeofd.model import VolumeState
from nvmeofd.operations.force import _held_by_umount, still_unmounting
from tests.simulation.clock import run
from tests.simulation.faults import FaultPlan
from tests.simulation.harness import Died, Host
from tests.simulation.setting import A1, EXT4, ONE, PATHS, XFS, make_world, simulated
from tests.simulation.state import SimHead
from tests.simulation.world import SimWorld

PATH = "/srv/new"


def cut(host: Host) -> None:
    for address in PATHS:
        host.world.path_down(address)


def mend(host: Host) -> None:
    for address in PATHS:
        host.world.path_up(address)


@simulated()
async def test_dead_is_let_go(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    cut(host)
    assert await host.unstage(PATH, force=True)
    assert not host.world.connected(ONE)
    assert PATH not in host.world.files.nodes
    mend(host)
    await host.stage(ONE, EXT4, PATHS, PATH)
    assert await host.unstage(PATH)


@simulated()
async def test_alive_is_unstaged_as_ever(host: Host) -> None:
    """One path is enough to be alive: what is busy stays."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.path_down(A1)
    host.world.mounts.busy.add(PATH)
    with pytest.raises(UnmountFailed):
        await host.unstage(PATH, force=True)
    assert host.world.connected(ONE)
    assert host.engine.volume_state(PATH) is VolumeState.DEGRADED
    host.world.mounts.busy.clear()
    assert await host.unstage(PATH, force=True)


@simulated()
async def test_without_force_it_waits(host: Host) -> None:
    """The caller hears in time, and when a path is back the rest follows by itself."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    cut(host)
    started = host.now()
    with pytest.raises(Timeout, match="unmounting"):
        await host.unstage(PATH, timeout=10)
    assert host.now() - started < 11
    assert host.world.connected(ONE)
    await host.quiesce(70)
    assert host.world.connected(ONE)
    mend(host)
    await host.quiesce(70)
    # it was told to stop: either umount was through by then, or everything is as it was
    assert host.world.connected(ONE) == (PATH in host.engine.volumes)
    assert await host.unstage(PATH) or not host.world.connected(ONE)


@simulated()
async def test_one_that_hangs_is_forced_by_another_call(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    cut(host)
    first = host.start_unstage(PATH, timeout=30)
    await host.quiesce(1)
    assert await host.unstage(PATH, force=True)
    assert await host.answer(first)
    assert not host.world.connected(ONE)


@simulated()
async def test_one_whose_time_is_over_is_forced_by_another_call(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    cut(host)
    with pytest.raises(Timeout):
        await host.unstage(PATH, timeout=5)
    assert await host.unstage(PATH, force=True)
    assert not host.world.connected(ONE)


@simulated()
async def test_refusal_reaches_the_call_that_forces(host: Host) -> None:
    """Also when it is another one that hangs, which goes on waiting."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    await host.stage(ONE, XFS, PATHS, "/srv/b")
    cut(host)
    first = host.start_unstage(PATH, timeout=300)
    await host.quiesce(1)
    with pytest.raises(InUse, match="/srv/b"):
        await host.unstage(PATH, force=True)
    assert host.world.connected(ONE)
    mend(host)
    assert not await host.answer(first)
    assert await host.unstage("/srv/b")


USERS: dict[str, Callable[[SimWorld, SimHead], object]] = {
    "mount": lambda w, h: w.mount(h, "/mnt/y"),
    "private-mount": lambda w, h: w.mount(h, "/mnt/y", space=w.new_pid()),
    "block-bind": lambda w, h: w.bind_device(h, "/srv/file"),
    "private-block-bind": lambda w, h: w.bind_device(h, "/srv/file", space=w.new_pid()),
    "holder": lambda w, h: w.hold(h),
    "swap": lambda w, h: w.swapon(h),
    "open": lambda w, h: w.open(h),
    "open-exclusive": lambda w, h: w.open(h, exclusive=True),
    "open-generic": lambda w, h: w.open(h, generic=True),
}


@pytest.mark.parametrize("user", USERS)
def test_another_user_of_the_subsystem(user: str) -> None:
    async def main() -> None:
        host = Host(make_world(1))
        await host.boot()
        await host.stage(ONE, EXT4, PATHS, PATH)
        USERS[user](host.world, host.world.head(ONE, 2))
        cut(host)
        with pytest.raises(InUse):
            await host.unstage(PATH, force=True)
        assert host.world.connected(ONE)
        assert host.engine.volume_state(PATH) is VolumeState.DEGRADED
        await host.quiesce()
        assert host.complaints() == []
        await host.stop()

    run(main())


@pytest.mark.parametrize("user", ["block-bind", "open"])
def test_another_user_of_the_device_itself(user: str) -> None:
    async def main() -> None:
        host = Host(make_world(1))
        await host.boot()
        await host.stage(ONE, EXT4, PATHS, PATH)
        USERS[user](host.world, host.world.head(ONE, 1))
        cut(host)
        with pytest.raises(InUse):
            await host.unstage(PATH, force=True)
        assert host.world.connected(ONE)
        host.kill()

    run(main())


@pytest.mark.parametrize("call", ["claim", "scan_processes"])
def test_unmounted_by_somebody_who_goes_on_to_use_the_device(call: str) -> None:
    @simulated()
    async def history(host: Host) -> None:
        await host.stage(ONE, EXT4, PATHS, PATH)
        cut(host)

        def meddle() -> None:
            host.world.unmount(PATH, lazy=True)
            host.world.mount(host.world.head(ONE, 1), "/mnt/y")

        host.kernel.faults.hook(call, meddle)
        with pytest.raises(UnmountFailed, match="/mnt/y"):
            await host.unstage(PATH, force=True)
        assert host.world.connected(ONE)
        host.world.unmount("/mnt/y")
        assert await host.unstage(PATH) is True

    history()


@simulated()
async def test_swap_that_cannot_be_told_is_not_taken_for_an_umount(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    await host.quiesce(1)  # udev has looked
    volume = host.engine.volumes[PATH]
    cut(host)
    host.world.unmount(PATH, lazy=True)
    core = host.engine._core
    assert not await still_unmounting(core, volume)
    host.world.swapon(host.world.head(ONE, 1), nameless=True)
    assert not await _held_by_umount(core, volume, in_doubt=False)
    assert await still_unmounting(core, volume)
    host.world.swapoff(host.world.head(ONE, 1))
    assert await host.unstage(PATH) is True


@simulated()
async def test_binds_and_copies_of_its_own_mount_do_not_keep_it(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    host.world.bind("/srv/a", "/mnt/y")
    pid = host.world.unshare()
    cut(host)
    assert await host.unstage("/srv/a", force=True)
    assert not host.world.connected(ONE)
    host.world.unmount("/mnt/y")
    host.world.end_process(pid)


@simulated()
async def test_path_of_another_orchestrator(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    name = host.world.fabric.controllers()[0].name
    host.world.registry[name] = "stas"
    cut(host)
    with pytest.raises(Shared, match="stas"):
        await host.unstage(PATH, force=True)
    assert len(host.world.fabric.controllers()) == 2
    host.world.registry[name] = "nvmeofd"
    mend(host)
    assert await host.unstage(PATH)


@simulated()
async def test_busy_after_all(host: Host) -> None:
    """Who works in a dead filesystem keeps it mounted; once he has gone, it is unstaged as any that lost its device."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.mounts.busy.add(PATH)
    cut(host)
    with pytest.raises(UnmountFailed, match="is disconnected"):
        await host.unstage(PATH, force=True)
    assert not host.world.connected(ONE)
    await host.quiesce(1)
    assert host.engine.volumes[PATH].state is VolumeState.LOST
    host.world.mounts.busy.clear()
    assert await host.unstage(PATH)


@simulated()
async def test_controller_that_cannot_be_deleted(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    cut(host)
    host.kernel.faults.fail("delete_controller", OSError(16, "busy"), times=2)
    with pytest.raises(DisconnectFailed):
        await host.unstage(PATH, force=True)
    assert host.engine.volume_state(PATH) is VolumeState.DEGRADED
    assert await host.unstage(PATH, force=True)


@simulated()
async def test_deletion_that_hangs(host: Host) -> None:
    """The caller hears in time, and what was begun is seen to its end."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    cut(host)
    gate = host.kernel.faults.hang("delete_controller")
    with pytest.raises(Timeout, match="disconnecting"):
        await host.unstage(PATH, force=True, timeout=8)
    gate.release()
    await host.quiesce(5)
    assert not host.world.connected(ONE)
    assert not host.engine.volumes


@simulated()
async def test_killed_while_it_is_mounted_over_and_alive_after_all(host: Host) -> None:
    """Somebody has mounted the same volume over it. The daemon's own mount is not forgotten for his."""
    await host.stage(ONE, EXT4, PATHS, PATH)
    host.world.mount(host.world.head(ONE, 1), PATH)
    cut(host)
    host.start_unstage(PATH)
    await host.quiesce(1)
    host.kernel.faults.crash("journal_write", detail="volume", after=True)
    with pytest.raises(Died):
        await host.unstage(PATH, force=True)
    host.world.hide()
    await host.boot()
    await host.quiesce(5)
    host.world.disconnect(ONE)
    await host.quiesce(5)
    host.world.unmount(PATH)
    await host.quiesce(5)
    await host.unstage(PATH)
    assert not host.world.mounts.at(PATH)


@simulated()
async def test_not_with_keep_connected(host: Host) -> None:
    with pytest.raises(InvalidArgument, match="force"):
        await host.unstage(PATH, force=True, keep_connected=True)


def points() -> tuple[range, list[str]]:
    async def main() -> tuple[range, list[str]]:
        host = await staged_and_dead()
        first = host.kernel.faults.points + 1
        await host.unstage(PATH, force=True)
        last, trace = host.kernel.faults.points, host.kernel.faults.trace
        await host.stop()
        return range(first, last + 1), trace

    return run(main())


async def staged_and_dead() -> Host:
    host = Host(make_world(7), Config(timeout=40))
    await host.boot(FaultPlan(11))
    await host.stage(ONE, EXT4, PATHS, PATH)
    await host.quiesce(5)
    cut(host)
    return host


@pytest.mark.parametrize("mended", [False, True], ids=["dead", "mended"])
def test_crash_at_every_point(mended: bool) -> None:
    """Killed anywhere, it is finished at the next start, or still staged; never anything in between."""

    async def main(point: int) -> list[str]:
        host = await staged_and_dead()
        host.kernel.faults.at(point, crash=True)
        with contextlib.suppress(Died, NvmeofdError):
            await host.unstage(PATH, force=True)
        if not host.kernel.killed:
            host.kill()
        if mended:
            mend(host)
        await host.boot()
        await host.quiesce(70)
        found = host.complaints()
        if PATH in host.engine.volumes:
            await host.unstage(PATH, force=True)
        await host.quiesce(70)
        found += host.complaints()
        if host.world.fabric.controllers():
            found.append(f"left: {host.world.fabric.controllers()}")
        await host.stop()
        return found

    numbers, trace = points()
    wrong = [f"{trace[number - 1]}: {text}" for number in numbers for text in run(main(number))]
    assert not wrong, "\n".join(wrong)
