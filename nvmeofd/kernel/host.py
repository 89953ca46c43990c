"""Facts about this host: its swap areas."""

from __future__ import annotations

import errno
import os

from nvmeofd.kernel.attributes import Gone, number_at
from nvmeofd.kernel.blockdev import block_number
from nvmeofd.kernel.interface import Swap
from nvmeofd.kernel.mountinfo import unescape
from nvmeofd.model import DeviceNumber

_REMOVED = " (deleted)"  # follows the path of a node that was removed (d_path, fs/d_path.c)


def swaps(proc: str, sys: str) -> tuple[Swap, ...]:
    """The active swap areas. Raises OSError."""
    try:
        with open(f"{proc}/swaps", "rb") as file:
            lines = file.read().split(b"\n")[1:]
    except FileNotFoundError:  # a kernel without swap
        return ()
    try:
        return tuple(_swap(line, sys) for line in lines if line)
    except ValueError as error:
        raise OSError(errno.EBADMSG, f"/proc/swaps makes no sense: {error}") from error


def _swap(line: bytes, sys: str) -> Swap:
    """Raises OSError, ValueError."""
    # Name, type, size, used, priority; the name is escaped (swap_show, mm/swapfile.c).
    name, kind = line.split(maxsplit=2)[:2]
    path = unescape(name)
    if kind != b"partition":
        return Swap(path, None)
    if path.endswith(_REMOVED):
        return Swap(path, None, doubtful=True)  # by now the name may be that of another device
    # sysfs first: it needs no node, and the node may be in another mount namespace.
    try:
        return Swap(path, number_at(f"{sys}/class/block/{os.path.basename(path)}"))
    except Gone:
        number = device_number(path)
        return Swap(path, number, doubtful=number is None)


def device_number(path: str) -> DeviceNumber | None:
    """The number of a block device node, None when it is something else or absent. Raises OSError."""
    try:
        return block_number(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # a NUL character
        return None
