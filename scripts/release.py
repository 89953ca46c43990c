#!/usr/bin/python3
"""Builds what is published of a version: sources, packages, and their checksums, into build/release/VERSION.

HEAD has to carry the tag vVERSION, every file that states a version has to state this one, and nothing may be
uncommitted. All is built from a fresh clone of the tag, so that nothing of this working tree gets in, and the same tag
makes the same files on any machine with the same release of Debian. (But for the header of the source RPM: rpmbuild
notes in it the folder that it was built in.)
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBER = r"\d+\.\d+\.\d+"
# Where a version is stated, first of all the one that the others have to agree with.
STATED = {
    "nvmeofd/__init__.py": r'(?m)^__version__ = "(.*)"$',
    "packaging/deb/changelog": r"^nvmeofd \((\S+)\)",
    "packaging/rpm/nvmeofd.spec": r"(?m)^Version: +(\S+)$",
    "packaging/rpm/nvmeofd.spec, %changelog": r"(?m)^%changelog\n\* .* - (\S+)-\d+$",
}
# A version of the changelog; above the first one is what is not released yet.
CHANGES = rf"(?m)^## ({NUMBER}) - (\d{{4}}-\d\d-\d\d)$"


class Refused(Exception):
    """Nothing was built. One line for each reason."""


def stated(root: Path) -> dict[str, str]:
    """What each place in `STATED` says; "" if it says nothing."""
    found = {}
    for place, pattern in STATED.items():
        match = re.search(pattern, (root / place.partition(",")[0]).read_text(encoding="utf-8"))
        found[place] = match[1] if match else ""
    return found


def newest_in_changelog(root: Path) -> str:
    """The version that CHANGELOG.md describes last; "" if none is released yet."""
    match = re.search(CHANGES, (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    return match[1] if match else ""


def reasons_against(root: Path, version: str) -> list[str]:
    """Why this tree cannot be released as this version; an empty list if it can."""
    if not re.fullmatch(NUMBER, version):
        return [f"{version!r} is no version: three numbers are wanted, such as 1.2.3"]
    reasons = [
        f"{place} states {found or 'no version'}, not {version}"
        for place, found in stated(root).items()
        if found != version
    ]
    if (newest := newest_in_changelog(root)) != version:
        reasons.append(f"CHANGELOG.md has {newest or 'no version'} on top: '## {version} - YYYY-MM-DD' is missing")
    if changed := git(root, "status", "--porcelain"):
        reasons.append("not committed: " + ", ".join(line[3:] for line in changed.splitlines()))
    tag = f"v{version}"
    tagged = git(
        root,
        "for-each-ref",
        "--format=%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)",
        f"refs/tags/{tag}",
    )
    if not tagged:
        reasons.append(f"there is no tag {tag}: git tag --annotate {tag}")
    elif tagged != git(root, "rev-parse", "HEAD"):
        reasons.append(f"the tag {tag} is another commit, {tagged[:12]}")
    return reasons


def release(root: Path, version: str, out: Path) -> list[Path]:
    """Build everything into a new folder. Returns the files.

    Raises:
        Refused
        subprocess.CalledProcessError: a build failed
    """
    if reasons := reasons_against(root, version):
        raise Refused("\n".join(reasons))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        clone, new = Path(folder, "clone"), Path(folder, "new")
        new.mkdir()
        git(root, "clone", "--quiet", "--no-hardlinks", "--branch", f"v{version}", root.as_uri(), str(clone))
        environment = dict(os.environ, SOURCE_DATE_EPOCH=git(clone, "log", "-1", "--format=%ct"))
        environment.setdefault("DEB_BUILD_OPTIONS", "")
        environment.setdefault("RPM_BUILD_WITH", "tests")
        # The source RPM is for any release of Fedora.
        environment["RPM_DIST"] = "%{nil}"
        source = source_archive(clone, version, new)
        for command in (
            ["scripts/build-deb.sh"],
            ["scripts/lintian.sh"],
            ["scripts/build-rpm.sh", "build/rpm", str(source)],
            ["scripts/rpmlint.sh"],
        ):
            subprocess.run(command, cwd=clone, env=environment, check=True)
        for pattern in (f"deb/nvmeofd_{version}_all.deb", "rpm/SRPMS/*.src.rpm"):
            (built,) = (clone / "build").glob(pattern)
            shutil.copy(built, new)
        sums = "".join(
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(new.iterdir())
        )
        (new / "SHA256SUMS").write_text(sums)
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
    return sorted(out.iterdir())


def source_archive(clone: Path, version: str, out: Path) -> Path:
    """All tracked files, as pip and rpmbuild take them: a source distribution of Python is a tree with its PKG-INFO.

    Made by git and not by setuptools, which puts into it the time of the build and not all of the files.
    """
    name = f"nvmeofd-{version}"
    with tempfile.TemporaryDirectory() as folder:
        prepare = (
            "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
        )
        subprocess.run(["/usr/bin/python3", "-c", prepare, folder], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        (metadata,) = Path(folder).glob("*.dist-info/METADATA")
        virtual = f"--add-virtual-file={name}/PKG-INFO:{metadata.read_text(encoding='utf-8')}"
    command = ["git", "archive", "--format=tar", f"--prefix={name}/", virtual, "HEAD"]
    archive = subprocess.run(command, cwd=clone, check=True, stdout=subprocess.PIPE).stdout
    source = out / f"{name}.tar.gz"
    source.write_bytes(gzip.compress(archive, mtime=0))
    return source


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, text=True, stdout=subprocess.PIPE
    ).stdout.rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", nargs="?", help="default: what the tree states")
    parser.add_argument("--check", action="store_true", help="only tell whether it could be released")
    arguments = parser.parse_args()
    version = arguments.version or next(iter(stated(ROOT).values()))
    out = ROOT / "build" / "release" / version
    try:
        if arguments.check:
            if reasons := reasons_against(ROOT, version):
                raise Refused("\n".join(reasons))
        else:
            for file in release(ROOT, version, out):
                print(file.relative_to(ROOT))
    except Refused as refusal:
        print(f"{version} cannot be released:\n{refusal}".replace("\n", "\n  "), file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} ended with status {error.returncode}; nothing was released", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
