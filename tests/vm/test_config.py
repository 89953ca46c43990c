"""The configuration as an administrator changes it: what counts after a reload, and what an error does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .daemon import ONE, Daemon
from .guest import facts, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:config"
EXT4 = 1
TEMPLATE = "/etc/nvmeofd/nvmeofd.conf"
DROP_IN = "/etc/nvmeofd/nvmeofd.conf.d/50-test.conf"
VENDOR = "/usr/lib/nvmeofd/nvmeofd.conf.d/50-vendor.conf"
BOOT = "/run/nvmeofd.conf.d/60-boot.conf"
PROGRAM = "/usr/libexec/nvmeofd"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
GOOD = b"[Operation]\nDisconnectDelaySec=3600\n\n[Connect]\nKeepAliveSec=8\nQueueSize=32\n"
APPLIED = ("8", "31", False)
BAD = b"[Connect]\nKeepAlive=9\nQueueSize=1\n"
MISTAKES = [
    f"{DROP_IN}:2: unknown key KeepAlive in section [Connect], did you mean KeepAliveSec?",
    f"{DROP_IN}:3: QueueSize=1 is not a whole number between 16 and 1024",
]


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=EXT4, ports=[1])
    guest.call(users.make_filesystem, str(target.backing_file(NQN, EXT4)))
    guest.snapshot("config")
    return Daemon(guest)


@pytest.fixture(autouse=True)
def as_installed(daemon: Daemon) -> Iterator[None]:
    yield
    daemon.guest.run(["rm", "--force", DROP_IN, VENDOR, BOOT])
    daemon.guest.run(["systemctl", "reset-failed", service.UNIT], check=False)
    daemon.guest.call(service.systemctl, "restart")


def used(daemon: Daemon) -> tuple[str, str, bool]:
    """What counts for a volume staged now: keep-alive, queue size, and whether it is disconnected at the end."""
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/config", ONE)
    (controller,) = guest.call(facts.controllers)
    kato, size = (guest.read(f"/sys/class/nvme/{controller}/{name}").decode().strip() for name in ("kato", "sqsize"))
    disconnected = daemon.unstage("/srv/config")
    daemon.disconnect(NQN)
    return kato, size, disconnected


def status(daemon: Daemon) -> str:
    return daemon.guest.call(service.show, "StatusText")


def test_template_is_installed_and_right(daemon: Daemon) -> None:
    guest = daemon.guest
    assert guest.run([PROGRAM, "--check-config"]).out == ""
    assert TEMPLATE in guest.run(["dpkg-query", "--show", "--showformat", "${Conffiles}", "nvmeofd"]).out
    assert guest.run(["stat", "--format", "%a %U %G", TEMPLATE]).out == "644 root root\n"


def test_drop_in_applies_after_reload(daemon: Daemon) -> None:
    guest = daemon.guest
    pid = guest.call(facts.daemon)["pid"]
    before = used(daemon)
    guest.write(DROP_IN, GOOD)
    assert used(daemon) == before
    guest.call(service.systemctl, "reload")
    assert used(daemon) == APPLIED
    guest.run(["rm", DROP_IN])
    guest.call(service.systemctl, "reload")
    assert used(daemon) == before
    assert guest.call(facts.daemon)["pid"] == pid


def test_reload_with_mistakes_fails_and_keeps_everything(daemon: Daemon) -> None:
    guest = daemon.guest
    pid = guest.call(facts.daemon)["pid"]
    guest.write(DROP_IN, GOOD)
    guest.call(service.systemctl, "reload")
    guest.write(DROP_IN, BAD)
    assert guest.run(["systemctl", "reload", service.UNIT], check=False).rc != 0
    assert guest.call(service.show, "ActiveState") == "active"
    assert used(daemon) == APPLIED
    guest.run(["systemctl", "kill", "--kill-whom=main", "--signal=SIGHUP", service.UNIT])
    wanted = f"Volumes: 0, subsystems: 0, jobs: 0; the configuration stays as it was: {MISTAKES[0]} (and 1 more)"
    guest.call(service.wait_property, "StatusText", wanted)
    assert guest.call(service.show, "ActiveState") == "active"
    assert used(daemon) == APPLIED
    guest.write(DROP_IN, b"")
    guest.call(service.systemctl, "reload")
    guest.call(service.wait_property, "StatusText", "Volumes: 0, subsystems: 0, jobs: 0")
    assert guest.call(facts.daemon)["pid"] == pid


def test_restart_with_mistakes(daemon: Daemon) -> None:
    """It ends once, not five times, says why, and starts when that is repaired. Mounts stay."""
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/config", ONE)
    guest.write(DROP_IN, BAD)
    assert guest.run(["systemctl", "restart", service.UNIT], check=False).rc != 0
    shown = {name: guest.call(service.show, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")}
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert status(daemon) == f"Not started: {MISTAKES[0]} (and 1 more)"
    assert [mount["path"] for mount in guest.call(facts.nvme_mounts)] == ["/srv/config"]
    guest.write(DROP_IN, GOOD)
    guest.call(service.systemctl, "start")
    assert daemon.unstage("/srv/config") is False
    daemon.disconnect(NQN)
    assert used(daemon) == APPLIED


def test_check_names_every_mistake(daemon: Daemon) -> None:
    guest = daemon.guest
    guest.write(DROP_IN, BAD)
    for user in ((), NOBODY):
        done = guest.run([*user, PROGRAM, "--check-config"], check=False)
        assert (done.rc, done.out, done.err.splitlines()) == (1, "", MISTAKES)
        assert guest.run([*user, PROGRAM, "--check-config", TEMPLATE], check=False).rc == 0
    guest.run(["chmod", "600", DROP_IN])
    done = guest.run([*NOBODY, PROGRAM, "--check-config"], check=False)
    assert (done.rc, done.err) == (1, f"{DROP_IN}: Permission denied\n")


def test_files_of_vendors_and_of_this_boot(daemon: Daemon) -> None:
    guest = daemon.guest
    for path, text in ((VENDOR, b"[Connect]\nKeepAliveSec=7\nQueueSize=64\n"), (BOOT, b"[Connect]\nQueueSize=128\n")):
        guest.run(["mkdir", "--parents", path.rpartition("/")[0]])
        guest.write(path, text)
    guest.call(service.systemctl, "reload")
    assert used(daemon) == ("7", "127", True)
    shown = guest.run([*NOBODY, PROGRAM, "--show-config"]).out
    assert f"# {VENDOR}:2\nKeepAliveSec=7\n" in shown
    assert f"# {BOOT}:2\nQueueSize=128\n" in shown
