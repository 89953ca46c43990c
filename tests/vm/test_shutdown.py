"""The host powers off or reboots with volumes staged: they are unmounted while the daemon and the network are there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .daemon import Daemon
from .guest import facts, initiator, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:shutdown"
EXT4, XFS, RAW = 1, 2, 3
LIMIT = 30.0  # seconds
GIVEN_UP = 5.0  # seconds after which the daemon has a path given up when the host shuts down
PATIENCE = 400.0  # for a shutdown that hangs: longer than the service manager would wait for anything
SEEN = "/var/lib/vm/seen"
# In place of what makes the network of a real host: that of the guest is always there.
NETWORK = "stand-in-network.service"
STAND_IN = b"""[Unit]
Wants=network.target
Before=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
"""
# What is there when the daemon has just stopped, for the next boot to look at.
OBSERVER = f"""[Service]
ExecStopPost=/bin/sh -c 'cat /proc/self/mountinfo > {SEEN}.mounts'
ExecStopPost=/bin/sh -c 'systemctl show --value --property ActiveState {NETWORK} > {SEEN}.network'
"""


@pytest.fixture(scope="module")
def prepared(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=RAW, ports=[1, 2])
    for nsid, fstype in ((EXT4, "ext4"), (XFS, "xfs")):
        guest.call(users.make_filesystem, backing(nsid), fstype)
    guest.write("/etc/systemd/system/nvmeofd.service.d/observer.conf", OBSERVER.encode())
    guest.write(f"/etc/systemd/system/{NETWORK}", STAND_IN)
    guest.run(["systemctl", "daemon-reload"])
    guest.run(["systemctl", "start", NETWORK])
    guest.snapshot("shutdown")
    return Daemon(guest)


@pytest.fixture
def daemon(prepared: Daemon) -> Iterator[Daemon]:
    """Two filesystems with files that are not on the target yet, and a raw volume."""
    for nsid in (EXT4, XFS):
        prepared.stage(NQN, nsid, f"/srv/{nsid}")
        prepared.guest.run(f"echo kept > /srv/{nsid}/kept && sync --file-system /srv/{nsid}")
        prepared.guest.run(f"dd if=/dev/zero of=/srv/{nsid}/dirty bs=1M count=8 && echo late > /srv/{nsid}/late")
    prepared.stage(NQN, RAW, "/srv/raw", type="block")
    yield prepared
    prepared.guest.rewind()


def backing(nsid: int) -> str:
    return str(target.backing_file(NQN, nsid))


def cut(guest: Guest, *ports: int) -> None:
    for port in ports:
        guest.call(target.unlink, NQN, port)
        found = guest.call(facts.subsystem, NQN)
        assert found is not None
        for controller in found["controllers"]:
            if f"traddr={target.ADDRESSES[port]}," in controller["address"]:
                guest.call(initiator.wait_state, controller["name"], "connecting")


def in_order(guest: Guest) -> None:
    """Everything was unmounted before the daemon stopped, and the network was still there then."""
    mounts = guest.read(f"{SEEN}.mounts").decode()
    assert "/dev/nvme" not in mounts
    assert " /srv/" not in mounts, "a block volume is a part of devtmpfs"
    assert guest.read(f"{SEEN}.network").decode() == "active\n", "the daemon stopped before the network"


def clean(guest: Guest) -> None:
    """Both filesystems were unmounted in time, with all that had been written."""
    in_order(guest)
    assert "needs_recovery" not in guest.run(["dumpe2fs", "-h", backing(EXT4)]).out
    assert guest.run(["e2fsck", "-fn", backing(EXT4)], check=False).rc == 0
    # it refuses a filesystem whose log is to be replayed
    guest.run(["xfs_repair", "-f", backing(XFS)], timeout=120.0)
    assert guest.run(["debugfs", "-R", "cat /late", backing(EXT4)]).out == "late\n"


def usable(guest: Guest) -> None:
    """After a replay of their journals both filesystems are whole, and have what was on the target."""
    for nsid in (EXT4, XFS):
        guest.run(["mount", "--mkdir", "-o", "loop", backing(nsid), "/mnt/replay"])
        assert guest.run(["cat", "/mnt/replay/kept"]).out == "kept\n"
        guest.run("echo new > /mnt/replay/new")
        guest.run(["umount", "/mnt/replay"])
    guest.run(["e2fsck", "-fn", backing(EXT4)])
    guest.run(["xfs_repair", "-n", "-f", backing(XFS)], timeout=120.0)


@pytest.mark.parametrize(
    ("verb", "lost"),
    [("poweroff", ()), ("poweroff", (1,)), ("reboot", (2,))],
    ids=["poweroff", "poweroff-one-path-dead", "reboot-one-path-dead"],
)
def test_clean(daemon: Daemon, verb: str, lost: tuple[int, ...]) -> None:
    guest = daemon.guest
    cut(guest, *lost)
    assert guest.shut_down(verb, PATIENCE) < LIMIT
    guest.boot()
    clean(guest)


def test_all_paths_dead(daemon: Daemon) -> None:
    """What was not written cannot be any more; but the host does not wait for it."""
    guest = daemon.guest
    cut(guest, 1, 2)
    assert guest.shut_down("reboot", PATIENCE) < LIMIT
    guest.boot()
    in_order(guest)
    usable(guest)


def test_host_that_goes_on(daemon: Daemon) -> None:
    """What tells the daemon of a shutdown can be stopped without one: then no path is given up."""
    guest = daemon.guest
    cut(guest, 2)
    guest.run(["systemctl", "restart", "nvmeofd-shutdown.service"])
    assert guest.call(service.loss_timeouts_stay, 3 * GIVEN_UP)
    guest.call(target.link, NQN, 2)
    for name in guest.call(facts.controllers):
        guest.call(initiator.wait_state, name, "live")
