"""Addresses of targets: what a path leads to. Parsed and validated once, as the values of model.py are."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self
from urllib.parse import parse_qsl

from nvmeofd.errors import InvalidArgument

DEFAULT_PORT = 4420  # IANA "nvme", the default of nvme-connect(1)


class Transport(StrEnum):
    TCP = "tcp"
    RDMA = "rdma"
    FC = "fc"
    LOOP = "loop"


_FC_ADDRESS = re.compile(r"nn-0x[0-9a-f]{16}:pn-0x[0-9a-f]{16}")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.@:-]{1,15}")


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a target as a request names it. For TCP and RDMA, ``host`` may still be a name to resolve.

    ``port`` is 0 for transports that have none.
    """

    transport: Transport
    host: str
    port: int = 0
    host_traddr: str = ""
    host_iface: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``tcp://HOST:PORT?host-traddr=…&host-iface=…`` and its siblings.

        Raises:
            InvalidArgument: names the address and the reason.
        """
        if len(text) > 512 or not text.isprintable() or " " in text or "," in text:
            raise InvalidArgument(
                f"address: {text[:64]!r} is too long or has white space, a comma or control characters"
            )
        try:
            return cls(**_address_parts(text))
        except ValueError as error:
            raise InvalidArgument(f"address: {text!r}: {error}") from None

    @property
    def needs_resolving(self) -> bool:
        """Whether ``host`` is a name and not an address."""
        if self.transport not in (Transport.TCP, Transport.RDMA):
            return False
        try:
            normal_ip(self.host)
        except ValueError:
            return True
        return False

    def __str__(self) -> str:
        if self.transport is Transport.LOOP:
            return "loop://"
        given = (("host-traddr", self.host_traddr), ("host-iface", self.host_iface))
        # The one character of these that means something else there: before the interface of a link-local address.
        query = "&".join(f"{key}={value.replace('%', '%25')}" for key, value in given if value)
        source = f"?{query}" if query else ""
        if self.transport is Transport.FC:
            return f"fc://{self.host}{source}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport}://{host}:{self.port}{source}"


def _address_parts(text: str) -> dict[str, Any]:
    """The fields of an Address. Raises ValueError with the reason."""
    scheme, colon, rest = text.partition("://")
    if not colon or scheme not in list(Transport):
        raise ValueError("expected tcp://HOST:PORT, rdma://HOST:PORT, fc://nn-0x…:pn-0x… or loop://")
    transport = Transport(scheme)
    place, _, query = rest.partition("?")
    parts = _source_parts(transport, query)
    if transport is Transport.LOOP:
        if place or parts:
            raise ValueError("loop:// has no address and no parameters")
    elif transport is Transport.FC:
        if not _FC_ADDRESS.fullmatch(place):
            raise ValueError("expected nn-0x<16 digits>:pn-0x<16 digits>")
        parts["host"] = place
    else:
        parts["host"], parts["port"] = _split_host_port(place.rstrip("/"))
    return {"host": "", "transport": transport, **parts}


def _source_parts(transport: Transport, query: str) -> dict[str, Any]:
    """The fields that say where from to connect, given as query parameters. Raises ValueError."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ValueError("malformed query parameters") from None
    parts = dict(pairs)
    if len(parts) != len(pairs):
        raise ValueError("a query parameter is given twice")
    for key, value in pairs:
        if key not in ("host-traddr", "host-iface"):
            raise ValueError(f"unknown query parameter {key!r}, known are host-traddr and host-iface")
        if not value:
            raise ValueError(f"{key} is empty")
    host_traddr, host_iface = parts.get("host-traddr", ""), parts.get("host-iface", "")
    if host_iface and (transport is not Transport.TCP or not _INTERFACE.fullmatch(host_iface)):
        raise ValueError("host-iface must name a network interface, and only tcp has it")
    if host_iface == "none":
        raise ValueError("host-iface: the kernel says 'none' of a path that has none, so no interface may be called so")
    if host_traddr and transport is Transport.FC and not _FC_ADDRESS.fullmatch(host_traddr):
        raise ValueError("host-traddr: expected nn-0x<16 digits>:pn-0x<16 digits>")
    if host_traddr and transport is not Transport.FC:
        try:
            host_traddr = normal_ip(host_traddr)
        except ValueError:
            raise ValueError("host-traddr is not an IP address") from None
    return {key: value for key, value in (("host_traddr", host_traddr), ("host_iface", host_iface)) if value}


def _split_host_port(place: str) -> tuple[str, int]:
    """Raises ValueError."""
    if place.startswith("["):
        text, bracket, tail = place[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise ValueError("expected [IPv6 address]:PORT")
        colon, port_text = tail[:1], tail[1:]
        try:
            if ":" not in text:
                raise ValueError
            host = normal_ip(text)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address") from None
    else:
        host, colon, port_text = place.partition(":")
        if not host:
            raise ValueError("no host")
        if ":" in port_text:
            raise ValueError("an IPv6 address must be in brackets")
        try:
            host = normal_ip(host)
        except ValueError:
            if not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
                raise ValueError(f"{host!r} is neither an IP address nor a host name") from None
    if not colon:
        return host, DEFAULT_PORT
    if not (port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5 and 0 < int(port_text) < 65536):
        raise ValueError(f"{port_text!r} is not a port")
    return host, int(port_text)


def normal_ip(text: str) -> str:
    """The canonical text of an IP address, so that two spellings of one address compare equal.

    An IPv4-mapped IPv6 address stays IPv6: to the kernel it is another address. Raises ValueError.
    """
    address = ipaddress.ip_address(text)
    # The library takes anything for the interface after the percent sign, commas and line ends included.
    if isinstance(address, ipaddress.IPv6Address) and not _INTERFACE.fullmatch(address.scope_id or "lo"):
        raise ValueError(f"{text!r} names no network interface")
    return str(address)
