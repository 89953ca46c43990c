"""What is on a device: probing, making and checking a filesystem, and never touching what may be data."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from nvmeofd.errors import CheckFailed, FormatFailed, NoFilesystem, NotBlank, WrongFilesystem
from nvmeofd.jobs import now_us
from nvmeofd.journal import FormatRecord
from nvmeofd.kernel.interface import ClaimBusy, CommandError, Content, DeviceChanged, LockedDevice
from nvmeofd.log import log
from nvmeofd.model import FormatPolicy, Namespace, Step
from nvmeofd.operations.guard import visible_users
from nvmeofd.requests import DEFAULT_FSTYPE

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.operations.core import Core
    from nvmeofd.requests import StageRequest

# e2fsck(8), EXIT CODE: it did not get as far as looking for damage.
_OPERATIONAL = 8
# How long after its begin a mkfs that a crash cut short may still be wiped off, in microseconds. The daemon is back
# within seconds; after longer than this, somebody else may have dealt with the device.
WIPE_WINDOW = 600 * 1_000_000


async def prepare(core: Core, job: Job, request: StageRequest, namespace: Namespace, device: LockedDevice) -> str:
    """Make sure that the right filesystem is there and sound; return its type.

    Raises:
        NoFilesystem, WrongFilesystem, NotBlank, FormatFailed, CheckFailed: nothing of what was there is changed.
    """
    content = await _probe(device, namespace)
    if content.fstype:
        if request.fstype not in (None, content.fstype):
            raise WrongFilesystem(f"{namespace.path} holds {content.fstype}, not {request.fstype}")
        await _check(core, job, request, namespace, device, content.fstype)
        return content.fstype
    if request.format is FormatPolicy.NEVER or request.read_only:
        found = content.other or ("signatures of more than one kind" if content.ambivalent else "no filesystem")
        raise NoFilesystem(f"{namespace.path} ({namespace.wwid}) holds {found}")
    await _require_blank(core, device, namespace, content)
    fstype = request.fstype or DEFAULT_FSTYPE
    await _format(core, job, request, namespace, device, fstype)
    return fstype


async def _probe(device: LockedDevice, namespace: Namespace) -> Content:
    try:
        return await device.probe()
    except (CommandError, OSError) as error:
        raise NotBlank(f"{namespace.path} cannot be read, so nothing is done to it: {error}") from error


async def _check(
    core: Core, job: Job, request: StageRequest, namespace: Namespace, device: LockedDevice, fstype: str
) -> None:
    """Raises CheckFailed."""
    if not request.fsck or request.read_only or visible_users(core, [namespace]):
        return  # a filesystem that is mounted already must not be checked, and was checked then
    job.enter(Step.CHECKING, f"{fstype} on {namespace.path}")
    try:
        await device.check_filesystem(fstype)
    except CommandError as error:
        if error.status & _OPERATIONAL and await _mounted_out_of_sight(core, namespace):
            log.info("%s: %s is not checked: it is mounted in another mount namespace", job, namespace.path)
            return
        raise CheckFailed(f"{namespace.path}: {error}; repair it by hand before staging it again") from error


async def _mounted_out_of_sight(core: Core, namespace: Namespace) -> bool:
    """Whether the checker gave up because the device is in exclusive use, as it is by a mount anywhere."""
    try:
        async with core.kernel.claim([namespace]):
            return False
    except ClaimBusy:
        return True
    except (OSError, DeviceChanged):
        return False


async def _require_blank(core: Core, device: LockedDevice, namespace: Namespace, content: Content) -> None:
    """Raises NotBlank unless it is certain that nothing is on the device and nobody uses it."""
    if not content.nothing_found:
        what = content.other or "signatures of more than one kind"
        raise NotBlank(f"{namespace.path} holds {what}, so it is not formatted")
    if users := visible_users(core, [namespace]):
        raise NotBlank(f"{namespace.path} is in use, so it is not formatted: {'; '.join(map(str, users))}")
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
    core: Core, job: Job, request: StageRequest, namespace: Namespace, device: LockedDevice, fstype: str
) -> None:
    """Make the filesystem on a device just proven blank, or leave it blank. Raises FormatFailed."""
    if not core.kernel.mkfs_supported(fstype):
        raise FormatFailed(f"this host has no mkfs for {fstype}")
    subsystem = core.kernel.subsystem(request.nqn)
    if subsystem is None or not subsystem.live_controllers:
        raise FormatFailed(f"no path to {request.nqn} is live")
    job.enter(Step.FORMATTING, f"{fstype} on {namespace.path}")
    record = FormatRecord(
        nqn=request.nqn,
        wwid=namespace.wwid,
        size=namespace.size,
        diskseq=namespace.diskseq,
        fstype=fstype,
        uuid=str(uuid.uuid4()),
        started_at=now_us(),
    )
    try:
        await device.verify()
    except DeviceChanged as error:
        raise FormatFailed(str(error)) from error
    core.journal.put_format(record)
    log.info("%s: %s is blank, making %s", job, namespace.path, fstype)
    try:
        await device.make_filesystem(fstype, uuid=record.uuid, options=request.mkfs_options)
        core.journal.drop_format(record.wwid)  # if the note stays, nothing must that is worth keeping
    except BaseException as error:
        job.roll_back(error)
        await _undo(core, job, record, namespace, device)
        if isinstance(error, CommandError):
            raise FormatFailed(f"{namespace.path}: {error}") from error
        raise
    # From here on it is a filesystem like any other, which somebody else may be using already: it is not wiped off.
    try:
        content = await device.probe()
    except CommandError as error:
        raise FormatFailed(f"{namespace.path}: {error}") from error
    if (content.fstype, content.uuid) != (fstype, record.uuid):
        raise FormatFailed(f"{namespace.path}: mkfs for {fstype} succeeded, but blkid does not find its filesystem")


async def _undo(core: Core, job: Job, record: FormatRecord, namespace: Namespace, device: LockedDevice) -> None:
    """Undo a mkfs that did not end well: the device was blank before and is blank again.

    Unless somebody else has made something of it meanwhile: another host may have the namespace, too.
    """
    try:
        async with core.kernel.claim([namespace]):
            content = await device.probe()
            if not content.nothing_found and (content.fstype, content.uuid) != (record.fstype, record.uuid):
                what = content.fstype or content.other or "signatures of more than one kind"
                raise DeviceChanged(f"it holds {what}, which was not made here")
            log.info("%s: wiping off what a mkfs that was cut short left on %s", job, namespace.path)
            await device.wipe()
    except (ClaimBusy, CommandError, DeviceChanged, OSError) as error:
        log.error("%s: %s is left as it is: %s", job, namespace.path, error)
        job.leftovers.append(f"wipe what mkfs left on {namespace.path}: {error}")
    # Gone in any case: a device that is not blank is never formatted later on because of an old note.
    core.journal.drop_format(record.wwid)


async def undo_format(core: Core, job: Job, record: FormatRecord) -> None:
    """After a crash in the middle of a mkfs: wipe off what it left, if it is certain that it is just that.

    The disk must be the same incarnation (it was not disconnected since), of the same size (nobody has done anything
    with it since), the crash recent, nobody may use the disk, and either nothing is found on it or the very filesystem
    that was being made. In doubt it is left as it is: should mkfs have ended, there may be data on it by now.
    """
    subsystem = core.kernel.subsystem(record.nqn)
    found = subsystem.identified(record.wwid) if subsystem else ()
    namespace = next((one for one in found if (one.diskseq, one.size) == (record.diskseq, record.size)), None)
    if namespace is None or not 0 <= now_us() - record.started_at <= WIPE_WINDOW:
        log.warning("%s: a mkfs on %s was cut short; the device is left as it is", job, record.wwid)
        core.journal.drop_format(record.wwid)
        return
    try:
        async with core.kernel.lock_device(namespace, read_only=False) as device:
            await _undo(core, job, record, namespace, device)
    except (DeviceChanged, OSError) as error:
        log.warning("%s: cannot undo the mkfs on %s that was cut short: %s", job, namespace.path, error)
        core.journal.drop_format(record.wwid)
