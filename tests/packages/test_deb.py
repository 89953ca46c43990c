"""The Debian package, without installing it; tests/vm/test_package.py does that."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

import nvmeofd

from .tools import ROOT, attempt, run, uncompressed

# Debian 12 has units in /lib/systemd/system, later releases below /usr like everybody.
UNITS = ("/lib/systemd/system/", "/usr/lib/systemd/system/")


@pytest.fixture(scope="module")
def contents(deb: Path) -> dict[str, tarfile.TarInfo]:
    """Everything in the package by its path on the host."""
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name.removeprefix("."): member for member in tar if member.name != "."}


def field(deb: Path, name: str) -> str:
    return run(["dpkg-deb", "--field", deb, name]).strip()


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    run(["scripts/lintian.sh", deb.parent.relative_to(ROOT)])


def test_owners_and_modes(contents: dict[str, tarfile.TarInfo]) -> None:
    """Root's, read by everybody, written by nobody else; only programs can be run."""
    for path, member in contents.items():
        assert (member.uid, member.gid) == (0, 0), path
        programs = ("/usr/libexec/", "/usr/bin/", "/usr/sbin/")
        mode = 0o755 if member.isdir() or path.startswith(programs) else 0o644
        assert member.issym() or member.mode == mode, f"{path}: {member.mode:o}"
        assert member.isfile() or member.isdir() or member.issym(), path


def test_everything_is_in_it(contents: dict[str, tarfile.TarInfo], data: set[str]) -> None:
    packed = {path.replace(UNITS[0], UNITS[1]) for path, member in contents.items() if not member.isdir()}
    assert data - {uncompressed(path) for path in packed} == set()
    sources = {f"/usr/lib/python3/dist-packages/{name}" for name in run(["git", "ls-files", "nvmeofd"]).split()}
    missing = {
        path for path in sources - packed if (ROOT / path.removeprefix("/usr/lib/python3/dist-packages/")).exists()
    }
    assert missing == set()


def test_nothing_else_is_in_it(contents: dict[str, tarfile.TarInfo], data: set[str]) -> None:
    """Neither tests nor compiled code, and nothing that would enable it behind systemd's back."""
    places = ("/usr/lib/python3/dist-packages/nvmeofd", "/usr/share/doc/nvmeofd/", "/usr/bin/nvmeof")
    others = {
        path
        for path, member in contents.items()
        if not member.isdir()
        and uncompressed(path.replace(UNITS[0], UNITS[1])) not in data
        and not path.startswith(places)
    }
    assert others == set()
    assert [path for path in contents if path.endswith(".pyc") or "/tests" in path] == []


def test_configuration_is_the_administrators(deb: Path, contents: dict[str, tarfile.TarInfo]) -> None:
    """An upgrade asks before it replaces what was edited."""
    listed = attempt(["dpkg-deb", "--info", deb, "conffiles"]).stdout.split()
    assert sorted(listed) == [path for path in sorted(contents) if path.startswith("/etc/") and contents[path].isfile()]


def test_depends_on_what_the_project_depends_on(deb: Path) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    depends = [entry.split()[0] for entry in field(deb, "Depends").split(",")]
    assert {f"python3-{entry.partition('>')[0]}" for entry in wanted} <= set(depends)


def test_runs_with_the_libraries_of_the_distribution(deb: Path, tmp_path: Path) -> None:
    run(["dpkg-deb", "--extract", deb, tmp_path])
    path = tmp_path / "usr/lib/python3/dist-packages"
    shown = run([tmp_path / "usr/libexec/nvmeofd", "--version"], PYTHONPATH=str(path), PYTHONDONTWRITEBYTECODE="1")
    assert nvmeofd.__version__ in shown
