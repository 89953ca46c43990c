"""Users inside the kernel that hold a device without claiming it. All of this blocks.

A loop device on top of a device, and a device exported by the NVMe target of this host, have it open without O_EXCL,
without being its holder in sysfs and without any process: whoever set them up has ended. Device-mapper, md, bcache,
DRBD, LIO and mounted filesystems do claim what they use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Collection, Iterator

from nvmeofd.kernel.attributes import Gone, exists, open_directory
from nvmeofd.kernel.blockdev import block_number
from nvmeofd.kernel.interface import OpenFile
from nvmeofd.model import DeviceNumber

_LOOP_GET_STATUS64 = 0x4C05  # include/uapi/linux/loop.h
_LOOP_INFO64_SIZE = 232
_LO_RDEVICE = struct.Struct("=16xQ")  # lo_device, lo_inode, lo_rdevice
_NOT_BOUND = (errno.ENXIO, errno.ENODEV, errno.ENOENT)
# How drivers name disks and their partitions. Anything else in /dev is a link, or a node that somebody made.
_KERNEL_NAME = re.compile(
    r"(nvme\d+n\d+|sd[a-z]+|vd[a-z]+|xvd[a-z]+|dm-\d+|md\d+|mmcblk\d+|[nr]bd\d+|drbd\d+|loop\d+|z?ram\d+|pmem\d+)"
    r"(p?\d+)?"
)


def kernel_users(sys: str, dev: str, numbers: Collection[DeviceNumber]) -> tuple[OpenFile, ...]:
    """Loop devices and NVMe target namespaces on these devices, as files of process 0. Raises OSError."""
    wanted = frozenset(numbers)
    found = [*_loops(sys, dev), *_exports(sys)]
    return tuple(OpenFile(0, name, number) for name, number in found if number in wanted)


def _loops(sys: str, dev: str) -> Iterator[tuple[str, DeviceNumber]]:
    for name in _entries(f"{sys}/block"):
        # The attribute is there while the loop device is set up. It has a path; the ioctl has the number, however the
        # path looks from here.
        bound = f"{sys}/block/{name}/loop/backing_file"
        if name.startswith("loop") and exists(bound):
            number = _backing_device(f"{dev}/{name}", bound)
            if number is not None:
                yield name, number


def _backing_device(path: str, bound: str) -> DeviceNumber | None:
    """The number of the device below a loop device; None: it is a file, or it was set free just now. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_BOUND and not exists(bound):
            return None
        raise
    try:
        rdevice: int = _LO_RDEVICE.unpack_from(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_SIZE)))[0]
    except OSError as error:
        if error.errno in _NOT_BOUND:
            return None
        raise
    finally:
        os.close(fd)
    return DeviceNumber(os.major(rdevice), os.minor(rdevice)) if rdevice else None


def _exports(sys: str) -> Iterator[tuple[str, DeviceNumber]]:
    root = f"{sys}/kernel/config/nvmet/subsystems"
    for subsystem in _entries(root):
        for namespace in _entries(f"{root}/{subsystem}/namespaces"):
            path = f"{root}/{subsystem}/namespaces/{namespace}"
            device = _exported(path)
            number = _number(path, device) if device else None
            if number is not None:
                yield f"nvmet {subsystem}", number


def _exported(path: str) -> str:
    """What a namespace of the target is made of, "" when it is not enabled, or removed. Raises OSError."""
    try:
        with open_directory(path) as namespace:
            return (namespace.read("device_path") or "") if namespace.read("enable") == "1" else ""
    except Gone:
        return ""


def _number(path: str, device: str) -> DeviceNumber | None:
    """The number of an exported device; None: it is none, or none that can be in question. Raises OSError."""
    # A path elsewhere is not looked at: it may be on a filesystem whose server is down, where stat(2) would wait.
    if not re.match("/+dev/", device):
        return None
    try:
        return block_number(os.stat(device))
    except (FileNotFoundError, NotADirectoryError):
        # A disk of the kernel's that is not there was removed, and ours are not. A link that is not there any more may
        # have led to one of ours, which the target holds still.
        if _KERNEL_NAME.fullmatch(re.sub("/+dev/+", "", device, count=1)):
            return None
        raise OSError(errno.ENXIO, f"the NVMe target of this host exports {device}, which is not there", path) from None


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
