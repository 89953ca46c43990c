"""A mkfs that does not end well is undone, but never what somebody else has made of the device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nvmeofd.errors import FormatFailed, NotBlank
from nvmeofd.kernel.interface import CommandError
from tests.simulation.device import SimLockedDevice
from tests.simulation.harness import Host
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
