"""Who the host is to targets: made once where nothing is, and never changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .daemon import ONE, Daemon, refused
from .guest import bus, facts, initiator, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:identity"
OTHER_NQN = "nqn.2024-01.org.example:identity2"
STRANGER = "nqn.2024-01.org.example:stranger"
EXT4 = 1
HOSTNQN, HOSTID = FILES = ("/etc/nvme/hostnqn", "/etc/nvme/hostid")
UUID = "11d8f0f4-9b1a-4cbb-8d3c-3a7d2f6a9c01"


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    for nqn in (NQN, OTHER_NQN):
        guest.call(target.add_subsystem, nqn, namespaces=1, ports=[1])
    guest.call(users.make_filesystem, str(target.backing_file(NQN, EXT4)))
    guest.snapshot("identity")
    return Daemon(guest)


@pytest.fixture(autouse=True)
def stopped(daemon: Daemon) -> Iterator[None]:
    """Each test begins without a daemon and without an identity, and the files are put back."""
    guest = daemon.guest
    before = {path: guest.read(path) for path in FILES}
    guest.call(service.systemctl, "stop")
    guest.run(["rm", *FILES])
    yield
    for path, content in before.items():
        guest.write(path, content)
    guest.call(service.systemctl, "restart")


def shown(daemon: Daemon) -> tuple[str, str]:
    properties = daemon.guest.call(bus.properties, bus.ROOT, bus.MANAGER)
    return properties["HostNQN"], properties["HostID"]


def written(daemon: Daemon) -> tuple[str, str]:
    return daemon.guest.call(initiator.host_nqn), daemon.guest.call(initiator.host_id)


def stats(guest: Guest) -> str:
    """Of both files everything that a write would change."""
    return guest.run(["stat", "--format", "%i %Y %Z %s %a %U %G", *FILES]).out


def firmware(guest: Guest) -> str:
    return guest.read("/sys/class/dmi/id/product_uuid").decode().strip().lower()


def used(daemon: Daemon) -> str:
    """The host NQN of a connection made now."""
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/identity", ONE)
    (controller,) = guest.call(facts.controllers)
    nqn = guest.read(f"/sys/class/nvme/{controller}/hostnqn").decode().strip()
    assert guest.read(f"/sys/class/nvme/{controller}/hostid").decode().strip() == shown(daemon)[1]
    assert daemon.unstage("/srv/identity") is True
    return nqn


def test_made_once_as_nvme_cli_does(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.run(["rmdir", "/etc/nvme"], check=False)
    generated = guest.run(["nvme", "gen-hostnqn"]).out.strip()
    guest.call(service.systemctl, "start")
    uuid = firmware(guest)
    assert written(daemon) == shown(daemon) == (generated, uuid) == (f"nqn.2014-08.org.nvmexpress:uuid:{uuid}", uuid)
    before = stats(guest)
    assert [line.split()[4:] for line in before.splitlines()] == [["644", "root", "root"]] * 2
    assert used(daemon) == generated
    guest.call(service.systemctl, "restart")
    assert used(daemon) == generated
    assert stats(guest) == before
    assert set(guest.run(["ls", "--almost-all", "/etc/nvme"]).out.split()) >= {"hostnqn", "hostid"}
    assert ".host" not in guest.run(["ls", "--almost-all", "/etc/nvme"]).out


def test_made_again_before_a_connection(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.call(service.systemctl, "start")
    before = shown(daemon)
    guest.run(["rm", *FILES])
    assert used(daemon) == before[0]
    assert written(daemon) == before


@pytest.mark.parametrize("there", FILES)
def test_one_from_the_other(daemon: Daemon, there: str) -> None:
    guest = daemon.guest
    wanted = (f"nqn.2014-08.org.nvmexpress:uuid:{UUID}", UUID)
    guest.write(there, f"{wanted[FILES.index(there)]}\n".encode())
    guest.call(service.systemctl, "start")
    assert written(daemon) == shown(daemon) == wanted
    assert used(daemon) == wanted[0]


def test_pair_that_does_not_match_works(daemon: Daemon) -> None:
    guest = daemon.guest
    pair = (f"nqn.2014-08.org.nvmexpress:uuid:{firmware(guest)}", UUID)
    for path, text in zip(FILES, pair, strict=True):
        guest.write(path, f"{text}\n".encode())
    guest.call(service.systemctl, "start")
    before = stats(guest)
    assert used(daemon) == pair[0]
    assert written(daemon) == shown(daemon) == pair
    assert stats(guest) == before


def test_who_else_has_the_host_id(daemon: Daemon) -> None:
    """The kernel says EINVAL only; the answer names the connection that it is about."""
    guest = daemon.guest
    guest.call(service.systemctl, "start")
    controller = guest.call(initiator.connect, OTHER_NQN, host=STRANGER)
    with refused("ConnectFailed", controller, STRANGER, shown(daemon)[1]):
        daemon.stage(NQN, EXT4, "/srv/identity", ONE)
    guest.call(initiator.disconnect, OTHER_NQN)
    assert used(daemon) == shown(daemon)[0]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("content", [b"", b"host1\n", b"\xff\n"])
def test_malformed(daemon: Daemon, path: str, content: bytes) -> None:
    """The service runs, without an identity; it says which file, changes nothing, and takes what is put right."""
    guest = daemon.guest
    guest.write(path, content)
    guest.call(service.systemctl, "start")
    assert shown(daemon) == ("", "")
    with refused("InvalidArgument", path):
        daemon.stage(NQN, EXT4, "/srv/identity", ONE)
    assert guest.read(path) == content
    assert guest.run(["ls", "--almost-all", "/etc/nvme"]).out.count("host") == 1
    guest.run(["rm", path])
    assert used(daemon) == f"nqn.2014-08.org.nvmexpress:uuid:{firmware(guest)}"


def test_read_only(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.run("mount --bind /etc/nvme /etc/nvme && mount -o remount,bind,ro /etc/nvme")
    try:
        guest.call(service.systemctl, "start")
        wanted = (f"nqn.2014-08.org.nvmexpress:uuid:{firmware(guest)}", firmware(guest))
        assert shown(daemon) == wanted
        assert used(daemon) == wanted[0]
        assert "host" not in guest.run(["ls", "--almost-all", "/etc/nvme"]).out
    finally:
        guest.run(["umount", "/etc/nvme"])
    assert shown(daemon) == wanted
    guest.call(service.systemctl, "restart")
    assert written(daemon) == shown(daemon) == wanted
