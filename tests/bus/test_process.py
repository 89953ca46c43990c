"""The daemon as a process of its own, on the kernel of this host, told and asked as its service manager would.

It has a mount namespace with an /etc and a /run of its own: nothing of this machine is changed.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvmeofd.bus.messages import DBusError
from nvmeofd.bus.paths import ROOT
from nvmeofd.model import HostIdentity
from tests.bus.fake import NQN
from tests.bus.harness import MANAGER, REPOSITORY, PrivateBus, client
from tests.bus.test_storm import NAMESPACE, missing

WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)

SCRIPT = 'mount -n --bind -o "$5" "$1" /etc && mount -n -t tmpfs run /run && exec "$2" "$3" "$4"'
MAIN = "from nvmeofd.daemon import main; raise SystemExit(main())"
DROP_IN = "nvmeofd/nvmeofd.conf.d/50-test.conf"
BAD = "[Operation]\nTimeout=5\nQueueLimit=0\n"
MISTAKE = f"/etc/{DROP_IN}:2: unknown key Timeout in section [Operation], did you mean TimeoutSec? (and 1 more)"
NOTHING = "Volumes: 0, subsystems: 0, jobs: 0"


class Running:
    """The process, its /etc, and what it tells the service manager."""

    def __init__(self, process: subprocess.Popen[bytes], etc: Path, told: socket.socket) -> None:
        self.process = process
        self.etc = etc
        self._told = told

    def status_at(self, state: str) -> str:
        """What the status line says when this is told next."""
        status = ""
        while True:
            for line in self._told.recv(4096).decode().splitlines():
                if line == state:
                    return status
                if line.startswith("STATUS="):
                    status = line.removeprefix("STATUS=")

    def next_status(self) -> str:
        while True:
            for line in self._told.recv(4096).decode().splitlines():
                if line.startswith("STATUS="):
                    return line.removeprefix("STATUS=")


def configure(etc: Path, text: str) -> None:
    path = etc / DROP_IN
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@contextmanager
def running(bus: PrivateBus, configuration: str = "", options: str = "rw") -> Iterator[Running]:
    top = bus.directory
    (top / "etc").mkdir()
    for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
        shutil.copy(f"/etc/{name}", top / "etc")
    (top / "etc/machine-id").write_text("0123456789abcdef0123456789abcdee\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(top / "notify"))
        told.settimeout(60)
        configure(top / "etc", configuration)
        process = subprocess.Popen(
            [*NAMESPACE, "sh", "-ec", SCRIPT, "sh", str(top / "etc"), sys.executable, "-c", MAIN, options],
            cwd=REPOSITORY,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
                "NOTIFY_SOCKET": str(top / "notify"),
            },
        )
        try:
            yield Running(process, top / "etc", told)
        finally:
            process.kill()
            process.wait()


def test_reload(bus: PrivateBus) -> None:
    with running(bus) as daemon:
        daemon.status_at("READY=1")
        assert daemon.next_status() == NOTHING
        for text, status in (
            (BAD, f"{NOTHING}; the configuration stays as it was: {MISTAKE}"),
            ("[Operation]\nTimeoutSec=5\n", NOTHING),
        ):
            configure(daemon.etc, text)
            daemon.process.send_signal(signal.SIGHUP)
            assert daemon.status_at("READY=1") == status
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(60) == 0


def test_start_with_mistakes(bus: PrivateBus) -> None:
    with running(bus, BAD) as daemon:
        assert daemon.next_status() == f"Not started: {MISTAKE}"
        assert daemon.process.wait(60) == 78


async def test_identity_is_made_and_shown(bus: PrivateBus) -> None:
    with running(bus) as daemon:
        daemon.status_at("READY=1")
        made = HostIdentity(*((daemon.etc / "nvme" / name).read_text().strip() for name in ("hostnqn", "hostid")))
        assert made.nqn_uuid == made.id
        async with client(bus) as caller:
            shown = await caller.get_all(ROOT, MANAGER)
            assert (shown["HostNQN"], shown["HostID"]) == (made.nqn, made.id)
            (daemon.etc / "nvme/hostid").write_text("host1\n")
            shown = await caller.get_all(ROOT, MANAGER)
            assert (shown["HostNQN"], shown["HostID"]) == ("", "")
            addresses = ["tcp://127.0.0.1:1"]
            with pytest.raises(DBusError, match="/etc/nvme/hostid: 'host1' is not a UUID"):
                await caller.manager("Stage", "ssassa{sv}", NQN, "nsid.1", addresses, "/srv", {})
        assert (daemon.etc / "nvme/hostid").read_text() == "host1\n"


async def test_identity_that_cannot_be_written(bus: PrivateBus) -> None:
    with running(bus, options="ro") as daemon:
        daemon.status_at("READY=1")
        async with client(bus) as caller:
            shown = await caller.get_all(ROOT, MANAGER)
        assert not (daemon.etc / "nvme").exists()
        made = HostIdentity(shown["HostNQN"], shown["HostID"])
        assert made.nqn_uuid == made.id != ""
