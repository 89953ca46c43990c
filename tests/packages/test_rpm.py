"""The RPM: in a folder of its own, with nothing of Fedora there. Its scripts are not run; they need a Fedora host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .tools import ROOT, run, uncompressed

# Without root, in a user namespace where we are: rpm gives files to root.
BECOME = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
# Folders that packages of Fedora own which every host has, or which this one requires.
SHARED = {
    "/",
    "/etc",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib/systemd",
    "/usr/lib/systemd/system",
    "/usr/libexec",
    "/usr/share",
    "/usr/share/bash-completion",
    "/usr/share/bash-completion/completions",
    "/usr/share/dbus-1",
    "/usr/share/dbus-1/interfaces",
    "/usr/share/dbus-1/system-services",
    "/usr/share/dbus-1/system.d",
    "/usr/share/doc",
    "/usr/share/fish",
    "/usr/share/fish/vendor_completions.d",
    "/usr/share/licenses",
    "/usr/share/man",
    "/usr/share/man/man1",
    "/usr/share/man/man5",
    "/usr/share/man/man8",
    "/usr/share/polkit-1",
    "/usr/share/polkit-1/actions",
    "/usr/share/zsh",
    "/usr/share/zsh/site-functions",
}


class Root:
    """A root folder that holds what rpm installed, and its database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._database = folder / "var/lib/rpm"
        self._database.mkdir(parents=True)
        self.rpm("--initdb")

    def rpm(self, *arguments: str | Path) -> str:
        command = ["rpm", "--root", self.folder, "--dbpath", "/var/lib/rpm", *arguments]
        return run([*BECOME, *command])

    def present(self) -> set[str]:
        """Everything but the database, by its path below this root."""
        found = {f"/{path.relative_to(self.folder)}" for path in self.folder.rglob("*")}
        return {path for path in found if not f"{path}/".startswith("/var/") and not path.startswith("/tmp")}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def query(rpm: Path, form: str) -> list[str]:
    return run(["rpm", "--query", "--package", "--queryformat", form, rpm]).splitlines()


def test_rpmlint_has_nothing_to_say(rpm: Path) -> None:
    run(["scripts/rpmlint.sh"])


def test_install_verify_erase(rpm: Path, root: Root) -> None:
    # --nodeps: nothing else is installed there; --noscripts: nor is there a shell.
    root.rpm("--install", "--nodeps", "--noscripts", rpm)
    assert root.rpm("--verify", "--nodeps", "nvmeofd") == ""
    listed = set(root.rpm("--query", "--list", "nvmeofd").split())
    there = root.present()
    assert listed <= there
    python = {path for path in there if Path(path).name == "site-packages"}
    assert len(python) == 1
    shared = SHARED | python | {str(Path(path).parent) for path in python}
    assert there - listed <= shared, "folders that nobody owns"
    assert listed & shared == set(), "folders that are others' to own"
    root.rpm("--erase", "--noscripts", "nvmeofd")
    assert root.present() <= shared, "left behind"


def test_verify_sees_a_change(rpm: Path, root: Root) -> None:
    """That it was silent above means something."""
    root.rpm("--install", "--nodeps", "--noscripts", rpm)
    (root.folder / "usr/libexec/nvmeofd").write_text("changed")
    with pytest.raises(AssertionError, match="/usr/libexec/nvmeofd"):
        root.rpm("--verify", "--nodeps", "nvmeofd")


def test_owners_and_modes(rpm: Path) -> None:
    for line in query(rpm, "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]"):
        perms, user, group, path = line.split(maxsplit=3)
        assert (user, group) == ("root", "root"), path
        programs = ("/usr/libexec/", "/usr/bin/", "/usr/sbin/")
        file = "-rwxr-xr-x" if path.startswith(programs) else "-rw-r--r--"
        assert perms in ("drwxr-xr-x", file), path


def test_everything_is_in_it(rpm: Path, data: set[str]) -> None:
    packed = {uncompressed(path) for path in query(rpm, "[%{FILENAMES}\n]")}
    there = {path.replace("/zsh/vendor-completions/", "/zsh/site-functions/") for path in data}  # Debian's place
    assert there - packed == set()
    (library,) = (path for path in packed if path.endswith("/site-packages/nvmeofd"))
    sources = {name for name in run(["git", "ls-files", "nvmeofd"]).split() if (ROOT / name).exists()}
    assert {f"{Path(library).parent}/{name}" for name in sources} - packed == set()
    assert [path for path in packed if path.endswith(".pyc") or "/tests" in path] == []


def test_programs_have_manuals(rpm: Path) -> None:
    paths = query(rpm, "[%{FILENAMES}\n]")
    manuals = {Path(path).name.partition(".")[0] for path in paths if "/man/" in path}
    programs = {Path(path).name for path in paths if path.startswith(("/usr/bin/", "/usr/libexec/"))}
    assert programs
    assert programs - manuals == set()


def test_configuration_is_the_administrators(rpm: Path) -> None:
    """What was edited stays as it is; the new one is put beside it."""
    for line in query(rpm, "[%{FILEMODES:perms} %{FILENAMES} %{FILEFLAGS:fflags}\n]"):
        perms, path, *flags = line.split()
        configuration = path.startswith("/etc/") and not perms.startswith("d")
        assert {"c", "n"}.issubset("".join(flags)) == configuration, line


def test_does_not_enable_itself(rpm: Path) -> None:
    """On Fedora presets decide, and those are not the package's."""
    paths = query(rpm, "[%{FILENAMES}\n]")
    assert [path for path in paths if "preset" in path or ".wants/" in path] == []
    scripts = run(["rpm", "--query", "--package", "--scripts", rpm])
    assert "systemctl enable" not in scripts
    for unit in (
        "install-system-units nvmeofd.service",
        "remove-system-units nvmeofd.service nvmeofd-shutdown.service",
    ):
        assert unit in scripts
