"""A guest as a test sees it: run, read, write, call, snapshot, restore."""

from __future__ import annotations

import base64
import inspect
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from . import channel as channel_module
from .accel import accelerator
from .channel import Channel
from .errors import CommandFailed, GuestError, GuestTimeout
from .host import cache_dir, digest, locked, qemu_version, run, say, timed, tool
from .image import Image, build_image
from .machine import Machine, qemu_arguments, scratch_folder
from .recipe import Suite

P = ParamSpec("P")
T = TypeVar("T")

BOOT_SECONDS = 300.0  # under emulation on a busy machine
SYNC_SECONDS = 60.0
CALL_SECONDS = 60.0
BOOTED = "booted"
DISK = "disk.qcow2"
MODULES = Path(__file__).parent.parent / "guest"


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended."""

    argv: Sequence[str]
    rc: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        return self.stderr.decode(errors="replace")


class Guest:
    """A running guest. Start one with `Guest.start`; it is a context manager."""

    def __init__(self, image: Image, accel: str, folder: Path, *, snapshot: str | None) -> None:
        self.image = image
        self.accel = accel
        self._folder = folder
        self._home = snapshot or BOOTED
        self._power_on(snapshot)

    def _power_on(self, snapshot: str | None) -> None:
        self.machine = Machine(
            self.image, self._folder / DISK, accel=self.accel, folder=self._folder, snapshot=snapshot
        )
        self._channel = Channel(self.machine.agent, self.machine.explain)

    @classmethod
    def start(cls, suite: Suite) -> Guest:
        """A freshly booted guest, from the snapshot taken after the first boot (which is made if there is none)."""
        image = build_image(suite)
        accel = accelerator(image.kernel)
        folder = scratch_folder(cache_dir())
        try:
            _copy(_booted_disk(image, accel), folder / DISK)
            guest = cls(image, accel, folder, snapshot=BOOTED)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            guest._channel.sync(SYNC_SECONDS)
            guest.load_modules()
        except BaseException:
            guest.close()
            raise
        return guest

    @classmethod
    def first_boot(cls, image: Image, accel: str, disk: Path) -> None:
        """Boot an image and leave the booted guest as the snapshot `BOOTED` in `disk`."""
        folder = scratch_folder(cache_dir())
        try:
            fresh = folder / DISK
            run([tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.root), str(fresh)])
            guest = cls(image, accel, folder, snapshot=None)
            try:
                guest._channel.bootstrap(BOOT_SECONDS)
                guest._finish_boot()
                guest.snapshot(BOOTED)
            finally:
                guest.machine.close()
            fresh.rename(disk)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _finish_boot(self) -> None:
        waiting = ["systemctl", "is-system-running", "--wait"]
        state = self.run(waiting, timeout=BOOT_SECONDS, check=False).out.strip()
        if state != "running":  # nothing that fails in every guest may go unnoticed
            failed = self.run(["systemctl", "--failed", "--no-legend", "--plain"], check=False).out
            raise GuestError(f"the guest comes up {state}:\n{failed}")
        self.run("sync; echo 3 > /proc/sys/vm/drop_caches")  # the snapshot becomes smaller

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def power_off(self) -> None:
        """Stop using memory and processor; the disk with its snapshots stays, and `restore` powers on again."""
        self.machine.close()

    def shut_down(self, verb: str, timeout: float) -> float:
        """`poweroff` or `reboot` (which ends QEMU, too) as an administrator does it; returns the seconds that took."""
        start = time.monotonic()
        self.run(["systemctl", "--no-block", verb])
        self.machine.wait_end(timeout)
        return time.monotonic() - start

    def boot(self) -> None:
        """Power on again after `shut_down`, with the disk as it was left. Services may be starting still."""
        self.machine.close()
        self._power_on(None)
        self._channel.bootstrap(BOOT_SECONDS)
        self.load_modules()

    def close(self) -> None:
        self.machine.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def snapshot(self, name: str) -> None:
        """Remember the guest as it is now; `rewind` comes back to here. Nothing may be under way in it."""
        self.machine.save(name)
        self._home = name
        self._channel.sync(SYNC_SECONDS)

    def restore(self, name: str) -> None:
        """Go back to a snapshot: memory, disk, processes; from a dead guest, too. Its clock is set to now."""
        if self.machine.process.poll() is None:
            self._channel.abandon("the guest was restored from a snapshot meanwhile", ended=False)
            self.machine.load(name)
        else:
            self.machine.close()  # of a QEMU that ended by itself: its sockets
            self._power_on(name)
        self._home = name
        self._channel.sync(SYNC_SECONDS)

    def rewind(self) -> None:
        """Go back to the snapshot that was taken or restored last."""
        self.restore(self._home)

    def load_modules(self) -> None:
        """Put the helper modules (tests/vm/guest) into the agent."""
        modules = {path.stem: path.read_text() for path in sorted(MODULES.glob("*.py"))}
        self._ask({"op": "load", "modules": modules}, CALL_SECONDS, "loading the helper modules")

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function of tests/vm/guest in the guest. Arguments and result travel as JSON.

        A deadline belongs into the function; this waits `CALL_SECONDS` beyond its `timeout`, if it has one.
        """
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        allowed = CALL_SECONDS + float(bound.arguments.get("timeout", 0.0))
        value: T = self._channel.wait(self.submit(function, *args, **kwargs), allowed, function.__qualname__)
        return value

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `call`, but does not wait: for several at once."""
        module = function.__module__.rpartition(".")[2]
        return self._channel.submit(
            {"op": "call", "module": module, "function": function.__name__, "args": args, "kwargs": kwargs}
        )

    def exec(self, source: str, *, timeout: float = CALL_SECONDS) -> Any:
        """Run Python source in the agent; what it assigns to `result` comes back."""
        return self._ask({"op": "exec", "source": source}, timeout, "a piece of Python")

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = CALL_SECONDS,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Result:
        """Run a program (a list) or a shell line (a string); an error status raises unless `check` is false."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        request = {
            "op": "run",
            "argv": argv,
            "input": base64.b64encode(stdin).decode(),
            "timeout": timeout,
            "cwd": cwd,
            "env": dict(env or {}),
        }
        reply = self._ask(request, timeout + 20.0, f"{argv}")
        result = Result(argv, -1, base64.b64decode(reply["out"]), base64.b64decode(reply["err"]))
        if reply["timed_out"]:
            raise GuestTimeout(f"{argv} did not end within {timeout} s\n{result.out}{result.err}")
        result = Result(argv, int(reply["rc"]), result.stdout, result.stderr)
        if check and result.rc != 0:
            raise CommandFailed(f"{argv} ended with status {result.rc}\n{result.out}{result.err}")
        return result

    def read(self, path: str) -> bytes:
        return base64.b64decode(self._ask({"op": "read", "path": path}, CALL_SECONDS, f"reading {path}"))

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file; missing folders are made."""
        request = {"op": "write", "path": path, "data": base64.b64encode(data).decode(), "mode": mode}
        self._ask(request, CALL_SECONDS, f"writing {path}")

    def _ask(self, request: dict[str, Any], timeout: float, what: str) -> Any:
        return self._channel.wait(self._channel.submit(request), timeout, what)


def _booted_disk(image: Image, accel: str) -> Path:
    """The disk with the snapshot of the first boot, keyed by all that such a snapshot depends on."""
    agent = channel_module.AGENT_SOURCE.read_bytes()
    key = digest([image.key, qemu_version(), agent, "\0".join(qemu_arguments(image, accel))])
    disk = cache_dir() / f"booted-{image.path.name.removeprefix('image-')}-{key}.qcow2"
    if disk.exists():
        return disk
    with locked(cache_dir() / f"booted-{image.suite.name}.lock"):
        if disk.exists():
            return disk
        with timed(f"booting Debian {image.suite.number} for the first time ({accel}; half a minute to two)"):
            Guest.first_boot(image, accel, disk)
        for older in cache_dir().glob(f"booted-{image.path.name.removeprefix('image-')}-*.qcow2"):
            if older != disk:
                older.unlink()
    return disk


def _copy(source: Path, target: Path) -> None:
    """Copy a disk: as a clone where the file system can, else sparsely."""
    done = subprocess.run(["cp", "--reflink=auto", "--sparse=auto", str(source), str(target)], check=False)
    if done.returncode != 0:
        say(f"cannot copy {source}")
        raise GuestError(f"no room for the guest's disk below {target.parent}?")
