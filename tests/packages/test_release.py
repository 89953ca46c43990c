"""What `make release` refuses, and that the same tag makes the same files."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import nvmeofd

from .tools import ROOT, attempt, run

VERSION = nvmeofd.__version__
GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
AT = {"GIT_AUTHOR_DATE": "2026-11-25T12:00:00Z", "GIT_COMMITTER_DATE": "2026-11-25T12:00:00Z"}


def git(tree: Path, *arguments: str) -> str:
    return run([*GIT, *arguments], cwd=tree, **AT)


@pytest.fixture(scope="module")
def releasable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the tracked files as they are, ready to be released as the version that they state."""
    tree = tmp_path_factory.mktemp("releasable") / "tree"
    for name in run(["git", "ls-files"]).splitlines():
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    changelog = tree / "CHANGELOG.md"
    text = changelog.read_text()
    if f"## {VERSION} - " not in text:
        changelog.write_text(text.replace("## Unreleased\n", f"## Unreleased\n\n## {VERSION} - 2026-11-25\n", 1))
    git(tree, "init", "--quiet", "--initial-branch", "main")
    commit(tree)
    git(tree, "tag", "--annotate", "--message", "test", f"v{VERSION}")
    return tree


@pytest.fixture
def tree(releasable: Path, tmp_path: Path) -> Path:
    git(releasable, "clone", "--quiet", str(releasable), str(tmp_path / "tree"))
    return tmp_path / "tree"


def commit(tree: Path) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "test")


def edit(tree: Path, name: str, pattern: str, text: str) -> None:
    """Change a file, and have the tag say that this is the version."""
    path = tree / name
    changed, count = re.subn(pattern, text, path.read_text(), count=1)
    assert count == 1
    path.write_text(changed)
    commit(tree)
    git(tree, "tag", "--force", "--annotate", "--message", "test", f"v{VERSION}")


def check(tree: Path, version: str = VERSION) -> subprocess.CompletedProcess[str]:
    return attempt(["scripts/release.py", "--check", version], cwd=tree)


def test_what_is_in_order_is_not_refused(tree: Path) -> None:
    done = check(tree)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert attempt(["scripts/release.py", "--check"], cwd=tree).returncode == 0


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tree: (tree / "README.md").write_text("changed"), "not committed: README.md"),
        (lambda tree: (tree / "new").write_text(""), "not committed: new"),
        (lambda tree: git(tree, "tag", "--delete", f"v{VERSION}"), f"there is no tag v{VERSION}"),
        (lambda tree: git(tree, "commit", "--quiet", "--allow-empty", "--message", "later"), "is another commit"),
        (lambda tree: edit(tree, "nvmeofd/__init__.py", r'"[\d.]+"', '"9.9.9"'), "nvmeofd/__init__.py states 9.9.9"),
        (lambda tree: edit(tree, "packaging/deb/changelog", r"\(.*\)", "(9.9.9)"), "deb/changelog states 9.9.9"),
        (lambda tree: edit(tree, "packaging/rpm/nvmeofd.spec", r"(Version: +).*", r"\g<1>9.9.9"), "spec states 9.9.9"),
        (
            lambda tree: edit(tree, "packaging/rpm/nvmeofd.spec", r"(%changelog\n\* .* - ).*", r"\g<1>9.9.9-1"),
            "%changelog states 9.9.9",
        ),
        (lambda tree: edit(tree, "CHANGELOG.md", rf"## {VERSION} - .*\n", ""), "CHANGELOG.md has no version on top"),
        (
            lambda tree: edit(tree, "CHANGELOG.md", rf"(?=## {VERSION} - )", "## 9.9.9 - 2026-11-25\n\n"),
            "CHANGELOG.md has 9.9.9 on top",
        ),
    ],
)
def test_refused(tree: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(tree)
    done = check(tree)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 2, "nothing but this reason"


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3rc1", "../1.2.3", "one"])
def test_no_version(tree: Path, version: str) -> None:
    done = check(tree, version)
    assert done.returncode == 1
    assert "is no version" in done.stderr


def test_another_version_than_the_tree_states(tree: Path) -> None:
    done = check(tree, "9.9.9")
    assert done.returncode == 1
    assert f"nvmeofd/__init__.py states {VERSION}, not 9.9.9" in done.stderr
    assert "there is no tag v9.9.9" in done.stderr


def test_refused_release_builds_nothing(tree: Path) -> None:
    (tree / "new").write_text("")
    assert attempt(["scripts/release.py"], cwd=tree).returncode == 1
    assert not (tree / "build").exists()


def test_the_same_tag_makes_the_same_files(releasable: Path, tmp_path: Path) -> None:
    built = []
    for name in ("one", "another"):
        tree = tmp_path / name / "tree"
        git(releasable, "clone", "--quiet", str(releasable), str(tree))
        # Without the unit tests, which have just been run.
        run(["scripts/release.py"], cwd=tree, DEB_BUILD_OPTIONS="nocheck", RPM_BUILD_WITH="")
        built.append(tree / "build/release" / VERSION)
    one, another = built
    source, deb, rpm = f"nvmeofd-{VERSION}.tar.gz", f"nvmeofd_{VERSION}_all.deb", f"nvmeofd-{VERSION}-1.src.rpm"
    assert {path.name for path in one.iterdir()} == {source, deb, rpm, "SHA256SUMS"}
    for name in (source, deb):
        assert (one / name).read_bytes() == (another / name).read_bytes(), name
    assert sources_in(one / rpm) == sources_in(another / rpm)
    for folder in built:
        assert len(run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder).splitlines()) == 3
    assert sorted(path.name for path in one.parent.iterdir()) == [VERSION]
    with tarfile.open(one / source) as archive:
        packed = {member.name for member in archive if member.isfile()}
        metadata = archive.extractfile(f"nvmeofd-{VERSION}/PKG-INFO")
        assert metadata is not None
        assert f"\nName: nvmeofd\nVersion: {VERSION}\n" in metadata.read().decode()
    tracked = {f"nvmeofd-{VERSION}/{name}" for name in git(releasable, "ls-files").split()}
    assert packed == tracked | {f"nvmeofd-{VERSION}/PKG-INFO"}


def sources_in(rpm: Path) -> str:
    """The files of a source RPM. Its header is no help: there, rpmbuild notes the folder that it was built in."""
    form = "%{NEVRA} %{BUILDTIME} %{BUILDHOST}\n[%{FILENAMES} %{FILEMTIMES} %{FILEMODES:perms} %{FILEDIGESTS}\n]"
    return run(["rpm", "--query", "--package", "--queryformat", form, rpm])
