"""The mount cache: what the kernel's mount table says, both ways, exact at every decision.

It answers "which device is mounted at this path" and "who mounts this device" without reading the whole table:
one ``poll`` when nothing changed, and only changed lines are parsed when something did.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from nvmeofd.kernel.mountinfo import parse_mount
from nvmeofd.model import DeviceNumber, Namespace

if TYPE_CHECKING:
    from nvmeofd.kernel.interface import Kernel, Mount

K = TypeVar("K")

# Parsed at once while the loop has other things to do as well: about 1 ms.
_LINES_PER_TURN = 100

DEVTMPFS = "devtmpfs"
DELETED = "//deleted"  # fs/proc_namespace.c, seq_dentry: the bound file was unlinked since


class MountCache:
    """A view of the mount table, keyed by device numbers and, for block binds, by device nodes.

    Device numbers are safe keys here: a mounted filesystem holds its device, so the number cannot pass to another one
    while the mount exists. A btrfs shows an anonymous number and is filed under the device of its source instead.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._by_line: dict[bytes, Mount] = {}
        # Below these, by id(), as two mounts can have one mount id: a table that changes while it is read shows one
        # that goes and another that comes and gets its number.
        self._by_path: dict[str, dict[int, Mount]] = {}
        self._by_number: dict[DeviceNumber, dict[int, Mount]] = {}
        self._by_node: dict[str, dict[int, Mount]] = {}
        self._by_id: dict[int, dict[int, Mount]] = {}
        self._sources: dict[int, DeviceNumber] = {}  # of each btrfs, the device of its source
        self._stale = True
        self._doubted = False  # since the present reading began
        self._readings = 0  # begun, or made void: one that is no longer the last has nothing to say
        self.rebuilds = 0
        self.version = 0  # goes up with every change that a refresh found, whoever asked for it

    def refresh(self) -> bool:
        """Make the cache exact as of now; return whether anything changed.

        Raises:
            OSError: the mount table cannot be read; the cache stays stale and the next refresh tries again.
        """
        if not self._begin():
            return False
        lines = dict.fromkeys(self._kernel.mount_lines())
        return self._replace(lines, _parse(line for line in lines if line not in self._by_line))

    async def follow(self) -> None:
        """Bring the cache up to date after events, without holding up the loop. No decision may rest on this alone.

        A decision that refreshes the cache meanwhile has seen more than what was being read, which is dropped then.

        Raises:
            OSError: as for :meth:`refresh`.
        """
        while self._begin():
            reading = self._readings
            lines = dict.fromkeys(await self._kernel.mount_lines_in_turns())
            unknown = iter([line for line in lines if line not in self._by_line])
            new: dict[bytes, Mount] = {}
            while reading == self._readings and (some := _parse(islice(unknown, _LINES_PER_TURN))):
                new |= some
                await asyncio.sleep(0)
            if reading == self._readings:
                self._replace(lines, new)
                return

    def _begin(self) -> bool:
        """Whether the table has to be read."""
        if not self._kernel.mounts_changed() and not self._stale:
            return False
        self._stale, self._doubted = True, False
        self._readings += 1
        return True

    def _replace(self, lines: dict[bytes, None], new: dict[bytes, Mount]) -> bool:
        """What was read, and those of it that are not in the cache; returns whether anything changed."""
        gone = [line for line in self._by_line if line not in lines]
        try:
            for line in gone:
                self._remove(self._by_line.pop(line))
            for line, mount in new.items():
                self._by_line[line] = mount
                self._add(mount)
        except BaseException:
            # half a change is worse than none: the next refresh begins anew
            self._clear()
            raise
        self._stale = self._doubted
        if gone or new:
            self.version += 1
        return bool(gone or new)

    def invalidate(self) -> None:
        """Read the table at the next refresh even if poll says that it did not change, if a device node is bound."""
        self._stale = self._stale or bool(self._by_node)
        self._doubted = True  # a bind that is being read just now is in no index yet

    def doubt(self) -> None:
        """Read the table at the next refresh even if poll says that it did not change.

        A directory above a mount point that is renamed shows in the table, and does not count as a change of it.
        """
        self._stale = self._doubted = True

    def forget(self) -> None:
        """Have everything read anew: for when there is any doubt."""
        self._clear()
        self._readings += 1
        self.rebuilds += 1

    def rebuild(self) -> None:
        """Forget everything and read the table anew. Raises OSError."""
        self.forget()
        self.refresh()

    def _clear(self) -> None:
        for index in (
            self._by_line,
            self._by_path,
            self._by_number,
            self._by_node,
            self._by_id,
            self._sources,
        ):
            index.clear()
        self._stale = True

    def __len__(self) -> int:
        return len(self._by_line)

    def mounts_at(self, path: str) -> tuple[Mount, ...]:
        """The mounts at a path, the topmost last."""
        return _stacked(self._by_path.get(path, {}))

    def mounts_numbered(self, mount_id: int) -> tuple[Mount, ...]:
        """What has this identifier: one mount, or none. The kernel gives it to another one as soon as it is free."""
        return tuple(self._by_id.get(mount_id, {}).values())

    def mounts_of(self, namespace: Namespace) -> tuple[tuple[str, Mount], ...]:
        """(device name, mount) of every filesystem on the namespace or its partitions, binds included."""
        found = {}
        for device in namespace.devices:
            for mount in self._by_number.get(device.number, {}).values():
                found[mount.mount_id] = (device.name, mount)
            if self._sources:
                for name in self._kernel.btrfs_siblings(device.name):
                    if name == device.name:
                        continue
                    number = self._kernel.device_number(f"/dev/{name}")
                    for mount in self._by_number.get(number, {}).values() if number else ():
                        found[mount.mount_id] = (device.name, mount)
        return tuple(found[key] for key in sorted(found))

    def block_mounts_of(self, namespace: Namespace) -> tuple[tuple[str, Mount], ...]:
        """(device name, mount) of every bind of the namespace's device node, or of those of its partitions."""
        return tuple((name, mount) for name in namespace.nodes for mount in _stacked(self._by_node.get(name, {})))

    def is_mount_of(self, mount: Mount, namespace: Namespace) -> bool:
        """Whether a mount from this cache is one of the namespace (filesystem or block bind)."""
        return any(m.mount_id == mount.mount_id for _, m in self._all_of(namespace))

    def _all_of(self, namespace: Namespace) -> Iterator[tuple[str, Mount]]:
        yield from self.mounts_of(namespace)
        yield from self.block_mounts_of(namespace)

    def _add(self, mount: Mount) -> None:
        self._by_path.setdefault(mount.mount_point, {})[id(mount)] = mount
        self._by_id.setdefault(mount.mount_id, {})[id(mount)] = mount
        node = _bound_node(mount)
        if node:
            self._by_node.setdefault(node, {})[id(mount)] = mount
            return
        number = mount.number
        if mount.fstype == "btrfs" and number.major == 0:
            source = self._kernel.device_number(mount.source)
            if source is not None:
                number = self._sources[id(mount)] = source
        self._by_number.setdefault(number, {})[id(mount)] = mount

    def _remove(self, mount: Mount) -> None:
        _discard(self._by_path, mount.mount_point, mount)
        _discard(self._by_id, mount.mount_id, mount)
        node = _bound_node(mount)
        if node:
            _discard(self._by_node, node, mount)
            return
        _discard(self._by_number, self._sources.pop(id(mount), mount.number), mount)


