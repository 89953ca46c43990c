"""A private bus, clients on it, and the service with a core that tests command."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import decode_body, encode, encode_body
from nvmeofd.bus.frames import MAX_BODY, FrameReader
from nvmeofd.bus.messages import BUS_NAME, PROPERTIES, Flags, Message, MessageType
from nvmeofd.bus.paths import ROOT, SERVICE_NAME
from nvmeofd.bus.service import BusService
from tests.bus.fake import FakeCore

REPOSITORY = Path(__file__).parents[2]
POLICY = REPOSITORY / "dbus" / "org.nvmeofd1.conf"
MANAGER = "org.nvmeofd1.Manager"

# The policy of the system bus as dbus-daemon 1.14 installs it, without what activation needs.
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={directory}/socket</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <limit name="max_replies_per_connection">{max_replies}</limit>
  <include>{policy}</include>
  {extra}
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon of our own. ``extra_policy`` comes after the policy of the service."""

    def __init__(self, *, extra_policy: str = "", max_replies: int = 5000) -> None:
        # Not pytest's directory for temporary files: other users must get at the socket.
        self.directory = Path(tempfile.mkdtemp(prefix="nvmeofd-bus-"))
        self.directory.chmod(0o755)
        config = self.directory / "bus.conf"
        config.write_text(
            _CONFIG.format(directory=self.directory, policy=POLICY, extra=extra_policy, max_replies=max_replies)
        )
        self.address = f"unix:path={self.directory}/socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._config = config

    def __enter__(self) -> Self:
        read_end, write_end = os.pipe()
        with open(read_end, "rb") as ready:
            self._process = subprocess.Popen(
                ["dbus-daemon", "--nofork", "--nosyslog", f"--print-pid={write_end}", f"--config-file={self._config}"],
                pass_fds=[write_end],
                stdin=subprocess.DEVNULL,
            )
            os.close(write_end)
            assert ready.readline().strip(), "dbus-daemon did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


class Client:
    """A client: calls with plain values, and everything that comes in as a signal."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.signals: list[Message] = []
        self._news = asyncio.Event()
        connection.on_signal = self._on_signal

    def _on_signal(self, message: Message) -> None:
        if message.member == "NameAcquired":
            return  # of its own unique name
        self.signals.append(message)
        self._news.set()

    async def subscribe(self, rule: str = f"type='signal',sender='{SERVICE_NAME}'") -> None:
        await self.connection.call_bus("AddMatch", "s", rule)

    async def signal(self, member: str, path: str | None = None) -> Message:
        """The first signal of that name that came in, or comes in now. It is taken out."""
        while True:
            for message in self.signals:
                if message.member == member and path in (None, message.path):
                    self.signals.remove(message)
                    return message
            self._news.clear()
            await self._news.wait()

    async def call(
        self, path: str, interface: str, member: str, signature: str = "", *values: Any, flags: Flags = Flags.NONE
    ) -> list[Any]:
        message = request(path, interface, member, signature, *values, flags=flags)
        return await self.connection.call(message)

    async def manager(self, member: str, signature: str = "", *values: Any) -> list[Any]:
        return await self.call(ROOT, MANAGER, member, signature, *values)

    async def get(self, path: str, interface: str, name: str) -> Any:
        (value,) = await self.call(path, PROPERTIES, "Get", "ss", interface, name)
        return value.value

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        (values,) = await self.call(path, PROPERTIES, "GetAll", "s", interface)
        return {name: typed.value for name, typed in values.items()}


def request(
    path: str, interface: str, member: str, signature: str = "", *values: Any, flags: Flags = Flags.NONE
) -> Message:
    """A call of the service."""
    return Message(
        type=MessageType.METHOD_CALL,
        flags=flags,
        destination=SERVICE_NAME,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=encode_body(signature, list(values)),
    )


def body(message: Message) -> list[Any]:
    return decode_body(message)


@contextmanager
def _as_user(uid: int | None) -> Iterator[None]:
    """Be that user, and in the user's own group only."""
    if uid is None:
        yield
        return
    own, groups = (os.geteuid(), os.getegid()), os.getgroups()
    gid = pwd.getpwuid(uid).pw_gid
    os.setgroups([gid])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(own[0])
        os.setegid(own[1])
        os.setgroups(groups)


@asynccontextmanager
async def client(bus: PrivateBus, uid: int | None = None, *, max_body: int = MAX_BODY) -> AsyncIterator[Client]:
    """A client, of another user if need be: the bus asks the kernel who connected the socket."""
    with _as_user(uid):
        connection = await Connection.open(bus.address, max_body=max_body)
    try:
        yield Client(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def service(bus: PrivateBus, core: FakeCore) -> AsyncIterator[BusService]:
    """The service, which owns its name and tells the news of ``core``."""
    running = await BusService.connect(bus.address)
    try:
        core.observer = running
        running.export(core)
        await running.own_name()
        yield running
    finally:
        await running.close()


async def busctl(bus: PrivateBus, *arguments: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run busctl(1) on ``bus``, as another user if need be."""
    process = await asyncio.create_subprocess_exec(
        "busctl",
        f"--address={bus.address}",
        "--no-pager",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        user=user,
        group=None if user is None else "nogroup",
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out.decode(), err.decode())


async def busctl_json(bus: PrivateBus, *arguments: str) -> Any:
    done = await busctl(bus, "--json=short", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class ScriptedBus:
    """A bus that is played by a test: ``play`` gets every connection, from its very first byte on."""

    def __init__(self, play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._play = play
        self._directory = tempfile.TemporaryDirectory(prefix="nvmeofd-bus-")
        self.address = f"unix:path={self._directory.name}/socket"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._run, f"{self._directory.name}/socket")
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._play(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        self._directory.cleanup()


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Play the bus up to the reply to Hello."""
    await reader.readuntil(b"\r\n")
    writer.write(b"OK 00000000000000000000000000000000\r\n")
    await reader.readuntil(b"BEGIN\r\n")
    hello = await receive(reader, FrameReader())
    writer.write(from_bus(MessageType.METHOD_RETURN, "s", ":1.1", reply_serial=hello.serial))


async def receive(reader: asyncio.StreamReader, frames: FrameReader) -> Message:
    """The next message that the other side sends."""
    while (message := frames.take()) is None:
        data = await reader.read(65536)
        if not data:
            raise EOFError
        frames.feed(data)
    return message


def from_bus(kind: MessageType, signature: str = "", *values: Any, **fields: Any) -> bytes:
    """A message as the bus itself sends it."""
    content = encode_body(signature, list(values))
    return encode(Message(type=kind, serial=1, sender=BUS_NAME, signature=signature, body=content, **fields))
