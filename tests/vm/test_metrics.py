"""The file of metrics, written by the real daemon, as node_exporter would read it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.exposition import Metrics, parse

from .daemon import BOTH, ONE, Daemon, refused
from .guest import facts, metrics, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:metrics"
EXT4, OTHER_EXT4 = 1, 2
CONFIG = "/etc/nvmeofd/nvmeofd.conf.d/metrics.conf"
DIRECTORY = "/var/lib/prometheus/node-exporter"
FILE = f"{DIRECTORY}/nvmeofd.prom"
PATHS = "nvmeofd_subsystem_paths"


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN, namespaces=OTHER_EXT4, ports=[1, 2])
    for nsid in (EXT4, OTHER_EXT4):
        guest.call(users.make_filesystem, str(target.backing_file(NQN, nsid)))
    guest.snapshot("metrics")
    return Daemon(guest)


@pytest.fixture(autouse=True)
def configured(daemon: Daemon) -> Iterator[None]:
    """Another daemon for each test: all counters begin at 0."""
    guest = daemon.guest
    guest.run(["mkdir", "--parents", DIRECTORY])
    guest.write(CONFIG, content(FILE))
    guest.call(service.systemctl, "restart")
    yield
    guest.run(["rm", "-f", CONFIG])
    guest.call(service.systemctl, "reload")
    guest.call(service.wait_removed, FILE)
    guest.run(["rm", "-r", DIRECTORY])


def content(path: str) -> bytes:
    return f"[Daemon]\nMetricsFile={path}\n".encode()


def configure(guest: Guest, path: str) -> None:
    guest.write(CONFIG, content(path))
    guest.call(service.systemctl, "reload")


def wait(guest: Guest, line: str, file: str = FILE) -> Metrics:
    """Wait until a series has a value, given as the line that it is."""
    return parse(guest.call(metrics.wait_line, file, line).encode())


def test_a_life_of_a_volume(daemon: Daemon) -> None:
    guest = daemon.guest
    before = wait(guest, 'nvmeofd_volumes{state="staged"} 0')
    daemon.stage(NQN, EXT4, "/srv/one", BOTH)
    with refused("InUse"):
        daemon.disconnect(NQN)
    with refused("InvalidArgument"):
        daemon.disconnect("no-nqn")
    found = wait(guest, 'nvmeofd_operation_errors_total{operation="disconnect",error="InvalidArgument"} 1')
    assert before.changes(found, "nvmeofd_operations_total") == {
        ("stage", "succeeded"): 1,
        ("disconnect", "refused"): 2,
    }
    assert before.changes(found, "nvmeofd_operation_errors_total") == {
        ("InUse", "disconnect"): 1,
        ("InvalidArgument", "disconnect"): 1,
    }
    assert found.value("nvmeofd_volumes", state="staged") == 1
    assert found.value(PATHS, nqn=NQN, state="live") == 2
    assert found.value("nvmeofd_operation_duration_seconds_count", operation="stage") == 1
    assert daemon.unstage("/srv/one") is True
    found = wait(guest, 'nvmeofd_operations_total{operation="unstage",outcome="succeeded"} 1')
    assert found.value("nvmeofd_subsystems") == 0
    assert found.value("nvmeofd_disconnects_total", outcome="done") == 1


def test_file(daemon: Daemon) -> None:
    """For everybody to read, owned by root, and nothing beside it."""
    guest = daemon.guest
    wait(guest, "nvmeofd_subsystems_readable 1")
    assert guest.run(["stat", "--format", "%a %U %G %F", FILE]).out.strip() == "644 root root regular file"
    assert guest.run(["ls", "-A", DIRECTORY]).out.split() == ["nvmeofd.prom"]


def test_state_of_a_path_is_seen_without_an_event(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/one", BOTH)
    wait(guest, f'{PATHS}{{nqn="{NQN}",state="live"}} 2')
    guest.call(target.unlink, NQN, 2)
    wait(guest, f'{PATHS}{{nqn="{NQN}",state="connecting"}} 1')
    guest.call(target.link, NQN, 2)
    wait(guest, f'{PATHS}{{nqn="{NQN}",state="live"}} 2')
    assert daemon.unstage("/srv/one") is True


def test_missing_directory(daemon: Daemon) -> None:
    """Is told once, and everything else works; when it is there, the file is, too."""
    guest = daemon.guest
    absent = f"{DIRECTORY}/absent/nvmeofd.prom"
    since = guest.call(metrics.cursor)
    configure(guest, absent)
    guest.call(service.wait_removed, FILE)
    daemon.stage(NQN, EXT4, "/srv/one", ONE)
    guest.call(metrics.wait_warning, since)
    assert daemon.unstage("/srv/one") is True
    guest.run(["mkdir", f"{DIRECTORY}/absent"])
    wait(guest, 'nvmeofd_operations_total{operation="unstage",outcome="succeeded"} 1', absent)
    assert guest.call(metrics.warnings, since) == 1
    configure(guest, FILE)
    guest.call(service.wait_removed, absent)
    guest.run(["rmdir", f"{DIRECTORY}/absent"])


def test_wrong_configuration_shows(daemon: Daemon) -> None:
    guest = daemon.guest
    wait(guest, "nvmeofd_config_last_reload_successful 1")
    guest.write(CONFIG, content("relative.prom"))
    # as "systemctl reload" does after a look at the configuration, which would end it here
    guest.run(["systemctl", "kill", "--kill-whom=main", "--signal=SIGHUP", service.UNIT])
    wait(guest, "nvmeofd_config_last_reload_successful 0")
    configure(guest, FILE)
    wait(guest, "nvmeofd_config_last_reload_successful 1")


def test_links_are_not_followed(daemon: Daemon) -> None:
    """The directory may belong to another user."""
    guest = daemon.guest
    victim = "/root/victim"
    guest.run(["rm", CONFIG])
    guest.call(service.systemctl, "reload")
    guest.call(service.wait_removed, FILE)
    guest.write(victim, b"precious\n")
    for name in ("nvmeofd.prom", ".nvmeofd.prom.new"):
        guest.run(["ln", "-s", victim, f"{DIRECTORY}/{name}"])
    configure(guest, FILE)
    wait(guest, "nvmeofd_subsystems_readable 1")
    assert guest.run(["cat", victim]).out == "precious\n"
    assert guest.run(["ls", "-A", DIRECTORY]).out.split() == ["nvmeofd.prom"]
    guest.run(["rm", victim])


def test_removed_at_the_stop_and_written_at_the_start(daemon: Daemon) -> None:
    guest = daemon.guest
    daemon.stage(NQN, EXT4, "/srv/one", ONE)
    wait(guest, 'nvmeofd_volumes{state="staged"} 1')
    guest.call(service.systemctl, "stop")
    assert guest.run(["ls", "-A", DIRECTORY]).out == ""
    guest.call(service.systemctl, "start")
    wait(guest, 'nvmeofd_volumes{state="staged"} 1')
    guest.call(service.kill)
    found = wait(guest, 'nvmeofd_volumes{state="staged"} 1')
    assert found.value("nvmeofd_operations_total", operation="stage", outcome="succeeded") == 0
    assert daemon.unstage("/srv/one") is True
    assert guest.call(facts.controllers) == []
