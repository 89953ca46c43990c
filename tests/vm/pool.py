"""The guests of one test session: each started when first asked for, and never two of them running at once.

A guest that makes room for another keeps its disk with all its snapshots, so coming back to it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .guest import bus, initiator, target
from .harness import SUITES, Guest

BARE = "bare"
INSTALLED = "installed"


class Guests:
    def __init__(self, package: Callable[[], Path]) -> None:
        self._package = package
        self._guests: dict[str, Guest] = {}
        self._installed: set[str] = set()

    def bare(self, suite: str) -> Guest:
        """A guest with a target and without the daemon."""
        guest = self._running(suite)
        guest.restore(BARE)
        return guest

    def installed(self, suite: str) -> Guest:
        """A guest with a target and the daemon running, installed from its package."""
        guest = self._running(suite)
        if suite not in self._installed:
            package = self._package()
            guest.restore(BARE)
            install(guest, package)
            guest.snapshot(INSTALLED)
            self._installed.add(suite)
        guest.restore(INSTALLED)
        return guest

    def _running(self, suite: str) -> Guest:
        for name, other in self._guests.items():
            if name != suite:
                other.power_off()
        if suite not in self._guests:
            guest = Guest.start(SUITES[suite])
            self._guests[suite] = guest
            guest.call(target.setup)
            guest.call(initiator.setup)
            guest.snapshot(BARE)
        return self._guests[suite]

    def close(self) -> None:
        for guest in self._guests.values():
            guest.close()


def install(guest: Guest, package: Path) -> None:
    """Install the package as an administrator would, and wait until the daemon owns its name."""
    guest.write("/var/tmp/nvmeofd.deb", package.read_bytes())
    guest.run("dpkg --install /var/tmp/nvmeofd.deb", timeout=180.0, env={"DEBIAN_FRONTEND": "noninteractive"})
    guest.run(["systemctl", "start", "nvmeofd.service"], timeout=120.0)
    guest.call(bus.wait_owner, True, timeout=60.0)
    guest.call(bus.close_all)
