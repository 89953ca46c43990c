"""Others connect and disconnect the same subsystems: nvme-cli and nvme-stas. To the daemon these are only events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .daemon import BOTH, ONE, Daemon
from .guest import facts, initiator, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:shared"
SECOND = ("tcp://127.0.0.2:4420",)
STACD = "/etc/stas/stacd.conf"


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, ports=[1, 2])
    guest.call(users.make_filesystem, str(target.backing_file(NQN, 1)))
    guest.snapshot("coexistence")
    return Daemon(guest)


def paths(guest: Guest) -> list[str]:
    """The addresses of all controllers."""
    found = guest.call(facts.subsystem, NQN)
    addresses = [controller["address"] for controller in found["controllers"]] if found else []
    return sorted(address.partition(",")[0].removeprefix("traddr=") for address in addresses)


class TestNvmeCli:
    def test_one_path_is_taken_away(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, 1, "/srv/shared")
        name = guest.call(facts.controllers)[0]
        guest.run(["nvme", "disconnect", f"--device={name}"])
        assert daemon.volume("/srv/shared")["State"] == "degraded"
        guest.write("/srv/shared/file", b"still writable")
        assert daemon.unstage("/srv/shared") is True

    def test_all_is_taken_away_under_a_mount(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, 1, "/srv/shared")
        guest.run(["nvme", "disconnect", f"--nqn={NQN}"])
        assert daemon.volume("/srv/shared")["State"] == "lost"
        assert daemon.unstage("/srv/shared") is True
        daemon.stage(NQN, 1, "/srv/shared")
        assert daemon.unstage("/srv/shared") is True

    def test_all_is_taken_away_and_connected_again(self, daemon: Daemon) -> None:
        """The kernel makes a new disk; the mount is of the old one. What was connected anew is not the daemon's."""
        guest = daemon.guest
        daemon.stage(NQN, 1, "/srv/shared")
        guest.run(["nvme", "disconnect", f"--nqn={NQN}"])
        guest.call(initiator.connect, NQN, "127.0.0.1")
        assert daemon.volume("/srv/shared")["State"] == "lost"
        assert daemon.unstage("/srv/shared") is False
        assert paths(guest) == ["127.0.0.1"]
        assert guest.call(service.stays, NQN, 2.0)
        assert len(daemon.disconnect(NQN)) == 1

    def test_connect_all(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, 1, "/srv/shared", ONE)
        guest.run("nvme connect-all --transport=tcp --traddr=127.0.0.2 --trsvcid=4420 || true")
        guest.call(initiator.connected, NQN, 1)
        assert paths(guest) == ["127.0.0.1", "127.0.0.2"]
        assert daemon.subsystem(NQN)["Owned"] is True
        assert daemon.unstage("/srv/shared") is False
        assert paths(guest) == ["127.0.0.2"]
        assert guest.call(service.stays, NQN, 2.0)
        assert len(daemon.disconnect(NQN)) == 1


@pytest.fixture
def stacd(daemon: Daemon) -> Iterator[None]:
    """The connector of nvme-stas, which keeps the second path connected."""
    guest = daemon.guest
    before = guest.read(STACD)
    controller = f"transport=tcp;traddr=127.0.0.2;trsvcid=4420;nqn={NQN}"
    guest.write(STACD, f"[Controllers]\ncontroller={controller}\n".encode())
    guest.run(["systemctl", "start", "stacd.service"], timeout=120.0)
    guest.call(service.wait_path, NQN, "127.0.0.2")
    yield
    guest.run(["systemctl", "stop", "stacd.service"], timeout=120.0)
    guest.write(STACD, before)
    guest.run(["nvme", "disconnect", f"--nqn={NQN}"], check=False)


@pytest.mark.usefixtures("stacd")
def test_nvme_stas(daemon: Daemon) -> None:
    """Its path serves and stays. Disconnected on request, it is connected again by nvme-stas: an event like any."""
    guest = daemon.guest
    daemon.stage(NQN, 1, "/srv/shared", SECOND)
    assert daemon.subsystem(NQN)["Owned"] is False
    assert daemon.unstage("/srv/shared") is False
    assert paths(guest) == ["127.0.0.2"]
    daemon.stage(NQN, 1, "/srv/shared", BOTH, min_paths=2)
    assert paths(guest) == ["127.0.0.1", "127.0.0.2"]
    assert daemon.unstage("/srv/shared") is False
    assert paths(guest) == ["127.0.0.2"]
    assert daemon.users(NQN) == []
    assert len(daemon.disconnect(NQN)) == 1
    guest.call(service.wait_path, NQN, "127.0.0.2", timeout=120.0)
