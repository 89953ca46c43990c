"""A mkfs that does not end well is undone, but never what somebody else has made of the device."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from nvmeofd.errors import FormatFailed, NotBlank, Timeout
from nvmeofd.kernel.interface import CommandError
from tests.simulation.device import SimLockedDevice
from tests.simulation.harness import Died, Host
from tests.simulation.setting import BLANK, ONE, PATHS, simulated


def mkfs_that_fails(monkeypatch: pytest.MonkeyPatch, fstype: str, uuid: str) -> None:
    """It leaves a filesystem behind: its own, half made, if no UUID is given, else that of another host."""

    async def make_filesystem(self: SimLockedDevice, wanted: str, *, uuid: str, options: Sequence[str]) -> None:
        disk = self._head.disk
        disk.fstype, disk.fs_uuid = fstype or wanted, found or uuid
        disk.untouched, disk.unfinished = not found, not found
        raise CommandError(f"mkfs.{wanted}", 1, "something is wrong")

    found = uuid
    monkeypatch.setattr(SimLockedDevice, "make_filesystem", make_filesystem)


def test_its_own_remains_are_wiped_off(monkeypatch: pytest.MonkeyPatch) -> None:
    @simulated()
    async def history(host: Host) -> None:
        with monkeypatch.context() as patch:
            mkfs_that_fails(patch, "", "")
            with pytest.raises(FormatFailed):
                await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
        await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
        assert await host.unstage("/srv/a")

    history()


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_the_filesystem_of_another_host_is_left(monkeypatch: pytest.MonkeyPatch, fstype: str) -> None:
    @simulated()
    async def history(host: Host) -> None:
        with monkeypatch.context() as patch:
            mkfs_that_fails(patch, fstype, "made elsewhere")
            with pytest.raises(FormatFailed, match=f"it holds {fstype}, which was not made here"):
                await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
        volume = await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
        assert volume.fstype == fstype
        assert await host.unstage("/srv/a")

    history()


def test_what_nobody_knows_is_not_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    @simulated()
    async def history(host: Host) -> None:
        host.world.fabric.targets[ONE].namespaces[3].garbage = True
        with pytest.raises(NotBlank):
            await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")

    history()


@simulated()
async def test_what_was_used_after_a_crash_is_not_wiped_off(host: Host) -> None:
    """Somebody mounts what a mkfs has made whose end the daemon did not live to see, and unmounts it again."""
    host.kernel.faults.crash("probe", skip=1)
    with pytest.raises(Died):
        await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
    host.world.mount(host.world.head(ONE, 3), "/mnt/y")
    booting = asyncio.ensure_future(host.boot())
    await asyncio.sleep(0)
    host.kernel.faults.delay("lock_device", 2)
    await booting
    host.world.unmount("/mnt/y")
    await host.quiesce(70)
    assert host.world.fabric.targets[ONE].namespaces[3].fstype == "ext4"


@simulated()
async def test_grown_after_a_crash_is_not_wiped_off(host: Host) -> None:
    """Somebody has done something with what a mkfs made whose end the daemon did not live to see."""
    host.kernel.faults.crash("finish_filesystem", after=True)
    with pytest.raises(Died):
        await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
    disk = host.world.head(ONE, 3).disk
    host.world.grow_namespace(ONE, 3, disk.size * 2)
    await host.quiesce(5)
    await host.boot()
    await host.quiesce(70)
    assert disk.fstype


def used_once_made(host: Host) -> None:
    """When mkfs has ended, somebody mounts the filesystem in a mount namespace that is gone soon after."""

    def use() -> None:
        pid = host.world.unshare()
        host.world.mount(host.world.head(ONE, 3), "/mnt/x", space=pid)
        host.world.end_process(pid)

    host.kernel.faults.hook("probe", use, skip=1)


@simulated()
async def test_used_as_soon_as_mkfs_has_ended(host: Host) -> None:
    """By somebody who is gone again when the daemon dies and starts again."""
    used_once_made(host)
    host.kernel.faults.crash("probe", skip=1, after=True)
    with pytest.raises(Died):
        await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
    disk = host.world.head(ONE, 3).disk
    await host.boot()
    await host.quiesce(70)
    assert disk.fstype


@simulated()
async def test_used_before_the_stage_runs_out_of_time(host: Host) -> None:
    """Once mkfs has ended it is a filesystem like any other."""
    used_once_made(host)
    host.kernel.faults.delay("probe", 70, skip=1, after=True)
    with pytest.raises(Timeout):
        await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty", timeout=10)
    disk = host.world.fabric.targets[ONE].namespaces[3]
    await host.quiesce(100)
    assert disk.fstype
