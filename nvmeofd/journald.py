"""Talking to systemd's journal in its own protocol, in which an entry has fields besides its text.

An entry is one datagram: https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Nothing here waits: the journal may be slow, be
restarted, or not be there.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable

SOCKET = "/run/systemd/journal/socket"

# Bytes. No NQN and no path is longer. What is cut cannot be searched for any more, but an entry has to be one datagram,
# which the send buffer bounds (net.core.wmem_default, 208 KiB).
LONGEST_VALUE = 4096
# As much as journald takes of a line of stderr (LineMax= in journald.conf(5)).
LONGEST_TEXT = 48 * 1024


def is_journal(stream: str, fd: int) -> bool:
    """Whether ``fd`` is the stream to the journal that ``stream``, the value of $JOURNAL_STREAM, speaks of.

    The variable alone says little: a child inherits it, and may have another stderr. See systemd.exec(5).
    """
    device, _, inode = stream.partition(":")
    try:
        status = os.fstat(fd)
        return stat.S_ISSOCK(status.st_mode) and (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """One entry. Names are upper case; values may be anything, and are cut where they are too long."""
    return b"".join(_field(name, value.encode("utf-8", "backslashreplace")) for name, value in fields)


def _field(name: str, value: bytes) -> bytes:
    value = _cut(value, LONGEST_TEXT if name == "MESSAGE" else LONGEST_VALUE)
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (name.encode(), value)


def _cut(value: bytes, longest: int) -> bytes:
    """The beginning of UTF-8 text, and no half character at its end."""
    return value if len(value) <= longest else value[:longest].decode("utf-8", "ignore").encode()


class JournalSocket:
    """Where entries go. To be closed.

    The socket is not connected: its peer is looked up for each entry, so that one made anew is found.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, entry: bytes) -> None:
        """Raises OSError: there is no journal, its queue is full, or the entry does not fit."""
        self._socket.sendto(entry, self._path)

    def close(self) -> None:
        self._socket.close()


class JournalStream:
    """The stream of stderr to the journal, written to without waiting. To be closed."""

    def __init__(self, fd: int) -> None:
        # A flag for each call: O_NONBLOCK would be set for everybody who has this stream.
        self._socket = socket.socket(fileno=os.dup(fd))

    def send(self, lines: bytes) -> None:
        """Raises OSError: the journal does not read. Then part of it may be sent."""
        sent = self._socket.send(lines, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if sent < len(lines):
            raise BlockingIOError(f"{sent} of {len(lines)} bytes were sent")

    def close(self) -> None:
        self._socket.close()
