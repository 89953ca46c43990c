"""What runs in the mount namespace of a race: a host with two trees, one of which belongs to somebody unprivileged.

SCENE/theirs/parent/volume   the staging path; "theirs" and "parent" belong to user 65534
SCENE/victim/volume          nothing may happen here
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmeofd.kernel.commands import Commands, Output
from nvmeofd.kernel.interface import CommandError, Mount, MountMoved, StagingPathError
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.kernel.mountinfo import parse_mount
from nvmeofd.model import DeviceNumber, Namespace, VolumeType

THEM = 65534
ROUNDS = 60
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # include/uapi/linux/fs.h
_UMOUNT_NOFOLLOW = 8  # include/linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two directory entries in one step, see renameat2(2)."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


class Scene:
    def __init__(self, directory: Path, *, block: bool) -> None:
        self.block = block
        self.kind = VolumeType.BLOCK if block else VolumeType.FILESYSTEM
        self.theirs, self.victim = directory / "theirs", directory / "victim"
        self.parent = self.theirs / "parent"
        self.path, self.bait = self.parent / "volume", self.victim / "volume"
        for folder in (self.theirs, self.parent, self.victim):
            folder.mkdir()
        for place in (self.path, self.bait):
            self.make(place)
        # What they swap in: a link in the place of the path, a link or another directory in the place of its parent.
        (self.parent / "link").symlink_to(self.bait)
        (self.theirs / "link").symlink_to(self.victim)
        shadow = self.theirs / "shadow"
        shadow.mkdir()
        self.make(shadow / "volume")
        self.inside = os.open(self.parent, os.O_PATH)  # whatever its name is
        for place in (self.theirs, *self.theirs.rglob("*")):
            os.chown(place, THEM, THEM, follow_symlinks=False)

    def make(self, place: Path) -> None:
        if self.block:
            place.touch()
        else:
            place.mkdir()

    def swap(self, how: str) -> None:
        match how:
            case "last":
                exchange(self.path, self.parent / "link")
            case "parent":
                exchange(self.parent, self.theirs / "link")
            case "shadow":
                exchange(self.parent, self.theirs / "shadow")

    def swap_as_them(self, how: str) -> None:
        child = multiprocessing.get_context("fork").Process(target=self._as_them, args=(how, 1))
        child.start()
        child.join()
        assert child.exitcode == 0, "they could not swap"

    def _as_them(self, how: str, times: int) -> None:
        os.setgroups([])
        os.setgid(THEM)
        os.setuid(THEM)
        while times:
            times -= 1
            with contextlib.suppress(OSError) if times < 0 else contextlib.nullcontext():
                self.swap(how)

    @contextmanager
    def swapping(self, how: str) -> Iterator[None]:
        """They swap on and on."""
        child = multiprocessing.get_context("fork").Process(target=self._as_them, args=(how, -1), daemon=True)
        child.start()
        try:
            yield
        finally:
            child.kill()
            child.join()

    def reset(self) -> None:
        """Whatever they swapped, in its first place again."""
        if self.parent.is_symlink():
            self.swap("parent")
        if self.path.is_symlink():
            self.swap("last")


@contextmanager
def loop_device(directory: Path) -> Iterator[Namespace]:
    image = directory / "image"
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    done = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    path = Path(done.stdout.strip())
    try:
        number = os.stat(path).st_rdev
        yield Namespace(
            name=path.name,
            number=DeviceNumber(os.major(number), os.minor(number)),
            diskseq=int(Path(f"/sys/block/{path.name}/diskseq").read_text()),
            nqn="",
            nsid=1,
            wwid="",
            uuid="",
            nguid="",
            eui64="",
            size=8 << 20,
        )
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


class Watched(Commands):
    """Calls ``before`` right before the first tool runs."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before: Callable[[], None] | None = before

    async def run(self, *argv: str, **options: Any) -> Output:
        before, self._before = self._before, None
        if before is not None:
            before()
        return await super().run(*argv, **options)


