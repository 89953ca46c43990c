"""Mounts and device events by the thousand while volumes come and go: nothing is missed, and every call is answered.

As many as tests/bus/test_storm.py makes at a time, in two rounds, and here systemd looks at each of them as well. Udev
gets one worker, or its workers would have most of the processor for minutes under emulation.
"""

from __future__ import annotations

import pytest

from .daemon import ONE, Daemon, refused, volume_path
from .guest import content, facts, storm, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:storm"
OTHER = "nqn.2024-01.org.example:beside"
TREE = "/srv/storm"
MOUNTS = 5_000  # in each of two rounds
UEVENTS = 20_000
MEMORY = 80 << 10  # KiB


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    for nqn in (NQN, OTHER):
        guest.call(target.add_subsystem, nqn)
    first, other = (str(target.backing_file(nqn, 1)) for nqn in (NQN, OTHER))
    guest.call(users.make_filesystem, first)
    guest.call(content.copy, first, other)
    guest.snapshot("storm")
    return Daemon(guest)


def test_storm(daemon: Daemon) -> None:
    """Each of the mounts is one of the volume: a user that must be seen, and must be forgotten."""
    guest = daemon.guest
    daemon.stage(NQN, 1, TREE, ONE)
    guest.call(storm.prepare, TREE)
    # Of something without a device node: udev would open it again and again, for long after the storm.
    (uevent,) = guest.run("ls /sys/class/nvme-subsystem/*/uevent").out.split()
    guest.run(["udevadm", "control", "--children-max=1"])
    size = []
    for _ in range(2):
        raining = guest.submit(storm.up, TREE, MOUNTS, uevent, UEVENTS // 2)
        come_and_go(daemon)
        done = raining.result(timeout=120.0)
        print("up", done)
        assert done["wrong"] == []
        assert done["answered"] > 0
        assert len(daemon.users(NQN)) == MOUNTS + 1
        with refused("InUse", TREE):
            daemon.disconnect(NQN)
        clearing = guest.submit(storm.down, TREE, MOUNTS)
        come_and_go(daemon)
        done = clearing.result(timeout=120.0)
        print("down", done)
        assert done["wrong"] == []
        assert [user[0::2] for user in daemon.users(NQN)] == [("mount", TREE)]
        size.append(guest.call(storm.memory))
    assert size[1] < size[0] + (8 << 10)
    assert size[1] < MEMORY
    assert daemon.objects("volume") == [volume_path(TREE)]
    guest.run(["systemctl", "restart", "systemd-udevd.service"])  # it has not seen the half of it yet
    assert daemon.unstage(TREE) is True
    assert guest.call(facts.controllers) == []


def come_and_go(daemon: Daemon) -> None:
    daemon.stage(OTHER, 1, "/srv/beside", ONE, timeout=110)
    assert daemon.volume("/srv/beside")["State"] == "staged"
    assert daemon.unstage("/srv/beside", timeout=110) is True
