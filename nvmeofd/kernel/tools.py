"""What is asked of other programs: mount, umount, mkfs, e2fsck, blkid, udevadm."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from nvmeofd.kernel.commands import Commands
from nvmeofd.kernel.interface import CommandError, Content

# How each mkfs is told to be quiet and which UUID to use. None is told to force anything: on a blank device none asks.
_MKFS: dict[str, tuple[str, ...]] = {
    "ext2": ("-q", "-U", "{uuid}"),
    "ext3": ("-q", "-U", "{uuid}"),
    "ext4": ("-q", "-U", "{uuid}"),
    "xfs": ("-q", "-m", "uuid={uuid}"),
    "btrfs": ("-q", "-U", "{uuid}"),
}
_E2FSCK_TYPES = frozenset({"ext2", "ext3", "ext4"})
_E2FSCK_REASONS = {
    2: "errors were corrected, and it asks for a reboot",
    4: "errors are left, run e2fsck by hand",
    8: "operational error",
    16: "usage error",
    32: "cancelled",
    128: "shared library error",
}
_BLKID_NOTHING = 2  # also when the device could not be opened, which it says on stderr
_BLKID_AMBIVALENT = 8
_SETTLE_SECONDS = 30


def mkfs_supported(commands: Commands, fstype: str) -> bool:
    """Whether this host has mkfs for the type and it is known how to run it."""
    return fstype in _MKFS and commands.available(f"mkfs.{fstype}")


async def mkfs(commands: Commands, fstype: str, device: str, *, uuid: str, options: Sequence[str]) -> None:
    """Make a filesystem. Raises CommandError."""
    tool = f"mkfs.{fstype}"
    if fstype not in _MKFS:
        raise CommandError(tool, 127, "not supported")
    fixed = [argument.format(uuid=uuid) for argument in _MKFS[fstype]]
    await commands.run(tool, *fixed, *options, "--", device)


async def fsck(commands: Commands, fstype: str, device: str) -> None:
    """Check a filesystem and repair what is safe to repair (e2fsck -p), for types that want that before a mount.

    xfs and btrfs replay their logs when they are mounted and have no such check.

    Raises:
        CommandError: anything but "clean" (0) and "all corrected" (1), see e2fsck(8), EXIT CODE.
    """
    if fstype not in _E2FSCK_TYPES:
        return
    try:
        await commands.run("e2fsck", "-p", "--", device, good=(0, 1))
    except CommandError as error:
        reasons = [text for bit, text in _E2FSCK_REASONS.items() if 0 < error.status < 256 and error.status & bit]
        raise CommandError("e2fsck", error.status, ", ".join([*reasons, error.reason])) from error


async def blkid(commands: Commands, device: str) -> Content:
    """What superblocks and partition tables are on the device itself, past any cache. Raises CommandError.

    A read error looks like "nothing found" (blkid reports both with status 2).
    """
    output = await commands.run(
        "blkid", "-p", "-o", "export", "--", device, good=(0, _BLKID_NOTHING, _BLKID_AMBIVALENT)
    )
    if output.status == _BLKID_AMBIVALENT:
        return Content(ambivalent=True)
    if output.status == _BLKID_NOTHING:
        if output.stderr.strip():
            raise CommandError("blkid", output.status, output.reason())
        return Content()
    return content_of(parse_export(output.stdout.decode("utf-8", "replace")))


def parse_export(text: str) -> dict[str, str]:
    r"""Parse ``blkid -o export``: one ``KEY=value`` a line, shell-escaped with backslashes."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: re.sub(r"\\(.)", r"\1", value) for key, equals, value in pairs if equals}


def content_of(tags: dict[str, str]) -> Content:
    """What the tags of one device amount to."""
    fstype = uuid = ""
    other = []
    kind = tags.get("TYPE", "")
    if kind and tags.get("USAGE") == "filesystem":
        fstype, uuid = kind, tags.get("UUID", "")
    elif kind or "USAGE" in tags:  # raid, crypto, other (swap, LVM)
        other.append(kind or tags["USAGE"])
    if "PTTYPE" in tags:
        other.append(f"{tags['PTTYPE']} partition table")
    return Content(fstype, uuid, ", ".join(other))


