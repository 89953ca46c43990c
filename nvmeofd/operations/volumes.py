"""What the daemon knows of one staged volume, and how it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvmeofd.addresses import Address
from nvmeofd.errors import UnmountFailed
from nvmeofd.log import about, quoted
from nvmeofd.model import DeviceNumber, Namespace, Subsystem, VolumeState, VolumeType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvmeofd.cache import MountCache
    from nvmeofd.kernel.interface import Kernel, Mount
    from nvmeofd.operations.core import Core


NO_MOUNT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One staged volume. ``size`` is in bytes, ``staged_at`` in microseconds since the epoch."""

    nqn: str
    wwid: str
    nsid: int
    requested: str  # the namespace as the request named it, normalised
    device: str  # /dev/nvme0n1, the name at the time of staging
    number: DeviceNumber
    diskseq: int
    mount_id: int = 0  # of the mount that was made at the staging path, 0 before it is known, NO_MOUNT when it is gone
    staging_path: str
    type: VolumeType
    fstype: str  # "" for block volumes
    mount_options: tuple[str, ...]
    read_only: bool
    size: int
    staged_at: int
    addresses: tuple[Address, ...]  # resolved: the paths that were asked for
    created_path: bool  # the staging path did not exist before and goes away with the volume
    state: VolumeState = VolumeState.STAGED

    @property
    def log_extra(self) -> dict[str, Mapping[str, str]]:
        """For ``extra=`` of a log record about the volume."""
        return about(nqn=self.nqn, staging_path=self.staging_path)

    def is_on(self, namespace: Namespace) -> bool:
        """Whether the volume lives on this very incarnation of the namespace."""
        return (self.wwid, self.number, self.diskseq) == (namespace.wwid, namespace.number, namespace.diskseq)


def find_namespace(subsystem: Subsystem | None, volume: Volume) -> Namespace | None:
    """The namespace that the volume is on, None when it went away (even if it came back since as another disk)."""
    namespaces = subsystem.namespaces if subsystem else ()
    return next((namespace for namespace in namespaces if volume.is_on(namespace)), None)


def find_mount(cache: MountCache, subsystem: Subsystem | None, volume: Volume) -> Mount | None:
    """The volume's mount at its staging path, None when the mount or its device went away."""
    namespace = find_namespace(subsystem, volume)
    if namespace is None:
        return None
    return next(
        (mount for mount in reversed(cache.mounts_at(volume.staging_path)) if cache.is_mount_of(mount, namespace)), None
    )


def find_moved(core: Core, volume: Volume) -> Mount | None:
    """What seems to be the volume's mount, at another path: whoever owns a directory above can rename that at any time.

    Seems: it may be somebody else's mount of the same namespace, made after the volume's was unmounted, because the
    kernel gives the identifier of a mount to another one at once. So it is nothing to unmount, and nothing to forget.

    Raises:
        OSError: sysfs cannot be read.
    """
    # each volume's own is at its path
    known = {(one.staging_path, one.mount_id) for one in (volume, *core.volumes.values())}
    found = core.cache.mounts_numbered(volume.mount_id)
    mounts = [mount for mount in found if (mount.mount_point, mount.mount_id) not in known]
    if not mounts:
        return None
    namespace = find_namespace(core.kernel.subsystem(volume.nqn), volume)
    if namespace is not None:
        return next((mount for mount in mounts if core.cache.is_mount_of(mount, namespace)), None)
    if number_passed_on(core.kernel, volume):
        return None
    return next((mount for mount in mounts if _was_on(mount, volume)), None)


def identifier(core: Core, volume: Volume, mount: Mount) -> int:
    """The identifier of the volume's mount, which was found at its path: somebody may have mounted it anew.

    0 when there are several and it is not known which is the volume's. Raises OSError.
    """
    there = [one.mount_id for one in core.cache.mounts_at(volume.staging_path)]
    if volume.mount_id in there or find_moved(core, volume) is not None:
        return volume.mount_id
    return mount.mount_id if len(there) == 1 else 0


def number_passed_on(kernel: Kernel, volume: Volume) -> bool:
    """Whether another disk has the device number by now, so that what is mounted from it is not the volume.

    Raises:
        OSError: sysfs cannot be read.
    """
    return volume.type is VolumeType.FILESYSTEM and any(
        namespace.number == volume.number and namespace.diskseq != volume.diskseq
        for subsystem in kernel.subsystems()
        for namespace in subsystem.namespaces
    )


def own_mount(core: Core, volume: Volume) -> Mount | None:
    """The volume's mount at its staging path, also when its device went away under it."""
    mount = find_mount(core.cache, core.kernel.subsystem(volume.nqn), volume)
    if mount is not None:
        return mount
    if number_passed_on(core.kernel, volume):
        return None
    stale = stale_mounts(core.cache, volume)
    return stale[-1] if stale else None


def refuse_moved(core: Core, volume: Volume) -> None:
    """Raises UnmountFailed when the volume seems to be mounted at another path by now."""
    moved = find_moved(core, volume)
    if moved is not None:
        raise UnmountFailed(
            f"{volume.staging_path}: {volume.device} is mounted at {quoted(moved.mount_point)}, as after renaming a "
            "directory; rename it back, or unmount it there"
        )


def current_state(cache: MountCache, subsystem: Subsystem | None, volume: Volume) -> VolumeState:
    """How the volume is doing, given what sysfs shows now and a fresh cache."""
    return state_with(find_mount(cache, subsystem, volume), subsystem, volume)


def state_with(mount: Mount | None, subsystem: Subsystem | None, volume: Volume) -> VolumeState:
    """The same, once its mount was looked for."""
    if mount is None:
        return VolumeState.LOST
    live = subsystem.live_controllers if subsystem else ()
    if all(any(controller.serves(address) for controller in live) for address in volume.addresses):
        return VolumeState.STAGED
    return VolumeState.DEGRADED


def stale_mounts(cache: MountCache, volume: Volume) -> tuple[Mount, ...]:
    """Mounts at the staging path that were the volume's, left behind by a device that went away under them.

    Recognised by the identifier of the mount, as long as it is known: a device number may belong to any disk by now.

    Raises:
        OSError: the mount table cannot be read.
    """
    if volume.type is VolumeType.BLOCK:
        # that its node is gone shows in the table, which does not count as changed for it; the event may come late
        cache.invalidate()
        cache.refresh()
    return tuple(
        mount
        for mount in cache.mounts_at(volume.staging_path)
        if volume.mount_id in (0, mount.mount_id) and _was_on(mount, volume)
    )


def _was_on(mount: Mount, volume: Volume) -> bool:
    if volume.type is VolumeType.BLOCK:
        return mount.fstype == "devtmpfs" and mount.root == volume.device.removeprefix("/dev") + "//deleted"
    return mount.fstype == volume.fstype and (
        mount.number == volume.number or (mount.number.major == 0 and mount.source == volume.device)
    )
