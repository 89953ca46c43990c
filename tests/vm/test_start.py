"""What the daemon has to read before it may begin: without all of it there is no service, rather than half of one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from .daemon import ONE, Daemon
from .guest import bus, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:start"
PATH = "/srv/start"
LABEL = "start"
SUBSYSTEMS = "/sys/class/nvme-subsystem"


@dataclass(frozen=True)
class Obstacle:
    """Shell lines that put it there and take it away, and what the error has to name."""

    put: str
    remove: str
    named: str


OBSTACLES = {
    "journal is a file": Obstacle(
        "mv /run/nvmeofd /run/kept && touch /run/nvmeofd",
        "rm /run/nvmeofd && mv /run/kept /run/nvmeofd",
        "/run/nvmeofd",
    ),
    "journal cannot be read": Obstacle(
        "mkdir /run/nvmeofd/odd.json", "rmdir /run/nvmeofd/odd.json", "/run/nvmeofd/odd.json"
    ),
    "subsystems cannot be read": Obstacle(
        f"mkdir -p /run/odd/nvme-subsys0/subsysnqn && mount --bind /run/odd {SUBSYSTEMS}",
        f"umount {SUBSYSTEMS} && rm -r /run/odd",
        f"{SUBSYSTEMS}/nvme-subsys0/subsysnqn",
    ),
}


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN)
    guest.call(users.make_filesystem, str(target.backing_file(NQN, 1)))
    guest.snapshot("start")
    return Daemon(guest)


@pytest.mark.parametrize("name", OBSTACLES)
def test_no_service_on_half_a_picture(daemon: Daemon, name: str) -> None:
    """The name on the bus is never taken. Once the obstacle is away, all is there that was there before."""
    guest, obstacle = daemon.guest, OBSTACLES[name]
    daemon.stage(NQN, 1, PATH, ONE)
    guest.call(service.systemctl, "stop")
    guest.run(obstacle.put)
    since = guest.call(bus.subscribe, service.OWNER_CHANGED, LABEL)
    by_hand = guest.run(["/usr/libexec/nvmeofd"], check=False)
    assert by_hand.rc == 1
    assert obstacle.named in by_hand.err
    assert guest.run(["systemctl", "start", service.UNIT], check=False).rc != 0
    guest.call(service.systemctl, "stop")  # it would be tried again
    assert guest.call(bus.signals, since, LABEL) == []
    guest.call(bus.close, LABEL)
    guest.run(obstacle.remove)
    guest.run(["systemctl", "reset-failed", service.UNIT], check=False)
    guest.call(service.systemctl, "start")
    assert daemon.volume(PATH)["State"] == "staged"
    assert daemon.unstage(PATH) is True
