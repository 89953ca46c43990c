"""Nothing is disconnected while anything uses it, whoever and however; and nothing of ours stays when nobody does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from .daemon import BOTH, ONE, Daemon, refused
from .guest import content, facts, initiator, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:guard"
QUIET = [f"nqn.2024-01.org.example:quiet-{number}" for number in range(5)]
EXT4, OTHER_EXT4, PARTITIONED = 1, 2, 3
# What the daemon hears of is done at once; who leaves silently is noticed by a look every 30 seconds.
HEARD = 20.0
UNHEARD = 60.0
CONFIG = "/etc/nvmeofd/nvmeofd.conf.d/guard.conf"
DELAY = 10
SETTINGS = f"""[Daemon]
LogLevel=error
[Operation]
DisconnectDelaySec={DELAY}
[Connect]
CtrlLossTimeoutSec=70
""".encode()


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=3, ports=[1, 2])
    for nsid in (EXT4, OTHER_EXT4):
        guest.call(users.make_filesystem, str(target.backing_file(NQN, nsid)))
    guest.call(content.partition_table, str(target.backing_file(NQN, PARTITIONED)))
    for nqn in QUIET:
        guest.call(target.add_subsystem, nqn, namespaces=2, ports=[1])
        guest.call(users.make_filesystem, str(target.backing_file(nqn, EXT4)))
        guest.call(users.make_filesystem, str(target.backing_file(nqn, OTHER_EXT4)))
    guest.snapshot("guard")
    return Daemon(guest)


@dataclass(frozen=True)
class Kind:
    """A kind of user of the namespace that is not staged: how it comes, and what is said of it."""

    begin: Callable[[Guest, str], object]
    kind: str
    detail: str
    heard: bool  # whether its end makes an event
    nsid: int = OTHER_EXT4
    partition: str = ""


def partition_mount(guest: Guest, device: str) -> None:
    guest.call(users.make_filesystem, device)
    guest.call(users.mount, "user", device, "/mnt/partition")


KINDS = {
    "mount": Kind(lambda g, d: g.call(users.mount, "user", d, "/mnt/elsewhere"), "mount", "/mnt/elsewhere", True),
    "private mount": Kind(lambda g, d: g.call(users.private_mount, "user", d, "/mnt/private"), "claim", "/mnt", False),
    "private bind": Kind(lambda g, d: g.call(users.private_bind, "user", d, "/mnt/bind"), "block-mount", "/mnt", False),
    "device-mapper": Kind(lambda g, d: g.call(users.device_mapper, "user", d), "holder", "dm-", True),
    "swap": Kind(lambda g, d: g.call(users.swap, "user", d), "swap", "/dev/nvme", False),
    "block bind": Kind(lambda g, d: g.call(users.block_bind, "user", d, "/mnt/raw"), "block-mount", "/mnt/raw", True),
    "open file": Kind(lambda g, d: g.call(users.opener, "user", d), "open", "sleep", False),
    "partition": Kind(partition_mount, "mount", "/mnt/partition", True, PARTITIONED, "p1"),
    "partition open": Kind(lambda g, d: g.call(users.opener, "user", d), "open", "sleep", False, PARTITIONED, "p1"),
    "partition mapped": Kind(
        lambda g, d: g.call(users.device_mapper, "user", d), "holder", "dm-", True, PARTITIONED, "p1"
    ),
}


def disconnects_done(guest: Guest) -> int:
    return guest.call(service.counters).get("disconnects-done", 0)


def wait_done(guest: Guest, before: int, number: int = 1) -> None:
    """Exactly so many subsystems were disconnected: what is gone is seen before it is counted."""
    guest.call(service.wait_counter, "disconnects-done", before + number)
    assert disconnects_done(guest) == before + number


def disconnect(daemon: Daemon) -> None:
    """Now, unless the daemon did it by itself already: udev tells of a writer that closes a device."""
    assert len(daemon.disconnect(NQN)) in (0, 2)
    assert daemon.guest.call(facts.subsystem, NQN) is None


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_user_keeps_the_subsystem(daemon: Daemon, name: str) -> None:
    guest, wanted = daemon.guest, KINDS[name]
    before = disconnects_done(guest)
    staged = daemon.stage(NQN, EXT4, "/srv/guard")
    used = guest.call(initiator.device, NQN, wanted.nsid) + wanted.partition
    guest.run(["udevadm", "settle"])  # also makes the node of a partition
    wanted.begin(guest, used)
    told = daemon.users(NQN)
    assert ("mount", staged, "/srv/guard") in told
    assert any(kind == wanted.kind and device == used and wanted.detail in rest for kind, device, rest in told), told
    with refused("InUse", wanted.kind, used, "/srv/guard"):  # everybody is named, whoever was found first
        daemon.disconnect(NQN)
    assert daemon.unstage("/srv/guard") is False
    assert {(kind, device) for kind, device, _ in daemon.users(NQN)} == {(wanted.kind, used)}
    with refused("InUse", wanted.kind, used):
        daemon.disconnect(NQN)
    assert [entry[3] for entry in daemon.subsystem(NQN)["Controllers"]] == ["live", "live"]
    guest.call(users.end, "user")
    if wanted.heard:
        guest.call(service.wait_gone, NQN, timeout=HEARD)
    else:
        disconnect(daemon)
    wait_done(guest, before)


def test_users_that_leave_silently_are_noticed(daemon: Daemon) -> None:
    """No event says that they are gone. Five subsystems at once, because it takes half a minute."""
    guest, before = daemon.guest, disconnects_done(daemon.guest)
    begin: list[Callable[[str, str], object]] = [
        lambda name, device: guest.call(users.opener, name, device),
        lambda name, device: guest.call(users.private_mount, name, device, f"/mnt/{name}"),
        lambda name, device: guest.call(users.private_bind, name, device, f"/mnt/{name}"),
        lambda name, device: guest.call(users.swap, name, device),
        lambda name, _: guest.call(users.namespace_copy, name),
    ]
    for number, nqn in enumerate(QUIET):
        daemon.stage(nqn, EXT4, f"/srv/{number}", ONE)
        begin[number](f"user-{number}", guest.call(initiator.device, nqn, OTHER_EXT4))
    for number, nqn in enumerate(QUIET):
        assert daemon.unstage(f"/srv/{number}") is False, daemon.users(nqn)
    assert {entry["nqn"] for entry in guest.call(facts.subsystems)} == set(QUIET)
    guest.call(users.end_all)
    for nqn in QUIET:
        guest.call(service.wait_gone, nqn, timeout=UNHEARD)
    wait_done(guest, before, len(QUIET))
    guest.run("rmdir /srv/?")  # the copies of the last one held them


def loss_timeouts(guest: Guest) -> set[str]:
    names = guest.call(facts.controllers)
    return {guest.read(f"/sys/class/nvme/{name}/ctrl_loss_tmo").decode().strip() for name in names}


def told(guest: Guest) -> int:
    """How many messages of level info the daemon has sent in its life."""
    guest.run(["journalctl", "--sync"])
    pid = guest.call(facts.daemon)["pid"]
    query = ["journalctl", f"_PID={pid}", "--priority=info..info", "--output=json"]
    return len(guest.run(query).out.splitlines())


def test_configured_delay(daemon: Daemon) -> None:
    """After a reload, and until the next one."""
    guest, before = daemon.guest, disconnects_done(daemon.guest)
    guest.write(CONFIG, SETTINGS)
    guest.call(service.systemctl, "reload")
    silent = told(guest)
    daemon.stage(NQN, EXT4, "/srv/guard")
    assert loss_timeouts(guest) == {"70"}
    assert daemon.unstage("/srv/guard") is False
    assert daemon.users(NQN) == []
    assert len(guest.call(facts.controllers)) == len(BOTH)
    guest.call(service.wait_gone, NQN, timeout=DELAY + HEARD)
    wait_done(guest, before)
    assert told(guest) == silent
    guest.run(["rm", CONFIG])
    guest.call(service.systemctl, "reload")
    daemon.stage(NQN, EXT4, "/srv/guard")
    assert loss_timeouts(guest) == {"1800"}
    assert daemon.unstage("/srv/guard") is True
    assert told(guest) > silent


class TestTheVolumeItself:
    """Users of the namespace that is staged."""

    def test_bound_elsewhere(self, daemon: Daemon) -> None:
        device = daemon.stage(NQN, EXT4, "/srv/guard")
        daemon.guest.call(users.bind, "bind", "/srv/guard", "/mnt/bind")
        assert daemon.unstage("/srv/guard") is False
        assert daemon.users(NQN) == [("mount", device, "/mnt/bind")]
        daemon.guest.call(users.end, "bind")
        daemon.guest.call(service.wait_gone, NQN, timeout=HEARD)

    def test_mounted_elsewhere(self, daemon: Daemon) -> None:
        device = daemon.stage(NQN, EXT4, "/srv/guard")
        daemon.guest.call(users.mount, "mount", device, "/mnt/second")
        assert daemon.unstage("/srv/guard") is False
        with refused("InUse", "/mnt/second"):
            daemon.disconnect(NQN)
        daemon.guest.call(users.end, "mount")
        daemon.guest.call(service.wait_gone, NQN, timeout=HEARD)

    def test_held_by_a_container(self, daemon: Daemon) -> None:
        """A mount namespace made meanwhile has a copy of the mount, which unmounting here does not touch.

        Removing the staging path would, so that stays.
        """
        guest = daemon.guest
        device = daemon.stage(NQN, EXT4, "/srv/guard")
        pid = guest.call(users.namespace_copy, "container")
        assert daemon.unstage("/srv/guard") is False
        ((kind, used, detail),) = daemon.users(NQN)
        assert (kind, used) == ("claim", device)
        assert "/srv/guard" in detail
        assert str(pid) in detail
        with refused("InUse", f"pid {pid}"):
            daemon.disconnect(NQN)
        guest.run(["nsenter", "--mount", f"--target={pid}", "touch", "/srv/guard/still-mounted"])
        guest.run(["nsenter", "--mount", f"--target={pid}", "umount", "/srv/guard"])
        guest.call(users.end, "container")
        disconnect(daemon)
        guest.run(["rmdir", "/srv/guard"])

    def test_held_by_a_container_at_another_path(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, EXT4, "/srv/guard")
        pid = guest.call(users.namespace_bind, "container", "/srv/guard", "/mnt/host")
        assert daemon.unstage("/srv/guard") is False
        guest.run(["nsenter", "--mount", f"--target={pid}", "touch", "/mnt/host/guard/still-mounted"])
        daemon.stage(NQN, EXT4, "/srv/guard")
        assert guest.run(["ls", "/srv/guard"]).out.split() == ["lost+found", "still-mounted"]
        guest.call(users.end, "container")
        assert daemon.unstage("/srv/guard") is True
        guest.run(["rmdir", "/srv/guard"])

    def test_busy_mount_is_left_alone(self, daemon: Daemon) -> None:
        device = daemon.stage(NQN, EXT4, "/srv/guard")
        daemon.guest.call(users.worker, "shell", "/srv/guard")
        with refused("UnmountFailed", "/srv/guard", "busy"):
            daemon.unstage("/srv/guard")
        assert daemon.volume("/srv/guard")["State"] == "staged"
        assert daemon.users(NQN) == [("mount", device, "/srv/guard")]
        daemon.guest.call(users.end, "shell")
        assert daemon.unstage("/srv/guard") is True

    def test_covered_mount_is_left_alone(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, EXT4, "/srv/guard")
        guest.run("mount -t tmpfs cover /srv/guard")
        with refused("UnmountFailed", "/srv/guard", "cover"):
            daemon.unstage("/srv/guard")
        guest.run("umount /srv/guard")
        assert daemon.unstage("/srv/guard") is True

    def test_block_volume_that_is_open(self, daemon: Daemon) -> None:
        device = daemon.stage(NQN, EXT4, "/srv/block", type="block")
        daemon.guest.call(users.opener, "opener", device)
        assert daemon.unstage("/srv/block") is False
        ((kind, used, _),) = daemon.users(NQN)
        assert (kind, used) == ("open", device)
        daemon.guest.call(users.end, "opener")
        disconnect(daemon)


class TestOthersConnections:
    def connect(self, guest: Guest, address: str = "127.0.0.1") -> str:
        before = guest.call(facts.controllers)
        guest.run(["nvme", "connect", "--transport=tcp", "--trsvcid=4420", f"--traddr={address}", f"--nqn={NQN}"])
        guest.call(initiator.connected, NQN, 3)
        (name,) = set(guest.call(facts.controllers)) - set(before)
        return name

    def test_never_deleted_by_itself(self, daemon: Daemon) -> None:
        guest = daemon.guest
        name = self.connect(guest)
        daemon.stage(NQN, EXT4, "/srv/guest", ONE)
        assert guest.call(facts.controllers) == [name]
        assert daemon.subsystem(NQN)["Owned"] is False
        assert daemon.unstage("/srv/guest") is False
        assert guest.call(service.stays, NQN, 2.0)
        assert daemon.users(NQN) == []
        assert daemon.disconnect(NQN) == [name], "asked for explicitly, it is"

    def test_only_own_paths_are_deleted(self, daemon: Daemon) -> None:
        guest = daemon.guest
        name = self.connect(guest)
        daemon.stage(NQN, EXT4, "/srv/guest", BOTH)
        assert daemon.subsystem(NQN)["Owned"] is True
        assert len(guest.call(facts.controllers)) == 2
        assert daemon.unstage("/srv/guest") is False
        assert guest.call(facts.controllers) == [name]
        assert daemon.subsystem(NQN)["Owned"] is False
        guest.run(["nvme", "disconnect", "--nqn", NQN])

    def test_own_paths_are_written_into_the_registry(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, EXT4, "/srv/guard")
        owners = {path: text for path, text in guest.call(facts.registry).items() if path.endswith("/owner")}
        assert owners == {f"/run/nvme/registry/{name}/owner": "nvmeofd" for name in guest.call(facts.controllers)}
        assert daemon.unstage("/srv/guard") is True

    def test_paths_of_another_orchestrator_are_not_deleted(self, daemon: Daemon) -> None:
        guest = daemon.guest
        name = self.connect(guest, "127.0.0.2")
        guest.write(f"/run/nvme/registry/{name}/owner", b"stas\n")
        daemon.stage(NQN, EXT4, "/srv/guard", BOTH)
        assert daemon.unstage("/srv/guard") is False
        assert guest.call(facts.controllers) == [name]
        with refused("Shared", name, "stas"):
            daemon.disconnect(NQN)
        guest.run(["rm", "-r", f"/run/nvme/registry/{name}"])
        assert daemon.disconnect(NQN) == [name]


def test_work_under_way_is_a_user(daemon: Daemon) -> None:
    """A Stage that waits for its namespace keeps what it has connected."""
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/guard")
    serial = daemon.start_stage(NQN, "nsid.77", "/srv/waiting", timeout=4)
    assert ("job", "/srv/waiting") in {(kind, device) for kind, device, _ in daemon.users(NQN)}
    leaving = daemon.start_unstage("/srv/guard")
    with refused("NamespaceNotFound"):
        daemon.finish(serial)
    assert daemon.finish(leaving) == [True]
    assert guest.call(facts.controllers) == []
