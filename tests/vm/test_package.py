"""The Debian package in the hands of an administrator: installed, upgraded and removed while volumes are staged."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nvmeofd

from .conftest import ROOT
from .daemon import Daemon, refused
from .guest import bus, facts, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:package"
EXT4, XFS, BLANK = 1, 2, 3
NEXT = "99.0"
DISTRIBUTION_TEST = ROOT / "packaging/deb/tests/volume"
CONFIG = "/etc/nvmeofd/nvmeofd.conf"
DROP_IN = "/etc/nvmeofd/nvmeofd.conf.d/local.conf"
APT = {"DEBIAN_FRONTEND": "noninteractive"}
# As systemd-analyze counts: 0 is best, 10 is worst. Times ten, as its option takes it.
EXPOSURE = 45
# Where a package may leave something, and what changes there whatever package comes and goes.
LISTED = "/etc /usr /var /opt /root /srv /run/nvmeofd /run/systemd/system /run/dbus"
BUSY = (
    "/var/lib/dpkg",
    "/var/lib/apt",
    "/var/cache/apt",
    "/var/log",
    "/var/tmp",
    "/var/lib/systemd",
    "/var/lib/vm",
    "/usr/share/doc",
)

pytestmark = pytest.mark.parametrize("kernel", ["debian13", "debian12"], indirect=True, scope="module")


@pytest.fixture(scope="session")
def newer() -> Path:
    """A package of the same tree with a higher version."""
    folder = ROOT / "build" / "deb-next"
    subprocess.run([ROOT / "scripts/build-deb.sh", folder.relative_to(ROOT), NEXT], check=True)
    return folder / f"nvmeofd_{NEXT}_all.deb"


@dataclass(frozen=True)
class Installed:
    """A guest with a target, and with the package, which was installed and nothing more."""

    guest: Guest
    before: set[str]  # what was there without it, see `everything`


@pytest.fixture(scope="module")
def installed(kernel: Guest, package: Path) -> Installed:
    kernel.call(target.add_subsystem, NQN, namespaces=BLANK, ports=[1, 2])
    for nsid, fstype in ((EXT4, "ext4"), (XFS, "xfs")):
        kernel.call(users.make_filesystem, str(target.backing_file(NQN, nsid)), fstype)
    before = everything(kernel)
    dpkg_install(kernel, package)
    kernel.snapshot("package")
    return Installed(kernel, before)


@pytest.fixture
def daemon(installed: Installed) -> Iterator[Daemon]:
    """Whatever a test does to the packages of the guest, the next one knows nothing of it."""
    yield Daemon(installed.guest)
    installed.guest.rewind()


@dataclass(frozen=True)
class Staged:
    """What must outlive every change to the package."""

    daemon: Daemon
    volumes: dict[str, dict[str, Any]]
    mounts: list[facts.Mount]
    controllers: list[str]
    journal: dict[str, str]

    @classmethod
    def now(cls, daemon: Daemon) -> Staged:
        guest = daemon.guest
        for nsid, path in ((EXT4, "/srv/ext4"), (XFS, "/srv/xfs")):
            daemon.stage(NQN, nsid, path, min_paths=2)
            guest.write(f"{path}/file", path.encode())
        daemon.stage(NQN, BLANK, "/srv/block", type="block")
        return cls(
            daemon,
            {path: daemon.volume(path) for path in ("/srv/ext4", "/srv/xfs", "/srv/block")},
            guest.call(facts.nvme_mounts),
            guest.call(facts.controllers),
            guest.call(facts.files, str(facts.DAEMON_RUN)),
        )

    def check_on_host(self) -> None:
        """Mounts, connections, content and the notes of the daemon, whether it runs or not."""
        guest = self.daemon.guest
        assert guest.call(facts.nvme_mounts) == self.mounts
        assert guest.call(facts.controllers) == self.controllers
        assert guest.call(facts.files, str(facts.DAEMON_RUN)) == self.journal
        for path in ("/srv/ext4", "/srv/xfs"):
            assert guest.read(f"{path}/file") == path.encode()
            guest.run(f"echo more > {path}/more && sync --file-system {path}/more && rm {path}/more")

    def check_known(self) -> None:
        """The daemon has all of it."""
        assert {path: self.daemon.volume(path) for path in self.volumes} == self.volumes
        assert self.daemon.subsystem(NQN)["Owned"] is True
        with refused("InUse", *self.volumes):
            self.daemon.disconnect(NQN)

    def unstage(self) -> None:
        *others, last = self.volumes
        for path in others:
            assert self.daemon.unstage(path) is False
        assert self.daemon.unstage(last) is True
        assert self.daemon.guest.call(facts.settled) == {}


def dpkg_install(guest: Guest, package: Path) -> None:
    """Install, upgrade or downgrade, and nothing else: what starts and restarts are the scripts of the package."""
    guest.write("/var/tmp/nvmeofd.deb", package.read_bytes())
    guest.run("dpkg --install /var/tmp/nvmeofd.deb", timeout=180.0, env=APT)
    guest.call(bus.close_all)


def apt(guest: Guest, verb: str) -> None:
    guest.run(["apt-get", "--yes", verb, "nvmeofd"], timeout=180.0, env=APT)
    guest.call(bus.close_all)


def version(guest: Guest) -> str:
    """The version of the daemon that answers."""
    found: str = guest.call(bus.properties, bus.ROOT, bus.MANAGER)["Version"]
    return found


def state(guest: Guest) -> dict[str, str]:
    names = ("ActiveState", "LoadState", "UnitFileState", "Result", "NRestarts")
    return {name: guest.call(service.show, name) for name in names}


RUNS = {
    "ActiveState": "active",
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "Result": "success",
    "NRestarts": "0",
}


def test_install_starts_and_enables_it(daemon: Daemon) -> None:
    guest = daemon.guest
    assert state(guest) == RUNS
    assert version(guest) == nvmeofd.__version__
    guest.write("/var/tmp/volume", DISTRIBUTION_TEST.read_bytes(), mode=0o755)
    guest.run(["/var/tmp/volume"])


def test_upgrade_and_back_with_volumes_staged(daemon: Daemon, package: Path, newer: Path) -> None:
    guest = daemon.guest
    staged = Staged.now(daemon)
    for changed, number in ((newer, NEXT), (package, nvmeofd.__version__)):
        pid = guest.call(facts.daemon)["pid"]
        dpkg_install(guest, changed)
        staged.check_on_host()
        assert state(guest) == RUNS
        assert version(guest) == number
        assert guest.call(facts.daemon)["pid"] not in (0, pid)
        staged.check_known()
    staged.unstage()


def test_removed_and_purged_with_volumes_staged(daemon: Daemon, package: Path) -> None:
    """The configuration is purged; what the mounts are known by stays as long as they do."""
    guest = daemon.guest
    guest.write(CONFIG, b"[Operation]\nTimeoutSec=30\n")
    staged = Staged.now(daemon)
    for verb, configured in (("remove", True), ("purge", False)):
        apt(guest, verb)
        staged.check_on_host()
        assert guest.call(facts.daemon)["pid"] == 0
        assert (state(guest)["ActiveState"], state(guest)["LoadState"]) == ("inactive", "not-found")
        called = guest.run(["busctl", "get-property", bus.DAEMON, bus.ROOT, bus.MANAGER, "Version"], check=False)
        assert called.rc != 0, "nothing is there that the bus could start"
        assert (guest.run(["test", "-e", CONFIG], check=False).rc == 0) == configured
        dpkg_install(guest, package)
        assert state(guest) == RUNS
        staged.check_on_host()
        staged.check_known()
    staged.unstage()


def test_purge_leaves_nothing(daemon: Daemon, installed: Installed) -> None:
    guest, before = daemon.guest, installed.before
    guest.write(CONFIG, b"[Operation]\nTimeoutSec=30\n")
    guest.write(DROP_IN, b"[Operation]\nTimeoutSec=40\n")
    guest.call(service.systemctl, "restart")
    Staged.now(daemon).unstage()
    assert everything(guest) != before
    apt(guest, "purge")
    after = everything(guest)
    assert sorted(after - before) == [], "left behind"
    assert sorted(before - after) == [], "taken along"
    assert guest.run("systemctl list-units --all --plain --no-legend 'nvmeofd*'").out == ""
    assert guest.run("busctl list --activatable --no-legend").out.count(bus.DAEMON) == 0


def test_purge_keeps_what_is_not_the_packages(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.write("/etc/nvmeofd/somebody-elses", b"kept")
    identity = guest.run("cat /etc/nvme/hostnqn /etc/nvme/hostid").out
    apt(guest, "purge")
    assert guest.read("/etc/nvmeofd/somebody-elses") == b"kept"
    assert guest.run("cat /etc/nvme/hostnqn /etc/nvme/hostid").out == identity


def everything(guest: Guest) -> set[str]:
    """Every file, with its type, mode, owner, target, and, below /etc, its content."""
    pruned = " -o ".join(f"-path {path}" for path in BUSY)
    listing = f"find {LISTED} \\( {pruned} \\) -prune -o -printf '%p %y %m %U %G %l\\n' 2>/dev/null; true"
    content = "find /etc -type f -exec sha256sum {} +"
    helper = "find /var/lib/systemd/deb-systemd-*"
    return set(guest.run(f"{listing}; {content}; {helper}", timeout=120.0).out.splitlines())


def test_sandbox(daemon: Daemon) -> None:
    """It is as tight as a service can be that mounts where the host sees it."""
    guest = daemon.guest
    analysis = guest.run(["systemd-analyze", "security", f"--threshold={EXPOSURE}", service.UNIT], check=False)
    assert analysis.rc == 0, analysis.out
    daemon.stage(NQN, BLANK, "/srv/volume", format="if-empty", fstype="btrfs")
    assert "/srv/volume" in [mount["path"] for mount in guest.call(facts.mounts, "1")]
    assert daemon.unstage("/srv/volume") is True
