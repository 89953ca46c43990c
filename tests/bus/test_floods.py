"""Floods, enormous requests and clients that misbehave: the service answers others, with no more memory than before."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvmeofd.bus import messages
from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import decode_body, encode, variant
from nvmeofd.bus.frames import MAX_BODY, FrameReader
from nvmeofd.bus.handshake import authenticate, connect
from nvmeofd.bus.messages import BUS_NAME, BUS_PATH, OBJECT_MANAGER, DBusError, Message, MessageType
from nvmeofd.bus.paths import ROOT, SERVICE_NAME, volume_path
from tests.bus.fake import NQN
from tests.bus.harness import MANAGER, REPOSITORY, PrivateBus, client, request
from tests.bus.refusals import check, refusals


class Served:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._proc = Path("/proc") / str(process.pid)

    def held(self) -> tuple[int, int]:
        """Open files and threads."""
        return len(list((self._proc / "fd").iterdir())), len(list((self._proc / "task").iterdir()))

    def memory(self) -> int:
        """Of the process, in KiB."""
        found = re.search(r"VmRSS:\s+(\d+)", (self._proc / "status").read_text())
        assert found
        return int(found[1])


@contextmanager
def served(bus: PrivateBus) -> Iterator[Served]:
    """Ends with the question whether it ended well."""
    command = [sys.executable, "-m", "tests.bus.serve", bus.address]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield Served(process)
        finally:
            process.stdin.close()
            status = process.wait(30)
        assert status == 0


async def test_requests_leave_no_memory_behind(bus: PrivateBus) -> None:
    """Thousands of types that were never seen before, and bodies up to far more than is accepted."""
    kinds = ["a(" + "".join("sbiu"[number >> shift & 3] for shift in range(0, 12, 2)) + ")" for number in range(1500)]
    with served(bus) as process:
        async with client(bus) as caller:
            limit = 0
            for part in range(3):
                for kind in kinds[part::3]:
                    option = {"k": variant(kind, [])}
                    assert await refusals([caller.manager("Unstage", "sa{sv}", "/srv/x", option)]) == 1
                for size in (1 << 10, MAX_BODY - 1024, MAX_BODY + 1, 8 << 20):
                    filled = {f"key-{size}": variant("ay", bytes(size))}
                    for _ in range(4):
                        assert await refusals([caller.manager("Unstage", "sa{sv}", "/srv/x", filled)]) == 1
                if part == 0:
                    limit = process.memory() + (16 << 10)  # what the first part took is used again
            assert await caller.get(ROOT, MANAGER, "Version")
            assert process.memory() < limit


def stage(number: int) -> Message:
    return request(ROOT, MANAGER, "Stage", "ssassa{sv}", NQN, "nsid.1", ["loop://"], f"/srv/{number}", {})


async def test_clients_that_vanish(bus: PrivateBus) -> None:
    """They ask, and are gone before the answer."""
    with served(bus) as process:
        async with client(bus) as caller:
            await caller.get(ROOT, MANAGER, "Version")
            before = process.held()
            for _ in range(300):
                leaving = await Connection.open(bus.address)
                for _ in range(3):
                    leaving.send(request(ROOT, OBJECT_MANAGER, "GetManagedObjects"))
                leaving.send(request(ROOT, messages.PROPERTIES, "GetAll", "s", MANAGER))
                leaving._flush()
                leaving._shut()
            for _ in range(20):
                assert await caller.get(ROOT, MANAGER, "Version")
            assert process.held() == before
            assert process.memory() < 100 << 10


async def test_ten_thousand_subscriptions(bus: PrivateBus) -> None:
    """100 clients with 100 rules each; half of them never read. The others get every signal, once and in order."""
    changes = 100
    async with AsyncExitStack() as stack:
        process = stack.enter_context(served(bus))
        caller = await stack.enter_async_context(client(bus))
        everybody = [await stack.enter_async_context(client(bus)) for _ in range(100)]
        for one in everybody:
            for number in range(99):
                one.connection.tell_bus(
                    "AddMatch", "s", f"type='signal',sender='{SERVICE_NAME}',path='/never/{number}'"
                )
            await one.subscribe()
        readers, lazy = everybody[:50], everybody[50:]
        for one in lazy:
            one.connection._working_off = True
            one.connection._balance()
        before = process.memory()
        staging = [asyncio.create_task(caller.connection.call(stage(number))) for number in range(changes)]
        for _ in range(20):
            assert await caller.get(ROOT, MANAGER, "Version")
        paths = [(await task)[0] for task in staging]
        first = [decode_body(await readers[0].signal("InterfacesAdded"))[0] for _ in range(changes)]
        assert sorted(first) == sorted(paths)
        for one in readers[1:]:
            announced = [decode_body(await one.signal("InterfacesAdded"))[0] for _ in range(changes)]
            assert announced == first
        assert await caller.get(ROOT, MANAGER, "Version")
        assert process.memory() < before + (16 << 10)


LONG = "x" * 60_000
STAGE = {"nqn": NQN, "namespace": "nsid.1", "addresses": ["loop://"], "path": "/srv/x", "options": {}}
ENORMOUS: list[dict[str, Any]] = [
    {"nqn": NQN + LONG},
    {"nqn": NQN + "\n\ufffd" * 20_000},
    {"namespace": f"uuid.{LONG}"},
    {"namespace": "nsid." + "9" * 60_000},
    {"addresses": [f"tcp://{LONG}"]},
    {"addresses": ["tcp://[fe80::1%" + LONG + "]"]},
    {"addresses": ["loop://"] * 20_000},
    {"addresses": [f"tcp://192.0.2.1:{number}" for number in range(1, 2000)]},
    {"path": f"/{LONG}"},
    {"path": "/x" * 30_000},
    {"path": "/.." * 30_000},
    {"options": {LONG: variant("b", True)}},
    {"options": {f"key-{number}": variant("b", True) for number in range(4000)}},
    {"options": {"fstype": variant("s", LONG)}},
    {"options": {"mount-options": variant("as", [LONG])}},
    {"options": {"mount-options": variant("as", ["ro"] * 20_000)}},
    {"options": {"mkfs-options": variant("as", ["-L", LONG])}},
    {"options": {"host-nqn": variant("s", LONG)}},
]


async def test_enormous_arguments(bus: PrivateBus) -> None:
    """Below what is accepted as a message: each of them is refused by name, in a text that can be shown."""
    with served(bus) as process:
        async with client(bus) as caller:
            for _ in range(3):
                for changed in ENORMOUS:
                    call = caller.manager("Stage", "ssassa{sv}", *{**STAGE, **changed}.values())
                    assert await refusals([call]) == 1, changed
            for name in (LONG[:255], "a." + "b" * 250):
                assert await refusals([caller.call(ROOT, MANAGER, name.replace(".", "_"))]) == 1
                assert await refusals([caller.call(ROOT, f"a.{name}"[:255], "Ping")]) == 1
            for path in ("/" + LONG, "/x" * 20_000, volume_path("/" + "ü" * 2000)):
                assert await refusals([caller.call(path, messages.PROPERTIES, "GetAll", "s", MANAGER)]) == 1
                assert await refusals([caller.call(ROOT, messages.PROPERTIES, "Get", "ss", MANAGER, path)]) == 1
                assert await refusals([caller.call(ROOT, messages.PROPERTIES, "GetAll", "s", "\n" + path)]) == 1
            assert await caller.get(ROOT, MANAGER, "Version")
            assert process.memory() < 100 << 10


async def test_deep_values(bus: PrivateBus) -> None:
    """Variants in variants: at some depth the bus cuts the caller off, before that it is refused."""
    with served(bus):
        async with client(bus) as watcher:
            for depth in (1, 8, 20, 31, 32, 33, 60, 64, 65, 200, 2000):
                head = b"\1v\0" * depth + b"\1y\0"
                await cut_off_or_refused(bus, unstage_frame("v", head + b"\7"))
            for depth in (1, 8, 31, 32, 33, 64):
                await cut_off_or_refused(bus, unstage_frame("a" * depth + "y", bytes(4)))
                await cut_off_or_refused(bus, unstage_frame("(" * depth + "y" + ")" * depth, b"\1"))
            assert await watcher.get(ROOT, MANAGER, "Version")


def unstage_frame(signature: str, raw: bytes) -> bytes:
    return encode(replace(request(ROOT, MANAGER, "Unstage"), serial=77, signature=signature, body=raw))


def unstage_with(path: bytes) -> bytes:
    """As it goes over the wire."""
    good = b"/srv/" + b"x" * (len(path) - 5)
    frame = encode(replace(request(ROOT, MANAGER, "Unstage", "sa{sv}", good.decode(), {}), serial=77))
    assert frame.count(good) == 1
    return frame.replace(good, path)


@pytest.mark.parametrize(
    "path", [b"/srv/\xff", b"/srv/\xc0\xaf", b"/srv/\xed\xa0\x80", b"/srv/\xf4\x90\x80\x80", b"/srv/a\0b"], ids=ascii
)
async def test_paths_that_are_not_utf8(bus: PrivateBus, path: bytes) -> None:
    with served(bus):
        async with client(bus) as watcher:
            await cut_off_or_refused(bus, unstage_with(path))
            assert await watcher.get(ROOT, MANAGER, "Version")


async def test_object_paths_that_are_none(bus: PrivateBus) -> None:
    """The bus does not let them pass."""
    frame = encode(replace(request("/org/nvmeofd1x", messages.PEER, "Ping"), serial=77))
    with served(bus):
        async with client(bus) as watcher:
            for bad in (b"/org/nvmeofd1/", b"/org//vmeofd1x", b"org/nvmeofd1xx", b"/org/nvm\xffofd1", b"/org/nv-eofd1"):
                assert await answer_to(bus, frame.replace(b"/org/nvmeofd1x", bad.ljust(14, b"/"))) is None
            assert await watcher.get(ROOT, MANAGER, "Version")


async def cut_off_or_refused(bus: PrivateBus, frame: bytes) -> None:
    """The answer has a known name, unless the bus has no more of this client."""
    answer = await answer_to(bus, frame)
    if answer is not None:
        assert answer.type is MessageType.ERROR
        check(DBusError(answer.error_name, decode_body(answer)[0]))


async def answer_to(bus: PrivateBus, frame: bytes) -> Message | None:
    """To a call with serial 77, sent by a client of its own as it is. None: the bus has cut it off."""
    sock = await connect([bus.address.removeprefix("unix:path=")])
    loop = asyncio.get_running_loop()
    reader = FrameReader()
    hello = Message(
        type=MessageType.METHOD_CALL, serial=1, destination=BUS_NAME, path=BUS_PATH, interface=BUS_NAME, member="Hello"
    )
    try:
        await authenticate(sock)
        with suppress(ConnectionError):
            await loop.sock_sendall(sock, encode(hello) + frame)
            while data := await loop.sock_recv(sock, 65536):
                reader.feed(data)
                while (message := reader.take()) is not None:
                    if message.reply_serial == 77:
                        return message
    finally:
        sock.close()
    return None
