"""A client of the daemon: its objects, calls with their deadlines, and its signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nvmeofd.bus.connection import CALL_TIMEOUT, Connection
from nvmeofd.bus.dbusnext import BadMessage, decode_body, encode_body
from nvmeofd.bus.messages import (
    BUS_NAME,
    BUS_PATH,
    OBJECT_MANAGER,
    PROPERTIES,
    BusLost,
    DBusError,
    Flags,
    Message,
    MessageType,
)
from nvmeofd.bus.paths import ROOT, SERVICE_NAME
from nvmeofd.ctl.outcome import NO_BUS, NOT_INSTALLED, STANDARD, Exit, Failure, Refusal, failure, refusal
from nvmeofd.ctl.snapshot import Snapshot

MANAGER = "org.nvmeofd1.Manager"
SUBSYSTEM = "org.nvmeofd1.Subsystem"
VOLUME = "org.nvmeofd1.Volume"
JOB = "org.nvmeofd1.Job"

# What the bus itself lets through, dbus-daemon(1): max_message_size. A host with 5,000 volumes sends 3 MiB.
MAX_REPLY = 128 * 1024 * 1024
# A reply waits for the operation's own deadline, for what is undone after it, and for a busy host.
REPLY_MARGIN = 60.0  # seconds
# Objects and users of a large host.
READ_TIMEOUT = 60.0  # seconds

_NOT_THERE = {f"{STANDARD}ServiceUnknown", f"{STANDARD}NameHasNoOwner"}


@dataclass(frozen=True, slots=True)
class Event:
    """A signal of the daemon, or the news that it came or went.

    ``kind`` is added, removed, changed, completed or daemon. ``values`` are the properties (added, changed), the
    arguments of Completed, or Running.
    """

    kind: str
    path: str
    interface: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class Client:
    """A connection to the bus, made by :func:`connected`."""

    def __init__(self, connection: Connection, *, interactive: bool) -> None:
        self._connection = connection
        self._interactive = interactive
        self._owner = ""
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._listener: Callable[[Event], None] = self._events.put_nowait

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *values: Any,
        timeout: float | None = CALL_TIMEOUT,
        start: bool = False,
    ) -> list[Any]:
        """Call the daemon. With ``start`` the bus may start it.

        Raises:
            Failure: whatever went wrong, with what to do next.
        """
        flags = Flags.NONE if start else Flags.NO_AUTO_START
        if self._interactive:
            flags |= Flags.ALLOW_INTERACTIVE_AUTHORIZATION
        message = Message(
            type=MessageType.METHOD_CALL,
            flags=flags,
            destination=SERVICE_NAME,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=encode_body(signature, list(values)),
        )
        try:
            return await self._connection.call(message, timeout=timeout)
        except DBusError as error:
            if error.name in _NOT_THERE:
                raise await self._not_running() from None
            raise failure(error.name, error.text) from None
        except BusLost as error:
            raise Failure(f"the bus is gone: {error}", NO_BUS) from None
        except BadMessage as error:
            raise Failure(f"the answer of nvmeofd makes no sense: {error}", refusal("")) from None
        except TimeoutError:
            raise failure(f"{STANDARD}TimedOut", f"nvmeofd did not answer within {timeout:.0f} s") from None

    async def _not_running(self) -> Failure:
        try:
            (known,) = await self._connection.call_bus("ListActivatableNames")
        except (DBusError, BadMessage, BusLost, TimeoutError):
            known = [SERVICE_NAME]
        if SERVICE_NAME in known:
            return failure(f"{STANDARD}NameHasNoOwner", "nvmeofd is not running")
        return Failure("nvmeofd is neither running nor installed", NOT_INSTALLED)

    async def objects(self, *, timeout: float = READ_TIMEOUT) -> Snapshot:
        """All objects of the daemon, in one answer. Raises Failure."""
        (found,) = await self.call(ROOT, OBJECT_MANAGER, "GetManagedObjects", timeout=timeout)
        return Snapshot.of({path: plain_interfaces(interfaces) for path, interfaces in found.items()})

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of an object, looked up now. Raises Failure."""
        (found,) = await self.call(path, PROPERTIES, "GetAll", "s", interface, timeout=READ_TIMEOUT)
        return plain(found)

    async def users(self, subsystem: str) -> list[list[str]]:
        """Kind, device and detail of every user of the subsystem with this object path. Raises Failure."""
        (users,) = await self.call(subsystem, SUBSYSTEM, "ListUsers", timeout=READ_TIMEOUT)
        return [[str(part) for part in user] for user in users]

    # Signals

    async def watch(self, listener: Callable[[Event], None] | None = None) -> bool:
        """Take the daemon's signals from now on; returns whether it runs.

        ``listener`` gets each one at once, so that those sent before a reply come before that reply. Without one they
        wait for :meth:`event`.

        Raises:
            Failure: the bus does not let us.
        """
        if listener is not None:
            self._listener = listener
        self._connection.on_signal = self._on_signal
        rules = (
            f"type='signal',sender='{SERVICE_NAME}'",
            f"type='signal',sender='{BUS_NAME}',path='{BUS_PATH}',member='NameOwnerChanged',arg0='{SERVICE_NAME}'",
        )
        try:
            for rule in rules:
                await self._connection.call_bus("AddMatch", "s", rule)
            try:
                (self._owner,) = await self._connection.call_bus("GetNameOwner", "s", SERVICE_NAME)
            except DBusError:
                self._owner = ""
        except (DBusError, BadMessage, BusLost, TimeoutError) as error:
            raise Failure(f"the bus does not let watch: {error}", NO_BUS) from None
        self._connection.lost.add_done_callback(
            lambda lost: (
                self._events.put_nowait(Failure(f"the bus is gone: {lost.result()}", NO_BUS))
                if not lost.cancelled()
                else None
            )
        )
        return bool(self._owner)

    async def event(self) -> Event:
        """The next event. Raises Failure when the bus is gone."""
        found = await self._events.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _on_signal(self, message: Message) -> None:
        try:
            event = self._event(message)
        except (BadMessage, ValueError, TypeError, AttributeError):
            return  # not what the interface says it is
        if event is not None:
            self._listener(event)

    def _event(self, message: Message) -> Event | None:
        if message.oversized:
            return None
        if message.sender == BUS_NAME and message.member == "NameOwnerChanged":
            name, _, self._owner = decode_body(message)
            return Event("daemon", ROOT, "", {"Running": bool(self._owner)}) if name == SERVICE_NAME else None
        if not self._owner or message.sender != self._owner:
            return None  # signals can be sent by anybody, to anybody
        match message.interface, message.member:
            case "org.freedesktop.DBus.ObjectManager", "InterfacesAdded":
                path, interfaces = decode_body(message)
                for interface, values in plain_interfaces(interfaces).items():
                    return Event("added", path, interface, values)
            case "org.freedesktop.DBus.ObjectManager", "InterfacesRemoved":
                path, interfaces = decode_body(message)
                for interface in interfaces:
                    return Event("removed", path, interface)
            case "org.freedesktop.DBus.Properties", "PropertiesChanged":
                interface, changed, _ = decode_body(message)
                return Event("changed", message.path, interface, plain(changed))
            case "org.nvmeofd1.Job", "Completed":
                success, error, text = decode_body(message)
                outcome = {"Success": bool(success), "Error": error, "Message": text}
                return Event("completed", message.path, JOB, outcome)
        return None


@asynccontextmanager
async def connected(*, interactive: bool = False) -> AsyncIterator[Client]:
    """A client on the system bus; with ``interactive`` the user may be asked for a password.

    Raises:
        Failure: there is no bus.
    """
    try:
        connection = await Connection.open(max_body=MAX_REPLY)
    except BusLost as error:
        raise Failure(str(error), NO_BUS) from None
    try:
        yield Client(connection, interactive=interactive)
    finally:
        await connection.close()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Properties without their D-Bus types."""
    return {name: typed.value for name, typed in values.items()}


def plain_interfaces(interfaces: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Properties by interface, of our interfaces only."""
    return {name: plain(values) for name, values in interfaces.items() if name.startswith("org.nvmeofd1.")}


def reply_timeout(timeout: int | None) -> float | None:
    """How long to wait for the reply to an operation with this ``timeout``.

    None, for ever, when the daemon's configuration decides: it answers in time, or the bus does when it ends.
    """
    return None if timeout is None else timeout + REPLY_MARGIN


def missing(what: str, hint: str) -> Failure:
    """There is no such object."""
    return Failure(what, Refusal(Exit.NOT_FOUND, hint))
