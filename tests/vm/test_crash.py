"""Killed anywhere, on a real kernel: whatever the daemon was doing, its next life finishes it or undoes it."""

from __future__ import annotations

import os

import pytest

from .guest import crashes
from .harness import Guest

# How many moments of each scenario; CRASH_MOMENTS=0 in the environment goes through all of them.
MOMENTS = int(os.environ.get("CRASH_MOMENTS", "3"))
SECONDS = 3600.0


@pytest.fixture(scope="module")
def mortal_guest(guest: Guest) -> Guest:
    guest.call(crashes.setup)
    guest.snapshot("crash")
    return guest


@pytest.mark.parametrize("scenario", crashes.SCENARIOS)
def test_killed(mortal_guest: Guest, scenario: str) -> None:
    report = mortal_guest.call(crashes.run, scenario, MOMENTS, timeout=SECONDS)
    print(f"{len(report['killed'])} of {report['moments']} in {report['seconds']:.0f} s: {report['killed']}")
    assert not report["wrong"], "\n".join(report["wrong"])
    # what was to be killed earlier has to have been alive, and to have come there
    assert report["moments"] >= 5
    reached = [boundary for boundary in report["killed"] if "after the reply" not in boundary]
    wanted = max(MOMENTS - 1, 2) if MOMENTS else 0.9 * report["moments"]
    assert len(reached) >= wanted, report["killed"]
