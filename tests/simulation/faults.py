"""What goes wrong, and when: a plan that every call of a simulated kernel consults.

Each call passes two points: ``before`` its side effect and ``after`` it. A rule applies at one of them, to calls of one
name (``*`` for all) whose detail (device, address, path) contains a text.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvmeofd.kernel.interface import CommandError, ConnectError, DeviceChanged, StagingPathError


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
    error: Exception | None = None
    seconds: float = 0.0
    gate: Gate | None = None
    action: Callable[[], object] | None = None
    crash: bool = False


@dataclass(slots=True)
class EventFaults:
    """Probabilities for each event; ``delay`` is the longest in seconds. Lost ones become an overflow."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0


@dataclass
class FaultPlan:
    """Rules for the calls of one handle. ``yields``: the most turns of the event loop a call takes at each point."""

    seed: int = 0
    yields: int = 2
    events: EventFaults = field(default_factory=EventFaults)
    rules: list[Rule] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    points: int = 0  # how many points were passed so far
    trace: list[str] = field(default_factory=list)
    _at: dict[int, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def _add(self, call: str, detail: str, after: bool, skip: int, times: int, **what: Any) -> None:
        self.rules.append(Rule(call=call, detail=detail, after=after, skip=skip, times=times, **what))

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
        found = []
        for rule in list(self.rules):
            if rule.call not in ("*", call) or rule.after is not after or rule.detail not in detail:
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.times -= 1
            if rule.times <= 0:
                self.rules.remove(rule)
            found.append(rule)
        return found

    def at(
        self,
        point: int,
        *,
        crash: bool = False,
        fail: bool = False,
        gate: Gate | None = None,
        action: Callable[[], object] | None = None,
    ) -> None:
        """Do something at a point given by its number, counted from the start of the process, whatever call it is."""
        error: Exception | None = RuntimeError("to be replaced") if fail else None
        self._at[point] = Rule(
            call="", detail="", after=False, skip=0, times=1, crash=crash, gate=gate, action=action, error=error
        )

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self.rules.clear()
        self._at.clear()
        self.events = EventFaults()

    def passing(self, call: str, detail: str, *, after: bool) -> list[Rule]:
        """Count a point, and return what goes wrong there."""
        if not after:
            self.calls[call] += 1
        self.trace.append(f"{call}{'>' if after else '<'} {detail}".rstrip())
        self.points += 1
        rules = self.matching(call, detail, after=after)
        if (rule := self._at.pop(self.points, None)) is not None:
            if rule.error is not None:
                rule.error = usual_error(call)
            rules.append(rule)
        return rules


def usual_error(call: str) -> Exception:
    """An error as the call raises it in earnest."""
    if call in ("connect", "resolve"):
        return ConnectError(errno.ECONNREFUSED, "simulated failure to connect")
    if call in ("settle", "probe", "mount", "bind_device", "unmount") or call.endswith("_filesystem"):
        return CommandError(call, 1, "simulated failure")
    if call == "verify":
        return DeviceChanged("simulated change")
    if call == "inspect_path":
        return StagingPathError("simulated")
    return OSError(errno.EIO, "simulated failure")
