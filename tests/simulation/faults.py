"""What goes wrong, and when: a plan that every call of a simulated kernel consults.

Each call passes two points: ``before`` its side effect and ``after`` it. A rule applies at one of them, to calls of one
name (``*`` for all) whose detail (device, address, path) contains a text, made on behalf of one subsystem or of any.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nvmeofd.kernel.interface import ClaimBusy, CommandError, ConnectError, DeviceChanged, StagingPathError

if TYPE_CHECKING:
    from nvmeofd.jobs import Job

# The job that a call is made for; None outside of jobs.
JOB: ContextVar[Job | None] = ContextVar("job", default=None)


class Gate:
    """Holds a call until :meth:`release`, as a kernel that never comes back does."""

    def __init__(self) -> None:
        self._open = False
        self._waiters: list[asyncio.Future[None]] = []
        self.entered = 0

    async def wait(self) -> None:
        self.entered += 1
        while not self._open:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def release(self) -> None:
        self._open = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


@dataclass(slots=True, kw_only=True)
class Rule:
    call: str
    detail: str
    after: bool
    skip: int
    times: int
    nqn: str = ""  # calls made for jobs of this subsystem only
    error: Exception | None = None
    seconds: float = 0.0
    gate: Gate | None = None
    action: Callable[[], object] | None = None
    crash: bool = False


@dataclass(slots=True)
class EventFaults:
    """Probabilities for each event; ``delay`` is the longest in seconds.

    Lost ones become an overflow; of those that are lost in silence nobody hears.
    """

    loss: float = 0.0
    silence: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0


@dataclass
class FaultPlan:
    """Rules for the calls of one handle.

    ``yields``: the most turns of the event loop a call takes at each point; ``latency``: the most seconds; ``nqn``:
    rules made from now on are for jobs of this subsystem only.
    """

    seed: int = 0
    yields: int = 2
    latency: float = 0.0
    nqn: str = ""
    events: EventFaults = field(default_factory=EventFaults)
    rules: list[Rule] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    points: int = 0  # how many points were passed so far
    trace: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)  # the plain reads so far
    hits: int = 0  # how many rules applied so far
    unread: int = 0  # how many plain reads failed so far
    _at: dict[int, Rule] = field(default_factory=dict)
    _at_read: dict[int, Rule] = field(default_factory=dict)
    _unreadable: range = range(0)
    _given: list[Rule] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def _add(self, call: str, detail: str, after: bool, skip: int, times: int, **what: Any) -> None:
        self.rules.append(Rule(call=call, detail=detail, after=after, skip=skip, times=times, nqn=self.nqn, **what))

    def fail(
        self, call: str, error: Exception, *, detail: str = "", after: bool = False, skip: int = 0, times: int = 1
    ) -> None:
        """Raise ``error``; with ``after`` the side effect has happened all the same. Works for plain reads, too."""
        self._add(call, detail, after, skip, times, error=error)

    def delay(
        self, call: str, seconds: float, *, detail: str = "", after: bool = False, skip: int = 0, times: int = 1
    ) -> None:
        """Let the call take time."""
        self._add(call, detail, after, skip, times, seconds=seconds)

    def hang(self, call: str, *, detail: str = "", after: bool = False, skip: int = 0, times: int = 1) -> Gate:
        """Let the call hang in the kernel until the gate is released; not even killing its process ends it before."""
        gate = Gate()
        self._add(call, detail, after, skip, times, gate=gate)
        return gate

    def hook(
        self,
        call: str,
        action: Callable[[], object],
        *,
        detail: str = "",
        after: bool = False,
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Let somebody else act at this very moment. Works for plain reads, too."""
        self._add(call, detail, after, skip, times, action=action)

    def crash(self, call: str, *, detail: str = "", after: bool = False, skip: int = 0) -> None:
        """Kill the process there."""
        self._add(call, detail, after, skip, 1, crash=True)

    def matching(self, call: str, detail: str, *, after: bool) -> list[Rule]:
        """The rules that apply to this point, used up by one."""
        if not self.rules:
            return []
        found = []
        job = JOB.get()
        for rule in list(self.rules):
            if rule.call not in ("*", call) or rule.after is not after or rule.detail not in detail:
                continue
            if rule.nqn and (job is None or job.nqn != rule.nqn):
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.times -= 1
            if rule.times <= 0:
                self.rules.remove(rule)
            found.append(rule)
        return self._give(found)

    def at(
        self,
        point: int,
        *,
        crash: bool = False,
        error: Exception | None = None,
        seconds: float = 0.0,
        gate: Gate | None = None,
        action: Callable[[], object] | None = None,
    ) -> None:
        """Do something at a point given by its number, counted from the start of the process, whatever call it is."""
        self._at[point] = Rule(
            call="",
            detail="",
            after=False,
            skip=0,
            times=1,
            crash=crash,
            seconds=seconds,
            gate=gate,
            action=action,
            error=error,
        )

    def at_read(
        self, number: int, *, error: Exception | None = None, action: Callable[[], object] | None = None
    ) -> None:
        """The same for a plain read, counted from the start of the process."""
        self._at_read[number] = Rule(call="", detail="", after=False, skip=0, times=1, error=error, action=action)

    def nothing_readable(self, numbers: range) -> None:
        """Let the plain reads of these numbers fail."""
        self._unreadable = numbers

    def clear(self) -> None:
        """Nothing goes wrong any more, not even at the end of a delay that has begun."""
        self.rules.clear()
        self._at.clear()
        self._at_read.clear()
        self._unreadable = range(0)
        self.events = EventFaults()
        self.latency = 0.0
        for rule in self._given:
            rule.crash, rule.error = False, None
        self._given.clear()

    def _give(self, rules: list[Rule]) -> list[Rule]:
        self.hits += len(rules)
        self._given += [rule for rule in rules if rule.seconds or rule.gate or rule.crash]
        return rules

    def reading(self, call: str, detail: str) -> list[Rule]:
        """Count a plain read, and return what goes wrong there."""
        self.reads.append(f"{call} {detail}".rstrip())
        rules = self.matching(call, detail, after=False)
        number = len(self.reads)
        if (rule := self._at_read.pop(number, None)) is not None:
            rules += self._give([rule])
        self.unread += any(rule.error is not None for rule in rules)
        if number in self._unreadable:
            self.hits += 1
            self.unread += 1
            raise OSError(errno.EIO, "simulated failure to read")
        return rules

    def passing(self, call: str, detail: str, *, after: bool) -> list[Rule]:
        """Count a point, and return what goes wrong there."""
        if not after:
            self.calls[call] += 1
        self.trace.append(f"{call}{'>' if after else '<'} {detail}".rstrip())
        self.points += 1
        rules = self.matching(call, detail, after=after)
        if (rule := self._at.pop(self.points, None)) is not None:
            rules += self._give([rule])
        return rules


