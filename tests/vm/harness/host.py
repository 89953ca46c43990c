"""The host's side that is not QEMU: the cache folder, its lock, content hashes, programs and their packages."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import BuildFailed, MissingTool

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
}


def tool(name: str) -> str:
    """Find a program, also where root's PATH has it and a user's does not (mke2fs is in /usr/sbin)."""
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=f"{path}:/usr/sbin:/sbin")
    if found is None:
        raise MissingTool(name, PACKAGES[name])
    return found


def say(text: str) -> None:
    """Progress for a person. To stderr, so that a command's own output stays clean."""
    print(f"[vm] {text}", file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is going to happen, and how long it took once it has."""
    say(f"{what} …")
    start = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - start:.1f} s")


def cache_dir() -> Path:
    """Where images live: outside the work tree, so that a clean checkout does not rebuild them."""
    explicit = os.environ.get("NVMEOFD_VM_CACHE")
    if explicit:
        path = Path(explicit)
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        path = (Path(base) if base else Path.home() / ".cache") / "nvmeofd-vm"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock. The kernel releases it when the process dies, so a killed build never blocks the next."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def digest(parts: Sequence[str | bytes]) -> str:
    """A short key over parts; each is preceded by its length so that no two lists of parts run together."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()[:20]


def run(argv: Sequence[str], *, log: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program to its end; on failure the error has the end of what it printed."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env=env,
    )
    if log is not None:
        log.write_text(done.stdout)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise BuildFailed(f"{argv[0]} ended with status {done.returncode}:\n{tail}")
    return done.stdout


def qemu_version() -> str:
    return run([tool("qemu-system-x86_64"), "--version"]).splitlines()[0]
