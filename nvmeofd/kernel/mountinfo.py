"""The mount table: lines of /proc/self/mountinfo, and whether they changed since they were last read."""

from __future__ import annotations

import asyncio
import os
import re
import select
import time

from nvmeofd.kernel.interface import Mount
from nvmeofd.model import DeviceNumber

# The kernel hands out about a page at each read, whatever is asked for (seq_read_iter, fs/seq_file.c).
_READ_SIZE = 1 << 20
# How often a table that keeps changing is read, and for how many seconds, before the last reading has to do. A table of
# 10,000 mounts takes some 20 ms each time, during which the loop stands still.
_ATTEMPTS = 5
_PATIENCE = 0.02
_TURN = 0.001  # seconds of reading between two turns of the loop; an answer takes several turns

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
# seq_dentry() appends it, unescaped, to the root of a mount whose directory entry is gone.
DELETED = "//deleted"


def unescape(field: bytes) -> str:
    r"""Undo the octal escapes of seq_path() and mangle(): \040 \011 \012 \134 \043. Not UTF-8: surrogateescape."""
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
    return os.fsdecode(field)


def escape(text: str) -> bytes:
    """The inverse of :func:`unescape`, as the kernel writes a field: to look for a path among unparsed lines."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in os.fsencode(text))


def parse_mount(line: bytes) -> Mount:
    """Parse one line of mountinfo, see proc_pid_mountinfo(5).

    ``root`` keeps the suffix ``//deleted`` (:data:`DELETED`) of a mount whose root was removed: the node below a
    block bind is then that of an earlier device, whatever its name.

    Raises:
        ValueError: malformed.
    """
    fields = line.rstrip(b"\n").split(b" ")
    try:
        # The number of optional fields varies; a hyphen ends them. None of the six fields before can be a hyphen.
        hyphen = fields.index(b"-", 6)
        # An empty source leaves an empty field (mount -t tmpfs "" /mnt), hence no split() on runs of blanks.
        fstype, source, super_options = fields[hyphen + 1 : hyphen + 4]
        return Mount(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            number=DeviceNumber.parse(fields[2].decode("ascii")),
            root=unescape(fields[3]),
            mount_point=unescape(fields[4]),
            options=_options(fields[5]),
            fstype=unescape(fstype),
            source=unescape(source),
            super_options=_options(super_options),
        )
    except ValueError:
        raise ValueError(f"malformed line in mountinfo: {line[:200]!r}") from None


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(unescape(option) for option in field.split(b",") if option)


def read_table(fd: int) -> bytes:
    """The whole table behind an open mountinfo.

    A mount that exists during all of the reading is in it exactly once: since Linux 5.8 the kernel keeps its place
    among the mounts between two reads.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    chunks = []
    while chunk := os.read(fd, _READ_SIZE):
        chunks.append(chunk)
    return b"".join(chunks)


def _split(table: bytes) -> tuple[bytes, ...]:
    # Not splitlines(): that would also split at a carriage return, which the kernel does not escape.
    return tuple(line for line in table.split(b"\n") if line)


class MountTable:
    """The mount table of this process's mount namespace, behind one file descriptor that is kept open.

    The kernel remembers for each open file whether the table changed since the last poll (mounts_poll,
    fs/proc_namespace.c). A fresh one starts with "unchanged", so the first answer is made up here.
    """

    def __init__(self, proc: str) -> None:
        """Raises OSError."""
        self._path = f"{proc}/self/mountinfo"
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._doubtful = True

    def changed(self) -> bool:
        """Whether the table changed since the last call, or the last reading was not consistent."""
        changed = self._polled() or self._doubtful
        self._doubtful = False
        return changed

    def lines(self) -> tuple[bytes, ...]:
        """All lines. One that changes while it is read is read again, at most a few times.

        If even the last reading saw a change, every mount that existed throughout is in it, and :meth:`changed` will
        say so.
        """
        table = b""
        until = time.monotonic() + _PATIENCE
        for attempt in range(1, _ATTEMPTS + 1):
            self._polled()
            table = read_table(self._fd)
            if not self._polled():
                break
            if attempt == _ATTEMPTS or time.monotonic() >= until:
                self._doubtful = True
                break
        return _split(table)

    async def lines_in_turns(self) -> tuple[bytes, ...]:
        """All lines, read once, with turns of the loop in between: for after a call of :meth:`changed`.

        Every mount that existed throughout is in it; after a change meanwhile :meth:`changed` will say so.
        """
        chunks = []
        # A file of its own, as somebody else may read the other one meanwhile.
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            until = time.monotonic() + _TURN
            while chunk := os.read(fd, _READ_SIZE):
                chunks.append(chunk)
                if time.monotonic() >= until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _TURN
        finally:
            os.close(fd)
        self._doubtful = self._polled() or self._doubtful
        return _split(b"".join(chunks))

    def _polled(self) -> bool:
        return any(events & (select.POLLPRI | select.POLLERR) for _, events in self._poll.poll(0))

    def close(self) -> None:
        os.close(self._fd)