_RESOURCES = (errno.ENOMEM, errno.EMFILE, errno.EAGAIN)
_DEVICE = (errno.EIO, errno.EACCES, errno.EPERM, errno.EINTR, *_RESOURCES)
# call → errnos of the OSErrors that it may raise
_ERRNOS: dict[str, tuple[int, ...]] = {
    "rescan": (errno.EIO, errno.EPERM, *_RESOURCES),
    "delete_controller": (errno.EIO, errno.EBUSY, errno.EPERM, errno.EINTR, *_RESOURCES),
    "claim": _DEVICE,
    "write_back": (errno.EIO, errno.EACCES, *_RESOURCES),
    "scan_processes": (errno.EIO, errno.EACCES, *_RESOURCES),
    "lock_device": (*_DEVICE, errno.ENOLCK),
    "probe": _DEVICE,
    "edges_are_zero": (errno.EIO, errno.EINVAL, errno.ENODATA, *_RESOURCES),
    "wipe": (errno.EBUSY, errno.EROFS, errno.ENOSPC, *_DEVICE),
    "set_read_only": (errno.ENXIO, errno.EACCES, *_RESOURCES),
    "mount": _DEVICE,
    "bind_device": _DEVICE,
    "inspect_path": (errno.EIO, errno.EACCES, errno.ESTALE, errno.ELOOP, *_RESOURCES),
    "create_path": (errno.EIO, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, *_RESOURCES),
    "remove_path": (errno.EIO, errno.ESTALE, *_RESOURCES),
    "journal_write": (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, *_RESOURCES),
    "journal_delete": (errno.EROFS, errno.EIO, errno.EACCES),
}
# errnos of a write to /dev/nvme-fabrics, and of opening it
_CONNECT = (
    errno.ECONNREFUSED,
    errno.EIO,
    errno.ENOKEY,
    errno.EINVAL,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ECONNRESET,
    errno.EKEYREJECTED,
    errno.EALREADY,
    errno.EBUSY,
    errno.ENOENT,
    errno.EACCES,
    errno.EINTR,
    *_RESOURCES,
)
# of connect() when the connection came about, and its answer could not be read
_CONNECT_AFTER = (errno.EPROTO, errno.EIO, *_RESOURCES)
_TOOLS = frozenset({"settle", "probe", "mount", "bind_device", "unmount", "wipe"})
# Everything that acts on a device refuses another incarnation of it.
_VERIFYING = frozenset({"rescan", "claim", "lock_device", "wipe", "mount", "bind_device", "verify"})
_WALKING = frozenset({"mount", "bind_device", "inspect_path", "create_path"})


def errors_of(call: str, *, after: bool = False) -> list[Exception]:
    """All the errors that a call of the kernel or of the journal may raise, the most usual one first.

    ``after``: those that it may raise although its effect came about.
    """
    if after and call.startswith("journal"):
        return []  # the last step of it is a rename, or an unlink
    found: list[Exception] = []
    if call == "resolve":
        found.append(ConnectError(errno.EHOSTUNREACH, "simulated failure to resolve"))
    elif call == "connect":
        kind, numbers = (OSError, _CONNECT_AFTER) if after else (ConnectError, _CONNECT)
        found += [kind(number, os.strerror(number)) for number in numbers]
    if call in _TOOLS or call.endswith("_filesystem"):
        found += [CommandError(call, status, "simulated failure") for status in (1, 127, -9)]
    if call == "claim" and not after:
        found.append(ClaimBusy("simulated"))
    if call in _WALKING and not after:
        found.append(StagingPathError("simulated"))
    if call in _VERIFYING and not after:
        found.append(DeviceChanged("simulated"))
    found += [OSError(number, os.strerror(number)) for number in _ERRNOS.get(call, ())]
    # what was not said comes as it is
    return found or [OSError(errno.EIO, "simulated failure")]