def table(kernel: LinuxKernel, below: Path) -> list[Mount]:
    mounts = (parse_mount(line) for line in kernel.mount_lines())
    return [mount for mount in mounts if mount.mount_point.startswith(f"{below}/")]


def recorded() -> str:
    """What systemd is told about mounts."""
    try:
        return Path("/run/mount/utab").read_text()
    except FileNotFoundError:
        return ""


async def once(scene: Scene, disk: Namespace, verb: str, swap: str) -> None:
    path = str(scene.path)
    if verb.startswith("unmount"):
        with LinuxKernel() as kernel:
            await mount(kernel, scene, disk)
            assert f"TARGET={path}" in recorded()
        cover(scene.bait)
        cover(scene.theirs / "shadow" / "volume")
    with LinuxKernel(commands=Watched(lambda: scene.swap_as_them(swap))) as kernel:
        before = table(kernel, scene.victim)
        shadow = {mount.mount_id for mount in table(kernel, scene.theirs / "shadow")}
        error: Exception | None = None
        try:
            if verb.startswith("unmount"):
                await kernel.unmount(own(kernel, scene), path)
            else:
                await mount(kernel, scene, disk)
        except (CommandError, StagingPathError) as caught:
            error = caught
        assert table(kernel, scene.victim) == before, f"it reached {scene.victim}"
        now = {mount.mount_id for mount in table(kernel, scene.theirs)}
        left = now - shadow
        if verb.startswith("unmount"):
            # Theirs to move about; and it is that volume which goes, or none.
            assert shadow <= now
            assert bool(left) is (error is not None)
        else:
            assert error is not None, "a mount at another place counts as none"
            assert not left, "what went wrong is undone"
            assert not recorded()


def cover(place: Path) -> None:
    """A mount of somebody else's."""
    if place.is_dir():
        subprocess.run(["mount", "-n", "-t", "tmpfs", "cover", place], check=True)
    else:
        source = Path(tempfile.mkstemp(dir="/run")[1])
        subprocess.run(["mount", "-n", "--bind", source, place], check=True)


async def mount(kernel: LinuxKernel, scene: Scene, disk: Namespace) -> int:
    if scene.block:
        return await kernel.bind_device(disk, str(scene.path), read_only=False)
    return await kernel.mount(disk, str(scene.path), "ext4", ("noatime", "_netdev"))


def own(kernel: LinuxKernel, scene: Scene) -> Mount:
    """What is mounted at the path, as the table has it."""
    (found,) = (mount for mount in table(kernel, scene.theirs) if mount.mount_point == str(scene.path))
    return found


async def stale(scene: Scene, disk: Namespace, _: str, swap: str) -> None:
    """The directory above is renamed, and nothing tells of that; what is at the path now is somebody else's mount."""
    with LinuxKernel() as kernel:
        mount_id = await mount(kernel, scene, disk)
        made = own(kernel, scene)
        assert made.mount_id == mount_id
        assert kernel.mounts_changed()
        cover(scene.theirs / "shadow" / "volume")
        assert kernel.mounts_changed()
        scene.swap_as_them(swap)
        assert not kernel.mounts_changed(), "a rename does not count as a change of the table"
        before = table(kernel, scene.theirs)
        with pytest.raises(MountMoved):
            await kernel.unmount(made, str(scene.path))
        assert table(kernel, scene.theirs) == before
        (moved,) = (one for one in before if one.mount_id == mount_id)
        assert moved.mount_point != made.mount_point
        await kernel.unmount(moved, str(scene.path))
        assert mount_id not in {one.mount_id for one in table(kernel, scene.theirs)}
        assert not recorded()


