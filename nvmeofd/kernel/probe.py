"""Whether NVMe/TCP is spoken at an address, found out before the kernel is asked to connect.

The kernel connects one controller of the host at a time (nvmf_dev_mutex in drivers/nvme/host/fabrics.c), and waits for
an address that does not answer with that lock held: 3 seconds for the connection, 10 more for the first answer. Found
out here, such an address costs only the one who asked for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import Any

from nvmeofd.addresses import Address

# As long as the kernel waits: one repetition of the SYN, and the receive timeout in nvme_tcp_alloc_queue().
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0

# Initialize Connection Request and Response, NVMe TCP Transport Specification 1.0, 3.6.2.2 and 3.6.2.3: type, flags,
# header length, data offset, length; then version, alignment, digests, maximum R2T and reserved bytes, all zero.
_LENGTH = 128
_REQUEST, _RESPONSE = 0, 1
_HEADER = struct.Struct("<BBBBI")
_ICREQ = _HEADER.pack(_REQUEST, 0, _LENGTH, 0, _LENGTH) + bytes(_LENGTH - _HEADER.size)


async def probe(address: Address) -> None:
    """Connect, greet, and hang up.

    Raises:
        OSError: with the errno that the kernel would give; EPROTONOSUPPORT when something else listens there.
    """
    family, kind, protocol, remote = _numeric(address.host, address.port)
    with socket.socket(family, kind, protocol) as sock:
        sock.setblocking(False)
        if address.host_iface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, address.host_iface.encode() + b"\0")
        if address.host_traddr:
            source = _numeric(address.host_traddr, 0)
            if source[0] != family:
                raise _os_error(errno.EINVAL)
            sock.bind(source[-1])
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await _connect(sock, remote)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await _greet(sock)
        except TimeoutError as error:
            raise _os_error(errno.ETIMEDOUT) from error
    if answer[0] != _RESPONSE:
        raise _os_error(errno.EPROTONOSUPPORT)


def _numeric(host: str, port: int) -> tuple[socket.AddressFamily, socket.SocketKind, int, Any]:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        family, kind, protocol, _, remote = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    except socket.gaierror as error:  # such as a link-local address with an interface that is not there
        raise _os_error(errno.ENODEV) from error
    return family, kind, protocol, remote


async def _connect(sock: socket.socket, remote: Any) -> None:
    # not sock_connect(): that looks the address up once more, in a pool of threads
    if (number := sock.connect_ex(remote)) == errno.EINPROGRESS:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_writer(sock, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_writer(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise _os_error(number)


async def _greet(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _ICREQ)
    answer = b""
    while len(answer) < _LENGTH and answer[:1] in (b"", bytes([_RESPONSE])):
        if not (part := await loop.sock_recv(sock, _LENGTH - len(answer))):
            raise _os_error(errno.ECONNRESET)
        answer += part
    return answer


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
