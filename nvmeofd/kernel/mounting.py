"""Mounting on exactly what was looked at, and unmounting exactly there, whatever becomes of the path meanwhile.

Whoever owns a directory above a staging path can rename what is in it, and put a symbolic link in its place, at any
moment; mount(2) and umount(2) take paths and follow links. So the tools get a path that begins at a descriptor,
/proc/self/fd/N, and what systemd is to know of the mount (_netdev) is recorded under the staging path afterwards.

What makes it safe is that the kernel neither renames nor removes a directory entry that something is mounted on in
this mount namespace (may_delete, vfs_rename: EBUSY), though it does rename the directories above, and ends a rename
that had begun before the mount. So the last component is not followed either.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from nvmeofd.kernel import paths, tools
from nvmeofd.kernel.blockdev import block_number
from nvmeofd.kernel.commands import Commands
from nvmeofd.kernel.interface import CommandError, MountMoved, StagingPathError
from nvmeofd.kernel.threads import in_thread, outlast
from nvmeofd.log import log, quoted
from nvmeofd.model import DeviceNumber, VolumeType

# How often a mount at the wrong place is looked for while its owner moves it about.
_ATTEMPTS = 20


class What(NamedTuple):
    """What is to be mounted. ``fstype`` is "" for a block bind, ``node`` the path of the device."""

    node: str
    number: DeviceNumber
    fstype: str
    options: Sequence[str]

    @property
    def kind(self) -> VolumeType:
        return VolumeType.FILESYSTEM if self.fstype else VolumeType.BLOCK


async def mount(commands: Commands, proc: str, what: What, path: str) -> int:
    """Mount at ``path``; returns the identifier of the mount. One that turns out to be elsewhere is undone.

    Raises:
        CommandError, StagingPathError, OSError
    """
    target = await in_thread(lambda: paths.open_target(path, what.kind), name=f"look at {path}", dispose=os.close)
    try:
        try:
            await tools.mount(commands, what.node, target, path, what.fstype, what.options)
        except asyncio.CancelledError:
            # The tool may have done its part before it was killed. At the path itself the caller looks for that.
            await outlast(asyncio.ensure_future(_undo_elsewhere(commands, proc, what, target, path)))
            raise
        mount_id = await _made_at(commands, proc, what, target, path)
        try:
            if not what.fstype and "ro" in what.options:
                await _make_read_only(commands, path, what.number)
            await tools.record_mount(commands, what.node, path, what.fstype, what.options)
        except BaseException:
            await outlast(asyncio.ensure_future(_undo_elsewhere(commands, proc, what, target, path)))
            raise
    finally:
        os.close(target)
    return mount_id


async def unmount(commands: Commands, place: str, mount_id: int, path: str) -> None:
    """Unmount this very mount, which is at ``place`` and was made at ``path``. Raises MountMoved, CommandError."""
    try:
        parent = await in_thread(lambda: _holding(place, mount_id), name=f"look at {place}", dispose=os.close)
    except (StagingPathError, OSError) as error:
        raise MountMoved(f"{quoted(place)}: {error}") from error
    try:
        entry = f"/proc/self/fd/{parent}/{os.path.basename(place)}"
        await tools.umount(commands, entry, place, mount_id=mount_id, pass_fds=(parent,))
    finally:
        os.close(parent)
    await tools.record_umount(commands, path)


def _holding(place: str, mount_id: int) -> int:
    """The directory in which this very mount is topmost at its entry (O_PATH). Raises StagingPathError, OSError.

    Two directories with a mount each can have swapped their names, which nothing tells of. From here on the directory
    stays, whatever is renamed above it.
    """
    with paths.handed_on(paths.open_mount_point(place)) as parent:
        if paths.mounted_in(parent, os.path.basename(place)) != mount_id:
            raise StagingPathError("something else is mounted there")
    return parent


async def _make_read_only(commands: Commands, path: str, number: DeviceNumber) -> None:
    """Binding and making it read-only are two calls to the kernel, and the second one is for what was mounted."""
    try:
        bound = await in_thread(lambda: _open_bound(path, number), name=f"look at {path}", dispose=os.close)
    except OSError as error:
        raise StagingPathError(f"{path!r} was moved while something was mounted there") from error
    try:
        await tools.remount_read_only(commands, f"/proc/self/fd/{bound}", path, pass_fds=(bound,))
    finally:
        os.close(bound)


def _open_bound(path: str, number: DeviceNumber) -> int:
    """The device node that is bound at ``path`` (O_PATH). Raises StagingPathError, OSError."""
    parent = paths.open_mount_point(path)
    try:
        bound = os.open(os.path.basename(path), paths.WALK, dir_fd=parent)
    finally:
        os.close(parent)
    with paths.handed_on(bound):
        if block_number(os.fstat(bound)) != number:
            raise StagingPathError(f"something else is mounted at {path!r}")
    return bound


async def _made_at(commands: Commands, proc: str, what: What, target: int, path: str) -> int:
    """The identifier of what was just mounted on ``target``, which still is at ``path``.

    Raises:
        StagingPathError: it is not; the mount is undone.
    """

    def look() -> int:
        parent = _parent_of(target, path, what.number)
        try:
            return paths.mounted_in(parent, os.path.basename(path))
        finally:
            os.close(parent)

    for _ in range(_ATTEMPTS):
        if await _undo_elsewhere(commands, proc, what, target, path):
            break
        try:
            return await in_thread(look, name=f"look at {path}")
        except (StagingPathError, OSError):
            continue  # it was renamed in between
    raise StagingPathError(f"{path!r} was moved while something was mounted there")


async def _undo_elsewhere(commands: Commands, proc: str, what: What, target: int, path: str) -> bool:
    """Whether ``target`` is not at ``path`` any more; then what was mounted on it is unmounted again."""
    if os.readlink(f"{proc}/self/fd/{target}") == path:
        return False
    for _ in range(_ATTEMPTS):
        place = os.readlink(f"{proc}/self/fd/{target}")
        try:
            parent = await in_thread(
                partial(_parent_of, target, place, what.number),
                name=f"look at {place}",
                dispose=os.close,
            )
        except (StagingPathError, OSError):
            continue
        try:
            entry = f"/proc/self/fd/{parent}/{os.path.basename(place)}"
            mount_id = paths.mounted_in(parent, os.path.basename(place))
            await tools.umount(commands, entry, place, mount_id=mount_id, pass_fds=(parent,))
        except (CommandError, OSError) as error:
            if os.readlink(f"{proc}/self/fd/{target}") != place:
                continue  # it was renamed in between
            log.error("what was to be mounted at %s is at %s and stays there: %s", quoted(path), quoted(place), error)
        finally:
            os.close(parent)
        return True
    log.error("what was to be mounted at %s is somewhere else, if it is mounted at all", quoted(path))
    return True


def _parent_of(target: int, place: str, number: DeviceNumber) -> int:
    """The directory in which ``target``, found at ``place``, has something mounted on it. Raises as paths does."""
    if stat.S_ISDIR(os.fstat(target).st_mode):
        return paths.open_mount_point_in(os.open("..", paths.WALK | os.O_DIRECTORY, dir_fd=target), place)
    with paths.handed_on(paths.open_mount_point(place)) as parent:
        # Nothing leads from a file to its directory: this may be another one, with another mount in it.
        status = os.stat(os.path.basename(place), dir_fd=parent, follow_symlinks=False)
        if block_number(status) != number:
            raise StagingPathError(f"something else is mounted at {place!r}")
    return parent
