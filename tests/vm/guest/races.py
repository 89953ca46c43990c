"""Somebody unprivileged who owns the directory that a staging path is in, and swaps it for a symbolic link and back."""

from __future__ import annotations

import os
import subprocess
import sys

from . import users

# Until its input ends; then everything is in its first place again. Prints how often it swapped. The directory is
# there for up to a second, so that a Stage gets far now and then, and the link for a moment only.
_SWAP = """
import ctypes, os, random, select, sys
one, other = sys.argv[1].encode(), sys.argv[2].encode()
libc = ctypes.CDLL(None, use_errno=True)
swaps = 0
print("ready", flush=True)
while (link := os.path.islink(one)) or not select.select([0], [], [], random.random())[0]:
    if link: select.select([], [], [], random.random() / 100)
    if libc.renameat2(-100, one, -100, other, 2) == 0:
        swaps += 1
print(swaps)
"""


def scene(uid: int, theirs: str, victim: str) -> None:
    """`theirs`/parent and a link to `victim` beside it, all theirs; `victim` is nobody's business."""
    os.mkdir(victim, 0o755)
    os.mkdir(f"{victim}/volume", 0o755)
    for folder in (theirs, f"{theirs}/parent"):
        os.mkdir(folder, 0o755)
    os.symlink(victim, f"{theirs}/link")
    for place in (theirs, f"{theirs}/parent", f"{theirs}/link"):
        os.chown(place, uid, uid, follow_symlinks=False)


def swap(label: str, uid: int, theirs: str) -> None:
    """From now on until the user of that label is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SWAP, f"{theirs}/parent", f"{theirs}/link"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=uid,
        group=uid,
        extra_groups=[],
    )
    assert process.stdout
    process.stdout.readline()

    def end() -> None:
        out, _ = process.communicate(timeout=30.0)
        if process.returncode != 0 or int(out) == 0:
            raise RuntimeError(f"nothing was swapped: {process.returncode} {out!r}")

    users._keep(label, end)


def reached(victim: str) -> list[str]:
    """What there is below `victim`, and what is mounted there, but for what `scene` made."""
    found = [os.path.join(folder, name) for folder, names, files in os.walk(victim) for name in names + files]
    with open("/proc/self/mounts", encoding="utf-8") as table:
        found += [line for line in table if line.split()[1].startswith(victim)]
    return [entry for entry in found if entry != f"{victim}/volume"]
