"""The owner of the parent directory, who is not root, swaps it for a symbolic link while volumes come and go below it.

Each call is done or refused; never does anything happen where the link leads. tests/unit/kernel/test_races.py has each
step of it for itself, at its worst moment.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .daemon import ONE, Daemon, DaemonError
from .guest import facts, races, service, target, users
from .harness import Guest

NQN = "nqn.2024-01.org.example:races"
UID = 1000
THEIRS, VICTIM = "/srv/theirs", "/srv/victim"
PATH = f"{THEIRS}/parent/volume"
ROUNDS = 12


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Daemon:
    guest.call(target.add_subsystem, NQN)
    guest.call(users.make_filesystem, str(target.backing_file(NQN, 1)))
    guest.call(races.scene, UID, THEIRS, VICTIM)
    guest.snapshot("races")
    return Daemon(guest)


def attempts(daemon: Daemon, **options: str) -> Iterator[str]:
    """How each call ends, "" for well."""
    for _ in range(ROUNDS):
        for call in (lambda: daemon.stage(NQN, 1, PATH, ONE, **options), lambda: daemon.unstage(PATH)):
            try:
                call()
            except DaemonError as error:
                yield error.name
            else:
                yield ""
            assert daemon.guest.call(races.reached, VICTIM) == []


@pytest.mark.parametrize("kind", ["filesystem", "block"])
def test_parent_is_swapped(daemon: Daemon, kind: str) -> None:
    guest = daemon.guest
    guest.rewind()  # an empty directory that could not be removed is left to its owner, and no place for a raw device
    guest.call(races.swap, "swapper", UID, THEIRS)
    outcomes = list(attempts(daemon, type=kind))
    guest.call(users.end, "swapper")
    print(outcomes)
    assert set(outcomes) <= {"", "MountFailed", "InvalidArgument", "AlreadyStaged", "UnmountFailed", "Busy"}
    # With nobody in between it works, whatever was left half done.
    daemon.stage(NQN, 1, PATH, ONE, type=kind)
    assert daemon.unstage(PATH) is True
    guest.call(service.wait_gone, NQN)
    assert guest.call(facts.nvme_mounts) == []
