"""What happens without the daemon is seen by it, and what it does is told by signals."""

from __future__ import annotations

from typing import Any

import pytest

from .daemon import BOTH, JOB, ONE, VOLUME, Daemon, refused, subsystem_path, volume_path
from .guest import bus, facts, initiator, load, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:events"
FIRST, SECOND, BLANK = 1, 2, 3
MIB = 1 << 20
GRACE = 30.0  # a volume whose mount went away counts as left behind after ten seconds


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    """Two namespaces with their number in a file, and a blank one."""
    guest.call(target.add_subsystem, NQN, namespaces=BLANK, ports=[1, 2])
    for nsid in (FIRST, SECOND):
        file = str(target.backing_file(NQN, nsid))
        guest.call(users.make_filesystem, file)
        guest.run(["debugfs", "-w", "-R", f"mkdir namespace-{nsid}", file])
    guest.snapshot("events")
    return Daemon(guest)


def listed(guest: Guest, path: str) -> set[str]:
    return set(guest.run(["ls", path]).out.split()) - {"lost+found"}


def test_sysfs_is_read_while_it_changes(daemon: Daemon) -> None:
    """What is there half, because it is coming or going, is waited for, and is no error."""
    told = daemon.guest.call(load.look_while_it_changes, NQN, ["127.0.0.1", "127.0.0.2"], 40)
    assert told["wrong"] == []
    assert told["looks"] > 40


class TestMounts:
    def test_removed_and_made_again_by_hand(self, daemon: Daemon) -> None:
        guest, path = daemon.guest, "/srv/hands"
        device = daemon.stage(NQN, FIRST, path)
        guest.run(["umount", path])
        assert daemon.volume(path)["State"] == "lost"
        assert daemon.users(NQN) == []
        guest.run(["mount", device, path])
        assert daemon.volume(path)["State"] == "staged"
        assert guest.call(facts.controllers) != []
        assert daemon.unstage(path) is True

    def test_removed_by_hand_and_unstaged(self, daemon: Daemon) -> None:
        daemon.stage(NQN, FIRST, "/srv/hands")
        daemon.guest.run(["umount", "/srv/hands"])
        assert daemon.unstage("/srv/hands") is True
        assert daemon.guest.run(["test", "-e", "/srv/hands"], check=False).rc == 1

    def test_removed_by_hand_and_staged_again(self, daemon: Daemon) -> None:
        daemon.stage(NQN, FIRST, "/srv/hands")
        daemon.guest.run(["umount", "/srv/hands"])
        daemon.stage(NQN, FIRST, "/srv/hands")
        assert daemon.volume("/srv/hands")["State"] == "staged"
        assert daemon.unstage("/srv/hands") is True

    def test_removed_by_hand_and_left(self, daemon: Daemon) -> None:
        """The subsystem does not stay connected for a mount that is not there."""
        daemon.stage(NQN, FIRST, "/srv/hands")
        daemon.guest.run(["umount", "/srv/hands"])
        daemon.guest.call(service.wait_gone, NQN, timeout=GRACE)
        assert daemon.volume("/srv/hands")["State"] == "lost"
        assert daemon.unstage("/srv/hands") is True

    def test_another_mount_in_its_place(self, daemon: Daemon) -> None:
        """What somebody put there instead is not unmounted."""
        guest = daemon.guest
        daemon.stage(NQN, FIRST, "/srv/hands", ONE)
        guest.run("umount /srv/hands && mount -t tmpfs other /srv/hands")
        with refused("NotStaged", "/srv/hands"):
            daemon.unstage("/srv/hands")
        guest.run(["umount", "/srv/hands"])
        assert daemon.unstage("/srv/hands") is True


