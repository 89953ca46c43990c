"""Unstage with force: a dead filesystem is let go by disconnecting its subsystem under it.

The kernel holds whoever touches a filesystem with no live path, umount(8) included, until a path is back or the
controllers are gone. Deleting them ends that: what was not written yet is lost, and the unmount that follows returns.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.errors import DisconnectFailed, InUse, NvmeofdError, Shared
from nvmeofd.journal import Phase
from nvmeofd.kernel.interface import ClaimBusy, DeviceChanged
from nvmeofd.log import log, quoted
from nvmeofd.model import Step, UserKind, VolumeType
from nvmeofd.operations.guard import (
    Deletion,
    StillUsed,
    explain_claim,
    look,
    openers,
    same_namespaces,
    scan_processes,
    stop_if_used,
    unreadable,
    visible_users,
)
from nvmeofd.operations.volumes import Volume, find_mount, find_namespace
from nvmeofd.requests import UnstageRequest

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.kernel.interface import Mount
    from nvmeofd.model import Controller, Namespace, Subsystem, User
    from nvmeofd.operations.core import Core


async def disconnect_if_dead(core: Core, job: Job, volume: Volume) -> bool:
    """Delete all controllers of the volume's subsystem, if none of them is live and nobody else uses it.

    Returns whether that was done; False when the volume is not dead: a path is live, its device went away already, or
    it is no filesystem, which alone waits for its device. Then it can be unmounted like any other. What is begun here
    is seen to its end.

    Raises:
        InUse: nothing was deleted; somebody else uses the subsystem.
        Shared: nothing was deleted; a controller belongs to another orchestrator.
        DisconnectFailed: a controller could not be deleted, or it cannot be told whose it is.
    """
    path, nqn = volume.staging_path, volume.nqn
    if volume.type is not VolumeType.FILESYSTEM:
        return False
    with job.protected():
        try:
            deletion = await _decide(core, job, volume)
        except StillUsed as used:
            core.count("disconnects-refused")
            raise InUse(
                f"{path} has no live path, but {nqn} cannot be disconnected under it: {used}; end those first"
            ) from used
        if deletion is None:
            return False
        deletion.outcome()
    core.count("forced")
    log.warning("%s: disconnected %s under %s: what was not written yet is lost", job, quoted(nqn), quoted(path))
    return True


async def _decide(core: Core, job: Job, volume: Volume) -> Deletion | None:
    """The decision, and the deletion once it has been done.

    The guard proves that nothing uses a subsystem. This cannot: the filesystem to be let go is a user, and holds the
    claim of its namespace. Checked all the same, before the claims and again right before the deletion:

    * no controller is live, and none belongs to another orchestrator;
    * on the other namespaces, all that the guard checks: mounts, binds, holders, swap, open files, and an exclusive
      claim on each, so that nobody can begin to use one meanwhile;
    * on the volume's own namespace: that it still is mounted, or that the kernel has not ended its umount (it is
      claimed like the others if neither); holders, swap, binds of the device node, mounts of a partition, open files
      of the device (those of udev, which is held like everybody else, excepted).

    Not written back, as the guard does: there is no path to write through, and what waits for one is given up here.

    Not checked: who works in the filesystem (files open in it, binds of it, copies of its mount in other mount
    namespaces), because that is what is given up here; and whether a path would have come back a moment later.
    """
    job.enter(Step.VERIFYING, volume.staging_path)
    subsystem = _look_if_dead(core, volume)
    if subsystem is None:
        return None
    stop_if_used(_other_users(core, subsystem, volume))
    # What holds the volume's own device, and is let go: its mount, or the kernel that is still at work on its umount.
    mounted = find_mount(core.cache, subsystem, volume) is not None
    deletion: Deletion | None = None
    try:
        held = mounted or await _held_by_umount(core, volume, in_doubt=False)
        own = find_namespace(subsystem, volume) if held else None
        async with core.kernel.claim([namespace for namespace in subsystem.namespaces if namespace is not own]):
            scan = await scan_processes(core, subsystem)
            stop_if_used(openers(subsystem, scan, transient=False))
            # From here to the deletion nothing is awaited: what is decided on is what is there.
            again = _look_if_dead(core, volume)
            if again is None:
                return None
            if not same_namespaces(subsystem, again):
                raise DisconnectFailed(f"the namespaces of {volume.nqn} are changing, try again")
            stop_if_used(_other_users(core, again, volume))
            if mounted and find_mount(core.cache, again, volume) is None:
                return None  # somebody has unmounted it: whoever holds its device now is somebody else
            if (record := core.journal.volumes.get(volume.staging_path)) is not None:
                core.journal.put_volume(replace(record, phase=Phase.FORCING, volume=volume))
            deletion = Deletion(core, job, volume.nqn, again.controllers)
            await deletion.run()
    except ClaimBusy as busy:
        raise StillUsed([await explain_claim(core, subsystem, busy.device)]) from None
    except (DeviceChanged, OSError) as error:
        if deletion is None:
            raise StillUsed([unreadable(volume.nqn, error)]) from error
        log.warning("%s: cannot give back the claim: %s", job, error)
    return deletion


def _look_if_dead(core: Core, volume: Volume) -> Subsystem | None:
    """The volume's subsystem if it is connected without a live path. Raises Shared, DisconnectFailed, StillUsed."""
    # what follows is about the mount at its path, and nothing tells of a directory above that was renamed
    core.cache.doubt()
    subsystem = look(core, volume.nqn)
    if subsystem is None or not subsystem.controllers or subsystem.live_controllers:
        return None
    if find_namespace(subsystem, volume) is None:
        return None
    for controller in subsystem.controllers:
        _require_not_shared(core, controller)
    return subsystem


