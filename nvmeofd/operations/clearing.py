"""What is left to be done once a volume goes, or a job was cut short: unmount, make writable, remove what was made.

What cannot be done now stays in the journal, and is tried again.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.errors import Busy, NvmeofdError, UnmountFailed
from nvmeofd.journal import Phase, VolumeRecord
from nvmeofd.kernel.interface import CommandError, DeviceChanged, HeldElsewhere, MountMoved
from nvmeofd.log import log, quoted
from nvmeofd.model import Step, VolumeType
from nvmeofd.operations.force import disconnect_if_dead, stage_again, still_unmounting, umount
from nvmeofd.operations.volumes import Volume, find_mount, find_moved, find_namespace, own_mount, refuse_moved

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.kernel.interface import Mount
    from nvmeofd.model import Namespace
    from nvmeofd.operations.core import Core

# Why a staging path that Stage made is not removed: it holds something now, or is something else.
_THEIRS = frozenset(
    {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR, errno.EISDIR, errno.EROFS}
    | {errno.EINVAL, errno.ELOOP, errno.EACCES, errno.EPERM}
)


def half_done(core: Core) -> tuple[VolumeRecord, ...]:
    """Records of work that neither succeeded nor could be undone, and that nobody is at work on."""
    return tuple(
        record
        for record in core.journal.volumes.values()
        if record.phase is not Phase.STAGED and core.workers.idle(record.nqn)
    )


async def clean_up(core: Core, job: Job, record: VolumeRecord) -> None:
    """Undo a Stage, or finish an Unstage, that was cut short or could not be undone.

    What still cannot be undone stays in the journal, to be tried again. Raises Busy, UnmountFailed.
    """
    path = record.staging_path
    if core.journal.volumes.get(path) != record:
        return  # staged anew since
    core.cache.doubt()
    core.cache.refresh()
    volume = core.volumes.get(path)
    if volume is not None:
        if own_mount(core, volume) is None and find_moved(core, volume) is None:
            await forget(core, job, volume)
        else:
            core.journal.put_volume(replace(record, phase=Phase.STAGED, volume=volume))
        return
    if (volume := record.to_unmount) is not None:
        if record.phase is Phase.FORCING and not await _finish_forcing(core, job, volume):
            return
        job.enter(Step.UNMOUNTING, path)
        await unmount_own(core, job, volume)
        if await still_unmounting(core, volume):
            raise Busy(f"{path} is not mounted any more, but the kernel has not written all of it to {record.nqn} yet")
    if await _clear(core, job, record):
        log.info("%s: cleared what was half done in phase %s", job, record.phase)


async def _finish_forcing(core: Core, job: Job, volume: Volume) -> bool:
    """Go on with what a crash cut short. Returns False when the volume stays staged after all."""
    try:
        if await disconnect_if_dead(core, job, volume):
            return True
    except NvmeofdError as error:
        log.warning("%s: not forced any more: %s", job, error)
    core.cache.refresh()
    mounted = find_mount(core.cache, core.kernel.subsystem(volume.nqn), volume) is not None
    if not mounted or volume.staged_at == 0:  # 0: of a Stage that failed
        return True
    stage_again(core, volume)
    return False


async def unmount_own(core: Core, job: Job, volume: Volume) -> None:
    """Undo a mount. Not there is success, at another path by now is not. Raises UnmountFailed."""
    unmounted: set[int] = set()
    core.cache.doubt()
    core.cache.refresh()
    refuse_moved(core, volume)  # also when there is another one of the same device at the path
    # more than once, should somebody have mounted the same volume over it
    while (own := own_mount(core, volume)) is not None:
        require_uncovered(core, own)
        try:
            await umount(core, job, volume, own)
        except CommandError as error:
            look_again(core, error)
            raise UnmountFailed(f"{own.mount_point}: {error}") from error
        unmounted.add(own.mount_id)
        core.cache.refresh()
    if volume.mount_id not in unmounted:  # whoever has its number now got it since
        refuse_moved(core, volume)


async def forget(core: Core, job: Job, volume: Volume) -> None:
    """Remove what Stage created, now that nothing is mounted there, and the volume itself.

    Its record is not in phase STAGED any more.
    """
    path = volume.staging_path
    await _clear(core, job, replace(core.journal.volumes[path], volume=volume))
    core.remove_volume(path)
    log.info("%s: unstaged %s", job, volume.wwid)


async def _clear(core: Core, job: Job, record: VolumeRecord) -> bool:
    """Undo what there is besides the mount. Returns whether that was all; else the record has what is left to be done.

    There is no way back: what fails is tried again later, and what is done is not done twice. By then the path and the
    device may be somebody else's.
    """
    path, volume = record.staging_path, record.volume
    removed = not record.creates_path or await _remove_path(core, job, path, record.type)
    writable = volume is None or not volume.read_only or await _make_writable_again(core, job, volume)
    if removed and writable and _drop(core, job, path):
        return True
    if volume is not None:
        volume = replace(volume, read_only=not writable)
    left = replace(record, phase=Phase.UNMOUNTED, creates_path=not removed, volume=volume)
    if left != core.journal.volumes[path]:
        core.journal.remember(left)
    return False


def _drop(core: Core, job: Job, path: str) -> bool:
    """Remove the record of what is over."""
    try:
        core.journal.drop_volume(path)
    except OSError as error:
        log.warning("%s: cannot remove the record of %s: %s", job, quoted(path), error)
        return False
    return True


async def _remove_path(core: Core, job: Job, path: str, kind: VolumeType) -> bool:
    """Remove a staging path that Stage made; returns whether there is nothing left to be done about it."""
    if core.cache.mounts_at(path):
        return True  # somebody else mounted something there since: it is theirs now
    try:
        await core.kernel.remove_path(path, kind)
    except HeldElsewhere as error:
        # An empty directory is little to leave behind. Coming back to it later would mean to remember a path for as
        # long as a container lives, and whoever can make mount namespaces could keep it from ever being used again.
        log.info("%s: the staging path is not removed: %s", job, error)
        return True
    except OSError as error:
        log.warning("%s: cannot remove the staging path: %s", job, error)
        return error.errno in _THEIRS
    return True


async def make_writable(core: Core, namespace: Namespace) -> None:
    """Undo of making a device read-only. Raises OSError, DeviceChanged."""
    async with core.kernel.lock_device(namespace, read_only=True) as device:
        await device.set_read_only(False)


async def _make_writable_again(core: Core, job: Job, volume: Volume) -> bool:
    """Returns whether there is nothing left to be done about it."""
    namespace = find_namespace(core.kernel.subsystem(volume.nqn), volume)
    if namespace is None:
        return True
    for path, record in core.journal.volumes.items():
        other = record.to_unmount if path != volume.staging_path else None
        if other is not None and other.read_only and other.is_on(namespace):
            return True  # mounted anew since, at another path: it is made writable when that is unmounted
    try:
        await make_writable(core, namespace)
    except DeviceChanged:
        return True
    except OSError as error:
        log.warning("%s: cannot make %s writable again: %s", job, volume.device, error)
        return False
    return True


def require_uncovered(core: Core, own: Mount) -> None:
    """Raises UnmountFailed."""
    top = core.cache.mounts_at(own.mount_point)[-1]
    if own is not top:
        raise UnmountFailed(f"{own.mount_point}: another mount ({top.source}) covers the volume; unmount that first")


def look_again(core: Core, error: CommandError) -> None:
    """After an umount that failed; where the mount is not where the cache has it, that is to know better."""
    if isinstance(error, MountMoved):
        core.cache.doubt()
    core.cache.refresh()
