"""Before a call is worked on: who it is from must be known, and there must be room for it.

What others do must not take room from root. Until the bus has said who somebody is, nobody is told apart by user, and
then each sender has the same share.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from nvmeofd.bus.callers import Callers
from nvmeofd.bus.messages import ACCESS_DENIED, LIMITS_EXCEEDED, DBusError, Message
from nvmeofd.errors import ShuttingDown

# Calls wait for the bus to say who they are from with at most so many bytes. Each counts as more than its body: it is
# an object, too. The system bus lets a user have 256 connections (max_connections_per_user), and the share of each is
# then still as large as any request that is accepted.
MAX_UNIDENTIFIED = 64 * 1024 * 1024
OVERHEAD = 4096


class Room:
    """A bounded number of calls, in all and for each key."""

    def __init__(self, for_each: int, in_all: int) -> None:
        self._for_each = for_each
        self._in_all = in_all
        self._held: Counter[Hashable] = Counter()
        self.taken = 0

    def enter(self, key: Hashable) -> bool:
        """Take a place, if there is one."""
        if self._held[key] >= self._for_each or self.taken >= self._in_all:
            return False
        self._held[key] += 1
        self.taken += 1
        return True

    def leave(self, key: Hashable) -> None:
        self.taken -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]


def no_room() -> DBusError:
    return DBusError(LIMITS_EXCEEDED, "too many calls wait for their replies")


@dataclass(slots=True)
class _Line:
    """The calls of one sender in their order."""

    task: asyncio.Task[None]
    calls: list[Message] = field(default_factory=list)
    size: int = 0


class Arrivals:
    """Hands calls on to ``admit`` with the user ID of their sender, in the order of that sender, or to ``refuse``."""

    def __init__(
        self,
        callers: Callers,
        *,
        admit: Callable[[Message, int], None],
        refuse: Callable[[Message, BaseException], None],
    ) -> None:
        self._callers = callers
        self._admit = admit
        self._refuse = refuse
        self._lines: dict[str, _Line] = {}
        self._size = 0

    def take(self, call: Message) -> None:
        line = self._lines.get(call.sender)
        if line is None:
            uid = self._callers.known(call.sender)
            if uid is not None:
                self._admit(call, uid)
                return
            task = asyncio.create_task(self._identify(call.sender), name=f"arrivals from {call.sender}")
            line = self._lines[call.sender] = _Line(task)
        line.calls.append(call)
        self._grow(line, _cost(call))
        while self._size > MAX_UNIDENTIFIED:
            # Not the newcomer pays, who may be root, but whoever has sent most.
            longest = max(self._lines.values(), key=lambda one: one.size)
            dropped = longest.calls.pop()
            self._grow(longest, -_cost(dropped))
            self._refuse(dropped, no_room())

    def _grow(self, line: _Line, size: int) -> None:
        line.size += size
        self._size += size

    def _pop(self, sender: str) -> list[Message]:
        line = self._lines.pop(sender)
        self._size -= line.size
        return line.calls

    async def _identify(self, sender: str) -> None:
        uid = await self._callers.uid(sender)
        for call in self._pop(sender):
            if uid is None:
                self._refuse(call, DBusError(ACCESS_DENIED, "the caller has left the bus"))
            else:
                self._admit(call, uid)

    def vanished(self, sender: str) -> None:
        """Forget the calls of a sender that has left."""
        line = self._lines.get(sender)
        if line is not None:
            line.task.cancel()
            self._pop(sender)

    async def close(self) -> None:
        """Refuse what still waits."""
        tasks = [line.task for line in self._lines.values()]
        for task in tasks:
            task.cancel()
        for sender in list(self._lines):
            for call in self._pop(sender):
                self._refuse(call, ShuttingDown("the daemon is stopping"))
        await asyncio.gather(*tasks, return_exceptions=True)


def _cost(call: Message) -> int:
    return len(call.body) + len(call.path) + OVERHEAD
