"""Others than root, with the real polkit: the policy of the bus denies them, and where it is opened polkit decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .daemon import ONE, Daemon, DaemonError, refused, stage_arguments, value
from .guest import bus, facts, target, users
from .harness import Guest

EXAMPLES = Path(__file__).parents[2] / "examples"
NQN = "nqn.2026-11.org.example:access"
FULL, BLANK = 1, 2
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
DROP_IN = "/etc/dbus-1/system.d/nvmeofd-storage.conf"
RULES = "/etc/polkit-1/rules.d/50-nvmeofd-storage.rules"
STORAGE = 2000  # the group
OPERATOR, VISITOR = 2001, 2002  # users: one in the group, one not
PATH = "/srv/volumes/one"


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=BLANK, ports=[1, 2])
    guest.call(users.make_filesystem, str(target.backing_file(NQN, FULL)))
    accounts = (f"g storage {STORAGE}", f"u operator {OPERATOR}", "m operator storage", f"u visitor {VISITOR}")
    guest.run(["systemd-sysusers", "--inline", *accounts])
    guest.run(["mkdir", "-p", "/srv/volumes"])
    guest.snapshot("access")
    return Daemon(guest)


@pytest.fixture
def opened(daemon: Daemon) -> Iterator[Daemon]:
    """The bus lets the group in."""
    guest = daemon.guest
    guest.write(DROP_IN, (EXAMPLES / "nvmeofd-storage.conf").read_bytes())
    guest.run(["systemctl", "reload", "dbus.service"])
    yield daemon
    guest.run(["rm", DROP_IN])
    guest.run(["systemctl", "reload", "dbus.service"])


@pytest.fixture
def ruled(opened: Daemon) -> Iterator[Daemon]:
    """And polkit has the rule that is shipped, for the target of this guest."""
    guest = opened.guest
    rules = (EXAMPLES / "50-nvmeofd-storage.rules").read_text()
    assert "tcp://192.0.2.1:4420" in rules
    guest.write(RULES, rules.replace("tcp://192.0.2.1:4420", ONE[0]).encode())
    guest.run(["systemctl", "restart", "polkit.service"])
    yield opened
    guest.run(["rm", RULES])
    guest.run(["systemctl", "restart", "polkit.service"])


@pytest.fixture
def operator(daemon: Daemon) -> Iterator[str]:
    """The label of a connection of somebody in the group."""
    daemon.guest.call(bus.open_as, "operator", OPERATOR, [OPERATOR, STORAGE])
    yield "operator"
    daemon.guest.call(bus.close, "operator")


def call(daemon: Daemon, label: str, member: str, signature: str, *arguments: Any) -> list[Any]:
    return value(
        daemon.guest.call(bus.call, bus.ROOT, bus.MANAGER, member, signature, list(arguments), bus.DAEMON, label)
    )


def stage(
    daemon: Daemon, label: str, path: str = PATH, nsid: int = FULL, addresses: tuple[str, ...] = ONE, **options: Any
) -> list[Any]:
    return call(daemon, label, "Stage", "ssassa{sv}", *stage_arguments(NQN, nsid, path, addresses, options))


def version(daemon: Daemon, label: str) -> Any:
    arguments = [bus.MANAGER, "Version"]
    (found,) = value(daemon.guest.call(bus.call, bus.ROOT, bus.PROPERTIES, "Get", "ss", arguments, bus.DAEMON, label))
    return found


def as_user(user: str, *arguments: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "busctl", *arguments]


def test_nobody_comes_past_the_bus(daemon: Daemon, operator: str) -> None:
    for attempt in (stage, version):
        with pytest.raises(DaemonError) as caught:
            attempt(daemon, operator)
        assert caught.value.name == DENIED
        # the bus speaks, not the daemon
        assert "org.nvmeofd1.stage" not in caught.value.message
        assert "org.nvmeofd1.read" not in caught.value.message
    done = daemon.guest.run(as_user("operator", "introspect", bus.DAEMON, bus.ROOT), check=False)
    assert done.rc != 0
    assert "Access denied" in done.err
    assert daemon.guest.call(facts.controllers) == []


def test_polkit_wants_an_administrator(opened: Daemon, operator: str) -> None:
    with refused(DENIED, "org.nvmeofd1.stage", "administrator"):
        stage(opened, operator)
    with refused(DENIED, "org.nvmeofd1.unstage", "administrator"):
        call(opened, operator, "Unstage", "sa{sv}", PATH, {})
    with refused(DENIED, "org.nvmeofd1.disconnect", "administrator"):
        call(opened, operator, "Disconnect", "sa{sv}", NQN, {})
    with refused(DENIED, "org.nvmeofd1.read", "administrator"):
        version(opened, operator)
    # busctl lets polkit ask for a password, and there is nobody to ask
    arguments = ("call", bus.DAEMON, bus.ROOT, bus.MANAGER, "Disconnect", "sa{sv}", NQN, "0")
    done = opened.guest.run(as_user("operator", *arguments), check=False)
    assert done.rc != 0
    assert opened.guest.call(facts.controllers) == []
    # the group only
    done = opened.guest.run(as_user("visitor", "introspect", bus.DAEMON, bus.ROOT), check=False)
    assert "Access denied" in done.err
    opened.guest.run(["busctl", *arguments])


def test_a_rule_lets_a_group_stage_and_no_more(ruled: Daemon, operator: str) -> None:
    guest = ruled.guest
    assert version(ruled, operator)
    assert stage(ruled, operator)
    (mount,) = guest.call(facts.nvme_mounts)
    assert mount["path"] == PATH
    shown = guest.run(["findmnt", "--noheadings", "--output", "OPTIONS", PATH]).out
    assert {"nosuid", "nodev"} <= set(shown.strip().split(","))
    for denied in (
        {"path": "/srv/elsewhere"},
        {"path": "/srv/volumes/two", "nsid": BLANK, "format": "if-empty"},
        {"path": "/srv/volumes/two", "mount_options": ["noatime"]},
        {"path": "/srv/volumes/two", "host_nqn": "nqn.2026-11.org.example:somebody-else"},
        {"path": "/srv/volumes/two", "addresses": (ONE[0], "tcp://127.0.0.2:4420")},
    ):
        with refused(DENIED, "org.nvmeofd1.stage"):
            stage(ruled, operator, **denied)
    with refused(DENIED, "org.nvmeofd1.disconnect"):
        call(ruled, operator, "Disconnect", "sa{sv}", NQN, {})
    with refused(DENIED, "org.nvmeofd1.unstage"):
        call(ruled, operator, "Unstage", "sa{sv}", PATH, {"force": True})
    assert [one["path"] for one in guest.call(facts.nvme_mounts)] == [PATH]
    # and with busctl, as the documentation has it
    done = guest.run(as_user("operator", "call", bus.DAEMON, bus.ROOT, bus.MANAGER, "Unstage", "sa{sv}", PATH, "0"))
    assert done.out.strip() == "b true"


def test_without_polkit_there_is_only_root(ruled: Daemon, operator: str) -> None:
    guest = ruled.guest
    guest.run(["systemctl", "mask", "--runtime", "--now", "polkit.service"])
    try:
        with refused(DENIED, "polkit is not running"):
            stage(ruled, operator)
        with refused(DENIED, "polkit is not running"):
            version(ruled, operator)
        ruled.stage(NQN, FULL, PATH, ONE)
        with refused(DENIED, "polkit is not running"):
            call(ruled, operator, "Unstage", "sa{sv}", PATH, {})
        assert ruled.unstage(PATH) is True
    finally:
        guest.run(["systemctl", "unmask", "--runtime", "polkit.service"])
    # the bus starts it when it is asked for
    assert stage(ruled, operator)
    assert call(ruled, operator, "Unstage", "sa{sv}", PATH, {}) == [True]
