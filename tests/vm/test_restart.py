"""The daemon ends, in order or not, and another one goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .daemon import BOTH, ONE, Daemon, DaemonError, refused, stage_arguments, volume_path
from .guest import bus, content, facts, initiator, service, target, users
from .harness import Guest
from .test_events import wait_step

NQN = "nqn.2024-01.org.example:restart"
EXT4, OTHER_EXT4, BLANK = 1, 2, 3
DROP_IN = "/run/systemd/system/nvmeofd.service.d/test.conf"


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=BLANK, ports=[1, 2])
    for nsid in (EXT4, OTHER_EXT4):
        guest.call(users.make_filesystem, str(target.backing_file(NQN, nsid)))
    guest.snapshot("restart")
    return Daemon(guest)


def mount_lines(guest: Guest) -> str:
    return guest.run("grep -F /srv/ /proc/self/mountinfo", check=False).out


class TestVolumesStaged:
    @pytest.fixture
    def staged(self, daemon: Daemon) -> Iterator[dict[str, Any]]:
        """A filesystem and a block volume; afterwards they must be the daemon's as before."""
        guest = daemon.guest
        daemon.stage(NQN, EXT4, "/srv/ext4", mount_options=["nodev"])
        daemon.stage(NQN, BLANK, "/srv/block", type="block")
        volumes = {path: daemon.volume(path) for path in ("/srv/ext4", "/srv/block")}
        mounts, controllers = mount_lines(guest), guest.call(facts.controllers)
        yield volumes
        assert mount_lines(guest) == mounts
        assert guest.call(facts.controllers) == controllers
        assert {path: daemon.volume(path) for path in volumes} == volumes
        assert daemon.subsystem(NQN)["Owned"] is True
        with refused("InUse", *volumes):
            daemon.disconnect(NQN)
        assert daemon.unstage("/srv/ext4") is False
        assert daemon.unstage("/srv/block") is True

    def test_restart(self, daemon: Daemon, staged: dict[str, Any]) -> None:
        daemon.guest.call(service.systemctl, "restart")

    def test_kill(self, daemon: Daemon, staged: dict[str, Any]) -> None:
        for _ in range(2):
            daemon.guest.call(service.kill)

    def test_stop_leaves_everything_and_a_call_starts_it(self, daemon: Daemon, staged: dict[str, Any]) -> None:
        guest = daemon.guest
        guest.call(service.systemctl, "stop")
        assert guest.call(facts.daemon)["pid"] == 0
        guest.run("echo works > /srv/ext4/file && sync --file-system /srv/ext4")
        assert guest.run(["cat", "/srv/ext4/file"]).out == "works\n"
        guest.run(["busctl", "get-property", *bus_names(), "Version"], timeout=90.0)
        assert guest.call(facts.daemon)["pid"] != 0


def bus_names() -> list[str]:
    return [bus.DAEMON, bus.ROOT, bus.MANAGER]


