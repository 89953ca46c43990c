"""Stage: connect every path, wait for the namespace, format only if asked and blank, check, mount."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.errors import (
    AlreadyStaged,
    CheckFailed,
    FormatFailed,
    InvalidArgument,
    MountFailed,
    NoFilesystem,
    NotBlank,
    PathNotEmpty,
    WrongFilesystem,
)
from nvmeofd.journal import FormatRecord, Phase, VolumeRecord
from nvmeofd.kernel.interface import (
    CommandError,
    Content,
    DeviceChanged,
    KernelError,
    LockedDevice,
    PathKind,
    StagingPathError,
)
from nvmeofd.log import log, quoted
from nvmeofd.model import FormatPolicy, Namespace, Step, VolumeType
from nvmeofd.operations.connect import connect_paths, wait_for_namespace
from nvmeofd.operations.guard import visible_users
from nvmeofd.operations.transaction import Transaction
from nvmeofd.operations.unstage import clean_up, unmount_own
from nvmeofd.operations.volumes import Volume, find_mount
from nvmeofd.workers import now_us

if TYPE_CHECKING:
    from nvmeofd.model import Address
    from nvmeofd.operations.core import Core
    from nvmeofd.requests import StageRequest
    from nvmeofd.workers import Job


async def stage(core: Core, job: Job, request: StageRequest) -> Volume:
    """Do one Stage. Any failure undoes exactly what was done here.

    Raises:
        NvmeofdError: one of the errors that the D-Bus API names for Stage.
    """
    path = request.staging_path
    core.cache.refresh()
    staged = core.volumes.get(path)
    if staged is not None:
        if _still_there(core, staged):
            return _same_volume(core, staged, request)
        _require_same_namespace(core, staged, request)
        log.info("%s: staging again, the mount went away", job)
    left_over = core.journal.volumes.get(path)
    if left_over is not None and left_over.phase is not Phase.STAGED:
        await clean_up(core, job, left_over)
    kind = await _usable_path(core, request)
    created = kind is PathKind.ABSENT or (staged is not None and staged.created_path)
    record = VolumeRecord(
        nqn=request.nqn, staging_path=path, type=request.type, phase=Phase.STAGING, creates_path=created
    )
    async with Transaction(job) as transaction:
        previous = core.journal.volumes.get(path)
        core.journal.put_volume(record)
        transaction.on_failure("restore the journal", lambda: _restore_record(core, job, path, previous))
        core.ownership.set_keep(request.nqn, False)
        addresses = await connect_paths(core, job, request, transaction)
        namespace = await wait_for_namespace(core, job, request)
        _refuse_second_place(core, request, namespace)
        job.enter(Step.PROBING, namespace.path)
        try:
            async with core.kernel.lock_device(namespace, read_only=request.read_only) as device:
                if request.read_only:
                    if users := visible_users(core, [namespace]):
                        who = "; ".join(map(str, users))
                        raise MountFailed(f"{namespace.path} cannot be made read-only while it is used: {who}")
                    transaction.on_failure(f"make {namespace.path} writable", lambda: _set_writable(core, namespace))
                    await device.set_read_only(True)
                fstype = await _filesystem(core, job, request, namespace, device)
                volume = _volume(request, namespace, fstype, addresses, created)
                await _mount(core, job, volume, record, namespace, kind, transaction)
                await device.verify()
        except (DeviceChanged, OSError) as error:
            raise MountFailed(f"{namespace.path}: {error}") from error
        job.checkpoint()
        core.journal.put_volume(replace(record, phase=Phase.STAGED, volume=volume))
    core.add_volume(volume)
    log.info("%s: staged %s as %s", job, volume.wwid, volume.device)
    return volume


def _still_there(core: Core, volume: Volume) -> bool:
    """Whether the volume is mounted at its path. Raises PathNotEmpty when something else covers it."""
    mount = find_mount(core.cache, core.kernel.subsystem(volume.nqn), volume)
    if mount is None:
        return False
    top = core.cache.mounts_at(volume.staging_path)[-1]
    if top is not mount:
        raise PathNotEmpty(f"{volume.staging_path}: another mount ({top.source}) covers the volume; unmount that first")
    return True


def _same_volume(core: Core, staged: Volume, request: StageRequest) -> Volume:
    """The staged volume, if it is what is asked for. Raises AlreadyStaged, WrongFilesystem."""
    _require_same_namespace(core, staged, request)
    if staged.type is not request.type:
        raise AlreadyStaged(f"{staged.staging_path} holds this volume as type {staged.type}; unstage it first")
    if staged.read_only is not request.read_only:
        how = "read-only" if staged.read_only else "writable"
        raise AlreadyStaged(f"{staged.staging_path} holds this volume {how}; unstage it first")
    if request.fstype not in (None, staged.fstype):
        raise WrongFilesystem(f"{staged.staging_path} holds this volume with {staged.fstype}, not {request.fstype}")
    return staged


def _require_same_namespace(core: Core, staged: Volume, request: StageRequest) -> None:
    namespace = None
    if staged.nqn == request.nqn:
        subsystem = core.kernel.subsystem(request.nqn)
        namespaces = subsystem.namespaces if subsystem else ()
        namespace = next((ns for ns in namespaces if ns.wwid == staged.wwid), None)
        if namespace is None and str(request.namespace) in (staged.requested, staged.wwid, f"nsid.{staged.nsid}"):
            return
    if namespace is None or not namespace.matches(request.namespace):
        raise AlreadyStaged(f"{staged.staging_path} holds {staged.wwid} of {staged.nqn}; unstage it first")


def _refuse_second_place(core: Core, request: StageRequest, namespace: Namespace) -> None:
    for other in core.volumes.values():
        if (other.nqn, other.wwid) == (request.nqn, namespace.wwid):
            raise AlreadyStaged(f"{namespace.wwid} of {request.nqn} is staged at {other.staging_path}")


async def _usable_path(core: Core, request: StageRequest) -> PathKind:
    """What is at the staging path, if a volume can go there. Raises InvalidArgument, PathNotEmpty, AlreadyStaged."""
    path = request.staging_path
    if mounts := core.cache.mounts_at(path):
        raise PathNotEmpty(f"{path}: {mounts[-1].source} ({mounts[-1].fstype}) is already mounted there")
    try:
        kind = await core.kernel.inspect_path(path)
    except StagingPathError as error:
        raise InvalidArgument(f"staging path: {error}") from error
    wanted = PathKind.EMPTY_DIRECTORY if request.type is VolumeType.FILESYSTEM else PathKind.EMPTY_FILE
    if kind not in (PathKind.ABSENT, wanted):
        what = "an empty directory" if request.type is VolumeType.FILESYSTEM else "an empty file"
        raise PathNotEmpty(f"{path} exists and is not {what}")
    return kind


async def _filesystem(core: Core, job: Job, request: StageRequest, namespace: Namespace, device: LockedDevice) -> str:
    """Make sure that there is the right filesystem and that it is sound; return its type ("" for block volumes)."""
    if request.type is VolumeType.BLOCK:
        return ""
    content = await _probe(device, namespace)
    wanted = request.fstype
    unfinished = core.journal.formats.get(namespace.wwid)
    if unfinished is not None and not _left_by(unfinished, content, namespace):
        unfinished = None
    if content.fstype and unfinished is None:
        if wanted not in (None, content.fstype):
            raise WrongFilesystem(f"{namespace.path} holds {content.fstype}, not {wanted}")
        fstype = content.fstype
        users = visible_users(core, [namespace])
        if request.fsck and not request.read_only and not users:
            job.enter(Step.CHECKING, f"{fstype} on {namespace.path}")
            try:
                await device.check_filesystem(fstype)
            except CommandError as error:
                raise CheckFailed(f"{namespace.path}: {error}; repair it by hand before staging it again") from error
        return fstype
    if request.format is FormatPolicy.NEVER or request.read_only:
        found = content.other or ("signatures of more than one kind" if content.ambivalent else "no filesystem")
        raise NoFilesystem(f"{namespace.path} ({namespace.wwid}) holds {found}")
    if unfinished is None:
        await _require_blank(device, namespace, content)
    fstype = wanted or "ext4"
    await _format(core, job, request, namespace, device, fstype, force=unfinished is not None)
    return fstype


async def _probe(device: LockedDevice, namespace: Namespace) -> Content:
    try:
        return await device.probe()
    except (CommandError, OSError) as error:
        raise NotBlank(f"{namespace.path} cannot be read, so nothing is done to it: {error}") from error


def _left_by(record: FormatRecord, content: Content, namespace: Namespace) -> bool:
    """Whether what is on the device can only come from the mkfs that this record tells of.

    That mkfs ran on this very namespace after it was proven blank, was cut short, and its filesystem was never
    mounted: so nothing of value is on it. Anything that carries another UUID came from somewhere else.
    """
    return (
        record.size == namespace.size
        and not content.other
        and not content.ambivalent
        and (content.nothing_found or (content.fstype == record.fstype and content.uuid == record.uuid))
    )


async def _require_blank(device: LockedDevice, namespace: Namespace, content: Content) -> None:
    """Raises NotBlank unless it is certain that nothing is on the device."""
    if not content.nothing_found:
        what = content.other or content.fstype or "signatures of more than one kind"
        raise NotBlank(f"{namespace.path} holds {what}, so it is not formatted")
    try:
        zero = await device.edges_are_zero()
    except OSError as error:
        raise NotBlank(f"{namespace.path} cannot be read, so it is not formatted: {error}") from error
    if not zero:
        raise NotBlank(
            f"{namespace.path} has data in its first or last MiB that blkid does not recognise, so it is not "
            "formatted; if it is worthless, write zeros there"
        )


async def _format(
    core: Core,
    job: Job,
    request: StageRequest,
    namespace: Namespace,
    device: LockedDevice,
    fstype: str,
    *,
    force: bool,
) -> None:
    if not core.kernel.mkfs_supported(fstype):
        raise FormatFailed(f"this host has no mkfs for {fstype}")
    subsystem = core.kernel.subsystem(request.nqn)
    if subsystem is None or not subsystem.live_controllers:
        raise FormatFailed(f"no path to {request.nqn} is live")
    if users := visible_users(core, [namespace]):
        raise NotBlank(f"{namespace.path} is in use, so it is not formatted: {'; '.join(map(str, users))}")
    record = FormatRecord(namespace.wwid, namespace.size, fstype, str(uuid.uuid4()))
    job.enter(Step.FORMATTING, f"{fstype} on {namespace.path}")
    core.journal.put_format(record)
    log.info("%s: %s is blank, making %s", job, namespace.path, fstype)
    try:
        await device.verify()
        await device.make_filesystem(fstype, uuid=record.uuid, options=request.mkfs_options, force=force)
        content = await device.probe()
    except (CommandError, DeviceChanged) as error:
        raise FormatFailed(f"{namespace.path}: {error}") from error
    if content.fstype != fstype:
        raise FormatFailed(f"{namespace.path}: mkfs for {fstype} succeeded, but it holds {content.fstype or 'nothing'}")
    core.journal.drop_format(namespace.wwid)


async def _mount(
    core: Core,
    job: Job,
    volume: Volume,
    record: VolumeRecord,
    namespace: Namespace,
    kind: PathKind,
    transaction: Transaction,
) -> None:
    path = volume.staging_path
    job.enter(Step.MOUNTING, path)
    core.journal.put_volume(replace(record, phase=Phase.MOUNTING, volume=volume))
    try:
        if kind is PathKind.ABSENT:
            transaction.on_failure(f"remove {path}", lambda: core.kernel.remove_path(path, volume.type))
            await core.kernel.create_path(path, volume.type)
        transaction.on_failure(f"unmount {path}", lambda: unmount_own(core, volume))
        if volume.type is VolumeType.BLOCK:
            await core.kernel.bind_device(namespace, path, read_only=volume.read_only)
        else:
            await core.kernel.mount(namespace, path, volume.fstype, volume.mount_options)
    except StagingPathError as error:
        raise InvalidArgument(f"staging path: {error}") from error
    except (KernelError, OSError) as error:
        raise MountFailed(f"{namespace.path} at {quoted(path)}: {error}") from error
    core.cache.refresh()
    mounts = core.cache.mounts_at(path)
    if not mounts or not core.cache.is_mount_of(mounts[-1], namespace):
        raise MountFailed(f"{namespace.path} was mounted at {quoted(path)}, but something else is there")


async def _restore_record(core: Core, job: Job, path: str, previous: VolumeRecord | None) -> None:
    if job.leftovers:
        # the record tells what is left over; it is cleaned up later
        core.remove_volume(path)
    elif previous is None:
        core.journal.drop_volume(path)
    else:
        core.journal.put_volume(previous)


async def _set_writable(core: Core, namespace: Namespace) -> None:
    async with core.kernel.lock_device(namespace, read_only=True) as device:
        await device.set_read_only(False)


def _volume(
    request: StageRequest, namespace: Namespace, fstype: str, addresses: tuple[Address, ...], created: bool
) -> Volume:
    options: tuple[str, ...] = ()
    if request.type is VolumeType.FILESYSTEM:
        # _netdev: systemd unmounts it before the network goes. nouuid: xfs otherwise refuses a clone of a mounted one.
        extra = ["_netdev", *(["nouuid"] if fstype == "xfs" else []), *(["ro"] if request.read_only else [])]
        options = tuple(dict.fromkeys([*request.mount_options, *extra]))
    return Volume(
        nqn=request.nqn,
        wwid=namespace.wwid,
        nsid=namespace.nsid,
        requested=str(request.namespace),
        device=namespace.path,
        number=namespace.number,
        diskseq=namespace.diskseq,
        staging_path=request.staging_path,
        type=request.type,
        fstype=fstype,
        mount_options=options,
        read_only=request.read_only,
        size=namespace.size,
        staged_at=now_us(),
        addresses=addresses,
        created_path=created,
    )
