"""Calls before it is known who they are from, and the room there is for them afterwards."""

from __future__ import annotations

import asyncio

import pytest

from nvmeofd.bus import admission
from nvmeofd.bus.admission import OVERHEAD, Arrivals, Room
from nvmeofd.bus.messages import ACCESS_DENIED, LIMITS_EXCEEDED, DBusError, Message, MessageType
from nvmeofd.errors import ShuttingDown


def call(sender: str, number: int = 0, size: int = 0) -> Message:
    return Message(type=MessageType.METHOD_CALL, sender=sender, serial=number, body=bytes(size))


class SlowBus:
    """Tells who somebody is when it is told to."""

    def __init__(self) -> None:
        self.told: dict[str, asyncio.Future[int | None]] = {}

    def known(self, name: str) -> int | None:
        future = self.told.get(name)
        return future.result() if future is not None and future.done() else None

    async def uid(self, name: str) -> int | None:
        return await asyncio.shield(self.told.setdefault(name, asyncio.get_running_loop().create_future()))


class Setting:
    def __init__(self) -> None:
        self.bus = SlowBus()
        self.admitted: list[tuple[str, int, int]] = []
        self.refused: list[tuple[str, int, str]] = []
        self.arrivals = Arrivals(
            self.bus,  # type: ignore[arg-type]
            admit=lambda call, uid: self.admitted.append((call.sender, call.serial, uid)),
            refuse=lambda call, error: self.refused.append((call.sender, call.serial, _name(error))),
        )

    async def tell(self, name: str, uid: int | None) -> None:
        while name not in self.bus.told:
            await asyncio.sleep(0)
        self.bus.told[name].set_result(uid)
        while name in self.arrivals._lines:
            await asyncio.sleep(0)


def _name(error: BaseException) -> str:
    return error.name if isinstance(error, DBusError) else type(error).__name__


async def test_calls_of_one_sender_keep_their_order() -> None:
    one = Setting()
    for number in range(3):
        one.arrivals.take(call(":1.1", number))
    one.arrivals.take(call(":1.2", 7))
    await one.tell(":1.2", 5)
    assert one.admitted == [(":1.2", 7, 5)]
    # known by now, but there are some before it
    while ":1.1" not in one.bus.told:
        await asyncio.sleep(0)
    one.bus.told[":1.1"].set_result(0)
    one.arrivals.take(call(":1.1", 3))
    while one.arrivals._lines:
        await asyncio.sleep(0)
    one.arrivals.take(call(":1.1", 4))
    assert one.admitted[1:] == [(":1.1", number, 0) for number in range(5)]
    assert one.arrivals._size == 0


async def test_who_has_left_is_refused() -> None:
    one = Setting()
    one.arrivals.take(call(":1.1"))
    await one.tell(":1.1", None)
    assert (one.admitted, one.refused) == ([], [(":1.1", 0, ACCESS_DENIED)])


async def test_a_flood_costs_those_who_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_UNIDENTIFIED", 100 * OVERHEAD)
    one = Setting()
    for number in range(60):
        for sender in range(4):
            one.arrivals.take(call(f":1.{sender}", number))
    assert {line.size for line in one.arrivals._lines.values()} == {25 * OVERHEAD}
    one.arrivals.take(call(":1.9"))
    one.arrivals.take(call(":1.0", 99, size=200 * OVERHEAD))
    assert {sender for sender, _, _ in one.refused} == {f":1.{sender}" for sender in range(4)}
    assert {name for _, _, name in one.refused} == {LIMITS_EXCEEDED}
    assert one.arrivals._size <= 100 * OVERHEAD
    await one.tell(":1.9", 0)
    assert one.admitted == [(":1.9", 0, 0)]
    await one.arrivals.close()


async def test_a_sender_that_vanishes_leaves_nothing() -> None:
    one = Setting()
    one.arrivals.take(call(":1.1"))
    one.arrivals.take(call(":1.2"))
    one.arrivals.vanished(":1.1")
    one.arrivals.vanished(":1.3")
    assert list(one.arrivals._lines) == [":1.2"]
    assert one.arrivals._size == OVERHEAD
    await one.arrivals.close()
    assert one.arrivals._size == 0
    assert one.admitted == []
    assert one.refused == [(":1.2", 0, ShuttingDown.__name__)]


def test_room() -> None:
    room = Room(2, 3)
    assert [room.enter("a"), room.enter("a"), room.enter("a"), room.enter("b"), room.enter("c")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    room.leave("a")
    assert room.enter("c")
    for key in ("a", "b", "c"):
        room.leave(key)
    assert room.taken == 0
    assert not room._held