def _require_not_shared(core: Core, controller: Controller) -> None:
    try:
        owner = core.ownership.other_owner(controller)
    except OSError as error:
        raise DisconnectFailed(f"cannot tell who owns {controller.name}: {error}") from error
    if owner is not None:
        raise Shared(f"{controller.name} of {controller.nqn} belongs to {owner}; disconnect it there")


def _other_users(core: Core, subsystem: Subsystem, volume: Volume) -> tuple[User, ...]:
    """The users to be seen, mounts of the volume's own filesystem excepted."""
    own = find_namespace(subsystem, volume)
    return tuple(
        user for user in visible_users(core, subsystem.namespaces) if own is None or not _is_its_mount(user, own)
    )


def _is_its_mount(user: User, own: Namespace) -> bool:
    return user.kind is UserKind.MOUNT and user.device == own.path


async def umount(core: Core, job: Job, volume: Volume, own: Mount) -> None:
    """umount(8) of the volume's mount, and its forced end.

    While the kernel holds it, a call that forces the job has the subsystem disconnected. A refusal of that goes to the
    forced calls that wait, and leaves the job waiting.

    Raises:
        CommandError: the filesystem is busy, or the like.
    """
    unmounted = asyncio.ensure_future(core.kernel.unmount(own, volume.staging_path))
    cancelled: asyncio.CancelledError | None = None
    while not unmounted.done():
        try:
            await asyncio.wait((unmounted, job.forced), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            unmounted.cancel()
        if not unmounted.done() and job.take_force():
            try:
                await disconnect_if_dead(core, job, volume)
            except (NvmeofdError, OSError) as refusal:
                log.warning("%s: not forced: %s", job, refusal)
                _refuse(core, job, refusal)
    if cancelled is None:
        unmounted.result()
    else:
        if not unmounted.cancelled():
            unmounted.exception()  # what umount(8) said when it was told to stop is of no interest
        raise cancelled


async def still_unmounting(core: Core, volume: Volume) -> bool:
    """Whether the kernel has not ended the umount of the filesystem. What cannot be told counts as not ended."""
    try:
        return await _held_by_umount(core, volume, in_doubt=True)
    except OSError:
        return True


async def _held_by_umount(core: Core, volume: Volume, *, in_doubt: bool) -> bool:
    """Whether the kernel still has the filesystem although nobody has it mounted. Raises OSError.

    umount(2) takes the mount away first and then writes what is left. When the daemon died meanwhile nobody waits for
    that, and the claim is all there is to see of it. ``in_doubt`` is the answer when it is claimed, and whether
    something else does that cannot be told.
    """
    subsystem = core.kernel.subsystem(volume.nqn)
    own = find_namespace(subsystem, volume)
    if subsystem is None or own is None or volume.type is not VolumeType.FILESYSTEM:
        return False
    users = visible_users(core, [own])
    if any(user.kind is not UserKind.CLAIM for user in users):
        return False
    doubtful = bool(users) or any(swap.doubtful for swap in core.kernel.swaps())
    try:
        try:
            async with core.kernel.claim([own]):
                return False
        except ClaimBusy:
            scan = await scan_processes(core, replace(subsystem, namespaces=(own,)))
            if scan.open_files or scan.foreign_mounts:
                return False
            return in_doubt if doubtful else True
    except DeviceChanged:
        return False


def _refuse(core: Core, job: Job, refusal: NvmeofdError | OSError) -> None:
    error = refusal if isinstance(refusal, NvmeofdError) else DisconnectFailed(str(refusal))
    for waiting in core.workers.of(job.nqn):
        request = waiting.request
        if isinstance(request, UnstageRequest) and request.force and request.staging_path == job.staging_path:
            waiting.stop_if_queued(error)


def stage_again(core: Core, volume: Volume) -> None:
    """What was to be forced in an earlier life of the daemon is alive, or is used by others now: it stays staged."""
    record = core.journal.volumes[volume.staging_path]
    core.journal.put_volume(replace(record, phase=Phase.STAGED, volume=volume))
    core.add_volume(volume)
