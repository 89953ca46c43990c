"""Processes that use a device: open files, and mounts in other mount namespaces. All of this blocks.

Seen are the descriptors of every thread of every process. Not seen are files without a descriptor: those mapped into
memory and then closed, registered with io_uring and then closed, on their way through a socket; and mount namespaces
that no process is in (kept by a bind of /proc/PID/ns/mnt). Of these, a mounted filesystem is noticed by the exclusive
claim. Users inside the kernel are found by backing.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection, Iterator

from nvmeofd.kernel.interface import ForeignMount, Mount, OpenFile, ProcessScan
from nvmeofd.kernel.mountinfo import DELETED, parse_mount
from nvmeofd.kernel.mountspaces import VANISHED, ForeignTables, command, processes, tasks
from nvmeofd.kernel.nodes import device_behind
from nvmeofd.model import DeviceNumber

_DENIED = (errno.EACCES, errno.EPERM)
_KCMP_FILES = 2  # include/uapi/linux/kcmp.h
_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343, "loongarch64": 272}
_UDEV_CGROUP = "/system.slice/systemd-udevd.service"


def scan(proc: str, numbers: Collection[DeviceNumber], names: Collection[str]) -> ProcessScan:
    """What all processes but this one have to do with the devices. Raises OSError when /proc cannot be listed.

    Processes that end meanwhile are left out. Those that cannot be looked into, for lack of permission or for any
    other reason, are in ``unreadable``.
    """
    return _Scan(proc, frozenset(numbers), frozenset(names)).run()


class _Scan:
    def __init__(self, proc: str, numbers: frozenset[DeviceNumber], names: frozenset[str]) -> None:
        self._proc = proc
        self._numbers = numbers
        self._names = names
        self._open: dict[tuple[int, DeviceNumber], OpenFile] = {}
        self._mounts: list[ForeignMount] = []
        self._unreadable: list[int] = []
        self._tables = ForeignTables(proc)

    def run(self) -> ProcessScan:
        for pid in processes(self._proc):
            try:
                self._process(pid)
            except OSError as error:
                if not self._vanished(pid, error):
                    self._unreadable.append(pid)
            except ValueError:  # a mount table that makes no sense
                self._unreadable.append(pid)
        return ProcessScan(tuple(self._open.values()), tuple(self._mounts), tuple(self._unreadable))

    def _vanished(self, pid: int, error: OSError) -> bool:
        return error.errno in VANISHED or (
            # A zombie denies some of what it no longer has.
            error.errno in _DENIED and _status(f"{self._proc}/{pid}").startswith("Z")
        )

    def _process(self, pid: int) -> None:
        for thread in tasks(self._proc, pid):
            path = f"{self._proc}/{pid}/task/{thread}"
            try:
                # Threads share their files nearly always. The main thread may have ended before the others, and then
                # has none, which is not the same either.
                if thread == pid or not _same_files(pid, thread):
                    self._files(pid, path)
                self._mount_namespace(pid, path)
            except OSError as error:
                if error.errno not in VANISHED:
                    raise

    # ---- open files

    def _files(self, pid: int, path: str) -> None:
        for name in os.listdir(f"{path}/fd"):
            link = f"{path}/fd/{name}"
            try:
                # Sockets, pipes and the like have no path: "socket:[123]". Most descriptors end here.
                if not os.readlink(link).startswith("/"):
                    continue
                number = device_behind(link)
            except OSError as error:
                if error.errno not in VANISHED:
                    raise
                continue
            if number in self._numbers and (pid, number) not in self._open:
                process = f"{self._proc}/{pid}"
                self._open[pid, number] = OpenFile(pid, command(process), number, _is_udev(process))

    # ---- mounts

    def _mount_namespace(self, pid: int, path: str) -> None:
        content = self._tables.read(path)
        if content is None:
            return
        name = command(f"{self._proc}/{pid}")
        self._mounts += [ForeignMount(pid, name, mount) for mount in self._matching(content)]

    def _matching(self, table: bytes) -> Iterator[Mount]:
        numbers = {str(number).encode() for number in self._numbers}
        names = [os.fsencode(name) for name in self._names]
        for line in table.split(b"\n"):
            # Few lines are worth parsing: the number is the third field.
            fields = line.split(b" ", 3)
            if len(fields) < 4 or not (fields[2] in numbers or any(name in line for name in names)):
                continue
            mount = parse_mount(line)
            if mount.number in self._numbers or self._is_block_bind(mount) or self._is_source(mount):
                yield mount

    def _is_block_bind(self, mount: Mount) -> bool:
        # A root that was removed is the node of an earlier device.
        return mount.fstype == "devtmpfs" and not mount.root.endswith(DELETED) and mount.root[1:] in self._names

    def _is_source(self, mount: Mount) -> bool:
        # btrfs has a device number of its own.
        return mount.number.major == 0 and mount.fstype == "btrfs" and mount.source.removeprefix("/dev/") in self._names


def _same_files(pid: int, thread: int) -> bool:
    """Whether a thread shares its table of open files with the main thread; False when that cannot be told."""
    number = _SYS_KCMP.get(os.uname().machine)
    return number is not None and _libc.syscall(number, pid, thread, _KCMP_FILES, 0, 0) == 0


def _status(process: str) -> str:
    """The state in /proc/PID/stat and what follows, "Z" when it has just ended."""
    try:
        with open(f"{process}/stat", "rb") as file:
            # pid (comm) state …; the name may contain anything, parentheses and blanks included.
            return file.read().rpartition(b") ")[2].decode("ascii")
    except OSError:
        return "Z"


def _is_udev(process: str) -> bool:
    """Whether it belongs to systemd's udevd, its workers or the programs of its rules.

    All of them are in the control group of its unit, and udevd ends them when an event takes too long. Only root can
    move a process there, while anybody can give a process the name "(udev-worker)".
    """
    try:
        with open(f"{process}/cgroup", encoding="utf-8", errors="replace") as file:
            # 0::/path (version 2) or N:name=systemd:/path (version 1), see cgroups(7)
            groups = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    except (OSError, ValueError):
        return False
    group = groups.get("name=systemd") or groups.get("", "")
    return group == _UDEV_CGROUP or group.startswith(f"{_UDEV_CGROUP}/")


_libc = ctypes.CDLL(None, use_errno=True)
