"""The installed daemon, in a life that ends where a test wants it to: run by systemd instead of /usr/libexec/nvmeofd.

What the daemon asks of the kernel and writes to its files is wrapped from outside, so that each call has a boundary
before it and one after it. At the boundary that the test names, the process kills itself with SIGKILL. Each plan is
good for one life; without one the service runs the daemon as it was installed. A life that waits for the name of its
boundary is otherwise as good as any: what an earlier one left behind can be looked at in it.

This file is imported by the tests, which plan, and executed by the service.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

HOME = Path("/run/vm/mortal")
PLAN = HOME / "plan"  # JSON: one boundary for each of the next lives
GO = HOME / "go"  # where to end from now on
TRACE = HOME / "trace"  # every boundary passed, a line each

WAIT = ""  # count from GO, and not before
NEVER = "*"  # pass all of them
BORN = "born"  # the line in the trace at which the counting begins: a life's start, or its GO

DROP_IN = Path("/run/systemd/system/nvmeofd.service.d/mortal.conf")
COMMAND = f"test -e {PLAN} && exec /usr/bin/python3 -sP {os.path.abspath(__file__)} || exec /usr/libexec/nvmeofd"
# Modules that are loaded already need no process each time to find that out.
MODPROBE = Path("/run/systemd/system/modprobe@.service.d/mortal.conf")
# Killed as often as here, a service would not be started again.
SERVICE = f"""[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=
ExecStart=/bin/sh -c '{COMMAND}'
RestartSec=0
"""


def install() -> None:
    """Let the service look for a plan; systemd has to be told."""
    HOME.mkdir(parents=True, exist_ok=True)
    for path, text in ((DROP_IN, SERVICE), (MODPROBE, "[Service]\nRemainAfterExit=yes\n")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


def plan(*ends: str) -> None:
    """Where the next lives end, one after the other; the one after them is an ordinary one."""
    GO.unlink(missing_ok=True)
    TRACE.write_text("", encoding="utf-8")  # the life that there is goes on writing to this file
    if ends:
        _replace(PLAN, json.dumps(ends))
    else:
        PLAN.unlink(missing_ok=True)


def go(end: str) -> None:
    """From now on boundaries count in the life that there is, until this one."""
    _replace(GO, end)


def lives() -> list[list[str]]:
    """The boundaries that were counted since the plan was made, life by life."""
    result: list[list[str]] = [[]]
    with contextlib.suppress(FileNotFoundError):
        for line in TRACE.read_text(encoding="utf-8").split("\n")[:-1]:
            if line == BORN:
                result.append([])
            else:
                result[-1].append(line)
    return result


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


# Calls that do what they do by means of calls below them, which have boundaries of their own.
_COMPOSED = ("registry_claim", "registry_release", "create_path", "remove_path", "journal delete")
_COMPOSED_AT_THE_END = (*_COMPOSED, "journal write")
_LOW = ("mkdir", "rmdir", "unlink", "rename", "replace")


def moments(boundaries: Sequence[str]) -> list[list[str]]:
    """Boundaries put together between which the daemon changes nothing: killed at either, it leaves the same behind."""
    result: list[list[str]] = []
    for boundary in boundaries:
        if result and _nothing_between(result[-1][-1], boundary):
            result[-1].append(boundary)
        else:
            result.append([boundary])
    return result


def name_of(boundary: str) -> str:
    """Without the number that tells its occurrences apart."""
    return boundary.rpartition(" ")[0]


def _nothing_between(one: str, other: str) -> bool:
    one, other = name_of(one), name_of(other)
    if one.endswith(">") and other.endswith("<"):
        return not one.startswith("write ")  # another thread may be at it
    if one.endswith("<") and other.endswith("<"):
        return one.startswith(_COMPOSED) and other.startswith(_LOW)
    return one.startswith(_LOW) and other.startswith(_COMPOSED_AT_THE_END)


# ---- what follows runs in the service


class _Life:
    """Counts boundaries and ends the process at the one that is its last."""

    def __init__(self, end: str) -> None:
        self._counts = end != WAIT
        self._end = end
        self._started = False
        self._seen: Counter[str] = Counter()
        self._remove = os.unlink  # without boundaries
        self._lock = threading.Lock()
        self._trace = os.open(TRACE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        if self._counts:
            os.write(self._trace, f"{BORN}\n".encode())

    def boundary(self, name: str) -> None:
        with self._lock:
            self._listen()
            self._started = self._started or name == "ready>"
            if not self._counts:
                return
            self._seen[name] += 1
            unique = f"{name} {self._seen[name]}"
            os.write(self._trace, f"{unique}\n".encode())
            if unique == self._end:
                os.kill(os.getpid(), signal.SIGKILL)

    def _listen(self) -> None:
        """Begin to count if it is time; not before the start is over, which nobody waits for to its very end."""
        if not self._started:
            return
        try:
            self._end = GO.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        self._remove(GO)  # not for the next life
        self._counts = True
        self._seen.clear()
        os.write(self._trace, f"{BORN}\n".encode())


def _wrapped(inner: Callable[..., Any], life: _Life, describe: Callable[..., str]) -> Callable[..., Any]:
    """The same function with a boundary before and one after it, however it ends."""
    if inspect.iscoroutinefunction(inner):

        async def wait(*args: Any, **kwargs: Any) -> Any:
            name = describe(*args, **kwargs)
            life.boundary(f"{name}<")
            try:
                return await inner(*args, **kwargs)
            finally:
                life.boundary(f"{name}>")

        return wait

    def call(*args: Any, **kwargs: Any) -> Any:
        name = describe(*args, **kwargs)
        life.boundary(f"{name}<")
        try:
            return inner(*args, **kwargs)
        finally:
            life.boundary(f"{name}>")

    return call


def _wrapped_context(inner: Callable[..., Any], life: _Life, enter: str, leave: str) -> Callable[..., Any]:
    @asynccontextmanager
    async def context(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        life.boundary(f"{enter}<")
        try:
            async with inner(*args, **kwargs) as value:
                life.boundary(f"{enter}>")
                try:
                    yield value
                finally:
                    life.boundary(f"{leave}<")
        finally:
            life.boundary(f"{leave}>")

    return context


def _wrap(owner: Any, names: str, life: _Life, describe: Callable[..., str] | None = None) -> None:
    for name in names.split():
        own = describe or (lambda *_, _name=name, **__: _name)
        setattr(owner, name, _wrapped(getattr(owner, name), life, own))


def _thing(path: object) -> str:
    """What kind of file a path is: names with numbers would make every boundary another one."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    if text.startswith("/run/nvmeofd"):
        return "record"
    if "/registry" in text or os.path.basename(text) in ("owner", "seqnum"):
        return "registry entry"
    return "staging path"


def _wrap_all(life: _Life) -> None:
    from nvmeofd.bus.service import BusService  # noqa: PLC0415 - the agent, which has no daemon, loads this file, too
    from nvmeofd.journal import DirectoryStore  # noqa: PLC0415
    from nvmeofd.kernel.controllers import Controllers  # noqa: PLC0415
    from nvmeofd.kernel.devices import Device  # noqa: PLC0415
    from nvmeofd.kernel.linux import LinuxKernel  # noqa: PLC0415
    from nvmeofd.notify import ServiceManager  # noqa: PLC0415

    _wrap(LinuxKernel, "connect delete_controller rescan scan_processes settle", life)
    _wrap(LinuxKernel, "mount bind_device unmount inspect_path create_path remove_path", life)
    # in a thread for each controller: the only place where one is being deleted and the other not yet
    _wrap(Controllers, "_write", life, lambda *arguments: f"write {arguments[-1]}")
    _wrap(LinuxKernel, "registry_claim registry_release", life)
    _wrap(Device, "probe edges_are_zero make_filesystem wipe check_filesystem set_read_only verify", life)
    for name, leave in (("claim", "unclaim"), ("lock_device", "unlock_device"), ("watch", "unwatch")):
        setattr(LinuxKernel, name, _wrapped_context(getattr(LinuxKernel, name), life, name, leave))
    _wrap(DirectoryStore, "load", life, lambda *_: "journal load")
    _wrap(DirectoryStore, "write", life, lambda _, name, __: f"journal write {name.partition('-')[0]}")
    _wrap(DirectoryStore, "delete", life, lambda _, name: f"journal delete {name.partition('-')[0]}")
    _wrap(BusService, "own_name", life)
    _wrap(ServiceManager, "ready", life)
    for name in ("mkdir", "rmdir", "unlink"):
        _wrap(os, name, life, lambda path, *_, _name=name, **__: f"{_name} {_thing(path)}")
    for name in ("rename", "replace"):
        _wrap(os, name, life, lambda _, path, _name=name, **__: f"{_name} {_thing(path)}")


def main() -> int:
    ends = json.loads(PLAN.read_text(encoding="utf-8"))
    if len(ends) > 1:
        _replace(PLAN, json.dumps(ends[1:]))
    else:
        PLAN.unlink()
    _wrap_all(_Life(ends[0]))
    from nvmeofd.daemon import main as daemon  # noqa: PLC0415

    return daemon()


if __name__ == "__main__":
    raise SystemExit(main())
