"""Unstage: unmount, and disconnect when nothing on the host uses the subsystem any more."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from logging import DEBUG, INFO
from typing import TYPE_CHECKING

from nvmeofd.errors import Busy, DisconnectFailed, NotStaged, NvmeofdError, UnmountFailed
from nvmeofd.journal import Phase, VolumeRecord
from nvmeofd.kernel.interface import CommandError, DeviceChanged, HeldElsewhere, MountMoved
from nvmeofd.log import log, quoted
from nvmeofd.model import Step, VolumeType
from nvmeofd.operations.force import disconnect_if_dead, stage_again, still_unmounting, umount
from nvmeofd.operations.guard import StillUsed, disconnect_unused
from nvmeofd.operations.volumes import (
    Volume,
    find_mount,
    find_moved,
    find_namespace,
    identifier,
    number_passed_on,
    stale_mounts,
)

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.kernel.interface import Mount
    from nvmeofd.model import Namespace
    from nvmeofd.operations.core import Core
    from nvmeofd.requests import UnstageRequest


# Why a staging path that Stage made is not removed: it holds something now, or is something else.
_THEIRS = frozenset(
    {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR, errno.EISDIR, errno.EROFS}
    | {errno.EINVAL, errno.ELOOP, errno.EACCES, errno.EPERM}
)


async def unstage(core: Core, job: Job, request: UnstageRequest) -> bool:
    """Do one Unstage. Returns whether the subsystem is no longer connected.

    Raises:
        NotStaged: something else is mounted at the path.
        UnmountFailed: everything is as it was.
        InUse, Shared, DisconnectFailed: it was to be forced, and could not be.
        Busy: the kernel has not ended an umount of an earlier life of the daemon.
    """
    path = request.staging_path
    if request.force:
        job.force()
    kept = core.ownership.keeps(job.nqn)
    core.cache.refresh()
    if path not in core.volumes and (left_over := core.journal.volumes.get(path)) is not None:
        await _finish(core, job, left_over, request)
        if path not in core.volumes:
            core.cache.refresh()
            not_staged_here(core, path)
            return await _leave(core, job, left_over.nqn, keep=request.keep_connected)
    volume = core.volumes.get(path)
    if volume is None:
        not_staged_here(core, path)
        return not _connected(core, job.nqn)
    if request.force or own_mount(core, volume) is None:
        # a directory above may have been renamed, or renamed back, and nothing tells of that
        core.cache.doubt()
        core.cache.refresh()
    refuse_moved(core, volume)
    mounts = core.cache.mounts_at(path)
    if mounts and own_mount(core, volume) is None:
        raise NotStaged(f"{path}: {mounts[-1].source} ({mounts[-1].fstype}) is mounted there, not by this daemon")
    # before the first side effect: after a crash in between it is too late to say so
    core.ownership.set_keep(volume.nqn, request.keep_connected)
    try:
        # more than once, should somebody have mounted the same volume over it
        while (own := own_mount(core, volume)) is not None:
            _require_uncovered(core, own)
            volume = replace(volume, mount_id=identifier(core, volume, own))
            await (_force if job.take_force() else _unmount)(core, job, volume, own)
        if core.journal.volumes[path].phase is Phase.STAGED:  # the mount was lost
            core.journal.set_phase(path, Phase.UNSTAGING)
    except BaseException:
        _stays_staged(core, job, volume, keep=kept)
        raise
    with job.protected():
        await forget(core, job, volume)
    return await _leave(core, job, volume.nqn, keep=request.keep_connected)


async def _finish(core: Core, job: Job, left_over: VolumeRecord, request: UnstageRequest) -> None:
    """Clear away what an earlier job left half done. It may turn out to be staged after all."""
    if job.take_force() and left_over.to_unmount is not None:
        await disconnect_if_dead(core, job, left_over.to_unmount)
        left_over = core.journal.volumes[left_over.staging_path]
    kept = core.ownership.keeps(left_over.nqn)
    core.ownership.set_keep(left_over.nqn, request.keep_connected)
    try:
        await clean_up(core, job, left_over)
    except BaseException:
        core.ownership.keep_as_before(left_over.nqn, kept)
        raise


def _stays_staged(core: Core, job: Job, volume: Volume, *, keep: bool) -> None:
    """Write down that the volume was not unmounted. Should that fail, it is tried again with the next look."""
    try:
        core.journal.set_phase(volume.staging_path, Phase.STAGED)
    except OSError as error:
        log.warning("%s: cannot write the journal: %s", job, error)
    core.ownership.keep_as_before(volume.nqn, keep)


async def _leave(core: Core, job: Job, nqn: str, *, keep: bool) -> bool:
    """Disconnect now, or later where the configuration says so, or not. Returns whether it is disconnected."""
    if keep:
        return not _connected(core, nqn)
    if core.config.disconnect_delay:
        core.count("disconnects-deferred")
        return not _connected(core, nqn)
    return await disconnect_owned(core, job, nqn)


def not_staged_here(core: Core, path: str) -> None:
    """For a path without a volume: fine if nothing is mounted there. Raises NotStaged."""
    if mounts := core.cache.mounts_at(path):
        raise NotStaged(f"{path}: {mounts[-1].source} ({mounts[-1].fstype}) is mounted there, not by this daemon")


def own_mount(core: Core, volume: Volume) -> Mount | None:
    """The volume's mount at its staging path, also when its device went away under it."""
    mount = find_mount(core.cache, core.kernel.subsystem(volume.nqn), volume)
    if mount is not None:
        return mount
    if number_passed_on(core.kernel, volume):
        return None
    stale = stale_mounts(core.cache, volume)
    return stale[-1] if stale else None


