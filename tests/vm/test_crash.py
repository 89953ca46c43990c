"""Killed anywhere, on a real kernel: whatever the daemon was doing, its next life finishes it or undoes it."""

from __future__ import annotations

import os

import pytest

from .guest import crashes
from .harness import Guest

# How many moments of each scenario; CRASH_MOMENTS=0 in the environment goes through all of them.
MOMENTS = int(os.environ.get("CRASH_MOMENTS", "6"))
SECONDS = 1800.0


@pytest.fixture(scope="module")
def mortal_guest(guest: Guest) -> Guest:
    guest.call(crashes.setup)
    guest.snapshot("crash")
    return guest


@pytest.mark.parametrize("scenario", crashes.SCENARIOS)
def test_killed(mortal_guest: Guest, scenario: str) -> None:
    report = mortal_guest.call(crashes.run, scenario, MOMENTS, timeout=SECONDS)
    print(len(report["passed"]), report["moments"], report["killed"])
    assert not report["wrong"], "\n".join(report["wrong"])
