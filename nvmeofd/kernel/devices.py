"""A namespace held open and locked, to look at its content and to change it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from nvmeofd.kernel import blockdev, tools
from nvmeofd.kernel.commands import Commands
from nvmeofd.kernel.interface import CommandError, Content, DeviceChanged
from nvmeofd.kernel.threads import in_thread
from nvmeofd.model import Namespace

EDGE = 1 << 20  # bytes at each end of a device that must be zero


@asynccontextmanager
async def hold(namespace: Namespace, dev: str, flags: int = 0) -> AsyncIterator[int]:
    """The namespace open read-only, verified to be this incarnation. Entering raises DeviceChanged, OSError.

    While it is open, its kernel name and number cannot pass to another device: the kernel gives both back when the
    last reference to the disk is gone.
    """
    path = f"{dev}/{namespace.name}"
    fd = await in_thread(lambda: blockdev.open_device(namespace, path, flags), name=f"open {path}", dispose=os.close)
    try:
        yield fd
    finally:
        await blockdev.release((fd,), f"close {path}")


@asynccontextmanager
async def lock(
    namespace: Namespace, *, dev: str, commands: Commands, read: Callable[[str], Namespace | None], read_only: bool
) -> AsyncIterator[Device]:
    """The namespace open and flock()ed. Entering raises DeviceChanged, OSError.

    ``read`` gives the disk of a name as sysfs shows it. Waits while somebody else has the lock, e.g. udev probing the
    device; can be cancelled.
    """
    # O_DIRECT for the reading of the edges. It makes no difference to ioctl and flock.
    async with hold(namespace, dev, os.O_DIRECT) as fd:
        await _flock(fd, commands)
        # The lock goes when the descriptor is closed.
        device = Device(namespace, fd, dev, commands, read, read_only)
        await device.verify()
        yield device


async def _flock(fd: int, commands: Commands) -> None:
    """Take the lock of systemd's block device locking, see https://systemd.io/BLOCK_DEVICE_LOCKING."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # A thread in flock() could not be called back. A child can: the lock belongs to the open file description,
        # which it shares with this process.
        try:
            await commands.run("flock", "--exclusive", str(fd), pass_fds=(fd,))
        except CommandError as error:
            raise OSError(errno.ENOLCK, str(error)) from error


class Device:
    """The implementation of LockedDevice."""

    def __init__(
        self,
        namespace: Namespace,
        fd: int,
        dev: str,
        commands: Commands,
        read: Callable[[str], Namespace | None],
        read_only: bool,
    ) -> None:
        self._namespace = namespace
        self._fd = fd
        self._path = f"{dev}/{namespace.name}"
        self._commands = commands
        self._read = read
        self._read_only = read_only

    async def probe(self) -> Content:
        """blkid -p on the device. Raises CommandError, OSError."""
        return await tools.blkid(self._commands, self._path)

    async def edges_are_zero(self) -> bool:
        """Whether the first and last MiB, read past the page cache, are all zeros. Raises OSError."""
        return await in_thread(lambda: edges_are_zero(self._fd), name=f"read {self._path}")

    async def make_filesystem(self, fstype: str, *, uuid: str, options: Sequence[str]) -> None:
        """Run mkfs with the given filesystem UUID. Raises CommandError."""
        if self._read_only:
            raise CommandError(f"mkfs.{fstype}", 126, "the device is to be used read-only")
        await tools.mkfs(self._commands, fstype, self._path, uuid=uuid, options=options)

    async def wipe(self) -> None:
        """Signatures first, then both edges. Raises CommandError, OSError.

        Forced, or wipefs(8) would make a claim of its own, which the caller has.
        """
        if self._read_only:
            raise CommandError("wipefs", 126, "the device is to be used read-only")
        await self._commands.run("wipefs", "--quiet", "--all", "--force", "--", self._path)
        await in_thread(lambda: clear_edges(self._namespace, self._path), name=f"wipe {self._path}")

    async def check_filesystem(self, fstype: str) -> None:
        """Run the checker that the type wants before a mount. Raises CommandError when damage is left."""
        if self._read_only:
            raise CommandError("fsck", 126, "the device is to be used read-only")
        await tools.fsck(self._commands, fstype, self._path)

    async def set_read_only(self, read_only: bool) -> None:
        """BLKROSET. Raises OSError."""
        await in_thread(lambda: blockdev.set_read_only(self._fd, read_only), name=f"read-only {self._path}")

    async def verify(self) -> None:
        """Check that node, name, wwid, size and diskseq still belong to this open device. Raises DeviceChanged."""
        await in_thread(self._verify, name=f"verify {self._path}")

    def _verify(self) -> None:
        wanted = self._namespace
        try:
            blockdev.check_device(wanted, self._fd)
            size = blockdev.size_of(self._fd)
            node = blockdev.block_number(os.stat(self._path))
            now = self._read(wanted.name)
        except OSError as error:
            raise DeviceChanged(f"{self._path} cannot be verified: {error}") from error
        if node != wanted.number:
            raise DeviceChanged(f"{self._path} is the node of another device")
        if now is None or not now.same_incarnation(wanted):
            raise DeviceChanged(f"{wanted.name} is not {wanted.wwid} any more")
        if not size == now.size == wanted.size:
            raise DeviceChanged(f"the size of {wanted.name} changed from {wanted.size} to {size} bytes")


def edges_are_zero(fd: int) -> bool:
    """Whether the first and the last MiB of a device opened with O_DIRECT are all zeros. Raises OSError. Blocks."""
    size = blockdev.size_of(fd)
    if size == 0:
        raise OSError(errno.ENODATA, "the device has no size")
    # O_DIRECT wants buffer, offset and length to be multiples of the logical block size. Anonymous memory starts at a
    # page; the size of a device is a multiple of its block size, and so is a MiB.
    length = min(EDGE, size)
    # Not closed by hand: after a read error the traceback still has views of it, and closing would fail.
    view = memoryview(mmap.mmap(-1, EDGE))[:length]
    return all(_is_zero(fd, view, offset) for offset in dict.fromkeys((0, size - length)))


def clear_edges(namespace: Namespace, path: str) -> None:
    """Write zeros to the first and the last MiB. Raises DeviceChanged, OSError. Blocks."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        blockdev.check_device(namespace, fd)
        size = blockdev.size_of(fd)
        length = min(EDGE, size)
        zeros = bytes(length)
        for offset in dict.fromkeys((0, size - length)):
            done = 0
            while done < length:
                done += os.pwrite(fd, zeros[done:], offset + done)
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_zero(fd: int, view: memoryview, offset: int) -> bool:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise OSError(errno.EIO, f"the device ends at byte {offset + done}")
        done += count
    return view == bytes(len(view))
