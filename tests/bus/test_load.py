"""Many calls, slow clients, a slow bus, and callers that go away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvmeofd.bus import connection as connection_module
from nvmeofd.bus import dispatch
from nvmeofd.bus.connection import MESSAGES_PER_TURN, Connection
from nvmeofd.bus.frames import FrameReader
from nvmeofd.bus.messages import BUS_NAME, PROPERTIES, DBusError, Message, MessageType
from nvmeofd.bus.paths import ROOT, subsystem_path, volume_path
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import (
    MANAGER,
    Client,
    PrivateBus,
    ScriptedBus,
    client,
    from_bus,
    receive,
    request,
    service,
    welcome,
)

LIMITS = "org.freedesktop.DBus.Error.LimitsExceeded"


class Gate:
    """Work of the core that waits until it is opened."""

    def __init__(self, core: FakeCore) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0
        self.done = 0
        self._news = asyncio.Event()
        core.work = self._wait

    async def _wait(self) -> None:
        self.waiting += 1
        self._news.set()
        await self.opened.wait()
        self.done += 1
        self._news.set()

    async def until(self, *, waiting: int = 0, done: int = 0) -> None:
        while self.waiting < waiting or self.done < done:
            self._news.clear()
            await self._news.wait()


def outcomes(results: list[Any]) -> tuple[int, int]:
    """How many succeeded, and how many met the limit; there is nothing else."""
    refused = [one for one in results if isinstance(one, DBusError)]
    assert {one.name for one in refused} <= {LIMITS}
    assert not [one for one in results if isinstance(one, BaseException) and one not in refused]
    return len(results) - len(refused), len(refused)


def unstage(caller: Client, number: int = 0) -> asyncio.Task[list[Any]]:
    return asyncio.create_task(caller.manager("Unstage", "sa{sv}", f"/srv/{number}", {}))


async def test_a_thousand_calls_at_once(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()), client(bus) as caller:
        await caller.get(ROOT, MANAGER, "Version")
        results = await asyncio.gather(*(caller.get_all(ROOT, MANAGER) for _ in range(1000)), return_exceptions=True)
        assert outcomes(list(results)) == (1000, 0)


async def test_a_thousand_signals_at_once(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        for number in range(1000):
            core.add_volume(volume(f"/srv/{number}"))
        await caller.signal("InterfacesAdded", ROOT)
        assert await caller.get(volume_path("/srv/999"), "org.nvmeofd1.Volume", "NQN") == NQN
        assert len(caller.signals) == 999
        assert not running.lost.done()


async def test_bounds_for_one_sender(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    gate = Gate(core)
    async with service(bus, core), client(bus) as caller, client(bus) as other:
        calls = [unstage(caller, number) for number in range(1000)]
        await gate.until(waiting=dispatch.MAX_PER_SENDER)
        refused = [one for one in calls if one.done()]
        # whoever fills its share can still look, and others are not affected
        assert await caller.get(ROOT, MANAGER, "Version")
        assert await caller.get(subsystem_path(NQN), "org.nvmeofd1.Subsystem", "Pending") == 0
        more = unstage(other)
        await gate.until(waiting=dispatch.MAX_PER_SENDER + 1)
        gate.opened.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes(list(results)) == (dispatch.MAX_PER_SENDER, 1000 - dispatch.MAX_PER_SENDER)
        assert all(one.exception() is not None for one in refused)
        assert await more == [True]
        assert await caller.manager("Unstage", "sa{sv}", "/srv/0", {}) == [True]


async def test_bounds_for_all(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_IN_ALL", 10)
    core = FakeCore()
    gate = Gate(core)
    async with service(bus, core) as running, client(bus) as one, client(bus) as other:
        calls = [unstage(one, number) for number in range(6)]
        await gate.until(waiting=6)
        calls += [unstage(other, number) for number in range(6)]
        await gate.until(waiting=10)
        assert await other.get(ROOT, MANAGER, "Version")
        gate.opened.set()
        assert outcomes(list(await asyncio.gather(*calls, return_exceptions=True))) == (10, 2)
        assert running._dispatcher._tasks == {}
        assert [room.taken for room in running._dispatcher._rooms.values()] == [0, 0, 0, 0]


async def test_a_caller_vanishes_and_its_job_goes_on(bus: PrivateBus) -> None:
    core = FakeCore()
    gate = Gate(core)
    async with service(bus, core) as running, client(bus) as watcher:
        await watcher.subscribe(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged'")
        async with client(bus) as caller:
            leaving = caller.connection
            for member, number in (("Unstage", 1), ("Unstage", 2)):
                leaving.send(request(ROOT, MANAGER, member, "sa{sv}", f"/srv/{number}", {}))
            await gate.until(waiting=2)
            assert len(running._dispatcher._tasks) == 1
        while running._dispatcher._tasks:
            await watcher.signal("NameOwnerChanged")
            await watcher.get(ROOT, MANAGER, "Version")
        assert gate.done == 0
        gate.opened.set()
        await gate.until(done=2)
        assert running._dispatcher._gone == set()


async def test_a_client_that_does_not_read_holds_up_nobody(bus: PrivateBus) -> None:
    core = FakeCore()
    for number in range(50):
        core.add_volume(volume(f"/srv/{number}"))
    async with service(bus, core) as running, client(bus) as lazy, client(bus) as caller:
        await lazy.subscribe()
        lazy.connection._working_off = True
        lazy.connection._balance()
        listing = request(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        for _ in range(60):
            lazy.connection.send(listing)  # some 30 MiB of replies
        for number in range(1000):
            core.add_volume(volume(f"/srv/new-{number}"))
        for _ in range(50):
            assert await caller.get(ROOT, MANAGER, "Version")
        assert not running.lost.done()


async def test_a_slow_bus_gets_every_byte() -> None:
    """Far more than the socket holds, read in odd pieces."""
    sent = 3000
    got: list[Message] = []
    done = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        frames = FrameReader()
        while len(got) < sent:
            frames.feed(await reader.read(777))
            while (message := frames.take()) is not None:
                got.append(message)
        done.set()

    async with ScriptedBus(play) as scripted:
        connection = await Connection.open(scripted.address)
        for number in range(sent):
            connection.send(
                Message(
                    type=MessageType.SIGNAL,
                    path="/",
                    interface="a.b",
                    member=f"M{number}",
                    body=b"x" * 500,
                    signature="ay",
                )
            )
        await done.wait()
        assert [message.member for message in got] == [f"M{number}" for number in range(sent)]
        assert [message.serial for message in got] == list(range(2, sent + 2))
        assert connection._unsent_size == 0
        await connection.close()


async def test_a_bus_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_UNSENT", 4 << 20)
    monkeypatch.setattr(connection_module, "PAUSE_READING_AT", 1 << 20)
    welcomed = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        welcomed.set()
        await asyncio.Event().wait()

    async with ScriptedBus(play) as scripted:
        connection = await Connection.open(scripted.address)
        await welcomed.wait()
        big = Message(
            type=MessageType.SIGNAL, path="/", interface="a.b", member="M", body=bytes(1 << 17), signature="ay"
        )
        while not connection.lost.done():
            assert connection._unsent_size <= 4 << 20
            connection.send(big)
            await asyncio.sleep(0)
            # calls are not taken in any more, as their replies could not be sent
            assert connection._reading == (connection._unsent_size < 1 << 20) or connection.lost.done()
        assert "unread" in connection.lost.result()
        assert not connection._unsent
        await connection.close()


async def test_reading_resumes_when_the_bus_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PAUSE_READING_AT", 1 << 20)
    read_on = asyncio.Event()
    echoed = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        await read_on.wait()
        writer.write(from_bus(MessageType.SIGNAL, path="/", interface="a.b", member="There"))
        frames = FrameReader()
        for _ in range(40):
            await receive(reader, frames)
        await echoed.wait()

    async with ScriptedBus(play) as scripted:
        connection = await Connection.open(scripted.address)
        connection.on_signal = lambda _: echoed.set()
        for _ in range(40):
            connection.send(
                Message(
                    type=MessageType.SIGNAL, path="/", interface="a.b", member="M", body=bytes(1 << 17), signature="ay"
                )
            )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not connection._reading
        read_on.set()
        await echoed.wait()
        await connection.close()


async def test_a_flood_leaves_room_for_others() -> None:
    """What came in at once is handled in portions, with turns of the loop between them."""
    handled: list[Message] = []
    all_handled = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        await receive(reader, FrameReader())
        writer.write(from_bus(MessageType.SIGNAL, path="/", interface="a.b", member="M") * 2000)
        await all_handled.wait()

    async with ScriptedBus(play) as scripted:
        connection = await Connection.open(scripted.address)

        def handle(message: Message) -> None:
            handled.append(message)
            if len(handled) == 2000:
                all_handled.set()

        connection.on_signal = handle
        connection.tell_bus("Start")
        portions = []
        while not all_handled.is_set():
            before = len(handled)
            await asyncio.sleep(0)
            portions.append(len(handled) - before)
        assert max(portions) <= MESSAGES_PER_TURN
        await connection.close()


async def test_bad_messages_of_the_bus_are_survived(caplog: pytest.LogCaptureFixture) -> None:
    heard = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        await receive(reader, FrameReader())
        bad = bytearray(from_bus(MessageType.SIGNAL, path="/", interface="a.b", member="M"))
        bad[1] = 9
        writer.write(bytes(bad) + from_bus(MessageType.SIGNAL, path="/", interface="a.b", member="M"))
        await heard.wait()

    async with ScriptedBus(play) as scripted:
        connection = await Connection.open(scripted.address)
        connection.on_signal = lambda _: heard.set()
        connection.tell_bus("Start")
        await heard.wait()
        assert "dropped a message" in caplog.text
        assert not connection.lost.done()
        await connection.close()


async def test_replies_to_nothing_are_ignored(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()) as running, client(bus) as caller:
        for kind, name in ((MessageType.METHOD_RETURN, ""), (MessageType.ERROR, "a.b")):
            caller.connection.send(
                Message(type=kind, destination=running._connection.unique_name, reply_serial=3, error_name=name)
            )
        assert await caller.call(ROOT, PROPERTIES, "Get", "ss", MANAGER, "Version")
