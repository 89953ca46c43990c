"""Staging paths: what is there, and making and removing it, past any symbolic link."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from nvmeofd.kernel import paths
from nvmeofd.kernel.interface import PathKind, StagingPathError
from nvmeofd.model import VolumeType


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full/.hidden").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "data").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    kinds = {name: paths.inspect(f"{tmp_path}/{name}") for name in ("absent", "empty", "full", "file", "data", "fifo")}
    assert kinds == {
        "absent": PathKind.ABSENT,
        "empty": PathKind.EMPTY_DIRECTORY,
        "full": PathKind.DIRECTORY,
        "file": PathKind.EMPTY_FILE,
        "data": PathKind.OTHER,
        "fifo": PathKind.OTHER,
    }


def test_components_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for path, component, why in [
        ("link/vol", "link", "symbolic link"),
        ("link", "link", "symbolic link"),
        ("dangling", "dangling", "symbolic link"),
        ("file/vol", "file", "not a directory"),
        ("absent/deep/vol", "absent", "does not exist"),
    ]:
        for act in (paths.inspect, lambda p: paths.create(p, VolumeType.FILESYSTEM)):
            if path in ("link", "dangling") and act is not paths.inspect:
                continue
            with pytest.raises(StagingPathError, match=why) as caught:
                act(f"{tmp_path}/{path}")
            assert f"{tmp_path}/{component}'" in str(caught.value)


@pytest.mark.parametrize("name", ["vol", "a b", "new\nline", os.fsdecode(b"\xff"), "-o"])
@pytest.mark.parametrize("volume_type", list(VolumeType))
def test_create_and_remove(tmp_path: Path, name: str, volume_type: VolumeType) -> None:
    path = f"{tmp_path}/{name}"
    previous = os.umask(0o077)
    try:
        paths.create(path, volume_type)
    finally:
        os.umask(previous)
    status = os.lstat(path)
    if volume_type is VolumeType.FILESYSTEM:
        assert (stat.S_ISDIR(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o750)
    else:
        assert (stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o600)
    os.close(paths.open_target(path, volume_type))
    with pytest.raises(FileExistsError):
        paths.create(path, volume_type)
    paths.remove(path, volume_type)
    assert not os.path.lexists(path)
    paths.remove(path, volume_type)


def test_a_link_in_the_place_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for volume_type in VolumeType:
        with pytest.raises(FileExistsError):
            paths.create(f"{tmp_path}/link", volume_type)
        with pytest.raises(OSError):  # noqa: PT011
            paths.remove(f"{tmp_path}/link", volume_type)
        with pytest.raises(StagingPathError):
            paths.open_target(f"{tmp_path}/link", volume_type)
    assert os.listdir(tmp_path) == ["link"]


def test_what_is_not_empty_or_of_another_kind_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "full/sub").mkdir(parents=True)
    (tmp_path / "data").write_text("x")
    for name, volume_type in [
        ("full", VolumeType.FILESYSTEM),
        ("full", VolumeType.BLOCK),
        ("data", VolumeType.BLOCK),
        ("data", VolumeType.FILESYSTEM),
    ]:
        with pytest.raises(OSError, match=f"{tmp_path}|{name}"):
            paths.remove(f"{tmp_path}/{name}", volume_type)
    assert sorted(os.listdir(tmp_path)) == ["data", "full"]


def test_removing_below_what_is_gone_or_a_link(tmp_path: Path) -> None:
    paths.remove(f"{tmp_path}/absent/vol", VolumeType.FILESYSTEM)
    (tmp_path / "real/vol").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="symbolic link"):
        paths.remove(f"{tmp_path}/link/vol", VolumeType.FILESYSTEM)
    assert (tmp_path / "real/vol").is_dir()


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    paths.create(f"{tmp_path}/a", VolumeType.FILESYSTEM)
    for path in ("a", "a/b/c", "x"):
        with contextlib.suppress(StagingPathError):
            paths.inspect(f"{tmp_path}/{path}")
    paths.remove(f"{tmp_path}/a", VolumeType.FILESYSTEM)
    assert len(os.listdir("/proc/self/fd")) == before
