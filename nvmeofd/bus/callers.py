"""Who calls: the user behind each unique name, asked of the bus once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import BadMessage, decode_body
from nvmeofd.bus.messages import BUS_NAME, BUS_PATH, BusLost, DBusError, Message

# Each costs one match rule, and the bus grants 512 of them to a connection.
MAX_KNOWN = 256


class Caller(NamedTuple):
    """Who a call comes from: unique name on the bus, and user ID."""

    name: str
    uid: int


current_caller: ContextVar[Caller] = ContextVar("current_caller")
"""Set in the task that handles a call."""


class Callers:
    """The user ID of each caller, remembered until the caller leaves the bus."""

    def __init__(self, connection: Connection, vanished: Callable[[str], None]) -> None:
        self._connection = connection
        self._vanished = vanished
        self._lookups: dict[str, asyncio.Task[int | None]] = {}

    def known(self, name: str) -> int | None:
        """The user ID if the bus has told it already."""
        lookup = self._lookups.get(name)
        return lookup.result() if lookup is not None and lookup.done() and not lookup.cancelled() else None

    async def uid(self, name: str) -> int | None:
        """The user ID of the connection with this unique name, None when it has left or the bus does not say."""
        lookup = self._lookups.get(name)
        if lookup is None:
            # A rule for this name alone: one for all names would wake the daemon for every program that ends.
            # It is in place before the question, so a name that has an answer has a rule.
            self._connection.tell_bus("AddMatch", "s", _rule(name))
            lookup = self._lookups[name] = asyncio.create_task(self._look_up(name), name=f"uid of {name}")
            self._make_room()
        # Others wait for the same answer.
        return await asyncio.shield(lookup)

    async def _look_up(self, name: str) -> int | None:
        uid = await self.ask(name)
        if uid is None:
            self._forget(name)
        return uid

    async def ask(self, name: str) -> int | None:
        """The same, asked of the bus now.

        GetConnectionCredentials would bring a pidfd from dbus-broker, which cuts off whoever cannot take one.
        """
        try:
            (uid,) = await self._connection.call_bus("GetConnectionUnixUser", "s", name)
        except (DBusError, BusLost, BadMessage, TimeoutError):
            return None
        return int(uid)

    def _make_room(self) -> None:
        if len(self._lookups) > MAX_KNOWN:
            # Others than root first, or else their many connections would make the daemon deaf to root's leaving.
            done = [name for name, lookup in self._lookups.items() if lookup.done()]
            oldest = next((name for name in done if self.known(name) != 0), next(iter(done), None))
            if oldest is not None:
                self._forget(oldest)

    def _forget(self, name: str) -> None:
        if self._lookups.pop(name, None) is not None:
            self._connection.tell_bus("RemoveMatch", "s", _rule(name))

    def on_signal(self, message: Message) -> None:
        """Look for a caller that leaves. Only the bus is believed: others can send such a signal, too."""
        if (message.sender, message.path, message.interface) != (BUS_NAME, BUS_PATH, BUS_NAME):
            return
        if message.member != "NameOwnerChanged" or message.signature != "sss":
            return
        name, _, new_owner = decode_body(message)
        if not new_owner and name.startswith(":"):
            self._forget(name)
            self._vanished(name)

    async def close(self) -> None:
        for lookup in self._lookups.values():
            lookup.cancel()
        await asyncio.gather(*self._lookups.values(), return_exceptions=True)
        self._lookups.clear()


def _rule(name: str) -> str:
    return (
        f"type='signal',sender='{BUS_NAME}',path='{BUS_PATH}',interface='{BUS_NAME}',"
        f"member='NameOwnerChanged',arg0='{name}'"
    )
