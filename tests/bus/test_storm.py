"""Mounts and device events by the thousand, on the kernel of this host: every call is answered, the picture is exact.

What is mounted is mounted in a mount namespace of its own. How long answers take is up to bench/storm.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.bus import storm
from tests.bus.harness import REPOSITORY

NAMESPACE = ("unshare", "--mount", "--propagation", "private")
MOUNTS = 10_000
UEVENTS = 20_000
LONGEST_TURN = 100  # milliseconds; some 30 are usual
MEMORY = 80 << 10  # KiB


def missing() -> str:
    """Why there can be no storm here, "" when there can."""
    if os.geteuid() != 0:
        return "needs root"
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0:
        return "needs CAP_SYS_ADMIN, for a mount namespace"
    file = storm.uevent_file()
    if file is None or not os.access(file, os.W_OK):
        return "needs a block device in /sys that may be written to"
    return ""


WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)


def run(*arguments: int) -> dict[str, Any]:
    command = [*NAMESPACE, sys.executable, "-m", "tests.bus.storm", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=200, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_event_is_seen() -> None:
    report = run(MOUNTS, UEVENTS)
    assert report["answered"] > 0
    assert report["counters"]["events"] >= storm.ROUNDS * UEVENTS
    assert "overflows" not in report["counters"]
    bounded(report)


def test_events_that_are_lost_are_made_up_for() -> None:
    """The kernel has room for a few events only; whatever is lost, the picture is exact in the end."""
    report = run(MOUNTS // 10, UEVENTS, 4096)
    counters = report["counters"]
    assert counters["overflows"] > 0
    assert counters["cache-rebuilds"] == counters["overflows"] + 1
    bounded(report)


def bounded(report: dict[str, Any]) -> None:
    """The loop is never held up for long. The same once more takes no more memory, and such a table takes little."""
    # processor time of the loop's own thread: whatever else the machine is busy with does not count
    assert report["worked"] < LONGEST_TURN
    first, second = report["memory"]
    assert second < first + (8 << 10)
    assert second < MEMORY
