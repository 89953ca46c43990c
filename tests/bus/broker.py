"""A private dbus-broker with the policy of the system bus and that of the service.

Its launcher wants a socket that listens, as systemd hands one over, the journal's socket, and itself in /usr/bin. It
gets the last two in a mount namespace of its own, hence only root can start it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Self

from tests.bus.harness import REPOSITORY, PrivateBus

UNPACKED = REPOSITORY / "build" / "dbus-broker" / "usr" / "bin"

# $1: our directory. $2: where the programs are, if not in /usr/bin. $3: the socket.
_SCRIPT = """
mount -n -t tmpfs run /run && mkdir -p /run/systemd/journal && mount -n --bind "$1/journal" /run/systemd/journal || exit
[ -z "$2" ] || mount -n -t overlay -o "lowerdir=$2:/usr/bin" overlay /usr/bin || exit
exec 3<&"$3"  # the first descriptor after the usual ones is what systemd hands over
LISTEN_FDS=1 LISTEN_PID=$$ exec dbus-broker-launch --scope user --config-file "$1/bus.conf"
"""


def missing() -> str:
    """Why it cannot be started, "" when it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not (shutil.which("dbus-broker-launch") or UNPACKED.is_dir()):
        return "needs dbus-broker, see scripts/setup-broker.sh"
    return ""


class _Journal:
    """Reads what the broker logs, and drops it. The broker waits for a journal that does not read."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "socket"
        self._thread = threading.Thread(target=self._read, name="journal of a broker")

    def start(self) -> None:
        self._path.parent.mkdir()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._thread.start()

    def _read(self) -> None:
        while self._socket.recv(1 << 16):
            pass

    def stop(self) -> None:
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(self._path))
            self._thread.join()
            self._socket.close()


class PrivateBroker(PrivateBus):
    def __init__(self, *, extra_policy: str = "", max_replies: int = 5000) -> None:
        super().__init__(extra_policy=extra_policy, max_replies=max_replies)
        self._journal = _Journal(self.directory / "journal")

    def __enter__(self) -> Self:
        path = self.directory / "socket"
        self._journal.start()
        programs = "" if shutil.which("dbus-broker-launch") else str(UNPACKED)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(str(path))
            path.chmod(0o666)
            listening.listen(4096)
            arguments = (str(self.directory), programs, str(listening.fileno()))
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "bash", "-c", _SCRIPT, "sh", *arguments],
                # It looks for services through a connection of its own.
                env={"PATH": os.environ["PATH"], "DBUS_SESSION_BUS_ADDRESS": self.address},
                stdin=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                stderr=subprocess.DEVNULL,  # it says how it ended
            )
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()  # not SIGKILL: the launcher ends the broker
            self._process.wait()
            self._process = None
        self._journal.stop()