async def plain(scene: Scene, disk: Namespace, verb: str, _: str) -> None:
    """Nobody swaps anything."""
    path, read_only = str(scene.path), verb.endswith("-read-only")
    before = len(os.listdir("/proc/self/fd"))
    with LinuxKernel() as kernel:
        if scene.block:
            await kernel.bind_device(disk, path, read_only=read_only)
        else:
            await kernel.mount(disk, path, "ext4", ("noatime", "_netdev", *(["ro"] if read_only else [])))
        (made,) = table(kernel, scene.theirs)
        assert made.mount_point == path
        assert ("ro" in made.options) is read_only
        (line,) = recorded().splitlines()
        assert {f"TARGET={path}", "OPTS=_netdev"} <= set(line.split())
        await kernel.unmount(made, path)
        assert table(kernel, scene.theirs) == []
        assert recorded() == ""
        with pytest.raises(MountMoved):
            await kernel.unmount(made, path)
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left open"


async def storm(scene: Scene, disk: Namespace, verb: str, swap: str) -> None:
    done = refused = 0
    inside = os.listdir(scene.victim)
    if verb.startswith("unmount"):
        cover(scene.bait)
    with LinuxKernel() as kernel, scene.swapping(swap):
        before = table(kernel, scene.victim)
        for _ in range(ROUNDS):
            try:
                await attempt(kernel, scene, disk, verb)
                done += 1
            except (CommandError, StagingPathError, OSError):
                refused += 1
            assert table(kernel, scene.victim) == before, f"it reached {scene.victim}"
            assert os.listdir(scene.victim) == inside
            assert scene.bait.is_dir() is not scene.block
            if verb in {"mount", "bind"} or verb.startswith("unmount"):
                clear(kernel, scene)
    assert done + refused == ROUNDS
    print(f"{verb}, {swap}: {done} done, {refused} refused")
    scene.reset()


async def attempt(kernel: LinuxKernel, scene: Scene, disk: Namespace, verb: str) -> None:
    match verb.removesuffix("-block"):
        case "mount" | "bind":
            await mount(kernel, scene, disk)
        case "unmount":
            mount_id = await mount(kernel, scene, disk)
            made = next(one for one in table(kernel, scene.theirs) if one.mount_id == mount_id)
            await kernel.unmount(made, str(scene.path))
        case "create":
            with contextlib.suppress(OSError):
                (os.unlink if scene.block else os.rmdir)("volume", dir_fd=scene.inside)
            await kernel.create_path(str(scene.path), scene.kind)
        case "remove":
            with contextlib.suppress(OSError):
                if scene.block:
                    os.mknod("volume", dir_fd=scene.inside)
                else:
                    os.mkdir("volume", dir_fd=scene.inside)
                os.chown("volume", THEM, THEM, dir_fd=scene.inside, follow_symlinks=False)
            await kernel.remove_path(str(scene.path), scene.kind)


def clear(kernel: LinuxKernel, scene: Scene) -> None:
    """Unmount by what the kernel says, again when they were faster; never by way of the parent, which may be a link."""
    while left := table(kernel, scene.theirs):
        for one in left:
            _libc.umount2(f"/proc/self/fd/{scene.inside}/{Path(one.mount_point).name}".encode(), _UMOUNT_NOFOLLOW)
    Path("/run/mount/utab").unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> None:
    directory, mode, verb, swap = Path(arguments[0]) / arguments[3], *arguments[1:]
    directory.mkdir()
    subprocess.run(["mount", "-n", "-t", "tmpfs", "run", "/run"], check=True)
    with loop_device(directory) as disk:
        scene = Scene(directory, block=verb.startswith("bind") or verb.endswith("-block"))
        work = {"plain": plain, "once": once, "stale": stale, "storm": storm}[mode]
        try:
            asyncio.run(work(scene, disk, verb, swap))
        finally:
            # Nobody else can: the loop device would stay.
            for _ in range(2):
                subprocess.run(["umount", "-n", "-R", *_mounted(directory)], check=False, capture_output=True)


def _mounted(directory: Path) -> list[str]:
    with LinuxKernel() as kernel:
        return [mount.mount_point for mount in table(kernel, directory)]


if __name__ == "__main__":
    main(sys.argv[1:])
