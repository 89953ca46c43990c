"""What the daemon has connected is its own, whatever goes wrong then, and what others have connected is not."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace

import pytest

from nvmeofd.errors import Cancelled, ConnectFailed, InUse, NvmeofdError
from nvmeofd.kernel.interface import ConnectError
from nvmeofd.model import VolumeState
from tests.simulation.acts import OTHER_HOST
from tests.simulation.faults import FaultPlan
from tests.simulation.harness import Died, Host
from tests.simulation.setting import A1, EXT4, ONE, OTHER, PATHS, TARGET, TWO, simulated
from tests.simulation.state import Opener
from tests.simulation.world import HOST

PATH = "/srv/a"

# ---- whose it is


@simulated()
async def test_somebody_has_the_name_by_the_time_that_the_answer_is_read(host: Host) -> None:
    """Deleted by others the moment it was connected, and connected by them anew: that one is not the daemon's."""
    gate = host.kernel.faults.hang("connect", after=True)
    stage = asyncio.ensure_future(host.stage(ONE, EXT4, PATHS[:1], PATH))
    await host.quiesce(1)
    (first,) = host.world.fabric.controllers()
    host.world.disconnect(ONE)
    second = host.world.connect(ONE, A1)
    assert second.name == first.name
    gate.release()
    await stage
    assert await host.unstage(PATH) is False
    await host.quiesce(5)
    assert host.world.fabric.controllers() == [second]


@pytest.mark.parametrize("cancelled", [False, True])
@simulated()
async def test_somebody_connects_while_the_daemon_cannot(host: Host, cancelled: bool) -> None:
    """What failed for certain has made no controller, so what is there now is not the daemon's."""
    gate = host.kernel.faults.hang("connect")
    host.kernel.faults.fail("connect", ConnectError(errno.ETIMEDOUT, "no answer"))
    stage = asyncio.ensure_future(host.stage(ONE, EXT4, PATHS[:1], PATH))
    await host.quiesce(1)
    theirs = host.world.connect(ONE, A1)
    if cancelled:
        next(iter(host.engine.jobs.values())).cancel()
    gate.release()
    if cancelled:
        with pytest.raises(Cancelled):
            await stage
    else:
        await stage
        assert await host.unstage(PATH) is False
    await host.quiesce(5)
    assert host.world.fabric.controllers() == [theirs]


@simulated()
async def test_connected_as_what_nobody_can_tell(host: Host) -> None:
    """Neither a refusal of the kernel nor of the system: the daemon is out of memory, say. And cancelled by then."""
    host.kernel.faults.hook("connect", lambda: next(iter(host.engine.jobs.values())).cancel())
    host.kernel.faults.fail("connect", MemoryError(), after=True)
    with pytest.raises(Cancelled):
        await host.stage(ONE, EXT4, PATHS, PATH)
    await host.quiesce(5)
    assert not host.world.fabric.controllers()


@pytest.mark.parametrize("before", [False, True])
@simulated()
async def test_killed_while_it_connects_and_somebody_has_done_so(host: Host, before: bool) -> None:
    """What was there before the attempt, or is for another host, is not what became of it."""
    target = host.world.fabric.targets[ONE]
    theirs = []
    if before:
        target.late = 20.0
        theirs.append(host.world.connect(ONE, A1, host=replace(HOST, id=OTHER_HOST.id)))
    host.kernel.faults.crash("connect")
    with pytest.raises(Died):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    if not before:
        theirs.append(host.world.connect(ONE, A1, host=OTHER_HOST))
    await host.quiesce(30)
    await host.boot()
    await host.quiesce(40)
    assert host.world.fabric.controllers() == theirs


# ---- connected, and not a path of the subsystem


@simulated()
async def test_connected_and_not_a_path_yet(host: Host) -> None:
    """With FC the kernel says that it is connected and goes on trying. What comes of it later is the daemon's."""
    host.world.fabric.targets[ONE].late = 20.0
    with pytest.raises(ConnectFailed, match="nvme0"):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    (late,) = host.world.fabric.controllers()
    await host.quiesce(1)
    assert host.engine.owned(ONE)
    assert host.world.registry == {late.name: "nvmeofd"}
    host.kill()
    await host.boot()
    await host.quiesce(60)
    assert not host.world.fabric.controllers()
    assert not host.engine.owned(ONE)


