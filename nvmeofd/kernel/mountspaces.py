"""Mount tables of other mount namespaces, read through the processes that live there. All of this blocks.

Not seen are mount namespaces that no process is in, such as those kept by a bind of /proc/PID/ns/mnt alone.
"""

from __future__ import annotations

import errno
import os

from nvmeofd.kernel.interface import ForeignMount, Mount
from nvmeofd.kernel.mountinfo import escape, parse_mount, read_table
from nvmeofd.model import DeviceNumber

# What /proc/PID says of a process that has ended, or is ending.
VANISHED = (errno.ENOENT, errno.ESRCH, errno.EINVAL)
_DENIED = (errno.EACCES, errno.EPERM)


def processes(proc: str) -> list[int]:
    """All processes but this one. Raises OSError."""
    own = os.getpid()
    return sorted(pid for name in os.listdir(proc) if name.isdecimal() and (pid := int(name)) != own)


def tasks(proc: str, pid: int) -> list[int]:
    """The threads of a process. Raises OSError."""
    return [int(name) for name in os.listdir(f"{proc}/{pid}/task")]


def command(process: str) -> str:
    """The name of a process, "" when it has just ended."""
    try:
        with open(f"{process}/comm", "rb") as file:
            return os.fsdecode(file.read()).rstrip("\n")
    except OSError:
        return ""


class ForeignTables:
    """Each mount table but that of this process, once."""

    def __init__(self, proc: str) -> None:
        """Raises OSError."""
        # By mount namespace and root directory, as the table of a process shows only what is below its root.
        self._seen = {self._key(f"{proc}/self")}

    def read(self, task: str) -> bytes | None:
        """The mount table of a thread, None when it has been seen. Raises OSError."""
        key = self._key(task)
        if key in self._seen:
            return None
        table = _read(task)
        self._seen.add(key)
        return table

    @staticmethod
    def _key(task: str) -> tuple[str, str]:
        return os.readlink(f"{task}/ns/mnt"), os.readlink(f"{task}/root")


def mounted_on(proc: str, directory: int, name: str) -> ForeignMount | None:
    """What another mount namespace has mounted on the entry ``name`` of a directory (a descriptor, O_PATH will do).

    Whatever path that namespace knows the entry by. Processes that cannot be looked into are left out.

    Raises:
        OSError
    """
    here = _Place.of_entry(proc, directory, name)
    tables = ForeignTables(proc)
    for pid in processes(proc):
        try:
            for thread in tasks(proc, pid):
                table = tables.read(f"{proc}/{pid}/task/{thread}")
                mount = _mount_at(here, table) if table is not None else None
                if mount is not None:
                    return ForeignMount(pid, command(f"{proc}/{pid}"), mount)
        except OSError as error:
            if error.errno not in VANISHED + _DENIED:
                raise
    return None


class _Place:
    """A directory entry as the kernel knows it: a filesystem and a path within, wherever that is mounted."""

    def __init__(self, number: DeviceNumber, path: str) -> None:
        self.number = number
        self.path = path

    @classmethod
    def of_entry(cls, proc: str, directory: int, name: str) -> _Place:
        path = os.path.join(os.readlink(f"{proc}/self/fd/{directory}"), name)
        with open(f"{proc}/self/fdinfo/{directory}", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        mount = _by_id(_read(f"{proc}/self"), int(fields["mnt_id"]))
        if mount is None:
            raise OSError(errno.ENOENT, "the mount that it is on is not in the mount table", path)
        return cls(mount.number, _within(mount, path))

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def is_mount_point(self, mount: Mount, table: bytes) -> bool:
        parent = _by_id(table, mount.parent_id)
        return parent is not None and parent.number == self.number and _within(parent, mount.mount_point) == self.path


def _mount_at(place: _Place, table: bytes) -> Mount | None:
    ending = b"/" + escape(place.name)
    for line in table.split(b"\n"):
        fields = line.split(b" ", 5)
        # Few lines are worth parsing: the mount point is the fifth field.
        if len(fields) == 6 and fields[4].endswith(ending):
            mount = parse_mount(line)
            if place.is_mount_point(mount, table):
                return mount
    return None


def _within(mount: Mount, path: str) -> str:
    """A path below a mount point, as a path in the filesystem that is mounted there."""
    return os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.mount_point)))


def _by_id(table: bytes, mount_id: int) -> Mount | None:
    start = b"%d " % mount_id
    return next((parse_mount(line) for line in table.split(b"\n") if line.startswith(start)), None)


def _read(task: str) -> bytes:
    fd = os.open(f"{task}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_table(fd)
    finally:
        os.close(fd)
