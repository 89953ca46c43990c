"""Many calls at once: work on one subsystem is done one after the other, that on different ones side by side."""

from __future__ import annotations

from itertools import chain

import pytest

from .daemon import BOTH, ONE, Daemon, DaemonError, refused
from .guest import bus, content, facts, load, service, target, users
from .harness import Guest

NQNS = [f"nqn.2024-01.org.example:parallel-{number}" for number in range(4)]
NQN = NQNS[0]
SPACES = 3
SILENT = (("127.0.0.1", 4777), ("127.0.0.1", 4778))


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    """Four subsystems over two addresses, with three file systems each."""
    first = str(target.backing_file(NQN, 1))
    for nqn in NQNS:
        guest.call(target.add_subsystem, nqn, namespaces=SPACES, ports=[1, 2])
    guest.call(users.make_filesystem, first)
    for nqn in NQNS:
        for nsid in range(1, SPACES + 1):
            if (nqn, nsid) != (NQN, 1):
                guest.call(content.copy, first, str(target.backing_file(nqn, nsid)))
    guest.snapshot("parallel")
    return Daemon(guest)


def test_eight_come_while_four_leave(daemon: Daemon) -> None:
    guest = daemon.guest
    for serial in [daemon.start_stage(nqn, 1, f"/srv/old-{number}") for number, nqn in enumerate(NQNS)]:
        daemon.finish(serial)
    coming = {
        f"/srv/new-{number}-{nsid}": daemon.start_stage(nqn, nsid, f"/srv/new-{number}-{nsid}")
        for number, nqn in enumerate(NQNS[:2])
        for nsid in (2, 3)
    }
    leaving = [daemon.start_unstage(f"/srv/old-{number}") for number in range(4)]
    coming |= {
        f"/srv/new-{number}-{nsid}": daemon.start_stage(nqn, nsid, f"/srv/new-{number}-{nsid}")
        for number, nqn in enumerate(NQNS[2:], 2)
        for nsid in (2, 3)
    }
    for serial in coming.values():
        daemon.finish(serial)
    assert [daemon.finish(serial) for serial in leaving] == [[False]] * 4
    assert {mount["path"] for mount in guest.call(facts.nvme_mounts)} == set(coming)
    for nqn in NQNS:
        assert [entry[3] for entry in daemon.subsystem(nqn)["Controllers"]] == ["live", "live"]
    for path in coming:
        guest.run(["dd", "if=/dev/zero", f"of={path}/file", "bs=64k", "count=4", "conv=fsync"])
    going = [daemon.start_unstage(path) for path in coming]
    assert sorted(chain(*map(daemon.finish, going))) == [False] * 4 + [True] * 4
    assert guest.call(facts.controllers) == []


def test_identical_calls_are_one_job(daemon: Daemon) -> None:
    guest = daemon.guest
    before = guest.call(service.counters)
    serials = [daemon.start_stage(NQN, 1, "/srv/same", timeout=60 + number) for number in range(6)]
    answers = [daemon.finish(serial) for serial in serials]
    assert answers == answers[:1] * 6
    assert len(guest.call(facts.controllers)) == 2
    serials = [daemon.start_unstage("/srv/same") for _ in range(6)]
    assert [daemon.finish(serial) for serial in serials] == [[True]] * 6
    after = guest.call(service.counters)
    for name in ("stage-succeeded", "unstage-succeeded", "disconnects-done"):
        assert after[name] - before.get(name, 0) == 1, name


def outcome(daemon: Daemon, serial: int) -> str:
    try:
        daemon.finish(serial)
    except DaemonError as error:
        return error.name
    return ""


def test_one_volume_for_two_paths(daemon: Daemon) -> None:
    serials = [daemon.start_stage(NQN, 1, path) for path in ("/srv/here", "/srv/there")]
    assert [outcome(daemon, serial) for serial in serials] == ["", "AlreadyStaged"]
    assert daemon.unstage("/srv/here") is True