async def forget(core: Core, job: Job, volume: Volume) -> None:
    """Remove what Stage created, now that nothing is mounted there, and the volume itself.

    Its record is not in phase STAGED any more: what cannot be removed now is swept up by that.
    """
    path = volume.staging_path
    removed = not volume.created_path or await _remove_path(core, job, path, volume.type)
    writable = not volume.read_only or await _make_writable_again(core, job, volume)
    if not (removed and writable and _drop(core, job, path)):
        core.journal.remember(replace(core.journal.volumes[path], phase=Phase.UNMOUNTED, volume=volume))
    core.remove_volume(path)
    log.info("%s: unstaged %s", job, volume.wwid)


def _drop(core: Core, job: Job, path: str) -> bool:
    """Remove the record of what is over. There is no way back: should it fail, it is tried again later."""
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


async def disconnect_owned(core: Core, job: Job, nqn: str) -> bool:
    """Disconnect the controllers of this daemon if nothing uses the subsystem; never an error.

    Returns whether the subsystem is no longer connected. What had to be skipped is looked at again later.
    """
    if core.workers.stage_waiting(nqn):
        return not _connected(core, nqn)
    _settle_intent(core, nqn)
    try:
        await disconnect_unused(core, job, nqn, core.ownership.owned)
    except StillUsed as used:
        core.count("disconnects-deferred")
        # the daemon's own jobs try again and again, as long as somebody stays
        log.log(INFO if job.visible else DEBUG, "%s: %s stays connected while it is used: %s", job, nqn, used)
    except DisconnectFailed as error:
        core.count("disconnects-failed")
        log.warning("%s: %s", job, error)
    except asyncio.CancelledError:
        # what was asked for is done; for this part there is another time
        if not job.stopping:
            raise
        core.count("disconnects-deferred")
        log.info("%s: out of time for disconnecting %s", job, nqn)
    return not _connected(core, nqn)


def _settle_intent(core: Core, nqn: str) -> None:
    """What was connected and could not be written down then is to be disconnected, too."""
    try:
        core.ownership.adopt(nqn, core.kernel.subsystem(nqn))
    except OSError as error:
        log.warning("cannot tell what came of connecting %s: %s", nqn, error)


def _connected(core: Core, nqn: str) -> bool:
    try:
        subsystem = core.kernel.subsystem(nqn)
    except OSError as error:
        log.warning("cannot tell whether %s is connected: %s", nqn, error)
        return True
    return subsystem is not None and bool(subsystem.controllers)


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
    writable = record.volume is None or not record.volume.read_only
    if record.volume is not None and not writable:
        writable = await _make_writable_again(core, job, record.volume)
    removed = not record.creates_path or await _remove_path(core, job, path, record.type)
    if removed and writable and _drop(core, job, path):
        log.info("%s: cleared what was half done in phase %s", job, record.phase)
    elif record.phase is not Phase.UNMOUNTED:
        core.journal.remember(replace(core.journal.volumes[path], phase=Phase.UNMOUNTED))


