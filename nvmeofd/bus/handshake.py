"""How a connection to the bus starts: a socket, and proof of who we are."""

from __future__ import annotations

import asyncio
import os
import socket

from nvmeofd.bus.messages import BusLost
from nvmeofd.log import quoted

CONNECT_TIMEOUT = 30.0  # seconds, for each step


async def connect(places: list[str]) -> socket.socket:
    """A socket that is connected to the first of ``places`` that answers. Raises BusLost."""
    reasons: list[str] = []
    for place in places:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, place)
        except OSError as error:  # TimeoutError is one
            sock.close()
            reasons.append(f"{quoted(place)}: {error.strerror or 'timed out'}")
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise BusLost(f"cannot connect to the bus: {', '.join(reasons)}")


async def authenticate(sock: socket.socket) -> None:
    """Authenticate by the credentials of the socket. File descriptors are not negotiated: none is ever wanted.

    Raises:
        OSError: refused, or closed meanwhile.
    """
    loop = asyncio.get_running_loop()
    identity = str(os.geteuid()).encode().hex()
    await loop.sock_sendall(sock, f"\0AUTH EXTERNAL {identity}\r\n".encode())
    line = b""
    while not line.endswith(b"\r\n"):
        data = await loop.sock_recv(sock, 256)
        if not data:
            raise ConnectionError("closed during authentication")
        line += data
        if len(line) > 4096:
            raise ConnectionError("no end of line during authentication")
    if not line.startswith(b"OK "):
        raise ConnectionError(f"authentication refused: {line[:64].decode('ascii', 'backslashreplace').strip()}")
    await loop.sock_sendall(sock, b"BEGIN\r\n")