def test_mount_removed_while_it_was_not_there(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/gone")
    daemon.stage(NQN, OTHER_EXT4, "/srv/here")
    guest.call(service.systemctl, "stop")
    guest.run(["umount", "/srv/gone"])
    guest.call(service.systemctl, "start")
    assert daemon.volume("/srv/gone")["State"] == "lost"
    assert daemon.volume("/srv/here")["State"] == "staged"
    assert daemon.unstage("/srv/here") in (True, False)
    assert daemon.unstage("/srv/gone") is True


def test_everything_removed_while_it_was_not_there(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/gone")
    guest.call(service.systemctl, "stop")
    guest.run(["umount", "/srv/gone"])
    guest.call(initiator.disconnect, NQN)
    guest.call(service.systemctl, "start")
    daemon.unstage("/srv/gone")


def test_user_left_while_it_was_not_there(daemon: Daemon) -> None:
    """What was waiting for a last user is still done."""
    guest = daemon.guest
    device = daemon.stage(NQN, EXT4, "/srv/user")
    guest.call(users.opener, "opener", device)
    assert daemon.unstage("/srv/user") is False
    guest.call(service.systemctl, "stop")
    guest.call(users.end, "opener")
    guest.call(service.systemctl, "start")
    guest.call(service.wait_gone, NQN)


class TestKilledInTheMiddle:
    @pytest.mark.parametrize("step", ["connecting", "waiting-for-device", "formatting", "mounting"])
    def test_of_a_stage(self, daemon: Daemon, step: str) -> None:
        """Either it is staged, or nothing is left of it; and the same call again succeeds."""
        guest, path = daemon.guest, "/srv/killed"
        guest.call(content.wipe, str(target.backing_file(NQN, BLANK)))
        arguments = stage_arguments(NQN, BLANK, path, BOTH, {"format": "if-empty"})
        assert guest.call(service.kill_at_step, step, "Stage", "ssassa{sv}", list(arguments))
        if volume_path(path) in daemon.objects("volume"):
            assert daemon.volume(path)["State"] == "staged"
        else:
            guest.call(service.wait_gone, NQN)
            assert guest.call(facts.settled) == {}
        daemon.stage(NQN, BLANK, path, format="if-empty")
        guest.run(["touch", f"{path}/file"])
        assert daemon.unstage(path) is True

    @pytest.mark.parametrize("step", ["unmounting", "verifying", "disconnecting"])
    def test_of_an_unstage(self, daemon: Daemon, step: str) -> None:
        """Either it is still staged, or all of it is gone."""
        guest, path = daemon.guest, "/srv/killed"
        daemon.stage(NQN, EXT4, path)
        assert guest.call(service.kill_at_step, step, "Unstage", "sa{sv}", [path, {}])
        if volume_path(path) in daemon.objects("volume"):
            assert daemon.volume(path)["State"] == "staged"
            assert daemon.unstage(path) is True
        guest.call(service.wait_gone, NQN)

    def test_of_a_stage_that_waits(self, daemon: Daemon) -> None:
        """Beside a volume that is staged: what it had connected for itself stays as long as that one."""
        guest = daemon.guest
        daemon.stage(NQN, EXT4, "/srv/staged", ONE)
        arguments = stage_arguments(NQN, "nsid.77", "/srv/killed", BOTH, {})
        assert guest.call(service.kill_at_step, "waiting-for-device", "Stage", "ssassa{sv}", list(arguments))
        assert daemon.objects("volume") == [volume_path("/srv/staged")]
        assert daemon.unstage("/srv/staged") is True


class TestStop:
    def test_work_under_way_is_finished(self, daemon: Daemon) -> None:
        guest = daemon.guest
        guest.call(target.enable_namespace, NQN, EXT4, False)
        since = guest.call(bus.subscribe)
        serial = daemon.start_stage(NQN, EXT4, "/srv/late")
        wait_step(guest, since, "waiting-for-device")
        guest.run(["systemctl", "stop", "--no-block", service.UNIT])
        guest.call(service.wait_property, "SubState", "stop-sigterm")
        with refused("ShuttingDown"):
            daemon.stage(NQN, OTHER_EXT4, "/srv/too-late")
        guest.call(target.enable_namespace, NQN, EXT4, True)
        assert daemon.finish(serial)[0] == volume_path("/srv/late")
        guest.call(service.wait_property, "ActiveState", "inactive")
        assert guest.run(["systemctl", "show", "--value", "--property", "Result", service.UNIT]).out == "success\n"
        assert [mount["path"] for mount in guest.call(facts.nvme_mounts)] == ["/srv/late"]
        guest.call(service.systemctl, "start")
        assert daemon.unstage("/srv/late") is True

    def test_hang_is_ended_by_the_watchdog(self, daemon: Daemon) -> None:
        guest = daemon.guest
        guest.write(DROP_IN, b"[Service]\nWatchdogSec=3\n")
        guest.run(["systemctl", "daemon-reload"])
        guest.call(service.systemctl, "restart")
        daemon.stage(NQN, EXT4, "/srv/watched", ONE)
        assert guest.call(service.hang) != 0
        assert daemon.volume("/srv/watched")["State"] == "staged"
        assert daemon.unstage("/srv/watched") is True
        guest.run(["rm", "-r", "/run/systemd/system/nvmeofd.service.d"])
        guest.run(["systemctl", "daemon-reload"])
        guest.call(service.systemctl, "restart")


class TestService:
    def test_status_counts(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, EXT4, "/srv/one", ONE)
        daemon.stage(NQN, OTHER_EXT4, "/srv/two", ONE)
        guest.call(service.wait_property, "StatusText", "Volumes: 2, subsystems: 1, jobs: 0")
        assert daemon.unstage("/srv/one") is False
        assert daemon.unstage("/srv/two") is True
        guest.call(service.wait_property, "StatusText", "Volumes: 0, subsystems: 0, jobs: 0")

    def test_mounts_in_the_namespace_of_the_host(self, daemon: Daemon) -> None:
        pid = daemon.guest.call(facts.daemon)["pid"]
        kinds = " ".join(f"/proc/{owner}/ns/{kind}" for owner in (1, pid) for kind in ("mnt", "net"))
        links = daemon.guest.run(f"readlink {kinds}").out.split()
        assert links[:2] == links[2:]

    def test_one_instance_only(self, daemon: Daemon) -> None:
        done = daemon.guest.run(["/usr/libexec/nvmeofd"], check=False, timeout=60.0)
        assert done.rc == 1
        assert "org.nvmeofd1" in done.err

    def test_interface_is_the_documented_one(self, daemon: Daemon) -> None:
        shown = daemon.guest.run(["busctl", "introspect", bus.DAEMON, bus.ROOT]).out
        for member in (".Stage", ".Unstage", ".Disconnect", ".Version", ".HostNQN", ".HostID", ".Counters"):
            assert member in shown
        manager = daemon.guest.call(bus.properties, bus.ROOT, bus.MANAGER)
        assert manager["HostNQN"] == daemon.guest.call(initiator.host_nqn)
        assert manager["HostID"] == daemon.guest.call(initiator.host_id)


class TestOtherUsers:
    """The bus lets only root in."""

    @pytest.mark.parametrize(
        "call",
        [
            ["call", *bus_names(), "Stage", "ssassa{sv}", NQN, "nsid.1", "1", ONE[0], "/srv/no", "0"],
            ["call", *bus_names(), "Unstage", "sa{sv}", "/srv/no", "0"],
            ["call", *bus_names(), "Disconnect", "sa{sv}", NQN, "0"],
            ["get-property", *bus_names(), "Version"],
            ["introspect", bus.DAEMON, bus.ROOT],
        ],
        ids=lambda call: call[-4] if call[0] == "call" else call[0],
    )
    def test_busctl(self, daemon: Daemon, call: list[str]) -> None:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = daemon.guest.run([*nobody, "busctl", *call], check=False)
        assert done.rc != 0
        assert "denied" in done.err
        assert daemon.guest.call(facts.controllers) == []

    def test_every_interface(self, daemon: Daemon) -> None:
        guest = daemon.guest
        guest.call(bus.open_as, "nobody", 65534)
        for interface, member in (
            (bus.MANAGER, "Stage"),
            (bus.PROPERTIES, "GetAll"),
            ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
            ("org.freedesktop.DBus.Introspectable", "Introspect"),
            ("org.freedesktop.DBus.Peer", "Ping"),
        ):
            reply = guest.call(bus.call, bus.ROOT, interface, member, label="nobody")
            assert reply["error"] == "org.freedesktop.DBus.Error.AccessDenied", member
        guest.call(bus.close, "nobody")
        with pytest.raises(DaemonError, match="InvalidArgument"):
            daemon.disconnect("root-is-let-in")