class TestNamespaces:
    @pytest.mark.parametrize("kind", ["filesystem", "block"])
    def test_goes_and_comes_back(self, daemon: Daemon, kind: str) -> None:
        guest, path = daemon.guest, "/srv/gone"
        daemon.stage(NQN, FIRST, path, type=kind)
        guest.call(target.enable_namespace, NQN, FIRST, False)
        guest.call(initiator.connected, NQN, 2)
        assert daemon.volume(path)["State"] == "lost"
        guest.call(target.enable_namespace, NQN, FIRST, True)
        guest.call(initiator.connected, NQN, 3)
        assert daemon.volume(path)["State"] == "lost", "the mount is on what is no more"
        assert daemon.unstage(path) is True
        daemon.stage(NQN, FIRST, path)
        assert listed(guest, path) == {f"namespace-{FIRST}"}
        assert daemon.unstage(path) is True

    def test_subsystem_shows_what_is_there(self, daemon: Daemon) -> None:
        guest = daemon.guest
        daemon.stage(NQN, FIRST, "/srv/there", ONE)
        guest.call(target.enable_namespace, NQN, SECOND, False)
        guest.call(initiator.connected, NQN, 2)
        identities = {nsid: f"uuid.{target.namespace_uuid(NQN, nsid)}" for nsid in (FIRST, SECOND, BLANK)}
        shown = daemon.subsystem(NQN)["Namespaces"]
        assert sorted(wwid for _, wwid, _ in shown) == sorted((identities[FIRST], identities[BLANK]))
        guest.call(target.grow_namespace, NQN, BLANK, target.SIZE + 64 * MIB)
        guest.call(target.enable_namespace, NQN, SECOND, True)
        guest.call(initiator.connected, NQN, 3)
        guest.call(service.wait_size, NQN, BLANK, target.SIZE + 64 * MIB)
        sizes = {wwid: size for _, wwid, size in daemon.subsystem(NQN)["Namespaces"]}
        assert sizes == dict.fromkeys(identities.values(), target.SIZE) | {identities[BLANK]: target.SIZE + 64 * MIB}
        assert daemon.unstage("/srv/there") is True

    def test_names_are_swapped_by_a_reconnect(self, daemon: Daemon) -> None:
        """The right one is mounted, whatever it is called today."""
        guest = daemon.guest
        devices = []
        for first, second in ((FIRST, SECOND), (SECOND, FIRST)):
            for nsid in (second, BLANK):
                guest.call(target.enable_namespace, NQN, nsid, False)
            devices.append(daemon.stage(NQN, first, f"/srv/{first}", ONE))
            guest.call(target.enable_namespace, NQN, second, True)
            daemon.stage(NQN, second, f"/srv/{second}", ONE)
            for nsid in (FIRST, SECOND):
                assert listed(guest, f"/srv/{nsid}") == {f"namespace-{nsid}"}
            assert daemon.unstage(f"/srv/{second}") is False
            assert daemon.unstage(f"/srv/{first}") is True
            guest.call(target.enable_namespace, NQN, BLANK, True)
        assert devices[0] == devices[1], "one name for two namespaces, or this has tested nothing"

    def test_stage_waits_for_its_namespace(self, daemon: Daemon) -> None:
        guest = daemon.guest
        guest.call(target.enable_namespace, NQN, FIRST, False)
        since = guest.call(bus.subscribe)
        serial = daemon.start_stage(NQN, FIRST, "/srv/late")
        job = wait_step(guest, since, "waiting-for-device")
        guest.call(target.enable_namespace, NQN, FIRST, True)
        assert daemon.finish(serial)[0] == volume_path("/srv/late")
        assert guest.call(bus.wait_signal, "Completed", job, since)["body"] == [True, "", ""]
        assert daemon.unstage("/srv/late") is True


def wait_step(guest: Guest, since: int, step: str) -> str:
    """Wait until a job enters a step; returns its path."""
    while True:
        news = guest.call(bus.wait_signal, "PropertiesChanged", since=since, timeout=30.0)
        if news["body"][0] == JOB and news["body"][1].get("Step") == step:
            return news["path"]
        since = news["number"] + 1


def test_path_loss_and_return(daemon: Daemon) -> None:
    guest, path = daemon.guest, "/srv/paths"
    daemon.stage(NQN, FIRST, path, reconnect_delay=1)
    names = {address: name for name, _, address, _ in daemon.subsystem(NQN)["Controllers"]}
    lost = names["tcp://127.0.0.2:4420"]
    guest.call(target.unlink, NQN, 2)
    guest.call(initiator.wait_state, lost, "connecting")
    assert daemon.volume(path)["State"] == "degraded"
    assert [lost, "tcp", "tcp://127.0.0.2:4420", "connecting"] in daemon.subsystem(NQN)["Controllers"]
    guest.run(["touch", f"{path}/file"])
    guest.run(["sync", "--file-system", path])
    guest.call(target.link, NQN, 2)
    guest.call(initiator.wait_state, lost, "live")
    assert daemon.volume(path)["State"] == "staged"
    guest.call(target.unlink, NQN, 2)
    guest.call(initiator.wait_state, lost, "connecting")
    assert daemon.unstage(path) is True, "a lost path does not keep the others"
    guest.call(target.link, NQN, 2)


