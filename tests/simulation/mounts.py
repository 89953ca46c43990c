"""The mount tables of the simulated host: the host's own and those of processes with a mount namespace of their own."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvmeofd.kernel.interface import Event, EventKind
from nvmeofd.model import DeviceNumber, VolumeType
from tests.simulation.files import Node, os_error
from tests.simulation.state import Pool, SimHead, SimMount, Use

if TYPE_CHECKING:
    from tests.simulation.kernel import SimKernel
    from tests.simulation.world import SimWorld

DEVTMPFS_NUMBER = DeviceNumber(0, 6)
BASE = (
    ("/", "8:1", "ext4", "/dev/sda1"),
    ("/proc", "0:22", "proc", "proc"),
    ("/sys", "0:23", "sysfs", "sysfs"),
    ("/dev", str(DEVTMPFS_NUMBER), "devtmpfs", "udev"),
    ("/run", "0:25", "tmpfs", "tmpfs"),
)


class MountTable:
    """All mounts. Mount ids are reused, as the kernel does."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self._ids = Pool(21)
        self._anonymous = Pool(40)
        self.mounts: list[SimMount] = []
        self.generation = 0  # of the host's table
        self.staged: dict[str, SimHead] = {}  # path → what the daemon has mounted there, or has written down to do so
        self.removed: dict[str, int] = {}  # path → when a mount there last went away or was moved
        self.uncovered: dict[str, int] = {}  # path → when somebody last took a mount away there
        self.busy: set[str] = set()  # paths in whose filesystem a process works, so that they cannot be unmounted
        for point, number, fstype, source in BASE:
            self._add(point, DeviceNumber.parse(number), fstype, source)

    # ---- looking

    def at(self, path: str, space: int = 0) -> list[SimMount]:
        """The mounts at a path, the topmost last."""
        return [m for m in self.mounts if m.mount_point == path and m.space == space]

    def made_at(self, path: str) -> list[SimMount]:
        """What the daemon mounted at a path, wherever a directory above was moved to since."""
        return [m for m in self.mounts if m.by_daemon and m.made_at == path and m.space == 0]

    def kind_at(self, path: str) -> VolumeType | None:
        mounts = self.at(path)
        if not mounts:
            return None
        return VolumeType.BLOCK if mounts[-1].block_bind else VolumeType.FILESYSTEM

    def of(self, head: SimHead) -> list[SimMount]:
        return [m for m in self.mounts if m.head is head]

    def host_lines(self) -> tuple[bytes, ...]:
        return tuple(m.line() for m in self.mounts if m.space == 0)

    def uses(self, head: SimHead) -> list[Use]:
        found = []
        for mount in self.mounts:
            if mount.head is None:
                continue
            same_btrfs = (
                mount.fstype == "btrfs"
                and head.disk.btrfs_group
                and mount.head.disk.btrfs_group == head.disk.btrfs_group
            )
            if mount.head is head or same_btrfs:
                kind = "block-mount" if mount.block_bind else "mount"
                where = f"{mount.mount_point} in mount namespace of {mount.space}" if mount.space else mount.mount_point
                found.append(Use(kind, where, mount.seq, not mount.block_bind))
        return found

    def elsewhere(self, path: str) -> SimMount | None:
        """A mount at the path in another mount namespace than the host's."""
        return next((mount for mount in self.mounts if mount.space and mount.mount_point == path), None)

    # ---- changing

    def mount(
        self,
        head: SimHead,
        path: str,
        fstype: str,
        options: Sequence[str],
        *,
        space: int = 0,
        by: SimKernel | None = None,
    ) -> SimMount:
        """mount(2) of a filesystem. Raises OSError."""
        if self._world.files.nodes.get(path) is not Node.DIRECTORY:
            raise os_error(errno.ENOTDIR if path in self._world.files.nodes else errno.ENOENT, path)
        if head.gone:
            raise os_error(errno.ENXIO, head.path)
        shared = next((m for m in self.of(head) if not m.block_bind), None)
        if shared is None:
            self._world.require_free(head)
            if head.disk.fstype != fstype or head.disk.ambivalent or not fstype:
                raise os_error(errno.EINVAL, head.path)
            if "ro" not in options and not head.disk.writable:
                raise os_error(errno.EROFS, head.path)
        head.disk.untouched = False
        if shared is not None:
            number = shared.number
        elif fstype == "btrfs":
            number = DeviceNumber(0, self._anonymous.take())
        else:
            number = head.number
        write = "ro" if "ro" in options else "rw"
        return self._add(path, number, fstype, head.path, head=head, space=space, options=(write, "relatime"), by=by)

    def bind(self, source: str, path: str, *, space: int = 0) -> SimMount:
        """Raises OSError."""
        mounts = self.at(source, space)
        if not mounts:
            raise os_error(errno.EINVAL, source)
        top = mounts[-1]
        return self._add(path, top.number, top.fstype, top.source, root=top.root, head=top.head, space=space)

    def bind_device(self, head: SimHead, path: str, *, space: int = 0, by: SimKernel | None = None) -> SimMount:
        """Raises OSError."""
        if head.gone:
            raise os_error(errno.ENOENT, head.path)
        if self._world.files.nodes.get(path) not in (Node.EMPTY_FILE, Node.FILE):
            raise os_error(errno.ENOTDIR, path)
        return self._add(path, DEVTMPFS_NUMBER, "devtmpfs", "udev", root=f"/{head.name}", head=head, space=space, by=by)

    def unmount(self, path: str, *, space: int = 0, lazy: bool = False) -> None:
        """umount(2) of the topmost mount at the path. Raises OSError."""
        mounts = self.at(path, space)
        if not mounts:
            raise os_error(errno.EINVAL, path)
        top = mounts[-1]
        children = any(m.parent_id == top.mount_id for m in self.mounts)
        if not lazy and (children or (path in self.busy and not top.block_bind)):
            raise os_error(errno.EBUSY, path)
        self.remove(top)
        self._world.released()

    def rename(self, old: str, new: str) -> None:
        """A directory is renamed, and mount points below it go along. The table shows it, and poll does not say so."""
        for mount in self.mounts:
            if mount.space == 0 and mount.mount_point.startswith(old + "/"):
                self.removed[mount.mount_point] = self._world.tick()
                mount.mount_point = new + mount.mount_point.removeprefix(old)

    def copy(self, space: int) -> None:
        """unshare(CLONE_NEWNS): a copy of the host's mounts."""
        ids: dict[int, int] = {}
        for mount in [m for m in self.mounts if m.space == 0]:
            new = self._add(
                mount.mount_point,
                mount.number,
                mount.fstype,
                mount.source,
                root=mount.root,
                head=mount.head,
                space=space,
                parent_id=ids.get(mount.parent_id, 1),
            )
            ids[mount.mount_id] = new.mount_id

    def drop_space(self, space: int) -> None:
        for mount in [m for m in self.mounts if m.space == space]:
            self.remove(mount)

    def _add(
        self,
        path: str,
        number: DeviceNumber,
        fstype: str,
        source: str,
        *,
        root: str = "/",
        head: SimHead | None = None,
        space: int = 0,
        options: tuple[str, ...] = ("rw", "relatime"),
        parent_id: int | None = None,
        by: SimKernel | None = None,
    ) -> SimMount:
        mount = SimMount(
            mount_id=self._ids.take(),
            parent_id=self._parent(path, space) if parent_id is None else parent_id,
            number=number,
            root=root,
            mount_point=path,
            fstype=fstype,
            source=source,
            options=options,
            super_options=options[:1],
            space=space,
            head=head,
            seq=self._world.tick(),
            by_daemon=by is not None,
            made_at=path,
        )
        self.mounts.append(mount)
        if by is not None and head is not None:
            self.staged[path] = head
        if by is None and head is not None:
            head.disk.unfinished = False  # whatever a mkfs left: somebody found it good enough
        if by is None and space == 0:
            self._world.files.made.discard(path)  # somebody uses it: it need not be removed
        self.touch(space)
        return mount

    def remove(self, mount: SimMount) -> None:
        """This very mount goes, wherever it is in the stack."""
        self.mounts.remove(mount)
        if mount.space == 0:
            self.removed[mount.mount_point] = self._world.tick()
        self._ids.free(mount.mount_id)
        last = not any(m.number == mount.number for m in self.mounts)
        if mount.number.major == 0 and mount.fstype == "btrfs" and last:
            self._anonymous.free(mount.number.minor)
        self.touch(mount.space)

    def _parent(self, path: str, space: int) -> int:
        """The mount that the path is in: the topmost one with the longest matching mount point."""
        best: SimMount | None = None
        for mount in self.mounts:
            point = mount.mount_point.rstrip("/")
            if mount.space != space or not (path == mount.mount_point or path.startswith(point + "/")):
                continue
            if best is None or len(mount.mount_point) >= len(best.mount_point):
                best = mount
        return best.mount_id if best else 1

    def touch(self, space: int = 0) -> None:
        """The table of a mount namespace counts as changed."""
        if space == 0:
            self.generation += 1
            self._world.emit(Event(EventKind.MOUNTS))
        self._world.changed()
