"""Processes that do something and wait."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def child(script: str, *command: str) -> Iterator[tuple[int, str]]:
    """A process that runs ``script`` and then waits. Its number, and what the script left in ``said``."""
    code = f"import os, sys, threading\nsaid = ''\n{script}\nprint(said, flush=True)\nsys.stdin.read()"
    argv = [*command, sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        try:
            line = process.stdout.readline()
            assert line, "the script failed"
            yield process.pid, line.rstrip("\n")
        finally:
            process.stdin.close()
