"""Users of a device, of every kind that must keep it connected. Each has a label and stays until it is ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from .waiting import command

_users: dict[str, Callable[[], None]] = {}


def _keep(label: str, end: Callable[[], None]) -> None:
    if label in _users:
        raise ValueError(f"there is a user {label!r} already")
    _users[label] = end


def make_filesystem(device: str, fstype: str = "ext4", *options: str) -> None:
    """On a block device, or on a backing file: whoever makes it there does not see that blocks are of 4096 bytes."""
    arguments = {
        "ext4": ["-q", "-F", "-b", "4096"],
        "xfs": ["-q", "-f", "-s", "size=4096"],
        "btrfs": ["-q", "-f", "-s", "4096"],
    }
    command([f"mkfs.{fstype}", *arguments[fstype], *options, device], timeout=120.0)


def mount(label: str, device: str, path: str, *options: str) -> None:
    """A file system mounted where everybody sees it; `device` needs one already."""
    os.makedirs(path, exist_ok=True)
    command(["mount", *options, device, path])
    _keep(label, lambda: _umount(path))


def private_mount(label: str, device: str, path: str) -> int:
    """A mount that only one process has, in its own mount namespace. Returns the pid of that process."""
    os.makedirs(path, exist_ok=True)
    return _in_private(label, [*_ALONE, "mount", device, path], path, lambda: os.rmdir(path))


def private_bind(label: str, device: str, path: str) -> int:
    """The device node bound onto a file, where only one process sees it. Returns the pid of that process."""
    Path(path).touch()
    return _in_private(label, [*_ALONE, "mount", "--bind", device, path], path, lambda: os.unlink(path))


# Runs what follows without the copies of volumes that a new mount namespace has; the root is busy and stays.
_ALONE = ["sh", "-c", 'umount --all --types ext4,xfs,btrfs 2>/dev/null; exec "$@"', "sh"]


def _in_private(label: str, mount: list[str], path: str, remove: Callable[[], None]) -> int:
    script = 'path=$1; shift; "$@" && echo ready && read line; umount --recursive "$path"'
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", path, *mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        _, message = process.communicate()
        raise RuntimeError(message.decode())

    def end() -> None:
        # It unmounts before it ends: the kernel frees the device of a dead namespace only some time after.
        process.communicate(b"\n", timeout=60.0)
        remove()

    _keep(label, end)
    return process.pid


def namespace_copy(label: str) -> int:
    """A process with its own copy of all mounts there are now, as containers have. Returns its pid."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep infinity"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()

    def end() -> None:
        process.kill()
        process.communicate(timeout=60.0)

    _keep(label, end)
    return process.pid


def namespace_bind(label: str, path: str, elsewhere: str) -> int:
    """A process that sees what is mounted at a path at another one only, as in a container. Returns its pid."""
    os.makedirs(elsewhere, exist_ok=True)
    script = 'mount --rbind "$(dirname "$1")" "$2" && umount "$1"'
    return _in_private(label, ["sh", "-c", script, "sh", path, elsewhere], elsewhere, lambda: os.rmdir(elsewhere))


def bind(label: str, source: str, path: str) -> None:
    """A folder of a mounted file system, bound elsewhere."""
    os.makedirs(path, exist_ok=True)
    command(["mount", "--bind", source, path])
    _keep(label, lambda: _umount(path))


def block_bind(label: str, device: str, path: str) -> None:
    """The device node bound onto a file: a raw block volume."""
    Path(path).touch()
    command(["mount", "--bind", device, path])

    def end() -> None:
        command(["umount", path])
        os.unlink(path)

    _keep(label, end)


def device_mapper(label: str, device: str) -> str:
    """A linear device-mapper device on top. Returns its node."""
    sectors = command(["blockdev", "--getsz", device]).strip()
    command(["dmsetup", "create", label, "--table", f"0 {sectors} linear {device} 0"])
    _keep(label, lambda: _run(["dmsetup", "remove", "--retry", label]))
    return f"/dev/mapper/{label}"


def swap(label: str, device: str) -> None:
    command(["mkswap", device])
    command(["swapon", device])
    _keep(label, lambda: _run(["swapoff", device]))


def opener(label: str, path: str) -> int:
    """A process that has a device or a file open, without claiming it. Returns its pid."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process = subprocess.Popen(["sleep", "infinity"], stdin=fd)
    finally:
        os.close(fd)

    def end() -> None:
        process.kill()
        process.wait()

    _keep(label, end)
    return process.pid


def worker(label: str, path: str) -> int:
    """A process whose working directory is `path`: it keeps a mount busy. Returns its pid."""
    process = subprocess.Popen(["sleep", "infinity"], cwd=path)

    def end() -> None:
        process.kill()
        process.wait()

    _keep(label, end)
    return process.pid


def end(label: str) -> None:
    _users[label]()
    del _users[label]


def end_all() -> list[str]:
    """End every user, the youngest first (it may stand on an older one). Returns their labels."""
    ended = []
    for label in reversed(list(_users)):
        end(label)
        ended.append(label)
    return ended


def present() -> list[str]:
    return list(_users)


def _umount(path: str) -> None:
    command(["umount", path])
    os.rmdir(path)


def _run(argv: list[str]) -> None:
    command(argv)
