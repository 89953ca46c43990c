"""Users inside the kernel that hold a device without claiming it. All of this blocks.

A loop device on top of a device, and a device exported by the NVMe target of this host, have it open without O_EXCL,
without being its holder in sysfs and without any process: whoever set them up has ended. Device-mapper, md, bcache,
DRBD, LIO's block backstore and mounted filesystems do claim what they use. Others that do not, and are not looked for:
LIO's file backstore on a device node, the passthru of the NVMe target, the block backend of Xen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Collection, Iterator

from nvmeofd.kernel.attributes import Directory, Gone, number_at
from nvmeofd.kernel.blockdev import block_number
from nvmeofd.kernel.interface import OpenFile
from nvmeofd.model import DeviceNumber

_LOOP_GET_STATUS64 = 0x4C05  # include/uapi/linux/loop.h
_LOOP_INFO64_SIZE = 232
_NOT_TOLD = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.ENOTCONN, errno.ESTALE)
_LO_RDEVICE = struct.Struct("=16xQ")  # lo_device, lo_inode, lo_rdevice
# How drivers name disks and their partitions. Anything else in /dev is a link, or a node that somebody made.
_DISK = (
    r"nvme\d+n\d+|(s|v|h|xv|das)d[a-z]+|dm-\d+|md(\d+|_\w+)|mmcblk\d+|(n|r|rn|dr)bd\d+|loop\d+|z?ram\d+|zd\d+"
    r"|bcache\d+|nullb\d+|ublkb\d+|pmem[\d.]+s?"
)
_KERNEL_NAME = re.compile(rf"({_DISK})(p?\d+)?")
# What is here and gone was either a device-mapper device, which claims what is below it, or a file.
_HARMLESS = ("mapper/", "shm/")


def kernel_users(sys: str, dev: str, numbers: Collection[DeviceNumber]) -> tuple[OpenFile, ...]:
    """Loop devices and NVMe target namespaces on these devices, as files of process 0. Raises OSError."""
    wanted = frozenset(numbers)
    found = [*_loops(sys, dev), *_exports(sys)]
    return tuple(OpenFile(0, name, number) for name, number in found if number in wanted)


def _loops(sys: str, dev: str) -> Iterator[tuple[str, DeviceNumber]]:
    for name in _entries(f"{sys}/block"):
        if not name.startswith("loop"):
            continue
        try:
            with Directory(f"{sys}/block/{name}/loop") as loop:  # there while it is set up
                number = _backing_device(f"{dev}/{name}", loop)
        except Gone:
            continue
        if number is not None:
            yield name, number


def _backing_device(path: str, loop: Directory) -> DeviceNumber | None:
    """The number of the device below a loop device, None: it is a file, or it was set free just now. Raises OSError."""
    # sysfs has a path; the ioctl has the number, however the path looks from here.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            rdevice: int = _LO_RDEVICE.unpack_from(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_SIZE)))[0]
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NOT_TOLD:
            raise
        # Its node was removed; it is being set free, and may have something to write still; or it is a file on a
        # filesystem that does not answer, such as FUSE of another user.
        if (loop.read("backing_file") or "").startswith("/dev/"):
            raise
        return None
    return DeviceNumber(os.major(rdevice), os.minor(rdevice)) if rdevice else None


def _exports(sys: str) -> Iterator[tuple[str, DeviceNumber]]:
    root = f"{sys}/kernel/config/nvmet/subsystems"
    for subsystem in _entries(root):
        for namespace in _entries(f"{root}/{subsystem}/namespaces"):
            device = _exported(f"{root}/{subsystem}/namespaces/{namespace}")
            number = _number(sys, device) if device else None
            if number is not None:
                yield f"nvmet {subsystem}", number


def _exported(path: str) -> str:
    """What a namespace of the target is made of, "" when it is not enabled, or removed. Raises OSError."""
    try:
        with Directory(path) as namespace:
            return (namespace.read("device_path") or "") if namespace.read("enable") == "1" else ""
    except Gone:
        return ""


def _number(sys: str, device: str) -> DeviceNumber | None:
    """The number of an exported device; None: it is none, or none that can be in question. Raises OSError."""
    # A path elsewhere is not looked at: it may be on a filesystem whose server is down, where stat(2) would wait.
    place = re.match("/+dev/+", device)
    if place is None:
        return None
    try:
        return block_number(os.stat(device))
    except (FileNotFoundError, NotADirectoryError):
        name = device[place.end() :]
    if _KERNEL_NAME.fullmatch(name):  # its node was removed, or the disk itself, which is none of ours then
        try:
            return number_at(f"{sys}/class/block/{name}")
        except Gone:
            return None
    if name.startswith(_HARMLESS):
        return None
    # A link that is not there any more may have led to one of ours, which the target holds still.
    raise OSError(errno.ENXIO, "the NVMe target of this host exports it, and it is not there", device)


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
