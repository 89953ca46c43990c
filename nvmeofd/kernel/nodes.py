"""Which device a descriptor of another process refers to, without asking the filesystem it was opened on."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from nvmeofd.model import DeviceNumber

# include/uapi/linux/fcntl.h
_AT_FDCWD = -100
_AT_NO_AUTOMOUNT = 0x800
_AT_STATX_DONT_SYNC = 0x4000
# A mask of no fields. The kernel fills in mode and device all the same, except on a FUSE filesystem of another user,
# which would otherwise be an error (EACCES, even for root; fuse_getattr, fs/fuse/dir.c). No device can be opened there.
_NOTHING_ASKED = 0
_SIZE = 256  # of struct statx, include/uapi/linux/stat.h
_MODE = struct.Struct("=28xH")  # stx_mode
_RDEV = struct.Struct("=128xII")  # stx_rdev_major, stx_rdev_minor

_libc = ctypes.CDLL(None, use_errno=True)


def device_behind(path: str) -> DeviceNumber | None:
    """The number of the block or character device at ``path``, None for anything else.

    Meant for links like /proc/PID/fd/3, which lead straight to the open file: no path is walked, so a node that was
    removed, or lives in another mount namespace, is found as well. The network filesystems and FUSE are told to answer
    from memory (AT_STATX_DONT_SYNC): stat(2) would wait for a server that is down.

    Raises:
        OSError
    """
    buffer = ctypes.create_string_buffer(_SIZE)
    flags = _AT_STATX_DONT_SYNC | _AT_NO_AUTOMOUNT
    # A foreign function call releases the interpreter while it runs.
    if _libc.statx(_AT_FDCWD, os.fsencode(path), flags, _NOTHING_ASKED, buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    mode: int = _MODE.unpack_from(buffer.raw)[0]
    if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
        return None
    return DeviceNumber(*_RDEV.unpack_from(buffer.raw))
