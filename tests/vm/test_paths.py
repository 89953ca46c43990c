"""Where a volume may be staged and where not."""

from __future__ import annotations

import pytest

from .daemon import ONE, Daemon, refused
from .guest import facts, initiator, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:paths"
OTHER = "nqn.2024-01.org.example:other"
EXT4, OTHER_EXT4 = 1, 2


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=2)
    for nsid in (EXT4, OTHER_EXT4):
        guest.call(users.make_filesystem, str(target.backing_file(NQN, nsid)))
    guest.call(target.add_subsystem, OTHER)
    guest.snapshot("paths")
    return Daemon(guest)


def exists(guest: Guest, path: str) -> bool:
    return guest.run(["test", "-e", path], check=False).rc == 0


@pytest.mark.parametrize(
    "name",
    ["with some spaces ", "new\nline", "tab\tand\\slash", "ünïcode-☃", "-o,ro", "'\"$(id)`;&|*", "#hash", "x" * 255],
    ids=ascii,
)
def test_odd_staging_path(daemon: Daemon, name: str) -> None:
    guest, path = daemon.guest, f"/srv/{name}"
    daemon.stage(NQN, EXT4, path, ONE)
    assert [mount["path"] for mount in guest.call(facts.nvme_mounts)] == [path]
    assert daemon.volume(path)["StagingPath"] == path
    assert [user[0::2] for user in daemon.users(NQN)] == [("mount", path)]
    assert daemon.unstage(path) is True
    assert not exists(guest, path)


def test_directory_that_was_there_stays(daemon: Daemon) -> None:
    guest, path = daemon.guest, "/srv/mine"
    guest.run(f"mkdir {path} && chown daemon {path} && chmod 2711 {path}")
    before = guest.run(["stat", path]).out
    daemon.stage(NQN, EXT4, path, ONE)
    assert daemon.unstage(path) is True
    assert guest.run(["stat", path]).out == before
    guest.run(["rmdir", path])


def test_volume_below_a_volume(daemon: Daemon) -> None:
    daemon.stage(NQN, EXT4, "/srv/outer", ONE)
    daemon.stage(NQN, OTHER_EXT4, "/srv/outer/inner", ONE)
    assert daemon.unstage("/srv/outer/inner") is False
    assert daemon.unstage("/srv/outer") is True


@pytest.mark.parametrize(
    "path",
    [
        *("", "srv/relative", "/", "/srv/", "/srv//v", "/srv/./v", "/srv/../srv/v", "/srv/..", f"/srv/{'x' * 256}"),
        *("/proc/v", "/sys/v", "/dev/v", "/dev", "/run/nvmeofd/v", "/srv/missing/v", "/etc/hostname/v"),
    ],
    ids=lambda path: path[:20] or "empty",
)
def test_bad_path(daemon: Daemon, path: str) -> None:
    with refused("InvalidArgument", "staging path"):
        daemon.stage(NQN, EXT4, path, ONE)
    assert daemon.guest.call(facts.controllers) == []


def test_symbolic_links_are_not_followed(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.run("mkdir /srv/real && ln -s real /srv/link && ln -s nowhere /srv/dangling")
    for path in ("/srv/link", "/srv/link/v", "/srv/dangling"):
        with refused("InvalidArgument", "symbolic link"):
            daemon.stage(NQN, EXT4, path, ONE)
    assert guest.run(["ls", "/srv/real"]).out == ""
    guest.run("rm /srv/link /srv/dangling && rmdir /srv/real")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        ("mkdir P && touch P/file", "filesystem"),
        ("touch P", "filesystem"),
        ("mkfifo P", "filesystem"),
        ("mkdir P", "block"),
        ("echo > P", "block"),
        ("mkfifo P", "block"),
    ],
)
def test_occupied_path(daemon: Daemon, make: str, kind: str) -> None:
    guest, path = daemon.guest, "/srv/occupied"
    guest.run(make.replace("P", path))
    before = guest.run(["stat", path]).out
    with refused("PathNotEmpty", path):
        daemon.stage(NQN, EXT4, path, ONE, type=kind)
    assert guest.run(["stat", path]).out == before
    guest.run(["rm", "-r", path])


def test_foreign_mount(daemon: Daemon) -> None:
    guest, path = daemon.guest, "/srv/tmpfs"
    guest.run(f"mkdir {path} && mount -t tmpfs none {path}")
    with refused("PathNotEmpty", path, "tmpfs"):
        daemon.stage(NQN, EXT4, path, ONE)
    with refused("NotStaged", path, "tmpfs"):
        daemon.unstage(path)
    guest.run(f"umount {path} && rmdir {path}")


def test_foreign_mount_of_a_namespace(daemon: Daemon) -> None:
    guest, path = daemon.guest, "/srv/foreign"
    daemon.stage(NQN, EXT4, "/srv/own", ONE)
    guest.call(users.mount, "foreign", guest.call(initiator.device, NQN, OTHER_EXT4), path)
    with refused("NotStaged", path):
        daemon.unstage(path)
    with refused("PathNotEmpty", path):
        daemon.stage(NQN, OTHER_EXT4, path, ONE)
    guest.call(users.end, "foreign")
    assert daemon.unstage("/srv/own") is True


def test_staged_already(daemon: Daemon) -> None:
    path, identity = "/srv/first", target.namespace_uuid(NQN, EXT4)
    daemon.stage(NQN, EXT4, path, ONE)
    with refused("AlreadyStaged", path, identity):
        daemon.stage(NQN, OTHER_EXT4, path, ONE)
    with refused("AlreadyStaged", path, identity):
        daemon.stage(OTHER, "nsid.1", path, ONE)
    with refused("AlreadyStaged", path):
        daemon.stage(NQN, EXT4, "/srv/second", ONE)
    with refused("AlreadyStaged", path, "filesystem"):
        daemon.stage(NQN, EXT4, path, ONE, type="block")
    with refused("AlreadyStaged", path, "writable"):
        daemon.stage(NQN, EXT4, path, ONE, read_only=True)
    with refused("WrongFilesystem", path, "xfs"):
        daemon.stage(NQN, EXT4, path, ONE, fstype="xfs")
    assert daemon.volume(path)["State"] == "staged"
    assert daemon.unstage(path) is True
