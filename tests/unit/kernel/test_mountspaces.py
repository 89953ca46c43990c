"""Mount points in other mount namespaces: removing a staging path must not take them away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvmeofd.kernel import paths
from nvmeofd.kernel.interface import ForeignMount, HeldElsewhere
from nvmeofd.kernel.mountspaces import mounted_on
from nvmeofd.model import VolumeType

from .processes import child

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts in a namespace of their own")

UNSHARED = ("unshare", "--mount", "--propagation", "private", "sh", "-c")


@contextmanager
def stranger(script: str) -> Iterator[int]:
    """A process that has run a shell script in a mount namespace of its own. Its number."""
    with child("", *UNSHARED, f'{script} && exec "$@"', "sh") as (pid, _):
        yield pid


@contextmanager
def inside(script: str, code: str) -> Iterator[int]:
    """A process that has run a shell script in a mount namespace of its own, then Python code that prints a line."""
    command = [*UNSHARED, f'{script} && exec "$@"', "sh", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def held(path: Path) -> ForeignMount | None:
    directory = os.open(path.parent, os.O_PATH)
    try:
        return mounted_on("/proc", directory, path.name)
    finally:
        os.close(directory)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "with a blank"
    made.mkdir()
    return made


def test_nobody(path: Path) -> None:
    with stranger("true"):
        assert held(path) is None


def test_at_the_same_path(path: Path) -> None:
    with stranger(f"mount -t tmpfs stranger '{path}'") as pid:
        found = held(path)
        assert found is not None
        assert (found.pid, found.mount.mount_point, found.mount.source) == (pid, str(path), "stranger")
        with pytest.raises(HeldElsewhere, match="stranger"):
            paths.remove(str(path), VolumeType.FILESYSTEM)
    paths.remove(str(path), VolumeType.FILESYSTEM)
    assert not path.exists()


def test_known_by_another_path(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with stranger(f"mount --bind '{path.parent}' '{other}' && mount -t tmpfs stranger '{other / path.name}'"):
        found = held(path)
        assert found is not None
        assert found.mount.mount_point == str(other / path.name)


def test_another_filesystem_at_the_same_path(path: Path) -> None:
    """The stranger covers the parent: what is mounted in there does not depend on the path here."""
    with stranger(f"mount -t tmpfs cover '{path.parent}' && mkdir '{path}' && mount -t tmpfs stranger '{path}'"):
        assert held(path) is None


def test_bound_elsewhere(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is mounted on a bind of the directory is on the bind's root, which stays when the directory goes."""
    other = tmp_path_factory.mktemp("other")
    with stranger(f"mount --bind '{path}' '{other}'"):
        assert held(path) is None


def test_a_name_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "a\\b #\tc"
    path.mkdir()
    with stranger(f"mount -t tmpfs stranger '{path}'"):
        assert held(path) is not None


def test_below_the_root_of_a_process(path: Path) -> None:
    """It sees part of the file tree only: where its mount is cannot be told, so the name decides."""
    code = f"import os, sys; os.chroot('{path.parent}'); print(flush=True); sys.stdin.read()"
    with inside(f"mount -t tmpfs stranger '{path}'", code):
        found = held(path)
        assert found is not None
        assert found.mount.mount_point == f"/{path.name}"


def test_a_main_thread_that_has_ended(path: Path) -> None:
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        "print(flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with inside(f"mount -t tmpfs stranger '{path}'", code) as pid:
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
            os.sched_yield()
        assert held(path) is not None


def test_another_directory_of_the_same_name(path: Path) -> None:
    other = path.parent / "other" / path.name
    other.mkdir(parents=True)
    with stranger(f"mount -t tmpfs stranger '{other}'"):
        assert held(path) is None


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with stranger(f"mount --bind /dev/null '{file}'"), pytest.raises(HeldElsewhere):
        paths.remove(str(file), VolumeType.BLOCK)
