"""What is logged can be searched for in systemd's journal by what it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from .daemon import ERROR, ONE, Daemon, refused
from .guest import service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:fields"
EXT4, BLANK = 1, 2
LONG = "/srv/" + "/".join(["x" * 250] * 15)


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=BLANK, ports=[1])
    guest.call(users.make_filesystem, str(target.backing_file(NQN, EXT4)))
    guest.snapshot("fields")
    return Daemon(guest)


def entries(guest: Guest, *matches: str) -> list[Mapping[str, Any]]:
    guest.run(["journalctl", "--sync"])
    command = ["journalctl", "--unit", service.UNIT, "--output", "json", "--all", "--no-pager", *matches]
    return [json.loads(line) for line in guest.run(command).out.splitlines()]


def the_last(guest: Guest, *matches: str) -> Mapping[str, Any]:
    found = entries(guest, *matches)
    assert found, matches
    return found[-1]


def test_stage_that_is_done(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/done", ONE)
    found = entries(guest, "STAGING_PATH=/srv/done")
    assert len(found) > 1
    for entry in found:
        assert entry["NQN"] == NQN
        assert entry["OPERATION"] == "stage"
        assert entry["JOB"] == found[0]["JOB"]
        assert entry["_TRANSPORT"] == "journal"
        assert entry["SYSLOG_IDENTIFIER"] == "nvmeofd"
        assert entry["_SYSTEMD_UNIT"] == service.UNIT
        assert entry["PRIORITY"] == "6"
        assert "ERROR" not in entry
    assert found[0]["STEP"] == "queued"
    assert found[-1]["STEP"] == "mounting"
    assert daemon.unstage("/srv/done") is True
    assert [entry["JOB"] for entry in entries(guest, f"NQN={NQN}", "OPERATION=stage")][-1] == found[-1]["JOB"]
    assert the_last(guest, f"NQN={NQN}")["OPERATION"] == "unstage"


def test_disconnect_that_is_refused(daemon: Daemon) -> None:
    daemon.stage(NQN, EXT4, "/srv/used", ONE)
    with refused("InUse"):
        daemon.disconnect(NQN)
    entry = the_last(daemon.guest, f"ERROR={ERROR}InUse", "OPERATION=disconnect")
    assert (entry["NQN"], entry["PRIORITY"]) == (NQN, "4")
    assert "STAGING_PATH" not in entry
    assert daemon.unstage("/srv/used") is True


def test_stage_that_fails(daemon: Daemon) -> None:
    """With the step in which it failed, not the one in which it was undone."""
    guest = daemon.guest
    with refused("NamespaceNotFound"):
        daemon.stage(NQN, "nsid.77", "/srv/failed", ONE, timeout=8)
    entry = the_last(guest, "STAGING_PATH=/srv/failed")
    assert (entry["ERROR"], entry["STEP"]) == (f"{ERROR}NamespaceNotFound", "waiting-for-device")
    assert "rolling-back" in {one["STEP"] for one in entries(guest, "STAGING_PATH=/srv/failed")}
    with refused("NoFilesystem"):
        daemon.stage(NQN, BLANK, "/srv/failed", ONE)
    entry = the_last(guest, "STAGING_PATH=/srv/failed")
    assert (entry["ERROR"], entry["STEP"]) == (f"{ERROR}NoFilesystem", "probing")


def test_longest_path(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.run(["mkdir", "--parents", LONG.rpartition("/")[0]])
    daemon.stage(NQN, EXT4, LONG, ONE)
    assert the_last(guest, f"STAGING_PATH={LONG}")["NQN"] == NQN
    assert daemon.unstage(LONG) is True
    guest.run(["rm", "-r", "/srv/" + "x" * 250])


def test_journal_that_is_stopped_and_comes_back(daemon: Daemon) -> None:
    """Its sockets are systemd's, and what is sent meanwhile waits there. The daemon goes on."""
    guest = daemon.guest
    since = guest.run("date +@%s.%N").out.strip()
    guest.run(["systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service"])
    daemon.stage(NQN, EXT4, "/srv/stopped", ONE)
    assert daemon.unstage("/srv/stopped") is True
    guest.run(["systemctl", "kill", "--signal=SIGKILL", "systemd-journald.service"])
    daemon.stage(NQN, EXT4, "/srv/again", ONE)
    assert daemon.unstage("/srv/again") is True
    assert the_last(guest, "STAGING_PATH=/srv/again", f"--since={since}")["OPERATION"] == "unstage"


def test_failed_start_says_why(daemon: Daemon) -> None:
    """A process that ends at once: its unit is known all the same."""
    guest = daemon.guest
    config = "/etc/nvmeofd/nvmeofd.conf.d/test.conf"
    guest.write(config, b"[Operation]\nTimeoutSec=soon\n")
    assert guest.run(["systemctl", "restart", service.UNIT], check=False).rc != 0
    last = [entry for entry in entries(guest, "--priority=crit") if entry["SYSLOG_IDENTIFIER"] == "nvmeofd"]
    assert last
    assert last[-1]["_SYSTEMD_UNIT"] == service.UNIT
    guest.run(["rm", config])
    guest.run(["systemctl", "reset-failed", service.UNIT])
    guest.call(service.systemctl, "start")
