"""Staging paths: looked at, made and removed without ever following a symbolic link. All of this blocks.

A mounted filesystem on the way, or at the path itself, is fine. One that hangs holds up the calling thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from nvmeofd.kernel.interface import HeldElsewhere, PathKind, StagingPathError
from nvmeofd.kernel.mountspaces import mounted_on
from nvmeofd.model import VolumeType

WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY_MODE = 0o750
FILE_MODE = 0o600


@contextmanager
def handed_on(fd: int) -> Iterator[int]:
    """A descriptor that is for the caller, unless there is an exception: then it is closed."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


@contextmanager
def _parent(path: str) -> Iterator[tuple[int, str]]:
    """The directory that ``path`` is in, as a descriptor (O_PATH), and the last component.

    ``path`` is absolute and in normal form.

    Raises:
        StagingPathError: a component on the way is missing, a symbolic link, or no directory. It is named.
        OSError
    """
    *components, last = path.strip("/").split("/")
    fd = os.open("/", WALK | os.O_DIRECTORY)
    walked = ""
    try:
        for component in components:
            walked += f"/{component}"
            try:
                # Without O_DIRECTORY, so that a link can be told from a file.
                below = os.open(component, WALK, dir_fd=fd)
            except FileNotFoundError:
                raise StagingPathError(f"{walked!r} does not exist; only the last component is created") from None
            os.close(fd)
            fd = below
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                raise StagingPathError(f"{walked!r} is a symbolic link")
            if not stat.S_ISDIR(mode):
                raise StagingPathError(f"{walked!r} is not a directory")
        yield fd, last
    finally:
        os.close(fd)


def inspect(path: str) -> PathKind:
    """What is at ``path``. Raises StagingPathError, OSError."""
    with _parent(path) as (parent, name):
        try:
            fd = os.open(name, WALK, dir_fd=parent)
        except FileNotFoundError:
            return PathKind.ABSENT
        try:
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                raise StagingPathError(f"{path!r} is a symbolic link")
            if stat.S_ISDIR(status.st_mode):
                return PathKind.DIRECTORY if _has_entries(fd) else PathKind.EMPTY_DIRECTORY
            if stat.S_ISREG(status.st_mode) and status.st_size == 0:
                return PathKind.EMPTY_FILE
            return PathKind.OTHER
        finally:
            os.close(fd)


def create(path: str, volume_type: VolumeType) -> None:
    """Make the directory or the empty file. Raises FileExistsError, StagingPathError, OSError."""
    with _parent(path) as (parent, name):
        if volume_type is VolumeType.FILESYSTEM:
            os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
            flags, mode = os.O_RDONLY | os.O_DIRECTORY, DIRECTORY_MODE
        else:
            flags, mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=parent)
        try:
            os.fchmod(fd, mode)  # whatever the umask
        finally:
            os.close(fd)


def remove(path: str, volume_type: VolumeType, proc: str = "/proc") -> None:
    """Remove the empty directory or empty file; absent is success, a missing parent as well.

    Removing it would take away what other mount namespaces have mounted there: the kernel unmounts that along with it
    (mount_namespaces(7), since Linux 3.18).

    Raises:
        HeldElsewhere: another mount namespace has something mounted there.
        OSError: it is in use, not empty, or something else than what was created.
    """
    try:
        with _parent(path) as (parent, name):
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (found := mounted_on(proc, parent, name)) is not None:
                raise HeldElsewhere(path, found)
            if volume_type is VolumeType.FILESYSTEM:
                os.rmdir(name, dir_fd=parent)
                return
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            if status.st_size:
                raise OSError(errno.ENOTEMPTY, "the file is not empty", path)
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except StagingPathError as error:
        if os.path.lexists(path):
            raise OSError(errno.ELOOP, str(error), path) from error


def open_target(path: str, volume_type: VolumeType) -> int:
    """What is to be mounted on, as a descriptor (O_PATH): right before a mount, whatever was looked at before.

    Raises:
        StagingPathError: it is nothing to mount on.
        OSError
    """
    with _parent(path) as (parent, name):
        try:
            fd = os.open(name, WALK, dir_fd=parent)
        except FileNotFoundError:
            raise StagingPathError(f"{path!r} does not exist") from None
    with handed_on(fd):
        status = os.fstat(fd)
        if volume_type is VolumeType.FILESYSTEM:
            good, wanted = stat.S_ISDIR(status.st_mode), "a directory"
        else:
            good, wanted = stat.S_ISREG(status.st_mode) and not status.st_size, "an empty file"
        if not good:
            raise StagingPathError(f"{path!r} is not {wanted}")
    return fd


def open_mount_point(path: str) -> int:
    """The directory in which the last component of ``path`` is mounted on (O_PATH). The caller closes it.

    Raises:
        StagingPathError: a component on the way is missing, a symbolic link, or no directory.
        OSError: nothing is mounted there (EINVAL, as umount(2) has it).
    """
    with _parent(path) as (parent, _):
        return open_mount_point_in(os.dup(parent), path)


def open_mount_point_in(parent: int, path: str) -> int:
    """``parent``, if the last component of ``path`` is mounted on there. It is closed otherwise. Raises OSError."""
    with handed_on(parent):
        if mounted_in(parent, os.path.basename(path)) == _mount_id(parent):
            raise OSError(errno.EINVAL, "not mounted")
    return parent


def mounted_in(parent: int, name: str) -> int:
    """The identifier of what is mounted, topmost, on an entry of a directory. Raises OSError."""
    below = os.open(name, WALK, dir_fd=parent)
    try:
        return _mount_id(below)
    finally:
        os.close(below)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return int(dict(line.split(":", 1) for line in file)["mnt_id"])


def _has_entries(fd: int) -> bool:
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    finally:
        os.close(directory)