@pytest.mark.parametrize("used", [False, True])
@simulated()
async def test_target_that_gives_another_nqn(host: Host, used: bool) -> None:
    """The kernel believes it, and what was connected is a path of that subsystem."""
    host.world.fabric.targets[ONE].says = TWO
    if used:
        await host.stage(TWO, "nsid.1", PATHS[1:], "/srv/b")
    with pytest.raises(ConnectFailed, match="nvme"):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    await host.quiesce(60)
    assert not host.engine.owned(ONE)
    assert len(host.world.fabric.controllers()) == (2 if used else 0)
    if used:
        assert await host.unstage("/srv/b") is True
        assert not host.world.fabric.controllers()


@simulated()
async def test_connected_and_never_a_path(host: Host) -> None:
    host.world.fabric.targets[ONE].late = 10_000.0
    with pytest.raises(ConnectFailed):
        await host.stage(ONE, EXT4, PATHS[:1], PATH, ctrl_loss_tmo=100)
    await host.quiesce(60)
    assert host.engine.owned(ONE)
    await host.quiesce(60)
    assert not host.world.fabric.controllers()
    assert not host.journal().subsystems
    assert not host.world.registry


@simulated()
async def test_one_is_not_a_path_yet_and_the_other_serves(host: Host) -> None:
    """What cannot be read meanwhile is no reason to fail."""
    target = host.world.fabric.targets[ONE]
    target.late = 20.0

    def in_time() -> None:
        target.late = 0.0
        host.kernel.faults.fail("subsystems", OSError(errno.EIO, "simulated"))

    host.kernel.faults.hook("connect", in_time, after=True)
    await host.stage(ONE, EXT4, PATHS, PATH)
    await host.quiesce(60)
    assert len(host.world.fabric.controllers()) == 2
    assert await host.unstage(PATH) is True


@simulated()
async def test_cancelled_while_it_connects_what_is_not_a_path(host: Host) -> None:
    """Nothing more is connected, though the name has another address."""
    host.world.fabric.targets[ONE].says = TWO
    host.kernel.faults.hook("connect", lambda: next(iter(host.engine.jobs.values())).cancel())
    with pytest.raises(Cancelled):
        await host.stage(ONE, EXT4, [f"tcp://{TARGET}:4420"], PATH)
    assert host.kernel.faults.calls["connect"] == 1


@simulated()
async def test_one_is_not_a_path_and_others_cannot_be_read(host: Host) -> None:
    """The volumes are shown as they are all the same."""
    await host.stage(TWO, OTHER, PATHS[1:], "/srv/b")
    host.world.fabric.targets[ONE].late = 60.0
    with pytest.raises(ConnectFailed):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    host.kernel.faults.fail("subsystems", OSError(errno.EIO, "simulated"), times=10_000)
    host.world.unmount("/srv/b")
    await host.quiesce(5)
    assert host.engine.volumes["/srv/b"].state is VolumeState.LOST
    host.kernel.faults.clear()
    await host.unstage("/srv/b")
    await host.quiesce(120)
    assert not host.world.fabric.controllers()


# ---- what was to be kept connected


@pytest.mark.parametrize("killed", [False, True])
@simulated()
async def test_nothing_is_inherited_from_what_was_to_be_kept(host: Host, killed: bool) -> None:
    """A Stage comes before the daemon has seen that the connection which was to be kept is gone."""
    await host.stage(ONE, EXT4, PATHS[:1], PATH)
    await host.unstage(PATH, keep_connected=True)
    host.world.disconnect(ONE)
    if killed:
        host.kernel.faults.crash("probe")
        with pytest.raises(Died):
            await host.stage(ONE, EXT4, PATHS[:1], PATH)
        await host.boot()
    else:
        user: list[Opener] = []
        host.kernel.faults.hook("probe", lambda: user.append(host.world.open(host.world.head(ONE, 1))))
        host.kernel.faults.fail("probe", OSError(errno.EIO, "simulated"))
        with pytest.raises(NvmeofdError):
            await host.stage(ONE, EXT4, PATHS[:1], PATH)
        host.world.close(user[0])
    await host.quiesce(60)
    assert not host.world.fabric.controllers()


