"""More races in the scene of racing.py: at the last moment of an umount, and after a mount was looked at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvmeofd.kernel.commands import Commands, Output
from nvmeofd.kernel.interface import CommandError
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.model import Namespace
from tests.unit.kernel import racing
from tests.unit.kernel.racing import THEM, Scene, Watched, cover, exchange, loop_device, mount, own, table

_NEWUSER, _NEWNS = 0x10000000, 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS
_PRIVATE = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC


@contextmanager
def in_a_namespace_of_theirs(act: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """A process of THEM in user and mount namespaces of its own, made before the mount; it acts when told to."""
    tell, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(THEM)
            os.setuid(THEM)
            assert racing._libc.unshare(_NEWUSER | _NEWNS) == 0
            racing._libc.mount(None, b"/", None, _PRIVATE, None)
            os.write(told[1], b"r")
            os.read(tell[0], 1)
            act()
            os.write(told[1], b"d")
            status = 0
        os._exit(status)
    os.close(told[1])
    assert os.read(told[0], 1) == b"r", "they have no namespaces"

    def do() -> None:
        os.write(tell[1], b"g")
        assert os.read(told[0], 1) == b"d", "they could not"

    try:
        yield do
    finally:
        for fd in (tell[1], tell[0], told[0]):
            os.close(fd)
        os.waitpid(pid, 0)


async def entries(scene: Scene, disk: Namespace) -> None:
    """After the look they exchange two mount points, from a mount namespace where these are none."""
    decoy = scene.parent / "decoy"
    scene.make(decoy)
    os.chown(decoy, THEM, THEM)
    with (
        in_a_namespace_of_theirs(lambda: exchange(scene.path, decoy)) as swap,
        LinuxKernel(commands=Watched(swap)) as kernel,
    ):
        with LinuxKernel() as plain:
            await mount(plain, scene, disk)
            cover(decoy)
            made = own(plain, scene)
            (other,) = (one for one in table(plain, scene.theirs) if one.mount_point == str(decoy))
        with contextlib.suppress(CommandError):
            await kernel.unmount(made, str(scene.path))
        assert other.mount_id in {one.mount_id for one in table(kernel, scene.theirs)}, "another one was unmounted"


class _Late(Commands):
    """When the mount is to be recorded they swap, and then that fails or is cancelled."""

    def __init__(self, swap: Callable[[], None], how: str) -> None:
        super().__init__()
        self._swap, self._how = swap, how

    async def run(self, *argv: str, **options: Any) -> Output:
        if "--fake" in argv:
            self._swap()
            if self._how == "failed":
                raise CommandError("mount", 1, "cannot write utab")
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return await super().run(*argv, **options)


async def late(scene: Scene, disk: Namespace, how: str) -> None:
    """After the mount was looked at. What is at the path itself is found by the caller."""
    with LinuxKernel(commands=_Late(lambda: scene.swap_as_them("shadow"), how)) as kernel:
        with contextlib.suppress(CommandError, asyncio.CancelledError):
            await mount(kernel, scene, disk)
        left = [one for one in table(kernel, scene.theirs) if one.mount_point != str(scene.path)]
        assert not left, "left elsewhere, and nobody knows"


def main(arguments: Sequence[str]) -> None:
    directory, mode, kind = Path(arguments[0]) / "scene", *arguments[1:]
    directory.mkdir()
    subprocess.run(["mount", "-n", "-t", "tmpfs", "run", "/run"], check=True)
    with loop_device(directory) as disk:
        scene = Scene(directory, block=kind == "block")
        try:
            asyncio.run(entries(scene, disk) if mode == "entries" else late(scene, disk, mode))
        finally:
            for _ in range(2):
                subprocess.run(["umount", "-n", "-R", *racing._mounted(directory)], check=False, capture_output=True)


if __name__ == "__main__":
    main(sys.argv[1:])
