"""Reading directories of sysfs, and of configfs, that may vanish at any moment.

Everything about one device is read through one file descriptor of its directory. A directory stays that of its
device, so a name that passes to another device in between can never mix the attributes of the two.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Self, TypeVar

from nvmeofd.model import DeviceNumber

T = TypeVar("T")

GONE = (errno.ENOENT, errno.ENODEV)  # what access to a file in sysfs gives that is removed, or being removed
# The attributes of a device go before its directory, and an event is sent in between (device_del, drivers/base/core.c):
# microseconds, or many milliseconds when the processor is taken from the thread that does it. For how many seconds a
# device caught in between is looked at again, how often at least, and how many seconds pass between two looks. The loop
# stands still meanwhile.
_PATIENCE = 0.1
_LOOKS = 20
_PAUSE = 0.001


class Gone(Exception):
    """The device vanished while it was read."""


class Directory:
    """The open directory of a device in sysfs, or of an item in configfs. A context manager: closed at the end."""

    def __init__(self, path: str) -> None:
        """Follows symbolic links, as the classes consist of them. Raises Gone, OSError."""
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # ENOENT is also what a link to a removed device gives.
            if error.errno in GONE:
                raise Gone(path) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    @property
    def instance(self) -> int:
        """What tells the device from others of its name, see ControllerId. Raises OSError."""
        return os.fstat(self.fd).st_ino

    def read(self, name: str) -> str | None:
        """An attribute without the line end, None when there is no such attribute. Raises OSError."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                # An attribute has at most a page and is read in one go (fs/sysfs/file.c).
                return os.fsdecode(os.read(fd, 1 << 16)).rstrip("\n")
            finally:
                os.close(fd)
        except OSError as error:
            # One that is being removed cannot be opened, or read, any more: ENODEV (fs/kernfs/file.c).
            if error.errno in GONE:
                return None
            # a descriptor has no path, and whoever reads the message needs one
            raise OSError(error.errno, error.strerror, f"{self.path}/{name}") from error

    def need(self, name: str) -> str:
        """An attribute that every such device has. Raises Gone, OSError."""
        value = self.read(name)
        if value is None:
            raise Gone(f"{self.path}/{name}")
        return value

    def parsed(self, name: str, parse: Callable[[str], T]) -> T:
        """An attribute that every such device has, parsed. Raises Gone, OSError (EINVAL: not of that form)."""
        text = self.need(name)
        try:
            return parse(text)
        except ValueError as error:
            raise OSError(errno.EINVAL, f"{self.path}/{name} contains {text[:64]!r}") from error

    def device_number(self) -> DeviceNumber:
        """The device number. Raises Gone, OSError."""
        return self.parsed("dev", DeviceNumber.parse)

    def names(self) -> list[str]:
        """The entries, sorted. Raises Gone, OSError."""
        try:
            return sorted(os.listdir(self.fd))
        except OSError as error:
            if error.errno in GONE:
                raise Gone(self.path) from error
            raise


def present(read: Callable[[str], T], path: str) -> T | None:
    """``read(path)``, or None when the device at ``path`` has really gone.

    A device whose attributes cannot be read although its directory is still there is never taken for gone: it is
    looked at again, and in the end that is an error.

    Raises:
        OSError: it is there and cannot be read.
    """
    looks, until = 0, 0.0
    while True:
        try:
            return read(path)
        except Gone as error:
            if not exists(path):
                return None
            looks += 1
            until = until or time.monotonic() + _PATIENCE
            if looks > _LOOKS and time.monotonic() >= until:
                raise OSError(errno.EIO, f"{path} is there but cannot be read: no {error}") from error
            time.sleep(_PAUSE)


def exists(path: str) -> bool:
    """Whether something is there, symbolic links followed. Raises OSError when that cannot be told."""
    try:
        instance_at(path)
    except Gone:
        return False
    return True


def instance_at(path: str) -> int:
    """What tells the device at ``path`` from others of its name, see ControllerId. Raises Gone, OSError."""
    try:
        return os.stat(path).st_ino  # of the directory: symbolic links are followed
    except OSError as error:
        if error.errno in GONE:
            raise Gone(path) from error
        raise


def number_at(path: str) -> DeviceNumber:
    """The device number of the device at ``path``. Raises Gone, OSError."""
    with Directory(path) as directory:
        return directory.device_number()
