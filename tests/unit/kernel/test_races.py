"""The owner of the parent directory swaps a staging path for a symbolic link while it is worked on.

Everything runs in a mount namespace of its own, with an ext4 on a loop device in the place of a namespace.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop devices"
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not one of pytest's, which only root can search."""
    with tempfile.TemporaryDirectory(prefix="nvmeofd-race-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize("verb", ["mount", "mount-read-only", "bind", "bind-read-only"])
def test_without_a_race(directory: Path, verb: str) -> None:
    run(directory, "plain", verb, "none")


@pytest.mark.parametrize(
    ("verb", "swap"),
    [
        *itertools.product(["mount", "bind"], ["last", "parent", "shadow"]),
        # the last part is a mount point then, and those cannot be renamed
        *itertools.product(["unmount", "unmount-block"], ["parent", "shadow"]),
    ],
)
def test_right_before_the_tool_runs(directory: Path, verb: str, swap: str) -> None:
    """The worst moment: after everything was looked at."""
    run(directory, "once", verb, swap)


@pytest.mark.parametrize("swap", ["parent", "shadow"])
@pytest.mark.parametrize("verb", ["unmount", "unmount-block"])
def test_before_it_is_looked_at(directory: Path, verb: str, swap: str) -> None:
    run(directory, "stale", verb, swap)


@pytest.mark.parametrize(
    "verb",
    ["mount", "bind", "unmount", "unmount-block", "create", "create-block", "remove", "remove-block"],
)
def test_all_the_time(directory: Path, verb: str) -> None:
    """Another process swaps as fast as it can."""
    run(directory, "storm", verb, "last")
    run(directory, "storm", verb, "parent")


@pytest.mark.parametrize("kind", ["filesystem", "block"])
@pytest.mark.parametrize("mode", ["entries", "failed", "cancelled"])
def test_at_the_last_moment(directory: Path, mode: str, kind: str) -> None:
    run(directory, mode, kind, module="racing_late")


def run(directory: Path, *arguments: str, module: str = "racing") -> None:
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", f"tests.unit.kernel.{module}"]
    done = subprocess.run(
        [*command, str(directory), *arguments], cwd=ROOT, timeout=120, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, end="")
