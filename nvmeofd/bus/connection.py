"""One connection to the bus: authentication, reading, writing, calls of our own."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from nvmeofd.bus.dbusnext import BadMessage, decode_body, encode, encode_body, socket_addresses
from nvmeofd.bus.frames import MAX_BODY, FrameReader
from nvmeofd.bus.handshake import CONNECT_TIMEOUT, authenticate, connect
from nvmeofd.bus.messages import BUS_NAME, BUS_PATH, BusLost, DBusError, Flags, Message, MessageType
from nvmeofd.log import log

CALL_TIMEOUT = 25.0  # seconds, the default of libdbus and sd-bus
MESSAGES_PER_TURN = 64  # then timers and other work have their turn
READ_SIZE = 64 * 1024
# With more than this waiting to be sent, no further messages are read until the bus has taken it.
PAUSE_READING_AT = 4 * 1024 * 1024
# The bus takes what is sent to it. One that leaves so much lying is broken, and keeping it would only cost memory.
MAX_UNSENT = 64 * 1024 * 1024


def _ignore(_: Message) -> None:
    """What comes in before anybody is there to handle it."""


class Connection:
    """An authenticated connection with a unique name. Made by :meth:`open`.

    ``on_call`` and ``on_signal`` get what comes in. ``lost`` gets the reason when the connection ends without
    :meth:`close`; from then on, what is sent goes nowhere.
    """

    def __init__(self, sock: socket.socket, max_body: int = MAX_BODY) -> None:
        self.on_call: Callable[[Message], None] = _ignore
        self.on_signal: Callable[[Message], None] = _ignore
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.unique_name = ""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._frames = FrameReader(max_body)
        self._serial = 0
        self._pending: dict[int, tuple[str, asyncio.Future[Message]]] = {}  # by serial: who is asked, and the reply
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_size = 0
        self._flush_scheduled = False
        self._drained: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._working_off = False
        self._reading = False
        self._closed = False

    @classmethod
    async def open(cls, address: str | None = None, *, max_body: int = MAX_BODY) -> Connection:
        """Connect to ``address`` (by default the system bus), authenticate, and get a unique name.

        Messages with a body of more than ``max_body`` bytes are not read.

        Raises:
            BusLost: it says which step failed.
        """
        try:
            places = socket_addresses(address)
        except ValueError as error:
            raise BusLost(f"cannot connect to the bus: {error}") from None
        sock = await connect(places)
        self = cls(sock, max_body)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await authenticate(sock)
                self._balance()
                (self.unique_name,) = await self.call_bus("Hello")
        except TimeoutError:
            self._shut()
            raise BusLost(f"the bus did not complete the connection within {CONNECT_TIMEOUT:.0f} s") from None
        except (OSError, DBusError, BadMessage) as error:
            self._shut()
            raise BusLost(f"the bus did not complete the connection: {error}") from error
        except BaseException:
            self._shut()
            raise
        return self

    # Sending

    def send(self, message: Message) -> int:
        """Queue ``message`` under a new serial, which is returned. After a loss it goes nowhere."""
        self._serial = self._serial % 0xFFFF_FFFF + 1
        if self._closed:
            return self._serial
        data = encode(replace(message, serial=self._serial))
        self._unsent.append(data)
        self._unsent_size += len(data)
        self._balance()
        if self._unsent_size > MAX_UNSENT:
            self._lose(f"the bus left {self._unsent_size} bytes unread")
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            # At the end of this turn of the loop, with everything else that comes up in it.
            self._loop.call_soon(self._flush)
        return self._serial

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._closed:
            return
        try:
            while self._unsent:
                # 64 is far below IOV_MAX
                self._sent(self._sock.sendmsg(list(islice(self._unsent, 64))))
        except (BlockingIOError, InterruptedError):
            # Full: the loop says when to go on.
            self._flush_scheduled = True
            self._loop.add_writer(self._sock, self._flush)
            self._balance()
            return
        except OSError as error:
            self._lose(f"writing to the bus failed: {error}")
            return
        self._loop.remove_writer(self._sock)
        self._balance()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _sent(self, size: int) -> None:
        self._unsent_size -= size
        while size:
            first = self._unsent.popleft()
            if size < len(first):
                self._unsent.appendleft(memoryview(first)[size:])
                return
            size -= len(first)

    # Calling

    async def call(
        self, message: Message, *, timeout: float | None = CALL_TIMEOUT, reply_signature: str | None = None
    ) -> list[Any]:
        """Call a method and return the arguments of its reply. ``timeout`` is in seconds; None waits for ever.

        Where the call goes to the bus or to a unique name, nobody else's reply is taken.

        Raises:
            DBusError: the error that was the answer.
            BusLost: the connection is gone.
            BadMessage: the reply makes no sense, or is not of the given signature.
            TimeoutError: there was no answer in time.
        """
        serial = self.send(message)
        if self._closed:
            raise BusLost("the connection to the bus is gone")
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._pending[serial] = message.destination, reply
        try:
            async with asyncio.timeout(timeout):
                answer = await reply
        finally:
            self._pending.pop(serial, None)
        if answer.oversized:
            raise BadMessage(f"the reply to {message.member} is too large")
        body = decode_body(answer)
        if answer.type is MessageType.ERROR:
            text = body[0] if body and isinstance(body[0], str) else ""
            raise DBusError(answer.error_name, text)
        if reply_signature is not None and answer.signature != reply_signature:
            raise BadMessage(f"the reply to {message.member} is of type '{answer.signature}', not '{reply_signature}'")
        return body

    async def call_bus(self, member: str, signature: str = "", *values: Any) -> list[Any]:
        """Call a method of the bus itself. Raises as :meth:`call` does."""
        return await self.call(_bus_call(member, signature, values))

    def tell_bus(self, member: str, signature: str = "", *values: Any) -> None:
        """Call a method of the bus itself and ask for no reply."""
        self.send(replace(_bus_call(member, signature, values), flags=Flags.NO_REPLY_EXPECTED))

    async def room(self) -> None:
        """Wait until the bus has taken most of what was sent: before sending much. Returns when the bus is lost."""
        await self._room.wait()

    def _balance(self) -> None:
        """Read only when what was read is worked off and what was sent is mostly taken."""
        full = self._unsent_size >= PAUSE_READING_AT
        if full:
            self._room.clear()
        else:
            self._room.set()
        wanted = not (full or self._working_off or self._closed)
        if wanted and not self._reading:
            self._loop.add_reader(self._sock, self._readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._sock)
        self._reading = wanted

    # Receiving

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(f"reading from the bus failed: {error}")
            return
        if not data:
            self._lose("the bus closed the connection")
            return
        self._frames.feed(data)
        self._working_off = True
        self._process()

    def _process(self) -> None:
        """Handle what came in, a bounded number of messages in one turn, and read on when nothing is left."""
        try:
            for _ in range(MESSAGES_PER_TURN):
                if self._closed:
                    return
                message = self._frames.take()
                if message is None:
                    self._working_off = False
                    self._balance()
                    return
                self._handle(message)
        except OSError as error:
            self._lose(str(error))
            return
        self._balance()
        self._loop.call_soon(self._process)

    def _handle(self, message: Message) -> None:
        if message.type is MessageType.METHOD_CALL:
            self.on_call(message)
        elif message.type is MessageType.SIGNAL:
            self.on_signal(message)
        else:
            asked, reply = self._pending.get(message.reply_serial, ("", None))
            if reply is not None and not reply.done() and _is_from(asked, message):
                reply.set_result(message)

    # The end

    async def close(self, *, timeout: float = 1.0) -> None:
        """Send what is queued, waiting ``timeout`` seconds at most, and close. ``lost`` stays as it is."""
        if not self._closed and (self._unsent or self._flush_scheduled):
            self._drained = self._loop.create_future()
            done, _ = await asyncio.wait({self._drained}, timeout=timeout)
            if not done:
                log.warning("bus: %d bytes were not sent before closing", self._unsent_size)
        self._shut()

    def fail(self, reason: str) -> None:
        """Give the connection up: what it stands for is lost, such as the name."""
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self._shut(reason)
            self.lost.set_result(reason)

    def _shut(self, reason: str = "the connection was closed") -> None:
        if self._closed:
            return
        self._closed = True
        self._unsent.clear()
        self._unsent_size = 0
        self._loop.remove_writer(self._sock)
        self._balance()
        self._sock.close()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        for _, reply in self._pending.values():
            if not reply.done():
                reply.set_exception(BusLost(reason))


def _is_from(asked: str, reply: Message) -> bool:
    """Whether ``reply`` is from whom was asked. The policy of a bus can let anybody's replies pass, with any serial.

    The bus itself says so when a call cannot be delivered, or whoever was asked has left. The owner of a well-known
    name is known to the bus only.
    """
    if asked != BUS_NAME and not asked.startswith(":"):
        return True
    return reply.sender == asked or (reply.sender == BUS_NAME and reply.type is MessageType.ERROR)


def _bus_call(member: str, signature: str, values: tuple[Any, ...]) -> Message:
    return Message(
        type=MessageType.METHOD_CALL,
        destination=BUS_NAME,
        path=BUS_PATH,
        interface=BUS_NAME,
        member=member,
        signature=signature,
        body=encode_body(signature, list(values)),
    )
