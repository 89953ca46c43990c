"""Stage: connect every path, wait for the namespace, format only if asked and blank, check, mount."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.errors import AlreadyStaged, Busy, InvalidArgument, MountFailed, PathNotEmpty, WrongFilesystem
from nvmeofd.jobs import now_us
from nvmeofd.journal import Phase, VolumeRecord
from nvmeofd.kernel.interface import ClaimBusy, DeviceChanged, HeldElsewhere, KernelError, PathKind, StagingPathError
from nvmeofd.log import log, quoted
from nvmeofd.model import Namespace, Step, VolumeType
from nvmeofd.operations import filesystem
from nvmeofd.operations.clearing import clean_up, make_writable, unmount_own
from nvmeofd.operations.connect import connect_paths, wait_for_namespace
from nvmeofd.operations.guard import visible_users
from nvmeofd.operations.transaction import Transaction
from nvmeofd.operations.volumes import Volume, find_mount, find_moved, own_mount

if TYPE_CHECKING:
    from nvmeofd.addresses import Address
    from nvmeofd.jobs import Job
    from nvmeofd.kernel.interface import LockedDevice
    from nvmeofd.operations.core import Core
    from nvmeofd.requests import StageRequest


async def stage(core: Core, job: Job, request: StageRequest) -> Volume:
    """Do one Stage. Any failure undoes exactly what was done here.

    Raises:
        NvmeofdError: one of the errors that the D-Bus API names for Stage.
    """
    path = request.staging_path
    core.cache.refresh()
    if path not in core.volumes and (left_over := core.journal.volumes.get(path)) is not None:
        await clean_up(core, job, left_over)
    staged = core.volumes.get(path)
    if staged is not None:
        if _still_there(core, staged):
            return _same_volume(core, staged, request)
        _require_same_namespace(core, staged, request)
        log.info("%s: staging again, the mount went away", job)
    kind = await _usable_path(core, request)
    previous = core.journal.volumes.get(path)
    if staged is None and previous is not None and previous.volume is not None and previous.volume.read_only:
        raise Busy(f"{path}: {previous.volume.device}, which was staged there, is still to be made writable again")
    record = VolumeRecord(
        nqn=request.nqn,
        staging_path=path,
        type=request.type,
        phase=Phase.STAGING,
        creates_path=previous is not None and previous.creates_path,
    )
    async with Transaction(job) as transaction:
        transaction.on_failure("restore the journal", lambda: _restore_record(core, path, previous, transaction))
        core.journal.put_volume(record)
        addresses = await connect_paths(core, job, request, transaction)
        namespace = await wait_for_namespace(core, job, request)
        _refuse_second_place(core, request, namespace)
        volume = _volume(request, namespace, addresses)
        job.enter(Step.PROBING, namespace.path)
        try:
            async with core.kernel.lock_device(namespace, read_only=request.read_only) as device:
                if request.read_only:
                    await _make_read_only(core, replace(record, volume=volume), namespace, device, transaction)
                if request.type is VolumeType.FILESYSTEM:
                    fstype = await filesystem.prepare(core, job, request, namespace, device)
                    volume = replace(volume, fstype=fstype, mount_options=_mount_options(request, fstype))
                record = await _mount(core, job, volume, record, namespace, kind, transaction)
                await device.verify()
        except (DeviceChanged, OSError) as error:
            raise MountFailed(f"{namespace.path}: {error}") from error
        job.checkpoint()
        _keep_no_more(core, request.nqn, transaction)
        volume = replace(record.volume or volume, staged_at=now_us())
        core.journal.put_volume(replace(record, phase=Phase.STAGED, volume=volume))
    core.add_volume(volume)
    log.info("%s: staged %s as %s", job, volume.wwid, volume.device)
    return volume


def _still_there(core: Core, volume: Volume) -> bool:
    """Whether the volume is mounted at its path.

    Raises:
        PathNotEmpty: something else covers it.
        AlreadyStaged: it is mounted at another path by now.
    """
    # a directory above may have been renamed, and nothing tells of that: success is for what is mounted at the path
    core.cache.doubt()
    core.cache.refresh()
    subsystem = core.kernel.subsystem(volume.nqn)
    mount = find_mount(core.cache, subsystem, volume)
    if mount is None:
        if (moved := find_moved(core, volume)) is not None:
            raise AlreadyStaged(
                f"{volume.staging_path}: the volume is at {quoted(moved.mount_point)} since a directory "
                "above was renamed; rename it back, or unmount it there"
            )
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
        namespace = next(iter(subsystem.identified(staged.wwid)), None) if subsystem else None
        if namespace is None and str(request.namespace) in (staged.requested, staged.wwid, f"nsid.{staged.nsid}"):
            return
    if namespace is None or not namespace.matches(request.namespace):
        raise AlreadyStaged(f"{staged.staging_path} holds {staged.wwid} of {staged.nqn}; unstage it first")


def _refuse_second_place(core: Core, request: StageRequest, namespace: Namespace) -> None:
    for other in core.volumes.values():
        same = (other.nqn, other.wwid) == (request.nqn, namespace.wwid)
        if same and other.staging_path != request.staging_path:
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
    except OSError as error:
        raise MountFailed(f"staging path {quoted(path)}: {error}") from error
    wanted = PathKind.EMPTY_DIRECTORY if request.type is VolumeType.FILESYSTEM else PathKind.EMPTY_FILE
    if kind not in (PathKind.ABSENT, wanted):
        what = "an empty directory" if request.type is VolumeType.FILESYSTEM else "an empty file"
        raise PathNotEmpty(f"{path} exists and is not {what}")
    return kind


async def _make_read_only(
    core: Core, record: VolumeRecord, namespace: Namespace, device: LockedDevice, transaction: Transaction
) -> None:
    """Make the device refuse writes. Raises MountFailed when anybody uses it: a writer would lose data."""

    async def undo() -> None:
        if not transaction.could_not(_unmounting(record.staging_path)):  # else it is done when that succeeds at last
            await make_writable(core, namespace)

    if users := visible_users(core, [namespace]):
        who = "; ".join(map(str, users))
        raise MountFailed(f"{namespace.path} cannot be made read-only while it is used: {who}")
    try:
        # the claim also finds a mount in another mount namespace, and keeps new ones away meanwhile
        async with core.kernel.claim([namespace]):
            core.journal.put_volume(record)
            transaction.on_failure(_making_writable(namespace.path), undo)
            await device.set_read_only(True)
    except ClaimBusy as error:
        raise MountFailed(f"{namespace.path} cannot be made read-only while it is used: {error}") from error


async def _mount(
    core: Core,
    job: Job,
    volume: Volume,
    record: VolumeRecord,
    namespace: Namespace,
    kind: PathKind,
    transaction: Transaction,
) -> VolumeRecord:
    """Make the staging path and mount there. Returns the record with the mount in it.

    Raises:
        MountFailed, InvalidArgument
    """
    path = volume.staging_path
    job.enter(Step.MOUNTING, path)
    creates = kind is PathKind.ABSENT
    volume = replace(volume, created_path=creates or record.creates_path)
    record = replace(record, phase=Phase.MOUNTING, volume=volume, creates_path=volume.created_path)
    if namespace.wwid in core.journal.formats:
        core.journal.drop_format(namespace.wwid)  # a note that could not be removed: from here on there may be data
    core.journal.put_volume(record)

    async def undo() -> None:
        try:
            await unmount_own(core, job, volume)
        except BaseException:
            # its identifier may not have been written down; without it a mount that was moved is not found
            core.journal.remember(replace(core.journal.volumes[path], volume=volume))
            raise

    try:
        if creates:
            await _create_path(core, record, transaction)
        transaction.on_failure(_unmounting(path), undo)
        if volume.type is VolumeType.BLOCK:
            mount_id = await core.kernel.bind_device(namespace, path, read_only=volume.read_only)
        else:
            mount_id = await core.kernel.mount(namespace, path, volume.fstype, volume.mount_options)
    except StagingPathError as error:
        raise InvalidArgument(f"staging path: {error}") from error
    except (KernelError, OSError) as error:
        raise MountFailed(f"{namespace.path} at {quoted(path)}: {error}") from error
    volume = replace(volume, mount_id=mount_id)
    record = replace(record, volume=volume)
    core.journal.put_volume(record)
    _verify(core, volume, namespace)
    return record


async def _create_path(core: Core, record: VolumeRecord, transaction: Transaction) -> None:
    path = record.staging_path
    created = True

    async def remove() -> None:
        if created:
            with suppress(HeldElsewhere):  # as in Unstage, it is left then
                await core.kernel.remove_path(path, record.type)

    transaction.on_failure(_removing(path), remove)
    try:
        await core.kernel.create_path(path, record.type)
    except StagingPathError:
        created = False  # somebody else made it just now, so it is not to be removed here
        core.journal.put_volume(replace(record, creates_path=False))
        raise


def _verify(core: Core, volume: Volume, namespace: Namespace) -> None:
    """See that the mount just made is what it should be. Raises MountFailed."""
    core.cache.refresh()
    mounts = core.cache.mounts_at(volume.staging_path)
    if not mounts or not core.cache.is_mount_of(mounts[-1], namespace):
        raise MountFailed(f"{namespace.path} was mounted at {quoted(volume.staging_path)}, but something else is there")
    # mount(8) falls back to read-only on a write-protected device, and calls that success
    read_only = "ro" in mounts[-1].options or "ro" in mounts[-1].super_options
    if volume.type is VolumeType.FILESYSTEM and read_only and not volume.read_only:
        raise MountFailed(f"{namespace.path} is write-protected; ask for read-only to mount it so")


def _keep_no_more(core: Core, nqn: str, transaction: Transaction) -> None:
    """From here on the subsystem goes with its last user, whatever an Unstage asked for before. Raises OSError."""
    if not core.ownership.keeps(nqn):
        return

    async def keep() -> None:
        core.ownership.set_keep(nqn, True)

    transaction.on_failure(f"keep {nqn} connected", keep)
    core.ownership.set_keep(nqn, False)


async def _restore_record(core: Core, path: str, previous: VolumeRecord | None, transaction: Transaction) -> None:
    """The last undo: what the others could not undo stays in the journal, to be tried again."""
    record = core.journal.volumes.get(path)
    if record is not None and (transaction.could_not(_unmounting(path)) or _may_be_mounted(core, record)):
        core.remove_volume(path)  # one that was lost: what is there from now on is another mount
        core.journal.put_volume(replace(record, phase=Phase.UNDOING, volume=_read_only_as(previous, record.volume)))
    elif record is not None and record.volume and transaction.could_not(_making_writable(record.volume.device)):
        core.remove_volume(path)
        creates_path = transaction.could_not(_removing(path)) or (previous is not None and previous.creates_path)
        core.journal.put_volume(replace(record, phase=Phase.UNMOUNTED, creates_path=creates_path))
    elif previous is not None:
        core.journal.put_volume(previous)
    else:
        core.journal.drop_volume(path)


def _may_be_mounted(core: Core, record: VolumeRecord) -> bool:
    try:
        core.cache.refresh()
        return record.to_unmount is not None and own_mount(core, record.to_unmount) is not None
    except OSError:
        return record.to_unmount is not None


def _read_only_as(previous: VolumeRecord | None, volume: Volume | None) -> Volume | None:
    """With what is to be made writable again after the volume that was lost before, too."""
    if volume is None or previous is None or previous.volume is None:
        return volume
    return replace(volume, read_only=volume.read_only or previous.volume.read_only)


def _making_writable(device: str) -> str:
    return f"make {device} writable"


def _removing(path: str) -> str:
    return f"remove {path}"


def _unmounting(path: str) -> str:
    return f"unmount {path}"


def _mount_options(request: StageRequest, fstype: str) -> tuple[str, ...]:
    # _netdev: systemd unmounts it before the network goes. nouuid: xfs otherwise refuses a clone of a mounted one.
    extra = ["_netdev", *(["nouuid"] if fstype == "xfs" else []), *(["ro"] if request.read_only else [])]
    return tuple(dict.fromkeys([*request.mount_options, *extra]))


def _volume(request: StageRequest, namespace: Namespace, addresses: tuple[Address, ...]) -> Volume:
    """The volume as far as it is known before its content is."""
    return Volume(
        nqn=request.nqn,
        wwid=namespace.wwid,
        nsid=namespace.nsid,
        requested=str(request.namespace),
        device=namespace.path,
        number=namespace.number,
        diskseq=namespace.diskseq,
        mount_id=0,
        staging_path=request.staging_path,
        type=request.type,
        fstype="",
        mount_options=(),
        read_only=request.read_only,
        size=namespace.size,
        staged_at=0,
        addresses=addresses,
        created_path=False,
    )
