"""Finding processes that use a device: descriptors, threads, mount namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeofd.kernel import backing, users
from nvmeofd.kernel.interface import OpenFile, ProcessScan
from nvmeofd.kernel.nodes import device_behind
from nvmeofd.model import DeviceNumber

from . import trees
from .processes import child

# /dev/full: hardly anybody has it open.
FULL = DeviceNumber(1, 7)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, and processes of others")


def scan(*names: str, numbers: tuple[DeviceNumber, ...] = (FULL,)) -> ProcessScan:
    return users.scan("/proc", numbers, names)


def test_device_behind(tmp_path: Path) -> None:
    assert device_behind("/dev/full") == FULL
    assert device_behind(str(tmp_path)) is None
    with pytest.raises(FileNotFoundError):
        device_behind(str(tmp_path / "absent"))


def test_an_open_device_is_found() -> None:
    with child("f = open('/dev/full')") as (pid, _):
        (found,) = [f for f in scan().open_files if f.pid == pid]
        assert found.number == FULL
        assert found.command.startswith("python")
        assert not found.transient
        assert not [f for f in scan(numbers=(DeviceNumber(1, 99),)).open_files if f.pid == pid]
    assert not [f for f in scan().open_files if f.pid == pid]


def test_this_process_does_not_count() -> None:
    with open("/dev/full", "rb"):
        assert os.getpid() not in {f.pid for f in scan().open_files}


def test_a_name_is_not_believed() -> None:
    script = "open('/proc/self/comm', 'w').write('(udev-worker)'); f = open('/dev/full')"
    with child(script) as (pid, _):
        (found,) = [f for f in scan().open_files if f.pid == pid]
        assert found.command == "(udev-worker)"
        assert not found.transient


def test_control_groups_of_udev(tmp_path: Path) -> None:
    for text, expected in {
        "0::/system.slice/systemd-udevd.service\n": True,
        "0::/system.slice/systemd-udevd.service/udev\n": True,
        "4:memory:/\n1:name=systemd:/system.slice/systemd-udevd.service\n0::/\n": True,
        "0::/system.slice/systemd-udevd.service.evil\n": False,
        "0::/machine.slice/x/system.slice/systemd-udevd.service\n": False,
        "nonsense\n": False,
    }.items():
        (tmp_path / "cgroup").write_text(text)
        assert users._is_udev(str(tmp_path)) is expected, text
    assert not users._is_udev(str(tmp_path / "gone"))


UNSHARED = """
import ctypes
opened, end = threading.Event(), threading.Event()
def main():
    assert ctypes.CDLL(None).unshare(0x400) == 0  # CLONE_FILES
    os.open('/dev/full', os.O_RDONLY)
    opened.set()
    end.wait()
