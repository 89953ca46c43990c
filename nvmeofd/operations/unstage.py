"""Unstage: unmount, and disconnect when nothing on the host uses the subsystem any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.errors import NotStaged, UnmountFailed
from nvmeofd.journal import Phase, VolumeRecord
from nvmeofd.kernel.interface import CommandError
from nvmeofd.log import log
from nvmeofd.model import Step
from nvmeofd.operations.clearing import clean_up, forget, look_again, require_uncovered
from nvmeofd.operations.disconnect import disconnect_owned, is_connected
from nvmeofd.operations.force import disconnect_if_dead, umount
from nvmeofd.operations.volumes import Volume, find_moved, identifier, own_mount, refuse_moved

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.kernel.interface import Mount
    from nvmeofd.operations.core import Core
    from nvmeofd.requests import UnstageRequest


async def unstage(core: Core, job: Job, request: UnstageRequest) -> bool:
    """Do one Unstage. Returns whether the subsystem is no longer connected.

    Raises:
        NotStaged: something else is mounted at the path.
        UnmountFailed: everything is as it was.
        InUse, Shared, DisconnectFailed: it was to be forced, and could not be.
        Busy: the kernel has not ended an umount of an earlier life of the daemon.
    """
    kept = core.ownership.keeps(job.nqn)
    try:
        there = await _unmount_volume(core, job, request)
    except BaseException:
        core.ownership.keep_as_before(job.nqn, kept)
        raise
    if not there or request.keep_connected:
        return not is_connected(core, job.nqn)
    if core.config.disconnect_delay:
        core.count("disconnects-deferred")
        return not is_connected(core, job.nqn)
    return await disconnect_owned(core, job, job.nqn)


async def _unmount_volume(core: Core, job: Job, request: UnstageRequest) -> bool:
    """Returns whether there was anything to be done."""
    path = request.staging_path
    if request.force:
        job.force()
    core.cache.refresh()
    left_over = core.journal.volumes.get(path) if path not in core.volumes else None
    if left_over is not None:
        await _finish(core, job, left_over, request)
        core.cache.refresh()
    volume = core.volumes.get(path)
    if volume is None:
        not_staged_here(core, path)
        return left_over is not None
    if request.force or own_mount(core, volume) is None:
        # a directory above may have been renamed, or renamed back, and nothing tells of that
        core.cache.doubt()
        core.cache.refresh()
    refuse_moved(core, volume)
    if own_mount(core, volume) is None:
        not_staged_here(core, path)
    # before the first side effect: after a crash in between it is too late to say so
    core.ownership.set_keep(volume.nqn, request.keep_connected)
    try:
        # more than once, should somebody have mounted the same volume over it
        while (own := own_mount(core, volume)) is not None:
            require_uncovered(core, own)
            volume = replace(volume, mount_id=identifier(core, volume, own))
            await (_force if job.take_force() else _unmount)(core, job, volume, own)
        if core.journal.volumes[path].phase is Phase.STAGED:  # the mount was lost
            core.journal.set_phase(path, Phase.UNSTAGING)
    except BaseException:
        _stays_staged(core, job, path)
        raise
    with job.protected():
        await forget(core, job, volume)
    return True


async def _finish(core: Core, job: Job, left_over: VolumeRecord, request: UnstageRequest) -> None:
    """Clear away what an earlier job left half done. It may turn out to be staged after all."""
    if job.take_force() and left_over.to_unmount is not None:
        await disconnect_if_dead(core, job, left_over.to_unmount)
        left_over = core.journal.volumes[left_over.staging_path]
    core.ownership.set_keep(left_over.nqn, request.keep_connected)
    await clean_up(core, job, left_over)


def _stays_staged(core: Core, job: Job, path: str) -> None:
    """Write down that the volume was not unmounted. Should that fail, it is tried again with the next look."""
    try:
        core.journal.set_phase(path, Phase.STAGED)
    except OSError as error:
        log.warning("%s: cannot write the journal: %s", job, error)


def not_staged_here(core: Core, path: str) -> None:
    """For a path without a mount of ours: fine if nothing is mounted there. Raises NotStaged."""
    if mounts := core.cache.mounts_at(path):
        raise NotStaged(f"{path}: {mounts[-1].source} ({mounts[-1].fstype}) is mounted there, not by this daemon")


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
    going = replace(volume, mount_id=own.mount_id)  # this one is to go, whichever of them it is
    try:
        await umount(core, job, volume, own)
    except CommandError as error:
        look_again(core, error)
        refuse_moved(core, going)
        if own_mount(core, going) is not None:
            forced = core.journal.volumes[path].phase is Phase.FORCING
            hint = "; its subsystem is disconnected: end who works in it and unstage it again" if forced else ""
            raise UnmountFailed(f"{path}: {error}{hint}") from error
        log.warning("%s: umount said %s, but the mount is gone", job, error)
    except asyncio.CancelledError:
        # umount(8) was killed, but the kernel may have finished its part: then the rest is done too
        core.cache.doubt()
        core.cache.refresh()
        if not job.stopping or own_mount(core, going) is not None or find_moved(core, going) is not None:
            raise
    core.cache.refresh()
