"""A file that is replaced while others read it, in a directory that may be anybody's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmeofd.kernel.textfile import TextFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nvmeofd.prom"


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_content_mode_and_nothing_else(path: Path) -> None:
    file = TextFile(str(path))
    old = os.umask(0o077)
    try:
        for content in (b"one\n", b"two\n"):
            file.replace(content)
            assert path.read_bytes() == content
            assert path.stat().st_mode & 0o7777 == 0o644
            assert names(path.parent) == [path.name]
    finally:
        os.umask(old)


def test_who_has_it_open_reads_the_old_content(path: Path) -> None:
    file = TextFile(str(path))
    file.replace(b"old\n")
    with path.open("rb") as reader:
        file.replace(b"new\n")
        assert reader.read() == b"old\n"


@pytest.mark.parametrize("planted", [".nvmeofd.prom.new", "nvmeofd.prom"])
@pytest.mark.parametrize("dangling", [False, True])
def test_no_link_is_followed(path: Path, planted: str, dangling: bool) -> None:
    victim = path.parent / "victim"
    if not dangling:
        victim.write_text("precious")
    (path.parent / planted).symlink_to(victim)
    TextFile(str(path)).replace(b"new\n")
    assert not path.is_symlink()
    assert path.read_bytes() == b"new\n"
    assert victim.exists() is not dangling
    if not dangling:
        assert victim.read_text() == "precious"


@pytest.mark.parametrize("planted", [".nvmeofd.prom.new", "nvmeofd.prom"])
def test_no_other_name_of_a_file_is_written_to(path: Path, planted: str) -> None:
    victim = path.parent / "victim"
    victim.write_text("precious")
    (path.parent / planted).hardlink_to(victim)
    TextFile(str(path)).replace(b"new\n")
    assert victim.read_text() == "precious"


def test_pipe_in_its_place_holds_nothing_up(path: Path) -> None:
    os.mkfifo(path)
    os.mkfifo(path.parent / ".nvmeofd.prom.new")
    TextFile(str(path)).replace(b"new\n")
    assert path.read_bytes() == b"new\n"


@pytest.mark.parametrize("planted", [".nvmeofd.prom.new", "nvmeofd.prom"])
def test_directory_in_its_place_is_an_error(path: Path, planted: str) -> None:
    (path.parent / planted).mkdir()
    with pytest.raises(OSError, match="directory"):
        TextFile(str(path)).replace(b"new\n")
    assert names(path.parent) == [planted]


def test_missing_directory(tmp_path: Path) -> None:
    file = TextFile(str(tmp_path / "absent" / "nvmeofd.prom"))
    with pytest.raises(FileNotFoundError):
        file.replace(b"new\n")
    file.remove()


def test_removed(path: Path) -> None:
    file = TextFile(str(path))
    file.remove()
    file.replace(b"one\n")
    file.remove()
    assert names(path.parent) == []
    file.remove()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_somebody_else_put_there_is_not_removed(path: Path, kind: str) -> None:
    file = TextFile(str(path))
    file.replace(b"one\n")
    other = path.parent / "other"
    other.write_text("theirs")
    if kind == "link":
        path.rename(path.parent / "moved")
        path.symlink_to("moved")
    else:
        other.rename(path)
    file.remove()
    assert path.is_symlink() or path.read_text() == "theirs"


def test_no_descriptor_is_left_open(path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    file = TextFile(str(path))
    before = descriptors()
    file.replace(b"one\n")
    file.remove()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        file.replace(b"two\n")
    assert descriptors() == before


def test_link_planted_at_the_last_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the removal of what is in the way and the creation of the new file."""
    victim = path.parent / "victim"
    victim.write_text("precious")
    unlink = os.unlink

    def plant(name: str, *, dir_fd: int) -> None:
        try:
            unlink(name, dir_fd=dir_fd)
        finally:
            os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", plant)
    with pytest.raises(FileExistsError):
        TextFile(str(path)).replace(b"new\n")
    assert victim.read_text() == "precious"
