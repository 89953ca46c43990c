"""Who gets in: the policy of the bus first, the daemon itself where that policy was opened."""

from __future__ import annotations

import os

import pytest

from nvmeofd.bus.callers import MAX_KNOWN
from nvmeofd.bus.dbusnext import encode_body
from nvmeofd.bus.messages import BUS_NAME, BUS_PATH, DBusError, Message, MessageType
from nvmeofd.bus.paths import ROOT, volume_path
from tests.bus.fake import NQN, FakeCore, volume
from tests.bus.harness import MANAGER, PrivateBus, busctl, client, service

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

CALLS = [
    ("call", "org.nvmeofd1", ROOT, MANAGER, "Disconnect", "sa{sv}", NQN, "0"),
    ("get-property", "org.nvmeofd1", ROOT, MANAGER, "Version"),
    ("introspect", "org.nvmeofd1", ROOT),
    ("call", "org.nvmeofd1", ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
    ("call", "org.nvmeofd1", "/nowhere", "org.nvmeofd1.Nothing", "Nothing"),
]


async def test_the_policy_of_the_bus_denies_others(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core) as running:
        for arguments in (*CALLS, ("call", "org.nvmeofd1", ROOT, "org.freedesktop.DBus.Peer", "Ping")):
            done = await busctl(bus, *arguments, user="nobody")
            assert done.returncode != 0
            assert "Access denied" in done.stderr
        # nothing has reached the daemon
        assert running._callers._lookups == {}
    assert core.requests == []


async def test_the_policy_of_the_bus_denies_signals_to_the_daemon(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()) as running:
        seen: list[Message] = []
        running._connection.on_signal = seen.append
        for user in ("nobody", None):
            done = await busctl(
                bus, "emit", "--destination=org.nvmeofd1", ROOT, "org.example.X", f"From{user}", user=user
            )
            assert done.returncode == 0, done.stderr
        await running._connection.call_bus("GetId")
        assert [signal.member for signal in seen] == ["FromNone"]


async def test_only_root_sees_the_signals(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as root, client(bus, uid=65534) as nobody:
        for listener in (root, nobody):
            await listener.subscribe()
            await listener.subscribe(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged'")
        core.add_volume(volume("/srv/secret"))
        await root.signal("InterfacesAdded")
        # the bus keeps the order of signals: what comes after this one was sent after the first
        async with client(bus):
            await nobody.signal("NameOwnerChanged")
        assert {signal.member for signal in nobody.signals} <= {"NameOwnerChanged"}


async def test_the_policy_of_the_bus_denies_the_name(bus: PrivateBus) -> None:
    done = await busctl(
        bus, "call", BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", "org.nvmeofd1", "4", user="nobody"
    )
    assert done.returncode != 0


async def test_the_daemon_denies_others_itself(open_bus: PrivateBus) -> None:
    core = FakeCore()
    core.add_volume(volume("/srv/one"))
    async with service(open_bus, core):
        for arguments in (
            *CALLS,
            ("get-property", "org.nvmeofd1", volume_path("/srv/one"), "org.nvmeofd1.Volume", "NQN"),
        ):
            done = await busctl(open_bus, *arguments, user="nobody")
            assert done.returncode != 0
            assert "Access denied" in done.stderr
        done = await busctl(open_bus, *CALLS[0])
        assert done.returncode == 0, done.stderr
    assert [sender for _, sender in core.requests] == [0]


async def test_a_caller_is_looked_up_once_and_forgotten_when_it_leaves(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = FakeCore()
    async with service(bus, core) as running, client(bus) as watcher:
        await watcher.subscribe(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged'")
        lookups: list[str] = []
        call_bus = running._connection.call_bus

        async def counted(member: str, signature: str = "", *values: object) -> list[object]:
            lookups.append(member)
            return await call_bus(member, signature, *values)

        monkeypatch.setattr(running._connection, "call_bus", counted)
        async with client(bus) as caller:
            for _ in range(20):
                await caller.get(ROOT, MANAGER, "Version")
            assert lookups == ["GetConnectionUnixUser"]
            assert list(running._callers._lookups) == [caller.connection.unique_name]
        # the bus tells us no later than the watcher; one more question, and the answer comes after the news
        while (await watcher.signal("NameOwnerChanged")).sender != BUS_NAME:
            pass
        await call_bus("GetId")
        assert running._callers._lookups == {}


async def test_a_caller_that_has_left_is_denied(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core) as running:
        assert await running._callers.uid(":1.99999") is None
        assert running._callers._lookups == {}


async def test_only_the_bus_is_believed(open_bus: PrivateBus) -> None:
    """A forged NameOwnerChanged neither evicts a caller nor stops its calls."""
    async with service(open_bus, FakeCore()) as running, client(open_bus) as caller, client(open_bus) as forger:
        await caller.get(ROOT, MANAGER, "Version")
        name = caller.connection.unique_name
        forger.connection.send(
            Message(
                type=MessageType.SIGNAL,
                destination="org.nvmeofd1",
                path=BUS_PATH,
                interface=BUS_NAME,
                member="NameOwnerChanged",
                signature="sss",
                body=encode_body("sss", [name, name, ""]),
            )
        )
        forger.connection.send(
            Message(
                type=MessageType.SIGNAL,
                destination="org.nvmeofd1",
                path=BUS_PATH,
                interface=BUS_NAME,
                member="NameLost",
                signature="s",
                body=encode_body("s", ["org.nvmeofd1"]),
            )
        )
        await forger.get(ROOT, MANAGER, "Version")
        assert name in running._callers._lookups
        assert not running.lost.done()


async def test_the_number_of_remembered_callers_is_bounded(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(bus, FakeCore()) as running, client(bus) as caller:
        await caller.get(ROOT, MANAGER, "Version")

        async def told(*_: object) -> list[object]:
            return [0]

        monkeypatch.setattr(running._connection, "call_bus", told)
        for number in range(2 * MAX_KNOWN):
            assert await running._callers.uid(f":9.{number}") == 0
        assert len(running._callers._lookups) == MAX_KNOWN


async def test_others_do_not_make_root_forgotten(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(bus, FakeCore()) as running, client(bus) as caller:
        await caller.get(ROOT, MANAGER, "Version")

        async def told(*_: object) -> list[object]:
            return [1000]

        monkeypatch.setattr(running._connection, "call_bus", told)
        for number in range(2 * MAX_KNOWN):
            assert await running._callers.uid(f":9.{number}") == 1000
        assert len(running._callers._lookups) == MAX_KNOWN
        assert running._callers.known(caller.connection.unique_name) == 0


async def test_errors_of_the_policy_and_ours_are_alike(open_bus: PrivateBus) -> None:
    async with service(open_bus, FakeCore()), client(open_bus, uid=65534) as nobody:
        with pytest.raises(DBusError) as raised:
            await nobody.manager("Disconnect", "sa{sv}", NQN, {})
        assert raised.value.name == "org.freedesktop.DBus.Error.AccessDenied"
        assert "root" in raised.value.text
