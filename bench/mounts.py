"""How long it takes to find out who uses a subsystem, on a host with many mounts: `python3 -m bench.mounts`.

The mounts are binds on tmpfs in a mount namespace of its own, so nobody else sees them and nothing is left.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nvmeofd.cache import MountCache
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.kernel.mountinfo import parse_mount, read_table
from nvmeofd.model import DeviceNumber, Namespace

from .table import show, times

INSIDE = "--inside"  # set for the process that has the mount namespace to itself
NAMESPACES = 4  # of the subsystem that is asked about
MS_BIND = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, where: Path, fstype: str = "", flags: int = 0) -> None:
    where.mkdir(exist_ok=True)
    kind = fstype.encode() or None
    if _libc.mount(source.encode(), os.fsencode(where), kind, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(where))


def umount(where: Path) -> None:
    if _libc.umount2(os.fsencode(where), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(where))


def subsystem(folder: Path) -> tuple[Namespace, ...]:
    """Namespaces that are mounted once each; a tmpfs stands in for the filesystem on a real one."""
    found = []
    for nsid in range(1, NAMESPACES + 1):
        where = folder / f"volume-{nsid}"
        mount("none", where, "tmpfs")
        device = where.stat().st_dev
        number = DeviceNumber(os.major(device), os.minor(device))
        found.append(
            Namespace(
                name=f"nvme0n{nsid}", number=number, diskseq=nsid, nqn="nqn.2026-11.org.example:bench", nsid=nsid,
                wwid=f"uuid.{nsid}", uuid="", nguid="", eui64="", size=1 << 30,
            )
        )  # fmt: skip
    return tuple(found)


def measure(mounts: int, repeats: int, folder: Path) -> None:
    folder.mkdir()
    others = folder / "others"
    mount("none", others, "tmpfs")
    namespaces = subsystem(folder)
    (others / "source").mkdir()
    for number in range(mounts):
        mount(str(others / "source"), others / str(number), flags=MS_BIND)
    with LinuxKernel() as kernel:
        cache = MountCache(kernel)
        cache.refresh()

        def decide() -> None:
            cache.refresh()
            users = [*map(cache.mounts_of, namespaces), *map(cache.block_mounts_of, namespaces)]
            assert sum(map(len, users)) == NAMESPACES

        extra = others / "extra"

        def change() -> None:
            if os.path.ismount(extra):
                umount(extra)
            else:
                mount(str(others / "source"), extra, flags=MS_BIND)

        def read_and_parse() -> None:
            fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            try:
                table = read_table(fd)
            finally:
                os.close(fd)
            for line in table.split(b"\n"):
                if line:
                    parse_mount(line)

        def findmnt() -> None:
            subprocess.run(["findmnt", "-J", "--list"], stdout=subprocess.DEVNULL, check=True)

        rows = [
            ("findmnt -J --list", times(findmnt, repeats)),
            ("read and parse the whole table", times(read_and_parse, repeats)),
            ("first filling of the cache", times(cache.rebuild, repeats)),
            ("decision after one change", times(decide, repeats, before=change)),
            ("decision, table unchanged", times(decide, repeats * 20)),
        ]
        show(f"{len(cache)} mounts", rows, digits=3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.mounts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mounts", type=int, default=10_000, help="binds to make (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=51, help="runs of each (default: %(default)s)")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        unshare = [shutil.which("unshare") or "/usr/bin/unshare", "--mount", "--propagation", "private"]
        if os.geteuid() != 0:
            unshare.append("--map-root-user")
        again = [*unshare, sys.executable, "-m", "bench.mounts", *sys.argv[1:], INSIDE]
        return subprocess.run(again, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="nvmeofd-bench-") as folder:
        mount("none", Path(folder), "tmpfs")
        try:
            measure(0, arguments.repeats, Path(folder, "few"))
            measure(arguments.mounts, arguments.repeats, Path(folder, "many"))
        finally:
            _libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH: all below it as well
    return 0


if __name__ == "__main__":
    sys.exit(main())
