"""From a method call to its reply: a task for each, bounds on how many there are, and none without a reply."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nvmeofd.bus import messages
from nvmeofd.bus.admission import Arrivals, Room, no_room
from nvmeofd.bus.authorization import Action, Authorizer, reading
from nvmeofd.bus.callers import Caller, Callers, current_caller
from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import decode_body, encode_body, variant
from nvmeofd.bus.introspection import STANDARD, Interface, Method, document, standard_interfaces
from nvmeofd.bus.messages import DBusError, Flags, Message
from nvmeofd.bus.objects import Exported, ManagerObject, SubsystemObject
from nvmeofd.bus.paths import ROOT
from nvmeofd.bus.replies import Replies, Reply
from nvmeofd.bus.tree import ObjectTree, variants
from nvmeofd.errors import ShuttingDown
from nvmeofd.log import quoted

# Calls that wait for their reply. Those that wait for long work and the others are counted apart, so that a client
# with a full queue of work can still look at it.
MAX_PER_SENDER = 256
MAX_IN_ALL = 2048
# The same for users other than root, apart from root's. Each of them may have any number of connections, so users are
# counted and not senders. Every such call may wait for polkit, and the system bus lets a connection wait for 128
# replies (max_replies_per_connection).
MAX_PER_OTHER_USER = 24
MAX_OF_OTHERS = 60
# Arguments are decoded before polkit is asked, so that its rules see them: 256 KiB of options would hold the loop for
# 0.2 s for anybody who comes along.
MAX_BODY_OF_OTHERS = 16 * 1024
# How long calls whose work has ended may take to get their reply sent when the service closes.
CLOSE_SECONDS = 1.0
WAITING = ManagerObject.waiting | SubsystemObject.waiting

_MACHINE_ID = Path("/etc/machine-id")


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
    changed; ``rescan`` does so in any case. Neither raises anything.
    """

    def __init__(
        self,
        connection: Connection,
        tree: ObjectTree,
        callers: Callers,
        authorizer: Authorizer,
        *,
        settle: Callable[[], None],
        rescan: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._replies = Replies(connection.send)
        self._tree = tree
        self._authorizer = authorizer
        self._arrivals = Arrivals(callers, admit=self._admit, refuse=self._replies.fail)
        self._settle = settle
        self._rescan = rescan
        self._tasks: dict[str, set[asyncio.Task[Reply | None]]] = {}  # by sender
        self._rooms = {  # by whether the caller is root, and whether the call waits for long work
            (is_root, waits): Room(MAX_PER_SENDER, MAX_IN_ALL) if is_root else Room(MAX_PER_OTHER_USER, MAX_OF_OTHERS)
            for is_root in (False, True)
            for waits in (False, True)
        }
        self._gone: set[asyncio.Task[Reply | None]] = set()
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
            self._replies.fail(call, ShuttingDown("the daemon is stopping"))
        elif call.interface in ("", messages.PEER) and call.member in STANDARD[messages.PEER].methods:
            try:
                self._replies.send(call, _peer(call))
            except (DBusError, OSError) as error:
                self._replies.fail(call, error)
        else:
            self._arrivals.take(call)

    def _admit(self, call: Message, uid: int) -> None:
        is_root = uid == 0
        room = self._rooms[is_root, call.member in WAITING]
        key = call.sender if is_root else uid
        if not is_root and (call.oversized or len(call.body) > MAX_BODY_OF_OTHERS):
            self._replies.fail(call, DBusError(messages.INVALID_ARGS, "the request is too large"))
        elif not room.enter(key):
            self._replies.fail(call, no_room())
        else:
            answer = self._answer(call, Caller(call.sender, uid))
            task = asyncio.create_task(answer, name=f"{call.member} for {call.sender}")
            self._tasks.setdefault(call.sender, set()).add(task)
            # Not in the task: one that is cancelled before its first step runs none of its code.
            task.add_done_callback(partial(self._finished, call, partial(room.leave, key)))

    def _finished(self, call: Message, leave: Callable[[], None], task: asyncio.Task[Reply | None]) -> None:
        leave()
        tasks = self._tasks[call.sender]
        tasks.discard(task)
        if not tasks:
            del self._tasks[call.sender]
        if task in self._gone:
            self._gone.discard(task)
            return
        if task.cancelled():
            self._replies.fail(call, ShuttingDown("the daemon stopped waiting; what was started goes on to its end"))
        elif (error := task.exception()) is not None:
            self._replies.fail(call, error)
        elif (reply := task.result()) is not None:
            self._replies.send(call, reply)

    def vanished(self, sender: str) -> None:
        """Stop waiting on behalf of a caller that has left. Its jobs go on."""
        self._arrivals.vanished(sender)
        for task in self._tasks.get(sender, ()):
            self._gone.add(task)
            task.cancel()

    async def close(self) -> None:
        """Answer what still waits, and from now on everything, with ShuttingDown.

        Calls whose work has just ended get its outcome: they are on their way to the reply.
        """
        self._closing = True
        await self._arrivals.close()
        tasks = [task for some in self._tasks.values() for task in some]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    # One call

    async def _answer(self, call: Message, caller: Caller) -> Reply | None:
        """The reply, None when it was sent already."""
        current_caller.set(caller)
        if caller.uid != 0:
            await self._authorize(call, caller)
        self._settle()
        target = self._find(call)
        arguments = _arguments(target)
        standard = self._standard.get((target.interface.name, call.member))
        result = standard(target, *arguments) if standard else getattr(target.obj, call.member)(*arguments)
        if inspect.isawaitable(result):
            result = await result
        if result is None:
            return None
        return Reply(target.method.reply, encode_body(target.method.reply, list(result)))

    async def _authorize(self, call: Message, caller: Caller) -> None:
        """Return when the call may be made. Until then nothing is done, and nothing said about this host.

        The manager is always there, so what is wrong with a call of it tells nothing. Whether there is a volume, a
        subsystem or a job is for those who may look. After this the object is looked up once more: it may be gone.

        Raises:
            DBusError: AccessDenied, or what is wrong with the call.
            NvmeofdError: what is wrong with its arguments.
        """
        interactive = bool(call.flags & Flags.ALLOW_INTERACTIVE_AUTHORIZATION)
        if call.path != ROOT:
            await self._authorizer.permit(caller, reading(call.member), interactive=interactive)
            self._settle()
        target = self._find(call)
        need = reading(call.member)
        if target.obj is not None and target.interface is target.obj.interface:
            need = target.obj.need(call.member, _arguments(target))
        if call.path == ROOT or need.action is not Action.READ:
            await self._authorizer.permit(caller, need, interactive=interactive)

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
            self._replies.send(target.call, Reply(target.method.reply, await self._tree.managed()))


def _arguments(target: _Target) -> list[Any]:
    """The arguments of the call. Raises DBusError or BadMessage when they are not what the method takes."""
    call, expected = target.call, target.method.signature
    if call.oversized:
        raise DBusError(messages.INVALID_ARGS, "the request is too large")
    if call.signature != expected:
        raise DBusError(
            messages.INVALID_ARGS, f"{call.member} takes arguments of type '{expected}', not '{call.signature}'"
        )
    return decode_body(call)


def _own_interface(target: _Target, interface: str) -> tuple[Exported, Interface | None]:
    """The object and its interface of that name, which is None for a standard interface: those have no properties."""
    obj = target.obj
    if obj is not None and interface == obj.interface.name:
        return obj, obj.interface
    if obj is not None and interface in standard_interfaces(obj.interface, is_root=obj.path == ROOT):
        return obj, None
    raise DBusError(messages.UNKNOWN_INTERFACE, f"{quoted(target.path)} has no interface {quoted(interface)}")


def _peer(call: Message) -> Reply:
    """Answers for every path and every caller, as every program on the bus does."""
    if call.signature:
        raise DBusError(messages.INVALID_ARGS, f"{call.member} takes no arguments")
    if call.member == "Ping":
        return Reply()
    return Reply("s", encode_body("s", [_MACHINE_ID.read_text(encoding="ascii").strip()]))