async def mount(commands: Commands, device: str, target: int, path: str, fstype: str, options: Sequence[str]) -> None:
    """Mount a filesystem, or bind ``device`` when there is no type, on a descriptor (O_PATH). Raises CommandError.

    Nothing is recorded, see :func:`record_mount`, and a bind is writable whatever the options say: that takes a second
    step, :func:`remount_read_only`. Neither fstab nor links nor helpers of the type (mount.TYPE) have a say in it.
    """
    argv = (*_MOUNT, "--no-mtab", *_how(fstype, [one for one in options if fstype or one != "ro"]))
    place = f"/proc/self/fd/{target}"
    await _run_at(commands, path, place, *argv, "--", device, place, pass_fds=(target,))


async def remount_read_only(commands: Commands, place: str, path: str, *, pass_fds: Sequence[int]) -> None:
    """Make the mount at ``place`` read-only, not what is mounted. Raises CommandError, which says ``path``."""
    argv = (*_MOUNT, "--no-mtab", *_joined(("remount", "bind", "ro")))
    await _run_at(commands, path, place, *argv, "--", place, pass_fds=pass_fds)


async def record_mount(commands: Commands, device: str, path: str, fstype: str, options: Sequence[str]) -> None:
    """Write down what the kernel does not keep but systemd needs: the option _netdev, in /run/mount/utab.

    ``path`` is not looked at. Raises CommandError.
    """
    await commands.run(*_MOUNT, "--fake", *_how(fstype, options), "--", device, path)


async def umount(commands: Commands, place: str, path: str, *, mount_id: int, pass_fds: Sequence[int]) -> None:
    """Unmount what is topmost at ``place``, if it is that very mount. Raises CommandError, which says ``path``.

    The mount is looked at last thing before: a mount point can be renamed in a mount namespace where it is none, and
    whoever owns its directory can make one (is_local_mountpoint in fs/namei.c).

    umount(8) of root follows a link in the last component. That is where one can turn up: a rename that the kernel
    began before something was mounted there is done afterwards all the same, however long its filesystem takes.
    """
    try:
        await _run_at(commands, path, place, *_UMOUNT, place, str(mount_id), pass_fds=pass_fds)
    except CommandError as error:
        raise CommandError("umount", error.status, error.reason) from error


# A process, and not a call in a thread, because the kernel may hold it: see commands.py. UMOUNT_NOFOLLOW is 8.
_UMOUNT_SCRIPT = """
import ctypes, errno, os, sys

def fail(reason):
    sys.stderr.write(f"{sys.argv[1]}: {reason}\\n")
    sys.exit(32)

place = os.fsencode(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
try:
    fd = os.open(place, os.O_PATH | os.O_NOFOLLOW)
    with open(f"/proc/self/fdinfo/{fd}") as file:
        found = dict(line.split(":", 1) for line in file)["mnt_id"].strip()
    os.close(fd)
except OSError as error:
    fail(error.strerror)
if found != sys.argv[2]:
    fail("something else is mounted there")
if libc.umount2(place, 8) != 0:
    number = ctypes.get_errno()
    fail({errno.EBUSY: "target is busy", errno.EINVAL: "not mounted"}.get(number, os.strerror(number)))
"""
_UMOUNT = (sys.executable, "-I", "-S", "-c", _UMOUNT_SCRIPT)


async def record_umount(commands: Commands, path: str) -> None:
    """Forget what :func:`record_mount` wrote down. Raises CommandError."""
    await commands.run("umount", "--no-canonicalize", "--fake", "--", path)


async def _run_at(commands: Commands, path: str, place: str, *argv: str, pass_fds: Sequence[int]) -> None:
    """Run a tool on a path that begins at a descriptor; what it has to say is about ``path``."""
    try:
        await commands.run(*argv, pass_fds=pass_fds)
    except CommandError as error:
        raise CommandError(error.tool, error.status, error.reason.replace(place, path)) from error


# Staging paths have no symbolic links, so there is nothing to canonicalize; and doing so stats every component.
_MOUNT = ("mount", "--internal-only", "--no-canonicalize", "--options-source=disable")


def _how(fstype: str, options: Sequence[str]) -> tuple[str, ...]:
    return ("-t", fstype, *_joined(options)) if fstype else _joined(("bind", *options))


def _joined(options: Sequence[str]) -> tuple[str, ...]:
    return ("-o", ",".join(options)) if options else ()


async def settle(commands: Commands) -> None:
    """Wait until udev has worked off its queue. Raises CommandError, also after 30 seconds."""
    await commands.run("udevadm", "settle", f"--timeout={_SETTLE_SECONDS}")


async def host_is_stopping(commands: Commands) -> bool:
    """Whether the service manager is shutting the host down. Raises CommandError."""
    # any other state may end with a status of its own
    output = await commands.run("systemctl", "is-system-running", good=range(256))
    return output.stdout.strip() == b"stopping"