def test_one_path_for_two_volumes(daemon: Daemon) -> None:
    serials = [daemon.start_stage(nqn, nsid, "/srv/here") for nqn, nsid in ((NQN, 1), (NQN, 2), (NQNS[1], 1))]
    assert outcome(daemon, serials[0]) == ""
    assert {outcome(daemon, serial) for serial in serials[1:]} <= {"AlreadyStaged", "Busy"}
    assert daemon.guest.call(facts.subsystem, NQNS[1]) is None
    assert daemon.unstage("/srv/here") is True


def test_calls_are_worked_off_in_order(daemon: Daemon) -> None:
    """What comes first is done first, and a Stage that waits keeps the connection."""
    first = daemon.start_stage(NQN, 1, "/srv/a")
    others = [
        daemon.start_unstage("/srv/a"),
        daemon.start_stage(NQN, 1, "/srv/a"),
        daemon.start_disconnect(NQN),
        daemon.start_stage(NQN, 2, "/srv/b"),
        daemon.start_unstage("/srv/a"),
        daemon.start_unstage("/srv/b"),
        daemon.start_disconnect(NQN),
    ]
    answer = daemon.finish(first)
    assert daemon.finish(others[0]) == [False]
    assert daemon.finish(others[1]) == answer
    with refused("InUse", "/srv/a"):
        daemon.finish(others[2])
    daemon.finish(others[3])
    assert daemon.finish(others[4]) == [False]
    assert daemon.finish(others[5]) == [True]
    assert daemon.finish(others[6]) == [[]], "nothing was left to disconnect"


def test_target_that_says_nothing_holds_up_nobody_else(daemon: Daemon) -> None:
    """Each of its addresses costs the caller ten seconds, until his time is over. Meanwhile others work."""
    guest = daemon.guest
    for address in SILENT:
        guest.call(service.silent_listener, *address)
    addresses = tuple(f"tcp://{host}:{port}" for host, port in SILENT)
    stuck = daemon.start_stage(NQN, 1, "/srv/stuck", addresses, timeout=20)
    daemon.stage(NQNS[1], 1, "/srv/quick", ONE)
    assert daemon.unstage("/srv/quick") is True
    assert len(daemon.objects("job")) == 1, "it is still stuck"
    with refused("Timeout", "connecting", addresses[1]):
        daemon.finish(stuck)
    # On the queue of the stuck one: nothing is left of it.
    daemon.stage(NQN, 1, "/srv/later", ONE)
    assert daemon.unstage("/srv/later") is True
    for address in SILENT:
        guest.call(service.stop_listener, *address)


def test_everybody_at_once(daemon: Daemon) -> None:
    """Callers, strangers who mount other namespaces, and Disconnect all the time: nobody loses what he uses."""
    plans = [
        {"nqn": nqn, "namespace": f"uuid.{target.namespace_uuid(nqn, nsid)}", "path": f"/srv/{number}-{nsid}"}
        | {"addresses": list(BOTH if number else ONE)}
        for number, nqn in enumerate(NQNS[:2])
        for nsid in (1, 2)
    ]
    strangers = [
        {"nqn": nqn, "namespace": f"uuid.{target.namespace_uuid(nqn, 3)}", "path": f"/mnt/stranger-{number}"}
        for number, nqn in enumerate(NQNS[:2])
    ]
    done = daemon.guest.call(load.run, plans, strangers, 5, timeout=900.0)
    assert done["wrong"] == []
    assert all(count > 0 for count in done["mounted"].values()), done
    for nqn in NQNS[:2]:
        daemon.guest.call(service.wait_gone, nqn)


def test_many_callers_are_answered(daemon: Daemon) -> None:
    """More connections than cores, each with questions, while volumes come and go."""
    guest = daemon.guest
    serial = daemon.start_stage(NQN, 1, "/srv/asked")
    futures = [guest.submit(bus.call, bus.ROOT, bus.PROPERTIES, "GetAll", "s", [bus.MANAGER]) for _ in range(40)]
    answers = [future.result(timeout=60.0) for future in futures]
    assert {answer["error"] for answer in answers} == {""}
    daemon.finish(serial)
    assert daemon.unstage("/srv/asked") is True
