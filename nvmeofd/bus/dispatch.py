"""From a method call to its reply: a task for each, bounds on how many there are, and none without a reply."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nvmeofd.bus import messages
from nvmeofd.bus.authorization import authorize
from nvmeofd.bus.callers import Callers, current_caller
from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import BadMessage, decode_body, encode_body, variant
from nvmeofd.bus.introspection import STANDARD, Interface, Method, document, standard_interfaces
from nvmeofd.bus.messages import DBusError, Flags, Message, MessageType
from nvmeofd.bus.objects import Exported, ManagerObject, SubsystemObject
from nvmeofd.bus.paths import ROOT
from nvmeofd.bus.tree import ObjectTree, variants
from nvmeofd.errors import Failed, NvmeofdError, ShuttingDown, dbus_name
from nvmeofd.log import log, quoted

# Calls that wait for their reply. Those that wait for long work and the others are counted apart, so that a client
# with a full queue of work can still look at it.
MAX_PER_SENDER = 256
MAX_IN_ALL = 2048
# How long calls whose work has ended may take to get their reply sent when the service closes.
CLOSE_SECONDS = 1.0
WAITING = ManagerObject.waiting | SubsystemObject.waiting

_MACHINE_ID = Path("/etc/machine-id")


class _Reply(NamedTuple):
    signature: str = ""
    body: bytes = b""


class _Target(NamedTuple):
    """Where a call goes to. ``obj`` is None for a path that only leads to objects."""

    call: Message
    obj: Exported | None
    interface: Interface
    method: Method

    @property
    def path(self) -> str:
        return self.call.path


class Dispatcher:
    """Answers method calls on the objects of ``tree``.

    ``settle`` is called before an object is looked up and brings the tree up to date when something is known to have
    changed; ``rescan`` does so in any case. Both may raise OSError.
    """

    def __init__(
        self,
        connection: Connection,
        tree: ObjectTree,
        callers: Callers,
        *,
        settle: Callable[[], None],
        rescan: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._send = connection.send
        self._tree = tree
        self._callers = callers
        self._settle = settle
        self._rescan = rescan
        self._tasks: dict[tuple[str, bool], set[asyncio.Task[_Reply | None]]] = {}
        self._in_all = {False: 0, True: 0}
        self._gone: set[asyncio.Task[_Reply | None]] = set()
        self._closing = False
        self._listing = asyncio.Lock()
        self._standard: dict[tuple[str, str], Callable[..., Any]] = {
            (messages.INTROSPECTABLE, "Introspect"): self._introspect,
            (messages.PROPERTIES, "Get"): self._get,
            (messages.PROPERTIES, "GetAll"): self._get_all,
            (messages.PROPERTIES, "Set"): self._set,
            (messages.OBJECT_MANAGER, "GetManagedObjects"): self._managed,
        }

    def handle(self, call: Message) -> None:
        """Take a call. Its reply follows, unless the caller wants none."""
        if self._closing:
            self._fail(call, ShuttingDown("the daemon is stopping"))
            return
        waits = call.member in WAITING
        tasks = self._tasks.setdefault((call.sender, waits), set())
        if len(tasks) >= MAX_PER_SENDER or self._in_all[waits] >= MAX_IN_ALL:
            if not tasks:
                del self._tasks[call.sender, waits]
            self._fail(call, DBusError(messages.LIMITS_EXCEEDED, "too many calls wait for their replies"))
            return
        task = asyncio.create_task(self._answer(call), name=f"{call.member} for {call.sender}")
        tasks.add(task)
        self._in_all[waits] += 1
        # Not in the task: one that is cancelled before its first step runs none of its code.
        task.add_done_callback(partial(self._finished, call, waits))

    def _finished(self, call: Message, waits: bool, task: asyncio.Task[_Reply | None]) -> None:
        self._in_all[waits] -= 1
        tasks = self._tasks[call.sender, waits]
        tasks.discard(task)
        if not tasks:
            del self._tasks[call.sender, waits]
        if task in self._gone:
            self._gone.discard(task)
            return
        if task.cancelled():
            self._fail(call, ShuttingDown("the daemon stopped waiting; what was started goes on to its end"))
        elif (error := task.exception()) is not None:
            self._fail(call, error)
        elif (reply := task.result()) is not None:
            self._return(call, reply)

    def _return(self, call: Message, reply: _Reply) -> None:
        if not call.flags & Flags.NO_REPLY_EXPECTED:
            self._send(
                Message(
                    type=MessageType.METHOD_RETURN,
                    reply_serial=call.serial,
                    destination=call.sender,
                    signature=reply.signature,
                    body=reply.body,
                )
            )

    def _fail(self, call: Message, error: BaseException) -> None:
        name, text = _described(call, error)
        if not call.flags & Flags.NO_REPLY_EXPECTED:
            self._send(
                Message(
                    type=MessageType.ERROR,
                    reply_serial=call.serial,
                    destination=call.sender,
                    error_name=name,
                    signature="s",
                    body=encode_body("s", [text]),
                )
            )

    def vanished(self, sender: str) -> None:
        """Stop waiting on behalf of a caller that has left. Its jobs go on."""
        for waits in (False, True):
            for task in self._tasks.get((sender, waits), ()):
                self._gone.add(task)
                task.cancel()

    async def close(self) -> None:
        """Answer what still waits, and from now on everything, with ShuttingDown.

        Calls whose work has just ended get its outcome: they are on their way to the reply.
        """
        self._closing = True
        tasks = [task for some in self._tasks.values() for task in some]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    # One call

    async def _answer(self, call: Message) -> _Reply | None:
        """The reply, None when it was sent already."""
        if call.interface in ("", messages.PEER) and call.member in STANDARD[messages.PEER].methods:
            return _peer(call)
        uid = await self._callers.uid(call.sender)
        current_caller.set(await authorize(call.sender, uid, call.member))
        self._settle()
        target = self._find(call)
        if call.oversized:
            raise DBusError(messages.INVALID_ARGS, "the request is too large")
        if call.signature != target.method.signature:
            expected = target.method.signature
            raise DBusError(
                messages.INVALID_ARGS, f"{call.member} takes arguments of type '{expected}', not '{call.signature}'"
            )
        arguments = decode_body(call)
        standard = self._standard.get((target.interface.name, call.member))
        result = standard(target, *arguments) if standard else getattr(target.obj, call.member)(*arguments)
        if inspect.isawaitable(result):
            result = await result
        if result is None:
            return None
        return _Reply(target.method.reply, encode_body(target.method.reply, list(result)))

    def _find(self, call: Message) -> _Target:
        obj = self._tree.get(call.path)
        if obj is None and not self._tree.children(call.path):
            raise DBusError(messages.UNKNOWN_OBJECT, f"there is no object {quoted(call.path)}")
        own = None if obj is None else obj.interface
        known = {name: STANDARD[name] for name in standard_interfaces(own, is_root=call.path == ROOT)}
        if own is not None:
            known = {own.name: own, **known}
        if call.interface and call.interface not in known:
            raise DBusError(messages.UNKNOWN_INTERFACE, f"{quoted(call.path)} has no interface {call.interface}")
        for interface in [known[call.interface]] if call.interface else known.values():
            method = interface.methods.get(call.member)
            if method is not None:
                return _Target(call, obj, interface, method)
        where = call.interface or quoted(call.path)
        raise DBusError(messages.UNKNOWN_METHOD, f"{where} has no method {call.member}")

    # The standard interfaces

    def _introspect(self, target: _Target) -> tuple[str]:
        own = None if target.obj is None else target.obj.interface
        return (document(own, self._tree.children(target.path), is_root=target.path == ROOT),)

    def _get(self, target: _Target, interface: str, name: str) -> tuple[Any]:
        obj, own = _own_interface(target, interface)
        if own is None or name not in own.properties:
            raise DBusError(messages.UNKNOWN_PROPERTY, f"{interface} has no property {quoted(name)}")
        if name in own.live:
            obj.refresh()
        return (variant(own.properties[name].signature, getattr(obj, name)),)

    def _get_all(self, target: _Target, interface: str) -> tuple[dict[str, Any]]:
        obj, own = _own_interface(target, interface)
        if own is None:
            return ({},)
        obj.refresh()
        return (variants(own, obj.read(own.properties)),)

    def _set(self, target: _Target, interface: str, name: str, value: object) -> tuple[()]:
        _, own = _own_interface(target, interface)
        if own is None or name not in own.properties:
            raise DBusError(messages.UNKNOWN_PROPERTY, f"{interface} has no property {quoted(name)}")
        raise DBusError(messages.PROPERTY_READ_ONLY, f"{interface}.{name} cannot be set")

    async def _managed(self, target: _Target) -> None:
        # The one reply that can be large. One after the other, and each when the bus has taken those before it, or else
        # a client that asks often and reads slowly would fill the memory.
        async with self._listing:
            await self._connection.room()
            self._rescan()
            self._return(target.call, _Reply(target.method.reply, await self._tree.managed()))


def _own_interface(target: _Target, interface: str) -> tuple[Exported, Interface | None]:
    """The object and its interface of that name, which is None for a standard interface: those have no properties."""
    obj = target.obj
    if obj is not None and interface == obj.interface.name:
        return obj, obj.interface
    if obj is not None and interface in standard_interfaces(obj.interface, is_root=obj.path == ROOT):
        return obj, None
    raise DBusError(messages.UNKNOWN_INTERFACE, f"{quoted(target.path)} has no interface {quoted(interface)}")


def _peer(call: Message) -> _Reply:
    """Answers for every path and every caller, as every program on the bus does."""
    if call.signature:
        raise DBusError(messages.INVALID_ARGS, f"{call.member} takes no arguments")
    if call.member == "Ping":
        return _Reply()
    return _Reply("s", encode_body("s", [_MACHINE_ID.read_text(encoding="ascii").strip()]))


def _described(call: Message, error: BaseException) -> tuple[str, str]:
    """Name and text of an error for the caller. What nobody expected is for the log only."""
    match error:
        case DBusError():
            return error.name, error.text
        case NvmeofdError():
            return dbus_name(error), str(error)
        case BadMessage():
            return messages.INVALID_ARGS, str(error)
        case OSError():
            log.error("bus: %s on %s failed: %s", call.member, quoted(call.path), quoted(str(error)))
        case _:
            log.error("bus: %s on %s failed", call.member, quoted(call.path), exc_info=error)
    return dbus_name(Failed()), "internal error; the log of nvmeofd has the details"
