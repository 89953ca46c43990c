"""Fixtures of the tests on a real kernel.

One guest runs for the whole session, or for each worker of it. A module gets it from a snapshot, with the daemon
installed from its package (`guest`) or without (`kernel`); a test that fails or leaves something behind sends it back
to where its module began.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import cast

import pytest

from .guest import facts, users
from .harness import Guest, GuestError
from .pool import Guests

ROOT = Path(__file__).parents[2]
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package under test: NVMEOFD_DEB, or what `make deb` built, which is run when there is none."""
    given = os.environ.get("NVMEOFD_DEB")
    if given:
        return Path(given)
    built = ROOT / "build" / "deb"
    if not list(built.glob("nvmeofd_*_all.deb")):
        subprocess.run(["make", "deb"], cwd=ROOT, check=True)
    return max(built.glob("nvmeofd_*_all.deb"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[Guests]:
    pool = Guests(lambda: cast(Path, request.getfixturevalue("package")))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest, guests: Guests) -> Guest:
    """A target, no daemon. Debian 13, unless the module parametrizes this fixture indirectly with suites."""
    return guests.bare(getattr(request, "param", "debian13"))


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest, guests: Guests) -> Guest:
    """A target, and the daemon running. Debian 13, unless the module parametrizes this fixture indirectly."""
    return guests.installed(getattr(request, "param", "debian13"))


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: nothing connected, mounted, held, swapped, recorded; the daemon's threads and fds as before."""
    found = _guests(request.node, request)
    if not found:
        yield
        return
    guest = found[0]
    before = guest.call(facts.daemon)
    yield
    if request.node.stash.get(FAILED, False):
        guest.rewind()  # what a failed test left behind is no news; the next one starts clean
        return
    left = guest.call(facts.settled, len(before["threads"]), len(before["fds"]), timeout=10.0)
    still = guest.call(users.present)
    if still:
        left["users"] = still
    if left:
        for title, text in _account(guest):
            request.node.add_report_section("teardown", title, text)
        guest.rewind()
        pytest.fail("left behind: " + "; ".join(f"{kind}: {entries}" for kind, entries in left.items()))


def _guests(item: pytest.Item, request: pytest.FixtureRequest | None = None) -> list[Guest]:
    """The guests that a test uses."""
    names = [name for name in ("kernel", "guest") if name in getattr(item, "fixturenames", ())]
    if request is not None:
        return [request.getfixturevalue(name) for name in names]
    values: dict[str, object] = getattr(item, "funcargs", {})
    return [value for name in names if isinstance(value := values.get(name), Guest)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the guest had to say about it."""
    report = yield
    if report.failed and call.when != "teardown":
        item.stash[FAILED] = True
        for guest in _guests(item):
            report.sections.extend(_account(guest))
    return report


def _account(guest: Guest) -> list[tuple[str, str]]:
    """What the guest has to say: the end of its console and of its journal."""
    sections = [("guest console", guest.machine.tail())]
    try:
        journal = guest.run("journalctl --no-pager --output short-monotonic --lines 100", check=False, timeout=30.0)
        sections.append(("guest journal", journal.out))
    except GuestError as error:
        sections.append(("guest journal", f"cannot be read: {error}"))
    return sections
