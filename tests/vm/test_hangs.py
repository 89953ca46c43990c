"""What hangs in the kernel: the caller hears in time, others go on, and all is well when the kernel is back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .daemon import BOTH, Daemon, refused, volume_path
from .guest import facts, initiator, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:hangs"
OTHER = "nqn.2024-01.org.example:goes-on"
FRAIL = "nqn.2024-01.org.example:frail"
EXT4, XFS, BTRFS = 1, 2, 3
TYPES = {EXT4: "ext4", XFS: "xfs", BTRFS: "btrfs"}
# Not on a port of those that are cut off: a port that still has another subsystem refuses this one for good.
ELSEWHERE = ("tcp://127.0.0.3:4420",)
FOURTH = ("tcp://127.0.0.4:4420",)
TIMEOUT = 5  # seconds, of calls that are to run out of time
MARGIN = 10.0  # for a busy machine
STOP = 90.0  # TimeoutStopSec= of the unit
RETURN = 120.0  # the kernel's own timeouts are 60 seconds at most
PATH = "/srv/hangs"


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=len(TYPES), ports=[1, 2])
    for nsid, fstype in TYPES.items():
        guest.call(users.make_filesystem, str(target.backing_file(NQN, nsid)), fstype)
    guest.call(target.add_subsystem, OTHER, ports=[3])
    guest.call(users.make_filesystem, str(target.backing_file(OTHER, 1)))
    guest.snapshot("hangs")
    return Daemon(guest)


def cut(guest: Guest) -> None:
    """Every path of the subsystem is lost."""
    for port in (1, 2):
        guest.call(target.unlink, NQN, port)
    for name in guest.call(facts.controllers):
        found = guest.call(facts.subsystem, NQN)
        assert found is not None
        if name in [controller["name"] for controller in found["controllers"]]:
            guest.call(initiator.wait_state, name, "connecting")


def mend(guest: Guest) -> None:
    for port in (1, 2):
        guest.call(target.link, NQN, port)


def stage_and_cut(daemon: Daemon, nsid: int = EXT4) -> None:
    """A volume with a file that is on the target, one that is not yet, and no path left."""
    guest = daemon.guest
    daemon.stage(NQN, nsid, PATH, reconnect_delay=1)
    guest.run(f"echo kept > {PATH}/synced && sync --file-system {PATH}")
    guest.run(f"dd if=/dev/zero of={PATH}/dirty bs=1M count=4 && echo late > {PATH}/late")
    cut(guest)


@contextmanager
def in_time(limit: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < limit


def others_go_on(daemon: Daemon) -> None:
    daemon.stage(OTHER, 1, "/srv/other", ELSEWHERE)
    assert daemon.unstage("/srv/other") is True


def content(daemon: Daemon, nsid: int, *names: str) -> list[str]:
    """What the files of a volume hold now, once it is staged again."""
    daemon.stage(NQN, nsid, PATH)
    found = daemon.guest.run(["cat", *(f"{PATH}/{name}" for name in names)]).out.split()
    assert daemon.unstage(PATH) is True
    return found


class TestNoPath:
    @pytest.mark.parametrize("nsid", TYPES, ids=TYPES.values())
    def test_unstage(self, daemon: Daemon, nsid: int) -> None:
        """Nothing is lost when a path is back."""
        guest = daemon.guest
        stage_and_cut(daemon, nsid)
        with in_time(TIMEOUT + MARGIN), refused("Timeout", "unmounting", "still running", PATH):
            daemon.unstage(PATH, timeout=TIMEOUT)
        with in_time(TIMEOUT + MARGIN), refused("Timeout", "queued"):
            daemon.unstage(PATH, timeout=TIMEOUT - 1)
        others_go_on(daemon)
        assert guest.call(facts.subsystem, NQN) is not None
        mend(guest)
        guest.call(service.wait_gone, NQN, timeout=RETURN)
        guest.call(service.wait_removed, PATH)
        assert content(daemon, nsid, "synced", "late") == ["kept", "late"]

    def test_restart(self, daemon: Daemon) -> None:
        """Neither the tool that the kernel holds nor its end holds up a restart."""
        guest = daemon.guest
        stage_and_cut(daemon)
        with refused("Timeout"):
            daemon.unstage(PATH, timeout=TIMEOUT)
        with in_time(STOP):
            guest.call(service.systemctl, "restart")
        others_go_on(daemon)
        with refused("Busy", PATH):
            daemon.unstage(PATH)
        mend(guest)
        guest.call(service.wait_gone, NQN, timeout=RETURN)
        assert content(daemon, EXT4, "late") == ["late"]

    def test_restart_of_one_that_waits(self, daemon: Daemon) -> None:
        """A call is under way when the daemon is told to stop: it is answered first."""
        guest = daemon.guest
        stage_and_cut(daemon)
        serial = daemon.start_unstage(PATH, timeout=TIMEOUT)
        with in_time(STOP):
            guest.call(service.systemctl, "restart")
        with refused("Timeout", "unmounting"):
            daemon.finish(serial)
        mend(guest)
        guest.call(service.wait_gone, NQN, timeout=RETURN)
        assert content(daemon, EXT4, "late") == ["late"]

    def test_stage(self, daemon: Daemon) -> None:
        """A second volume of a subsystem whose paths are lost."""
        guest = daemon.guest
        stage_and_cut(daemon)
        with in_time(TIMEOUT + MARGIN), pytest.raises(Exception, match=r"ConnectFailed|Timeout"):
            daemon.stage(NQN, XFS, "/srv/second", timeout=TIMEOUT)
        others_go_on(daemon)
        mend(guest)
        for name in guest.call(facts.controllers):
            guest.call(initiator.wait_state, name, "live")
        assert daemon.unstage(PATH) is True


class TestForce:
    @pytest.mark.parametrize("nsid", TYPES, ids=TYPES.values())
    def test_dead(self, daemon: Daemon, nsid: int) -> None:
        """What was on the target is still there; the rest is lost, and the filesystem is whole."""
        guest = daemon.guest
        stage_and_cut(daemon, nsid)
        assert daemon.unstage(PATH, force=True) is True
        assert guest.call(facts.subsystem, NQN) is None
        guest.call(service.wait_removed, PATH)
        mend(guest)
        assert content(daemon, nsid, "synced") == ["kept"]

    def test_one_that_waits(self, daemon: Daemon) -> None:
        guest = daemon.guest
        stage_and_cut(daemon)
        with refused("Timeout"):
            daemon.unstage(PATH, timeout=TIMEOUT)
        assert daemon.unstage(PATH, force=True) is True
        assert guest.call(facts.subsystem, NQN) is None
        mend(guest)
        assert content(daemon, EXT4, "synced") == ["kept"]

    def test_one_that_waits_since_an_earlier_life(self, daemon: Daemon) -> None:
        guest = daemon.guest
        stage_and_cut(daemon)
        with refused("Timeout"):
            daemon.unstage(PATH, timeout=TIMEOUT)
        guest.call(service.systemctl, "restart")
        assert daemon.unstage(PATH, force=True) is True
        guest.call(service.wait_removed, PATH)
        mend(guest)

    def test_killed_in_the_middle(self, daemon: Daemon) -> None:
        guest = daemon.guest
        stage_and_cut(daemon)
        body: list[object] = [PATH, {"force": True}]
        assert guest.call(service.kill_at_step, "disconnecting", "Unstage", "sa{sv}", body)
        guest.call(service.wait_gone, NQN, timeout=RETURN)
        guest.call(service.wait_removed, PATH)
        assert volume_path(PATH) not in daemon.objects("volume")
        mend(guest)

    def test_busy_with_a_path(self, daemon: Daemon) -> None:
        """What is alive is not forced."""
        guest = daemon.guest
        daemon.stage(NQN, EXT4, PATH)
        guest.call(users.worker, "worker", PATH)
        guest.call(target.unlink, NQN, 2)
        with refused("UnmountFailed", "busy"):
            daemon.unstage(PATH, force=True)
        guest.run(["touch", f"{PATH}/file"])
        guest.call(users.end, "worker")
        guest.call(target.link, NQN, 2)
        assert daemon.unstage(PATH, force=True) is True

    def test_busy_and_dead(self, daemon: Daemon) -> None:
        """It is disconnected, and unmounted once nobody works in it."""
        guest = daemon.guest
        daemon.stage(NQN, EXT4, PATH, reconnect_delay=1)
        guest.call(users.worker, "worker", PATH)
        cut(guest)
        with refused("UnmountFailed", "busy", "disconnected"):
            daemon.unstage(PATH, force=True)
        assert guest.call(facts.controllers) == []
        guest.call(users.end, "worker")
        assert daemon.unstage(PATH) is True
        mend(guest)

    def test_another_volume_or_user(self, daemon: Daemon) -> None:
        guest = daemon.guest
        stage_and_cut(daemon)
        mend(guest)
        for name in guest.call(facts.controllers):
            guest.call(initiator.wait_state, name, "live")
        device = daemon.stage(NQN, XFS, "/srv/second")
        guest.call(users.opener, "reader", device)
        cut(guest)
        with refused("InUse", "/srv/second"):
            daemon.unstage(PATH, force=True)
        assert daemon.volume(PATH)["State"] == "degraded"
        mend(guest)
        for name in guest.call(facts.controllers):
            guest.call(initiator.wait_state, name, "live")
        assert daemon.unstage("/srv/second") is False
        cut(guest)
        with refused("InUse", "sleep"):
            daemon.unstage(PATH, force=True)
        guest.call(users.end, "reader")
        (name, *_) = guest.call(facts.controllers)
        guest.write(f"/run/nvme/registry/{name}/owner", b"stas\n")
        with refused("Shared", "stas"):
            daemon.unstage(PATH, force=True)
        guest.write(f"/run/nvme/registry/{name}/owner", b"nvmeofd\n")
        assert daemon.unstage(PATH, force=True) is True
        mend(guest)


def test_device_of_the_target_hangs(daemon: Daemon) -> None:
    """The connection lives, and nothing is answered that needs the disk."""
    guest = daemon.guest
    device = guest.call(target.add_device, "frail")
    guest.call(users.make_filesystem, device)
    guest.call(target.add_subsystem, FRAIL, namespaces=0, ports=[4])
    guest.call(target.add_namespace, FRAIL, 1, device=device)
    daemon.stage(FRAIL, 1, PATH, FOURTH)
    guest.run(f"echo late > {PATH}/late")
    guest.call(target.hang_device, "frail")
    with in_time(TIMEOUT + MARGIN), refused("Timeout", "unmounting", PATH):
        daemon.unstage(PATH, timeout=TIMEOUT)
    others_go_on(daemon)
    guest.call(target.resume_device, "frail")
    guest.call(service.wait_gone, FRAIL, timeout=RETURN)
    daemon.stage(FRAIL, 1, PATH, FOURTH)
    assert guest.run(["cat", f"{PATH}/late"]).out == "late\n"
    assert daemon.unstage(PATH) is True
    guest.call(target.remove_subsystem, FRAIL)
    guest.call(target.remove_device, "frail")


class TestSilence:
    """The target's packets stop coming, without a word of farewell."""

    @pytest.fixture
    def silent(self, daemon: Daemon) -> Iterator[None]:
        """A raw volume, whose unmounting needs no I/O: it is the deletion of its controller that hangs."""
        guest = daemon.guest
        daemon.stage(NQN, EXT4, PATH, BOTH[1:], type="block", keep_alive_tmo=60)
        guest.run("ip route add blackhole 127.0.0.2/32 table local")
        with in_time(TIMEOUT + MARGIN), refused("Timeout", "disconnecting", "nvme"):
            daemon.unstage(PATH, timeout=TIMEOUT)
        yield
        guest.run("ip route delete blackhole 127.0.0.2/32 table local")
        guest.call(service.wait_gone, NQN, timeout=RETURN)

    def test_deletion_hangs(self, daemon: Daemon, silent: None) -> None:
        with in_time(TIMEOUT + MARGIN), refused("Timeout", "queued"):
            daemon.disconnect(NQN, timeout=TIMEOUT)
        others_go_on(daemon)

    def test_restart_meanwhile(self, daemon: Daemon, silent: None) -> None:
        """A thread in the kernel outlives its process, which must not be waited for."""
        with in_time(STOP / 2):
            daemon.guest.call(service.systemctl, "restart")
        others_go_on(daemon)