async def _finish_forcing(core: Core, job: Job, volume: Volume) -> bool:
    """Go on with what a crash cut short. Returns False when the volume stays staged after all."""
    try:
        if await disconnect_if_dead(core, job, volume):
            return True
    except NvmeofdError as error:
        log.warning("%s: not forced any more: %s", job, error)
    core.cache.refresh()
    if find_mount(core.cache, core.kernel.subsystem(volume.nqn), volume) is None:
        return True
    if volume.staged_at == 0:
        return True  # of a Stage that failed
    stage_again(core, volume)
    return False


def refuse_moved(core: Core, volume: Volume) -> None:
    """Raises UnmountFailed when the volume seems to be mounted at another path by now."""
    moved = find_moved(core, volume)
    if moved is not None:
        raise UnmountFailed(
            f"{volume.staging_path}: {volume.device} is mounted at {quoted(moved.mount_point)}, as after renaming a "
            "directory; rename it back, or unmount it there"
        )


def _require_uncovered(core: Core, own: Mount) -> None:
    """Raises UnmountFailed."""
    top = core.cache.mounts_at(own.mount_point)[-1]
    if own is not top:
        raise UnmountFailed(f"{own.mount_point}: another mount ({top.source}) covers the volume; unmount that first")


async def unmount_own(core: Core, job: Job, volume: Volume) -> None:
    """Undo a mount. Not there is success, at another path by now is not. Raises UnmountFailed."""
    unmounted: set[int] = set()
    core.cache.doubt()
    core.cache.refresh()
    refuse_moved(core, volume)  # also when there is another one of the same device at the path
    # more than once, should somebody have mounted the same volume over it
    while (own := own_mount(core, volume)) is not None:
        _require_uncovered(core, own)
        try:
            await umount(core, job, volume, own)
        except CommandError as error:
            _look_again(core, error)
            raise UnmountFailed(f"{own.mount_point}: {error}") from error
        unmounted.add(own.mount_id)
        core.cache.refresh()
    if volume.mount_id not in unmounted:  # whoever has its number now got it since
        refuse_moved(core, volume)


def _look_again(core: Core, error: CommandError) -> None:
    """After an umount that failed; where the mount is not where the cache has it, that is to know better."""
    if isinstance(error, MountMoved):
        core.cache.doubt()
    core.cache.refresh()


async def _force(core: Core, job: Job, volume: Volume, own: Mount) -> None:
    """Unmount, and disconnect before if the filesystem is dead."""
    if await disconnect_if_dead(core, job, volume):
        with job.protected():
            await _unmount(core, job, volume, own)
    else:
        await _unmount(core, job, volume, own)


async def _unmount(core: Core, job: Job, volume: Volume, own: Mount) -> None:
    path = volume.staging_path
    job.enter(Step.UNMOUNTING, path)
    record = core.journal.volumes[path]
    if record.phase is not Phase.FORCING:
        core.journal.put_volume(replace(record, phase=Phase.UNSTAGING, volume=volume))
    volume = replace(volume, mount_id=own.mount_id)  # this one is to go, whichever of them it is
    try:
        await umount(core, job, volume, own)
    except CommandError as error:
        _look_again(core, error)
        refuse_moved(core, volume)
        if own_mount(core, volume) is not None:
            forced = core.journal.volumes[path].phase is Phase.FORCING
            hint = "; its subsystem is disconnected: end who works in it and unstage it again" if forced else ""
            raise UnmountFailed(f"{path}: {error}{hint}") from error
        log.warning("%s: umount said %s, but the mount is gone", job, error)
    except asyncio.CancelledError:
        # umount(8) was killed, but the kernel may have finished its part: then the rest is done too
        core.cache.doubt()
        core.cache.refresh()
        if not job.stopping or own_mount(core, volume) is not None or find_moved(core, volume) is not None:
            raise
    core.cache.refresh()


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
