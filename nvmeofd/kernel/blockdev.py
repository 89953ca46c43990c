"""Opening the block device of a namespace, and being sure that it is that one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence

from nvmeofd.kernel.interface import ClaimBusy, DeviceChanged
from nvmeofd.kernel.threads import in_thread
from nvmeofd.model import DeviceNumber, Namespace

# include/uapi/linux/fs.h, in the generic ioctl encoding; powerpc, mips and sparc have another one.
_BLKROSET = 0x125D  # _IO(0x12, 93), takes a pointer to an int
_BLKFLSBUF = 0x1261  # _IO(0x12, 97)
_BLKGETSIZE64 = 0x80081272  # _IOR(0x12, 114, size_t)
_BLKGETDISKSEQ = 0x80081280  # _IOR(0x12, 128, __u64), since Linux 5.15


def open_device(namespace: Namespace, path: str, flags: int = 0) -> int:
    """Open the node read-only and make sure that it is this incarnation. Blocks.

    Read-only, because udev takes the closing of a writable descriptor for a change of the content and probes again.

    Raises:
        DeviceChanged: there is no such device any more, or it is another one.
        OSError
    """
    fd = _open(path, flags)
    try:
        check_device(namespace, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(path: str, flags: int = 0) -> int:
    """Raises DeviceChanged when there is no such device any more, OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise DeviceChanged(f"{path} is gone") from error
        raise


def check_device(namespace: Namespace, fd: int) -> None:
    """Raises DeviceChanged when the open device is not this incarnation, OSError."""
    number = block_number(os.fstat(fd))
    if number != namespace.number:
        raise DeviceChanged(f"{namespace.name} is device {number or 'of no kind'}, expected {namespace.number}")
    # A device number is reused, a disk sequence number never (block/genhd.c).
    diskseq = _get_u64(fd, _BLKGETDISKSEQ)
    if diskseq != namespace.diskseq:
        raise DeviceChanged(
            f"{namespace.name} is another disk now (sequence number {diskseq}, not {namespace.diskseq})"
        )


def open_exclusively(namespaces: Sequence[Namespace], dev: str) -> list[int]:
    """Claim the namespaces: open each with O_EXCL, all or none. Blocks.

    A claimed whole disk also keeps its partitions from being claimed, and a claimed partition keeps the disk from it
    (bd_may_claim, block/bdev.c).

    Raises:
        ClaimBusy, DeviceChanged, OSError: after closing what was open.
    """
    fds: list[int] = []
    try:
        for namespace in namespaces:
            path = f"{dev}/{namespace.name}"
            try:
                fds.append(open_device(namespace, path, os.O_EXCL))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise ClaimBusy(path) from error
                raise
    except BaseException:
        close_all(fds)
        raise
    return fds


def write_back(fds: Sequence[int], partitions: Sequence[tuple[str, DeviceNumber]]) -> None:
    """Write what is dirty in the page cache of these open disks, and of these partitions, which have one each. Blocks.

    Not fsync(2): that has the device empty its own cache as well, for which it needs a path even if nothing is dirty.

    Raises:
        DeviceChanged: a partition is not there any more.
        OSError
    """
    for fd in fds:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    for path, number in partitions:
        fd = _open(path)
        try:
            if block_number(os.fstat(fd)) != number:
                raise DeviceChanged(f"{path} is another device")
            fcntl.ioctl(fd, _BLKFLSBUF, 0)
        finally:
            os.close(fd)


def close_all(fds: Sequence[int]) -> None:
    """Close them. Blocks: the last one to close a disk writes back what is dirty. Linux closes even on an error."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


async def release(fds: Sequence[int], name: str) -> None:
    """Close them in a thread; if there is none to be had, here."""
    try:
        await in_thread(lambda: close_all(fds), name=name)
    except OSError:  # only from starting the thread
        close_all(fds)


def block_number(status: os.stat_result) -> DeviceNumber | None:
    """The device number of a block device node, else None."""
    if not stat.S_ISBLK(status.st_mode):
        return None
    return DeviceNumber(os.major(status.st_rdev), os.minor(status.st_rdev))


def size_of(fd: int) -> int:
    """The size of an open device in bytes. Raises OSError."""
    return _get_u64(fd, _BLKGETSIZE64)


def set_read_only(fd: int, read_only: bool) -> None:
    """Raises OSError."""
    fcntl.ioctl(fd, _BLKROSET, struct.pack("i", read_only))


def _get_u64(fd: int, request: int) -> int:
    value: int = struct.unpack("Q", fcntl.ioctl(fd, request, bytes(8)))[0]
    return value
