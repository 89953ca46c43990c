"""How the service starts, how it ends, and how it notices that the bus is gone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

import nvmeofd
from nvmeofd.bus import connection as connection_module
from nvmeofd.bus.connection import Connection
from nvmeofd.bus.messages import BusLost, DBusError, MessageType
from nvmeofd.bus.paths import ROOT, SERVICE_NAME
from nvmeofd.bus.service import BusService, NameTaken
from tests.bus.fake import NQN, FakeCore, FakeJob, subsystem, volume
from tests.bus.harness import MANAGER, PrivateBus, ScriptedBus, client, from_bus, request, service, welcome
from tests.bus.test_load import Gate

NOTHING = FakeJob(1)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_name_is_taken(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()) as first, client(bus) as caller:
        second = await BusService.connect(bus.address)
        second.export(FakeCore())
        with pytest.raises(NameTaken, match="another nvmeofd"):
            await second.own_name()
        await second.close()
        (owner,) = await caller.connection.call_bus("GetNameOwner", "s", SERVICE_NAME)
        assert owner == first._connection.unique_name
        assert await caller.get(ROOT, MANAGER, "Version")


async def test_the_name_is_not_allowed() -> None:
    policy = '<policy context="mandatory"><deny own="org.nvmeofd1"/></policy>'
    with PrivateBus(extra_policy=policy) as bus:
        running = await BusService.connect(bus.address)
        running.export(FakeCore())
        with pytest.raises(BusLost, match="AccessDenied"):
            await running.own_name()
        await running.close()


async def test_the_name_comes_last(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    core.add_volume(volume("/srv/one"))
    running = await BusService.connect(bus.address)
    async with client(bus) as caller:
        with pytest.raises(DBusError, match="ServiceUnknown"):
            await caller.get(ROOT, MANAGER, "Version")
        running.export(core)
        with pytest.raises(DBusError, match="ServiceUnknown"):
            await caller.get(ROOT, MANAGER, "Version")
        await running.own_name()
        assert await caller.get(ROOT, MANAGER, "Version")
    await running.close()


async def test_an_incomplete_picture_is_not_exported(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connected[NQN] = subsystem()
    core.unreadable = {NQN}
    running = await BusService.connect(bus.address)
    with pytest.raises(OSError, match="Input/output"):
        running.export(core)
    await running.close()


async def test_the_bus_goes_away(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core) as running, client(bus) as caller:
        await caller.get(ROOT, MANAGER, "Version")
        pending = asyncio.create_task(running._connection.call_bus("GetId"))
        bus.stop()
        assert "bus" in await running.lost
        await asyncio.gather(pending, return_exceptions=True)
        with pytest.raises(BusLost):
            await running._connection.call_bus("GetId")
        # news and further ends of the daemon's life are survived
        core.add_volume(volume("/srv/one"))
        core.connect(subsystem())
        await running.close()
        await running.close()


async def test_the_bus_takes_the_name_away(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()) as running:
        running._connection.tell_bus("ReleaseName", "s", SERVICE_NAME)
        assert SERVICE_NAME in await running.lost


async def test_close_answers_who_waits_and_gives_the_name_up(bus: PrivateBus) -> None:
    core = FakeCore()
    gate = Gate(core)
    async with service(bus, core) as running, client(bus) as caller:
        waiting = asyncio.create_task(caller.manager("Unstage", "sa{sv}", "/srv/one", {}))
        await gate.until(waiting=1)
        closing = asyncio.create_task(running.close())
        with pytest.raises(DBusError, match=r"org\.nvmeofd1\.Error\.ShuttingDown"):
            await waiting
        await closing
        with pytest.raises(DBusError, match="NameHasNoOwner"):
            await caller.connection.call_bus("GetNameOwner", "s", SERVICE_NAME)
        assert not running.lost.done()
        gate.opened.set()
        await gate.until(done=1)


async def test_close_delivers_what_has_just_been_done(bus: PrivateBus) -> None:
    core = FakeCore()
    gate = Gate(core)
    async with service(bus, core) as running, client(bus) as caller:
        waiting = asyncio.create_task(caller.manager("Unstage", "sa{sv}", "/srv/one", {}))
        await gate.until(waiting=1)
        gate.opened.set()
        await running.close()
        assert await waiting == [True]


async def test_calls_while_closing_are_answered(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()) as running, client(bus) as caller:
        await running._dispatcher.close()
        with pytest.raises(DBusError, match=r"org\.nvmeofd1\.Error\.ShuttingDown"):
            await caller.get(ROOT, MANAGER, "Version")


async def test_news_before_export_go_nowhere(bus: PrivateBus) -> None:
    running = await BusService.connect(bus.address)
    running.volume_added(volume("/srv/one"))
    running.volume_changed(volume("/srv/one"))
    running.volume_removed("/srv/one")
    running.subsystems_changed()
    running.job_added(NOTHING)
    running.job_changed(NOTHING)
    running.job_finished(NOTHING, None)
    await running.close()


@pytest.mark.parametrize("address", ["unix:path=/nowhere/socket", "unix:abstract=nvmeofd-nobody-listens", "tcp:host=x"])
async def test_there_is_no_bus(address: str) -> None:
    before = open_files()
    with pytest.raises(BusLost, match="cannot connect"):
        await Connection.open(address)
    assert open_files() == before


async def test_the_first_address_that_answers(bus: PrivateBus) -> None:
    connection = await Connection.open("unix:path=/nowhere/socket;" + bus.address)
    assert connection.unique_name.startswith(":")
    await connection.close()


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def close_in_authentication(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")


async def close_in_a_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")
    writer.write(b"O")
    await writer.drain()


async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")
    writer.write(b"REJECTED EXTERNAL\r\n")
    await writer.drain()


async def never_end_a_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")
    writer.write(b"O" * 10_000)
    await reader.read()


async def close_in_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n")
    writer.write(b"OK 0\r\n")
    await reader.readuntil(b"BEGIN\r\n")


async def talk_rubbish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await close_in_hello(reader, writer)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()


async def refuse_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await close_in_hello(reader, writer)
    writer.write(from_bus(MessageType.ERROR, "s", "too many", error_name="a.b", reply_serial=1))
    await reader.read()


@pytest.mark.parametrize(
    "play",
    [
        close_at_once,
        close_in_authentication,
        close_in_a_line,
        reject,
        never_end_a_line,
        close_in_hello,
        talk_rubbish,
        refuse_hello,
    ],
)
async def test_a_bus_that_ends_the_connection_early(play: object) -> None:
    async with ScriptedBus(play) as scripted:  # type: ignore[arg-type]
        with pytest.raises(BusLost, match="did not complete the connection"):
            await Connection.open(scripted.address)


async def test_a_bus_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT", 0.05)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with ScriptedBus(say_nothing) as scripted:
        with pytest.raises(BusLost, match="within"):
            await Connection.open(scripted.address)


async def test_rubbish_later_on() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with ScriptedBus(play) as scripted:
        connection = await Connection.open(scripted.address)
        assert "not a D-Bus message" in await connection.lost
        await connection.close()


async def test_nothing_stays_open(bus: PrivateBus) -> None:
    async def once() -> None:
        async with service(bus, FakeCore()), client(bus) as caller:
            await caller.get(ROOT, MANAGER, "Version")

    await once()
    before = open_files()
    for _ in range(5):
        await once()
    assert open_files() == before


async def test_a_call_that_is_not_answered_in_time(bus: PrivateBus) -> None:
    core = FakeCore()
    gate = Gate(core)
    async with service(bus, core), client(bus) as caller:
        with pytest.raises(TimeoutError):
            await caller.connection.call(request(ROOT, MANAGER, "Disconnect", "sa{sv}", NQN, {}), timeout=0.05)
        assert caller.connection._pending == {}
        gate.opened.set()
        await gate.until(done=1)


def test_the_library_can_be_imported_on_later_pythons() -> None:
    """3.13 deprecates what dbus-next uses at import, and 3.15 has it no more."""
    program = "import typing; del typing.no_type_check_decorator; import nvmeofd.bus.dbusnext"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_only_one_module_imports_the_library() -> None:
    found = subprocess.run(
        ["grep", "-rlE", "^ *(from|import) dbus_next", nvmeofd.__path__[0], "--include=*.py"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert [os.path.basename(path) for path in found.stdout.split()] == ["dbusnext.py"]
