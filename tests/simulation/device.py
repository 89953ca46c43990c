"""A namespace held open by the daemon: probing, formatting, checking."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvmeofd.kernel.interface import CommandError, Content, DeviceChanged
from nvmeofd.model import Namespace
from tests.simulation.files import os_error
from tests.simulation.state import SimHead

if TYPE_CHECKING:
    from tests.simulation.kernel import SimKernel


class SimLockedDevice:
    """Implements nvmeofd.kernel.interface.LockedDevice."""

    def __init__(self, kernel: SimKernel, head: SimHead, namespace: Namespace, *, read_only: bool) -> None:
        self._kernel = kernel
        self._head = head
        self._namespace = namespace
        self._read_only = read_only

    def _not_stuck(self) -> bool:
        return not self._head.stuck

    def _read_error(self) -> bool:
        return self._head.gone or self._head.disk.unreadable

    async def probe(self) -> Content:
        def effect() -> Content:
            if self._read_error():
                raise CommandError("blkid", 2, f"error: {self._head.path}: Input/output error")
            return self._head.disk.content

        return await self._kernel.call("probe", effect, detail=self._head.path, ready=self._not_stuck, child=True)

    async def edges_are_zero(self) -> bool:
        def effect() -> bool:
            if self._read_error():
                raise os_error(errno.EIO, self._head.path)
            return self._head.disk.blank

        return await self._kernel.call("edges_are_zero", effect, detail=self._head.path, ready=self._not_stuck)

    async def make_filesystem(self, fstype: str, *, uuid: str, options: Sequence[str]) -> None:
        """In two parts: a mkfs that is killed between them leaves something behind that is no filesystem."""
        disk, world = self._head.disk, self._kernel.world

        def begin() -> None:
            if disk.content.fstype and fstype != "ext4":
                raise CommandError(f"mkfs.{fstype}", 1, f"{self._head.path} appears to contain a filesystem")
            if self._head.gone or not disk.writable or self._read_only:
                raise CommandError(f"mkfs.{fstype}", 1, f"{self._head.path}: cannot be written")
            if any(use.exclusive for use in world.uses(self._head)):
                raise CommandError(f"mkfs.{fstype}", 1, f"{self._head.path} is apparently in use by the system")
            self._kernel.guardian.check_format(self._head, fstype)
            disk.other, disk.ambivalent, disk.damaged = "", False, False
            disk.fstype, disk.fs_uuid = world.rng.choice((("", ""), (fstype, uuid)))
            disk.garbage = disk.unfinished = disk.untouched = True
            self._kernel.claims.append(self._head)  # it has the device open with O_EXCL, up to its end

        def finish() -> None:
            if self._head.gone:
                raise CommandError(f"mkfs.{fstype}", 1, f"{self._head.path}: Input/output error")
            disk.fstype, disk.fs_uuid, disk.garbage, disk.unfinished = fstype, uuid, False, False
            disk.formatted.append(fstype)

        detail = f"{self._head.path} {fstype}"
        try:
            await self._kernel.call("make_filesystem", begin, detail=detail, ready=self._not_stuck, child=True)
            await self._kernel.call("finish_filesystem", finish, detail=detail, ready=self._not_stuck, child=True)
        finally:
            if self._head in self._kernel.claims:
                self._kernel.claims.remove(self._head)

    async def wipe(self) -> None:
        disk, world = self._head.disk, self._kernel.world

        def effect() -> None:
            if self._head.gone or not disk.writable or self._read_only:
                raise CommandError("wipefs", 1, f"{self._head.path}: cannot be written")
            if self._head not in self._kernel.claims:
                world.violation(f"wiped {self._head.path} without a claim")
            self._kernel.guardian.check_wipe(self._head)
            disk.fstype = disk.fs_uuid = disk.other = ""
            disk.ambivalent = disk.garbage = disk.unfinished = disk.damaged = False

        await self._kernel.call("wipe", effect, detail=self._head.path, ready=self._not_stuck)

    async def check_filesystem(self, fstype: str) -> None:
        def effect() -> None:
            if fstype not in ("ext2", "ext3", "ext4"):
                return
            self._kernel.guardian.check_check(self._head)
            if any(not mount.block_bind for mount in self._kernel.world.mounts.of(self._head)):
                raise CommandError("e2fsck", 8, f"{self._head.path} is in use")
            if self._read_error():
                raise CommandError("e2fsck", 8, f"{self._head.path}: Input/output error")
            if self._head.disk.damaged:
                raise CommandError("e2fsck", 4, f"{self._head.path}: UNEXPECTED INCONSISTENCY")

        await self._kernel.call("check_filesystem", effect, detail=self._head.path, ready=self._not_stuck, child=True)

    async def set_read_only(self, read_only: bool) -> None:
        def effect() -> None:
            if self._head.gone:
                raise os_error(errno.ENXIO, self._head.path)
            if not read_only:
                self._kernel.guardian.check_writable(self._head)
            self._head.read_only = read_only

        await self._kernel.call("set_read_only", effect, detail=self._head.path)

    async def verify(self) -> None:
        def effect() -> None:
            if not self._head.is_incarnation(self._namespace) or self._head.size != self._namespace.size:
                raise DeviceChanged(f"{self._namespace.path} is not the device it was")

        await self._kernel.call("verify", effect, detail=self._head.path)
