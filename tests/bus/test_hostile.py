"""Any calls and any bytes: each gets an error with a known name, or is cut off by the bus.

Whatever comes, the service answers others afterwards, with no more files and tasks than before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeofd.bus import messages
from nvmeofd.bus.dbusnext import decode_body, encode, variant
from nvmeofd.bus.frames import MAX_BODY, MAX_HEADER, BrokenStream, FrameReader
from nvmeofd.bus.handshake import authenticate, connect
from nvmeofd.bus.introspection import INTERFACES, STANDARD
from nvmeofd.bus.messages import BUS_NAME, BUS_PATH, DBusError, Flags, Message, MessageType
from nvmeofd.bus.paths import ROOT, SERVICE_NAME, job_path, subsystem_path, volume_path
from nvmeofd.bus.service import BusService
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import (
    MANAGER,
    PrivateBus,
    ScriptedBus,
    client,
    from_bus,
    request,
    service,
    welcome,
)
from tests.bus.refusals import check
from tests.unit.fuzzing import damaged

T = TypeVar("T")

many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Messages

PATHS = [ROOT, subsystem_path(NQN), volume_path("/srv/one"), job_path(1), "/", "/org", job_path(99), volume_path("")]
KNOWN = {**STANDARD, **INTERFACES}
MEMBERS = sorted({member for one in KNOWN.values() for member in one.methods})
SIGNATURES = sorted({method.signature for one in KNOWN.values() for method in one.methods.values()})
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,30}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT | st.sampled_from([NQN, "nsid.1", "loop://", "/srv/one", "org.nvmeofd1.Manager", "Version"]),
    "o": st.sampled_from(PATHS),
    "g": st.sampled_from(["", "s", "a{sv}", "(((((((((y)))))))))"]),
}
TYPES = st.recursive(
    st.sampled_from(sorted(BASIC)) | st.just("v"),
    lambda inner: st.one_of(
        inner.map(lambda one: f"a{one}"),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: f"({''.join(some)})"),
        st.tuples(st.sampled_from(sorted(BASIC)), inner).map(lambda pair: f"a{{{pair[0]}{pair[1]}}}"),
    ),
    max_leaves=5,
)


def split(signature: str) -> list[str]:
    """The complete types of a signature."""
    found, depth, start = [], 0, 0
    for position, character in enumerate(signature):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(character, 0)
        if depth == 0 and character != "a":
            found.append(signature[start : position + 1])
            start = position + 1
    return found


def value_of(draw: st.DrawFn, kind: str, nesting: int = 2) -> Any:
    """A value of one complete type, with at most so many variants in variants.

    The bus cuts off who sends more than 64 containers in each other, and counts the variants among them ("Valid
    Signatures" in the D-Bus specification).
    """

    def value(kind: str) -> Any:
        return value_of(draw, kind, nesting)

    match kind[0]:
        case "v":
            inner = draw(TYPES if nesting else st.sampled_from(sorted(BASIC)))
            return variant(inner, value_of(draw, inner, nesting - 1))
        case "(":
            return [value(one) for one in split(kind[1:-1])]
        case "a" if kind == "ay":
            return draw(st.binary(max_size=20))
        case "a" if kind[1] == "{":
            key, content = kind[2], kind[3:-1]
            return {draw(BASIC[key]): value(content) for _ in range(draw(st.integers(0, 3)))}
        case "a":
            return [value(kind[1:]) for _ in range(draw(st.integers(0, 3)))]
        case basic:
            return draw(BASIC[basic])


@st.composite
def calls(draw: st.DrawFn) -> Message:
    """A call as the bus lets it pass: well formed, and as senseless as need be."""
    signature = draw(st.sampled_from(SIGNATURES) | st.lists(TYPES, max_size=3).map("".join))
    return request(
        draw(st.sampled_from(PATHS)),
        draw(st.sampled_from(["", *KNOWN]) | NAMES.map(lambda name: f"a.{name}")),
        draw(st.sampled_from(MEMBERS) | NAMES),
        signature,
        *(value_of(draw, kind) for kind in split(signature)),
        flags=Flags(draw(st.sampled_from([0, 0, 0, 2, 4, 6]))),
    )


# The service in this process


class Running:
    """The service and a client, in a loop that stands still between two questions."""

    def __init__(self, bus: PrivateBus, runner: asyncio.Runner) -> None:
        self.bus = bus
        self._runner = runner
        self._stack = AsyncExitStack()
        self.complaints: list[dict[str, Any]] = []
        runner.get_loop().set_exception_handler(lambda _, context: self.complaints.append(context))

    def do(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(30):
                return await work

        return self._runner.run(bounded())

    async def start(self) -> None:
        core = FakeCore()
        core.connect(subsystem())
        core.add_volume(volume("/srv/one"))
        core.add_job(1)
        self.service = await self._stack.enter_async_context(service(self.bus, core))
        self.client = await self._stack.enter_async_context(client(self.bus))
        await self.client.get(ROOT, MANAGER, "Version")
        self.before = self.held()

    async def stop(self) -> None:
        await self._stack.aclose()

    def held(self) -> tuple[int, int, int]:
        """Files, tasks and calls that are there when nothing is asked."""
        dispatcher = self.service._dispatcher
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks()), len(dispatcher._tasks)

    async def answers(self) -> None:
        assert await self.client.get(ROOT, MANAGER, "Version")
        assert not self.service.lost.done()
        assert not self.complaints


@pytest.fixture
def running(bus: PrivateBus) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        one = Running(bus, runner)
        one.do(one.start())
        yield one
        one.do(one.stop())
        assert not one.complaints


@many
@given(st.lists(calls(), min_size=1, max_size=20))
def test_any_calls(running: Running, batch: list[Message]) -> None:
    async def ask() -> None:
        answers = await asyncio.gather(*map(running.client.connection.call, batch), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, DBusError)
                check(answer)
        await running.answers()
        assert running.held() == running.before

    running.do(ask())


REAL = [
    request(
        ROOT,
        MANAGER,
        "Stage",
        "ssassa{sv}",
        NQN,
        "nsid.1",
        ["tcp://192.0.2.1"],
        "/srv/bl\u00e4h",
        {"fsck": variant("b", False), "mount-options": variant("as", ["noatime"])},
    ),
    request(ROOT, messages.PROPERTIES, "Set", "ssv", MANAGER, "Version", variant("(sa{sv})", ["x", {}])),
    request(volume_path("/srv/one"), messages.PROPERTIES, "Get", "ss", "org.nvmeofd1.Volume", "State"),
]


FRAMES = [encode(replace(one, serial=7)) for one in REAL]


@many
@given(st.lists(damaged(*FRAMES), min_size=1, max_size=3).map(b"".join))
def test_any_bytes_through_the_bus(running: Running, data: bytes) -> None:
    """The bus cuts off most of these clients, bad UTF-8 in a path included; what it lets pass is answered."""

    async def ask() -> None:
        sock = await connect([running.bus.address.removeprefix("unix:path=")])
        loop = asyncio.get_running_loop()
        try:
            await authenticate(sock)
            hello = Message(
                type=MessageType.METHOD_CALL,
                serial=1,
                destination=BUS_NAME,
                path=BUS_PATH,
                interface=BUS_NAME,
                member="Hello",
            )
            with suppress(ConnectionError):
                await loop.sock_sendall(sock, encode(hello) + data)
        finally:
            sock.close()
        await running.answers()

    running.do(ask())


def is_whole(data: bytes) -> bool:
    """Whether these are complete messages, good or bad, and no part of another one."""
    reader = FrameReader()
    reader.feed(data)
    try:
        while reader.take() is not None:
            pass
    except BrokenStream:
        return False
    return not reader._buffer and not reader._skip


PING = encode(
    Message(
        type=MessageType.METHOD_CALL,
        serial=99,
        sender=":1.8",
        destination=SERVICE_NAME,
        path="/",
        interface=messages.PEER,
        member="Ping",
    )
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@many
@given(data=damaged(*(encode(replace(one, serial=7, sender=":1.7")) for one in REAL)))
def test_any_bytes_from_the_bus(runner: asyncio.Runner, data: bytes) -> None:
    """Were the bus to let them pass: answered, dropped, or the end of the connection, but no accident."""
    complaints: list[dict[str, Any]] = []
    exported, answered = asyncio.Event(), asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        await exported.wait()
        writer.write(data + PING)
        frames = FrameReader()
        while received := await reader.read(65536):
            frames.feed(received)
            while (message := frames.take()) is not None:
                if message.reply_serial == 99:
                    answered.set()
                elif message.type is MessageType.ERROR:
                    check(DBusError(message.error_name, decode_body(message)[0]))
                elif message.member == "GetConnectionUnixUser":
                    writer.write(from_bus(MessageType.METHOD_RETURN, "u", 0, reply_serial=message.serial))

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(30), ScriptedBus(play) as scripted:
            running = await BusService.connect(scripted.address)
            core = FakeCore()
            core.observer = running
            running.export(core)
            exported.set()
            if is_whole(data):
                await answered.wait()
            else:
                # It waits for the rest, or gives up.
                for _ in range(10):
                    await asyncio.sleep(0)
            assert len(running._connection._frames._buffer) <= MAX_HEADER + MAX_BODY
            await running.close()
        assert len(asyncio.all_tasks()) == 1

    runner.run(serve())
    assert not complaints