@simulated()
async def test_kept_is_what_there_was_then(host: Host) -> None:
    """Not what becomes of a path that was not one yet."""
    await host.stage(ONE, EXT4, PATHS[:1], PATH)
    await host.unstage(PATH, keep_connected=True)
    host.world.fabric.targets[ONE].late = 20.0
    with pytest.raises(ConnectFailed):
        await host.stage(ONE, EXT4, PATHS, PATH, min_paths=2)
    host.world.disconnect(ONE)
    await host.quiesce(60)
    assert not host.world.fabric.controllers()


# ---- the journal cannot be written


def full(host: Host) -> None:
    host.kernel.faults.fail("journal_write", OSError(errno.ENOSPC, "No space left on device"), times=10_000)
    host.kernel.faults.fail("journal_delete", OSError(errno.EROFS, "Read-only file system"), times=10_000)


@pytest.mark.parametrize("stopped", [False, True])
@simulated()
async def test_refused_and_the_journal_is_full(host: Host, stopped: bool) -> None:
    """Known to have failed, even if that cannot be written: what somebody connects afterwards is not the daemon's."""
    host.kernel.faults.hook("connect", lambda: full(host))
    host.kernel.faults.fail("connect", ConnectError(errno.ETIMEDOUT, "no answer"))
    with pytest.raises(ConnectFailed, match="no answer"):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    theirs = host.world.connect(ONE, A1)
    await host.quiesce(5)
    assert not host.engine.owned(ONE)
    host.kernel.faults.clear()
    if stopped:
        await host.stop()
        await host.boot()
    await host.quiesce(40)
    assert not host.journal().subsystems
    assert host.world.fabric.controllers() == [theirs]


@simulated()
async def test_connected_and_the_journal_is_full(host: Host) -> None:
    """Known to be the daemon's, and that what somebody connects after its end is not."""
    host.kernel.faults.hook("connect", lambda: full(host), after=True)
    with pytest.raises(NvmeofdError):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    assert not host.world.fabric.controllers()
    theirs = host.world.connect(ONE, A1)
    await host.quiesce(5)
    host.kernel.faults.clear()
    await host.quiesce(60)
    assert host.world.fabric.controllers() == [theirs]
    assert not host.journal().subsystems


@simulated()
async def test_refused_disconnect_and_the_journal_is_full(host: Host) -> None:
    """It is not finished by the next life of the daemon."""
    theirs = host.world.connect(ONE, A1)
    await host.quiesce(5)
    host.world.mount(host.world.head(ONE, 1), "/mnt/x")
    host.kernel.faults.fail("journal_delete", OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(InUse):
        await host.disconnect(ONE)
    host.world.unmount("/mnt/x")
    await host.quiesce(40)
    host.kill()
    await host.boot()
    await host.quiesce(40)
    assert host.world.fabric.controllers() == [theirs]


@simulated()
async def test_stopped_while_another_job_is_held(host: Host) -> None:
    """What is known is written at the stop all the same."""
    await host.stage(TWO, OTHER, PATHS[1:], "/srv/b")
    host.kernel.faults.hook("connect", lambda: full(host))
    host.kernel.faults.fail("connect", ConnectError(errno.ETIMEDOUT, "no answer"))
    with pytest.raises(ConnectFailed):
        await host.stage(ONE, EXT4, PATHS[:1], PATH)
    await host.quiesce(1)
    host.kernel.faults.clear()
    gate = host.kernel.faults.hang("unmount")
    unstaging = host.start_unstage("/srv/b", timeout=5)
    await host.quiesce(1)
    assert await host.end(10) is False
    unstaging.cancel()
    theirs = host.world.connect(ONE, A1)
    gate.release()
    await host.boot()
    await host.quiesce(40)
    assert theirs in host.world.fabric.controllers()


@simulated()
async def test_full_journal_and_a_connection_that_is_gone_at_the_start(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS[:1], PATH)
    await host.unstage(PATH, keep_connected=True)
    host.kill()
    host.world.disconnect(ONE)
    faults = FaultPlan()
    faults.fail("journal_delete", OSError(errno.EROFS, "Read-only file system"), times=10_000)
    await host.boot(faults)
    await host.quiesce(5)
    assert not host.engine.owned(ONE)
    host.kernel.faults.clear()
    await host.quiesce(40)
    assert not host.journal().subsystems
