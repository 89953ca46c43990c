"""Mount tables of other mount namespaces, read through the processes that live there. All of this blocks.

Not seen are mount namespaces that no process is in, such as those kept by a bind of /proc/PID/ns/mnt alone.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from nvmeofd.kernel.interface import ForeignMount, Mount
from nvmeofd.kernel.mountinfo import parse_mount, read_table, unescape

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

    Whatever path that namespace knows the entry by. Where that cannot be told apart, because a process sees only part
    of the file tree, one that ends in the same name counts. Processes
    that this one may not look into are left out: on a host there are none.

    Raises:
        OSError
    """
    place = _Place.of_entry(proc, directory, name)
    tables = ForeignTables(proc)
    for pid in processes(proc):
        for thread in _tasks_if_there(proc, pid):
            try:
                table = tables.read(f"{proc}/{pid}/task/{thread}")
            except OSError as error:
                # also a main thread that has ended before the others
                if error.errno in VANISHED + _DENIED:
                    continue
                raise
            mount = place.mounted_in(table) if table is not None else None
            if mount is not None:
                return ForeignMount(pid, command(f"{proc}/{pid}"), mount)
    return None


class _Place:
    """A directory entry as the kernel knows it: a filesystem and a path within, wherever that is mounted."""

    def __init__(self, number: bytes, path: str) -> None:
        self._number = number
        self._path = path
        self._name = os.path.basename(path)

    @classmethod
    def of_entry(cls, proc: str, directory: int, name: str) -> _Place:
        path = os.path.join(os.readlink(f"{proc}/self/fd/{directory}"), name)
        with open(f"{proc}/self/fdinfo/{directory}", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        mount = _index(_read(f"{proc}/self")).get(fields["mnt_id"].strip().encode())
        if mount is None:
            raise OSError(errno.EBUSY, "the mount that it is on has just gone", path)
        return cls(mount.number, _within(mount, path))

    def mounted_in(self, table: bytes) -> Mount | None:
        mounts = _index(table)
        for entry in mounts.values():
            parent = mounts.get(entry.parent)
            if parent is None:
                found = os.path.basename(unescape(entry.point)) == self._name
            else:
                found = parent.number == self._number and _within(parent, unescape(entry.point)) == self._path
            if found:
                return parse_mount(entry.line)
        return None


class _Entry(NamedTuple):
    """One line of mountinfo, as far as it is needed here, as it stands there."""

    parent: bytes
    number: bytes
    root: bytes
    point: bytes
    line: bytes


def _index(table: bytes) -> dict[bytes, _Entry]:
    """The lines of a table by the identifier of the mount."""
    found = {}
    for line in table.split(b"\n"):
        fields = line.split(b" ", 5)
        if len(fields) == 6:
            found[fields[0]] = _Entry(fields[1], fields[2], fields[3], fields[4], line)
    return found


def _within(mount: _Entry, path: str) -> str:
    """A path below a mount point, as a path in the filesystem that is mounted there."""
    inside = path.removeprefix(unescape(mount.point).rstrip("/"))
    return unescape(mount.root).rstrip("/") + inside


def _tasks_if_there(proc: str, pid: int) -> list[int]:
    try:
        return tasks(proc, pid)
    except OSError as error:
        if error.errno in VANISHED:
            return []
        raise


def _read(task: str) -> bytes:
    fd = os.open(f"{task}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_table(fd)
    finally:
        os.close(fd)
