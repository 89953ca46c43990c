"""Looking for a target at an address without the kernel: what is there, and that it takes no time of others."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nvmeofd.addresses import Address
from nvmeofd.kernel import probe as module
from nvmeofd.kernel.probe import probe

ICRESP = bytes([1, 0, 128, 0, 128, 0, 0, 0]) + bytes(120)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listener(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[Address]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        writer.close()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(handle, host, 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Address.parse(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        await done.wait()
    finally:
        server.close()


async def outcome(address: Address) -> int:
    try:
        await probe(address)
    except OSError as error:
        return error.errno or -1
    return 0


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readexactly(128)
    assert request[:8] == bytes([0, 0, 128, 0, 128, 0, 0, 0])
    # in two parts, as a network may deliver it
    writer.write(ICRESP[:5])
    await writer.drain()
    writer.write(ICRESP[5:])
    assert await reader.read() == b"", "it says no more, and hangs up"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_target(host: str) -> None:
    async def main() -> None:
        async with listener(answers, host) as address:
            assert await outcome(address) == 0

    asyncio.run(main())


def test_the_source_address_is_used() -> None:
    seen: list[str] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await answers(reader, writer)

    async def main() -> None:
        async with listener(note) as address:
            assert await outcome(Address.parse(f"{address}?host-traddr=127.0.0.77")) == 0
            assert await outcome(Address.parse(f"{address}?host-traddr=192.0.2.1")) == errno.EADDRNOTAVAIL
            assert await outcome(Address.parse(f"{address}?host-traddr=::1")) == errno.EINVAL
            assert await outcome(Address.parse(f"{address}?host-iface=no-such")) == errno.ENODEV
            assert await outcome(Address.parse("tcp://[fe80::1%25no-such]")) == errno.ENODEV

    asyncio.run(main())
    assert seen == ["127.0.0.77"]


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert asyncio.run(outcome(Address.parse(f"tcp://127.0.0.1:{port}"))) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("said", "number"), [(b"", errno.ECONNRESET), (ICRESP[:9], errno.ECONNRESET), (b"SSH-2.0", errno.EPROTONOSUPPORT)]
)
def test_something_else_listens(said: bytes, number: int) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(128)
        writer.write(said)

    async def main() -> None:
        async with listener(other) as address:
            assert await outcome(address) == number

    asyncio.run(main())


def test_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        async with listener(silent) as address:
            assert await outcome(address) == errno.ETIMEDOUT

    asyncio.run(main())


def test_nobody_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog drops the SYN, as a dead address does."""
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = Address.parse(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with socket.socket() as first, socket.socket() as second:
            for sock in (first, second):
                sock.setblocking(False)
                sock.connect_ex(server.getsockname())
            assert asyncio.run(outcome(address)) == errno.ETIMEDOUT