def _parse(lines: Iterable[bytes]) -> dict[bytes, Mount]:
    try:
        return {line: parse_mount(line) for line in lines}
    except ValueError as error:
        raise OSError(errno.EBADMSG, f"unexpected line in the mount table: {error}") from error


def _bound_node(mount: Mount) -> str:
    """The kernel name of the device whose node is bound here, "" for any other mount."""
    if mount.fstype != DEVTMPFS or mount.root == "/" or mount.root.endswith(DELETED):
        return ""
    return mount.root.removeprefix("/")


def _discard(index: dict[K, dict[int, Mount]], key: K, mount: Mount) -> None:
    mounts = index[key]
    del mounts[id(mount)]
    if not mounts:
        del index[key]


def _stacked(mounts: dict[int, Mount]) -> tuple[Mount, ...]:
    """In the order of stacking: a mount on top of another one at the same path has it as its parent."""
    known = {mount.mount_id for mount in mounts.values()}
    above: dict[int, list[Mount]] = {}
    level = []
    for mount in mounts.values():
        if mount.parent_id in known:
            above.setdefault(mount.parent_id, []).append(mount)
        else:
            level.append(mount)
    ordered: list[Mount] = []
    while level:
        ordered += level
        level = [upper for mount in level for upper in above.pop(mount.mount_id, ())]
    # In a circle, which the kernel does not have, but a mount must not be lost.
    return (*ordered, *(mount for circle in above.values() for mount in circle))
