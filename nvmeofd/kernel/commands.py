"""The only place that runs other programs.

A child gets a fixed environment (no NOTIFY_SOCKET, no locale), /dev/null to read, and a session of its own, so that
it can be killed with whatever it started. The coroutine that runs it ends when the child has been reaped.

The kernel kills the child when the daemon dies. The service manager must not do that for the unit as a whole: it would
wait for one in state D, and so would whoever restarts the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

from nvmeofd.kernel.interface import CommandError
from nvmeofd.kernel.threads import outlast

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_SETPRIV = "/usr/bin/setpriv"
_KEPT = 64 << 10  # bytes of each output stream; the rest is read and dropped
_SHOWN = 500  # characters of a reason
_GRACE = 3.0  # seconds between SIGTERM and SIGKILL
_DRAIN = 1.0  # seconds for the rest of the output after the child's end, if something else has the pipe open


@dataclass(frozen=True, slots=True)
class Output:
    """How a tool ended, and the first 64 KiB of what it said. ``status`` is -N when signal N ended it."""

    status: int
    stdout: bytes
    stderr: bytes

    def reason(self) -> str:
        """What the tool said, on one line and shortened; how it ended, if it said nothing."""
        said = (self.stderr.strip() or self.stdout.strip()).decode("utf-8", "backslashreplace")
        text = "; ".join(" ".join(line.split()) for line in said.splitlines() if line.strip())
        text = "".join(character if character.isprintable() else "?" for character in text)
        if len(text) > _SHOWN:
            text = text[:_SHOWN] + "…"
        how = f"killed by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        return f"{text} ({how})" if text else how


class Commands:
    """Runs tools found in ``path``."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        # mount(8) of util-linux 2.39 and later calls move_mount(2), which does not go through /proc/self/fd; see
        # mounting.py. Older ones do not know the variable.
        self._environment = {"PATH": path, "LC_ALL": "C", "LIBMOUNT_FORCE_MOUNT2": "always"}

    def available(self, tool: str) -> bool:
        """Whether the tool is installed."""
        return shutil.which(tool, path=self._path) is not None

    async def run(self, *argv: str, good: Collection[int] = (0,), pass_fds: Sequence[int] = ()) -> Output:
        """Run a tool to its end. ``good`` are the exit statuses that are no errors.

        Arguments are encoded as file names are, so a path with bytes that are not UTF-8 arrives as it was.

        Cancelled, it asks the tool to end (SIGTERM), kills it after a grace period, waits until it is reaped, be it
        in state D for ever so long, and then raises CancelledError.

        Raises:
            CommandError: it could not be run (status 127) or ended with another status.
        """
        tool = argv[0]
        program = shutil.which(tool, path=self._path)
        if program is None:
            raise CommandError(tool, 127, "not installed")
        # setpriv(1) of util-linux: PR_SET_PDEATHSIG needs code in the child, which is not safe to run from Python
        dying = (_SETPRIV, "--pdeathsig", "KILL", "--")
        with _Collector() as stdout, _Collector() as stderr:
            # A task, so that a cancellation between fork and exec cannot lose the child.
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *dying,
                    program,
                    *argv[1:],
                    stdin=DEVNULL,
                    stdout=stdout.writer,
                    stderr=stderr.writer,
                    env=self._environment,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=pass_fds,
                )
            )
            cancelled = await outlast(starting)
            stdout.close_writer()
            stderr.close_writer()
            try:
                process = starting.result()
            except OSError as error:
                raise cancelled or CommandError(tool, 127, f"cannot be run: {error.strerror}") from error
            ended = asyncio.ensure_future(process.wait())
            if cancelled is None:
                try:
                    await asyncio.wait((ended,))
                except asyncio.CancelledError as error:
                    cancelled = error
            if cancelled is not None:
                await _end(process, ended)
                raise cancelled
            # A background process of the tool may keep the pipes open; it is not waited for.
            await asyncio.wait((stdout.ended, stderr.ended), timeout=_DRAIN)
            output = Output(ended.result(), bytes(stdout.kept), bytes(stderr.kept))
        if output.status in (126, 127) and output.stderr.startswith(b"setpriv: "):
            raise CommandError(tool, 127, f"cannot be run: {output.reason()}")
        if output.status not in good:
            raise CommandError(tool, output.status, output.reason())
        return output


async def _end(process: Process, ended: asyncio.Future[int]) -> None:
    """Ask the child to end, then kill it, and wait until it is reaped. Further cancellations change nothing."""
    _signal(process, signal.SIGTERM)
    await outlast(asyncio.ensure_future(asyncio.wait((ended,), timeout=_GRACE)))
    if not ended.done():
        _signal(process, signal.SIGKILL)
        await outlast(ended)


def _signal(process: Process, number: signal.Signals) -> None:
    # The child leads its own session, so its process group has its number, and is there until it is reaped.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class StandIn:
    """A process that the service manager can take for the daemon's main one while the kernel holds threads of that.

    Such a process does not end before its last thread has, whatever is sent to it.

    Raises:
        OSError, ValueError, subprocess.SubprocessError
    """

    def __init__(self, status: int) -> None:
        # a child of process 1, which is then told of its end: setsid(1) has ended before it
        script = 'echo $$; read -r line; exit "$1"'
        argv = ["setsid", "--fork", "sh", "-c", script, "sh", str(status)]
        self._ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            subprocess.run(argv, stdin=fd, stdout=fd, env={"PATH": PATH, "LC_ALL": "C"}, cwd="/", check=True)
        self.pid = int(self._ours.recv(64))

    def end(self) -> None:
        """Have it end with its status. Raises OSError."""
        with self._ours:
            self._ours.sendall(b"\n")


class _Collector:
    """A pipe whose beginning is kept and whose rest is read and dropped, so that the writer never blocks.

    Not the pipes of asyncio: with those, some versions of Process.wait() wait for the end of the output, too.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self.kept = bytearray()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def close_writer(self) -> None:
        """Close the parent's copy, so that the output ends when the child's copies are closed."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def __enter__(self) -> Self:
        self._loop.add_reader(self._reader, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self.close_writer()
        self.ended.cancel()

    def _read(self) -> None:
        chunk = os.read(self._reader, _KEPT)
        self.kept += chunk[: _KEPT - len(self.kept)]
        if not chunk:
            self._loop.remove_reader(self._reader)
            if not self.ended.done():
                self.ended.set_result(None)
