"""Running the tools that packages are made and looked into with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What is installed here speaks English, and is not shadowed by another Python or its tools.
ENVIRONMENT = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def run(command: Sequence[str | Path], *, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; with the error it ends with, everything it says is in the failure."""
    done = attempt(command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{command} ended with status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def attempt(command: Sequence[str | Path], *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**ENVIRONMENT, **environment}, check=False, capture_output=True, text=True
    )


def uncompressed(path: str) -> str:
    """A manual by the name that it was installed under."""
    return path.removesuffix(".gz") if "/man/" in path else path