threading.Thread(target=main, daemon=True).start()
opened.wait()
"""


def test_a_thread_with_files_of_its_own() -> None:
    with child(UNSHARED) as (pid, _):
        assert pid in {f.pid for f in scan().open_files}


@needs_root
def test_a_removed_node_in_another_mount_namespace(tmp_path: Path) -> None:
    script = f"os.mknod('{tmp_path}/n', 0o20600, os.makedev(1, 7)); f = open('{tmp_path}/n'); os.unlink('{tmp_path}/n')"
    with child(script, "unshare", "--mount") as (pid, _):
        assert pid in {f.pid for f in scan().open_files}


@needs_root
def test_mounts_in_another_mount_namespace(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    (tmp_path / "mount me").mkdir()
    script = (
        "import subprocess\n"
        f"subprocess.run(['mount', '--bind', '/dev/full', '{tmp_path}/node'], check=True)\n"
        f"subprocess.run(['mount', '-t', 'tmpfs', 'x', '{tmp_path}/mount me'], check=True)\n"
        f"said = os.stat('{tmp_path}/mount me').st_dev\n"
    )
    with child(script, "unshare", "--mount") as (pid, line):
        number = DeviceNumber(os.major(int(line)), os.minor(int(line)))
        found = [m for m in scan("full", numbers=(number,)).foreign_mounts if m.pid == pid]
        assert {m.mount.mount_point for m in found} == {f"{tmp_path}/node", f"{tmp_path}/mount me"}
        assert not scan("ful", numbers=(DeviceNumber(0, 9999),)).foreign_mounts


@needs_root
def test_processes_that_cannot_be_looked_into_are_reported() -> None:
    """As somebody without rights: whatever root runs is unreadable, and is said to be."""
    script = (
        "import os, sys\n"
        "from nvmeofd.kernel import users\n"
        "from nvmeofd.model import DeviceNumber\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "found = users.scan('/proc', {DeviceNumber(1, 7)}, ())\n"
        f"assert {os.getpid()} in found.unreadable, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": _importable()}, timeout=60)


def _importable() -> str:
    return str(Path(__file__).parents[3])


def test_exports_and_loops_of_a_host_without(tmp_path: Path) -> None:
    assert backing.kernel_users(str(tmp_path), str(tmp_path), {FULL}) == ()


def test_an_export_of_the_nvme_target(tmp_path: Path) -> None:
    export(tmp_path, "/dev/full")
    # A character device is not what a target exports; a number that matches would be one of a block device.
    assert backing.kernel_users(str(tmp_path), "/dev", {FULL}) == ()


def export(sys: Path, device: str) -> Path:
    namespace = sys / "kernel/config/nvmet/subsystems/nqn.x/namespaces/1"
    namespace.mkdir(parents=True, exist_ok=True)
    (namespace / "enable").write_text("1\n")
    (namespace / "device_path").write_text(f"{device}\n")
    return namespace


@pytest.mark.parametrize("device", ["/dev/disk/by-id/nvme-that-is-gone", "/dev/backup0", "//dev//backup0"])
def test_an_export_of_what_is_not_there_any_more(tmp_path: Path, device: str) -> None:
    """The target holds what it opened. Which device that was, a link or a node that is gone does not tell."""
    namespace = export(tmp_path, device)
    with pytest.raises(OSError, match=f"it is not there: '{device}'"):
        backing.kernel_users(str(tmp_path), "/dev", {FULL})
    (namespace / "enable").write_text("0\n")
    assert backing.kernel_users(str(tmp_path), "/dev", {FULL}) == ()


NAMES = [
    "nvme99n1",
    "nvme99n1p1",
    "sdzz1",
    "vdz",
    "dasda1",
    "dm-999",
    "md127p1",
    "md_home",
    "zd16",
    "nbd15p1",
    "drbd9",
    "pmem0.1s",
    "mapper/x",
    "shm/x",
]


@pytest.mark.parametrize("device", ["//dev//nvme99n1", *(f"/dev/{name}" for name in NAMES)])
def test_an_export_of_a_disk_that_was_removed(tmp_path: Path, device: str) -> None:
    export(tmp_path, device)
    assert backing.kernel_users(str(tmp_path), "/dev", {FULL}) == ()


def test_an_export_of_a_disk_whose_node_was_removed(tmp_path: Path) -> None:
    export(tmp_path, "/dev/nvme99n1p1")
    trees.write(tmp_path / "class/block/nvme99n1p1", dev=str(FULL))
    assert backing.kernel_users(str(tmp_path), "/dev", {FULL}) == (OpenFile(0, "nvmet nqn.x", FULL),)


@pytest.mark.parametrize("below", ["/dev/nvme0n1", "/home/somebody/image"])
def test_a_loop_device_that_cannot_be_asked(tmp_path: Path, below: str) -> None:
    """Its node was removed, or the kernel has not let go of what is below yet. On a file, it is none of ours."""
    loop = tmp_path / "block/loop3"
    loop.mkdir(parents=True)
    assert backing.kernel_users(str(tmp_path), str(tmp_path), {FULL}) == ()
    trees.write(loop / "loop", backing_file=below)
    if below.startswith("/dev"):
        with pytest.raises(FileNotFoundError, match="loop3"):
            backing.kernel_users(str(tmp_path), str(tmp_path), {FULL})
    else:
        assert backing.kernel_users(str(tmp_path), str(tmp_path), {FULL}) == ()
    (tmp_path / "loop3").symlink_to("/dev/null")  # what else goes wrong says nothing about what is below
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        backing.kernel_users(str(tmp_path), str(tmp_path), {FULL})