class TestSignals:
    def test_subsystem_that_somebody_else_connects(self, daemon: Daemon) -> None:
        guest, path = daemon.guest, subsystem_path(NQN)
        since = guest.call(bus.subscribe)
        name = guest.call(initiator.connect, NQN)
        added = wait_object(guest, since, "InterfacesAdded", path)
        told = added["body"][1]["org.nvmeofd1.Subsystem"]
        assert (told["NQN"], told["Owned"]) == (NQN, False)
        assert [name, "tcp", ONE[0], "live"] in daemon.subsystem(NQN)["Controllers"]
        assert guest.call(initiator.connected, NQN, 3)["name"] == daemon.subsystem(NQN)["Name"]
        guest.call(initiator.disconnect, NQN)
        gone = wait_object(guest, since, "InterfacesRemoved", path)
        assert gone["body"][1] == ["org.nvmeofd1.Subsystem"]
        assert daemon.objects("subsystem") == []

    def test_life_of_a_volume(self, daemon: Daemon) -> None:
        guest, path = daemon.guest, volume_path("/srv/signals")
        since = guest.call(bus.subscribe)
        daemon.stage(NQN, FIRST, "/srv/signals")
        added = wait_object(guest, since, "InterfacesAdded", path)["body"][1]
        assert added == {VOLUME: daemon.volume("/srv/signals")}
        assert wait_object(guest, since, "InterfacesAdded", subsystem_path(NQN))
        assert daemon.unstage("/srv/signals") is True
        assert wait_object(guest, since, "InterfacesRemoved", path)["body"][1] == [VOLUME]
        assert wait_object(guest, since, "InterfacesRemoved", subsystem_path(NQN))

    def test_life_of_a_job(self, daemon: Daemon) -> None:
        guest = daemon.guest
        since = guest.call(bus.subscribe)
        with refused("NoFilesystem"):
            daemon.stage(NQN, BLANK, "/srv/job")
        steps, told, job = [], {}, ""
        for news in guest.call(bus.signals, since):
            if news["member"] == "InterfacesAdded" and JOB in news["body"][1]:
                job, told = news["body"][0], news["body"][1][JOB]
            elif news["member"] == "PropertiesChanged" and news["path"] == job:
                steps += [news["body"][1]["Step"]] if "Step" in news["body"][1] else []
        assert (told["Operation"], told["NQN"], told["StagingPath"]) == ("stage", NQN, "/srv/job")
        assert (told["Step"], told["StartedAt"], told["Sender"]) == ("queued", 0, 0)
        assert steps == ["connecting", "waiting-for-device", "probing", "rolling-back"]
        success, error, message = guest.call(bus.wait_signal, "Completed", job, since)["body"]
        assert (success, error) == (False, "org.nvmeofd1.Error.NoFilesystem")
        assert message
        assert wait_object(guest, since, "InterfacesRemoved", job)["body"][1] == [JOB]

    def test_cancel(self, daemon: Daemon) -> None:
        guest = daemon.guest
        since = guest.call(bus.subscribe)
        serial = daemon.start_stage(NQN, "nsid.77", "/srv/cancel", BOTH)
        job = wait_step(guest, since, "waiting-for-device")
        assert daemon.objects("job") == [job]
        assert guest.call(bus.call, job, JOB, "Cancel")["error"] == ""
        with refused("Cancelled", "waiting-for-device"):
            daemon.finish(serial)
        assert guest.call(facts.controllers) == []
        assert guest.call(bus.call, job, JOB, "Cancel")["error"] == "org.freedesktop.DBus.Error.UnknownObject"

    def test_caller_that_goes_away_does_not_cancel(self, daemon: Daemon) -> None:
        guest = daemon.guest
        since = guest.call(bus.subscribe)
        arguments: list[Any] = [NQN, f"nsid.{FIRST}", list(BOTH), "/srv/alone", {}]
        guest.call(bus.start, "Stage", "ssassa{sv}", arguments, "hasty")
        wait_step(guest, since, "connecting")
        guest.call(bus.close, "hasty")
        wait_object(guest, since, "InterfacesAdded", volume_path("/srv/alone"))
        assert daemon.unstage("/srv/alone") is True


def wait_object(guest: Guest, since: int, member: str, path: str) -> bus.Signal:
    """Wait until an object has come or gone."""
    while True:
        news = guest.call(bus.wait_signal, member, bus.ROOT, since, timeout=30.0)
        if news["body"][0] == path:
            return news
        since = news["number"] + 1
