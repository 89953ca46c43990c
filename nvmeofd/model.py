"""Values of the domain: parsed and validated once at the edge, frozen afterwards.

Nothing here touches the system. Whoever holds one of these values may rely on it being well formed.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self
from urllib.parse import parse_qsl

from nvmeofd.errors import InvalidArgument

NQN_MAX_BYTES = 223  # NVMe base specification 2.0, section 4.5; NVMF_NQN_SIZE in include/linux/nvme.h
# What the NQN of a host that is known by a UUID begins with: NVMe Qualified Names, NVM Express Base Specification.
UUID_NQN = "nqn.2014-08.org.nvmexpress:uuid:"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
DEFAULT_PORT = 4420  # IANA "nvme", the default of nvme-connect(1)


class Transport(StrEnum):
    TCP = "tcp"
    RDMA = "rdma"
    FC = "fc"
    LOOP = "loop"


@dataclass(frozen=True, slots=True, order=True)
class DeviceNumber:
    """A kernel device number (``major:minor``), valid for one incarnation of a device only."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``major:minor`` as sysfs and mountinfo print it. Raises ValueError."""
        major, colon, minor = text.strip().partition(":")
        if not colon:
            raise ValueError(f"not a device number: {text!r}")
        return cls(int(major), int(minor))

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


_NQN_HEAD = re.compile(r"nqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[^.].*", re.DOTALL)


def parse_nqn(text: str, *, what: str = "nqn") -> str:
    """Check a subsystem or host NQN and return it.

    A comma or white space would end the option in the string written to /dev/nvme-fabrics, so neither is accepted.

    Raises:
        InvalidArgument: names ``what`` and the reason.
    """
    shown = text if len(text) <= NQN_MAX_BYTES else text[:40] + "…"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what}: not valid UTF-8") from None
    if size > NQN_MAX_BYTES:
        raise InvalidArgument(f"{what}: {shown!r} is {size} bytes long, an NQN has at most {NQN_MAX_BYTES}")
    if not text.isprintable() or " " in text or "," in text:
        raise InvalidArgument(f"{what}: {shown!r} contains white space, a comma or a control character")
    if not _NQN_HEAD.fullmatch(text):
        raise InvalidArgument(f"{what}: {shown!r} is not an NQN, expected nqn.yyyy-mm.reverse-domain:name")
    return text


def parse_subsystem_nqn(text: str) -> str:
    """Like :func:`parse_nqn`, and refuses the discovery subsystem, which has no namespaces."""
    if parse_nqn(text) == DISCOVERY_NQN:
        raise InvalidArgument("nqn: the discovery subsystem has no namespaces")
    return text


def parse_host_id(text: str, *, what: str = "host-id") -> str:
    """Check a host identifier (a UUID) and return its canonical form. Raises InvalidArgument, which names ``what``."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidArgument(f"{what}: {text[:64]!r} is not a UUID") from None


class IdKind(StrEnum):
    WWID = "wwid"  # nvme.…, for namespaces that report no global identifier
    UUID = "uuid"
    EUI = "eui"  # EUI64 (16 digits) or NGUID (32 digits)
    NSID = "nsid"


_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """How a request names a namespace: ``uuid.…``, ``eui.…``, ``nvme.…`` as in sysfs, a bare UUID, or ``nsid.N``.

    ``value`` is normalised: lower-case hexadecimal digits without separators, or the decimal namespace identifier.
    """

    kind: IdKind
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidArgument."""
        if len(text) > 256 or not text.isprintable():
            raise InvalidArgument("namespace: longer than 256 characters or not printable")
        kind, dot, rest = text.partition(".")
        if not dot:
            kind, rest = IdKind.UUID, text
        digits = rest.replace("-", "").lower()
        if kind == IdKind.NSID and rest.isascii() and rest.isdecimal() and 0 < int(rest) < 0xFFFFFFFF:
            return cls(IdKind.NSID, str(int(rest)))
        if kind == IdKind.UUID and len(digits) == 32 and _HEX.fullmatch(digits) and int(digits, 16):
            return cls(IdKind.UUID, digits)
        if kind == IdKind.EUI and len(digits) in (16, 32) and _HEX.fullmatch(digits) and int(digits, 16):
            return cls(IdKind.EUI, digits)
        if kind == "nvme" and re.fullmatch(r"[0-9a-fA-F]+(-[0-9a-fA-F]*){2}-[0-9a-fA-F]+", rest):
            return cls(IdKind.WWID, text.lower())
        raise InvalidArgument(
            f"namespace: {text!r} is none of uuid.UUID, a bare UUID, eui.HEX (16 or 32 digits), nvme.… or nsid.N"
        )

    def __str__(self) -> str:
        if self.kind is IdKind.WWID:
            return self.value
        if self.kind is IdKind.UUID:
            return f"uuid.{uuid.UUID(self.value)}"
        return f"{self.kind}.{self.value}"


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


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Who this host is to a target: host NQN and host identifier, as in /etc/nvme/hostnqn and /etc/nvme/hostid."""

    nqn: str
    id: str

    @property
    def nqn_uuid(self) -> str:
        """The UUID in the NQN, in its canonical form; "" when the NQN is not made of one."""
        try:
            # NQNs are compared byte by byte, UUIDs are not.
            return str(uuid.UUID(self.nqn.removeprefix(UUID_NQN))) if self.nqn.startswith(UUID_NQN) else ""
        except ValueError:
            return ""

    @property
    def mismatch(self) -> str:
        """What is to be said about an identifier that is not the UUID in the NQN; "" when there is nothing to say."""
        inside = self.nqn_uuid
        if inside in ("", self.id):
            return ""
        return (
            f"host ID {self.id} is not the UUID in host NQN {self.nqn}: the kernel accepts that only as long as "
            "everything on this host that connects uses both together; once nothing is connected, write "
            f"{inside} into /etc/nvme/hostid, unless a target knows this host by its ID"
        )


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller (path) of a subsystem as sysfs shows it.

    ``instance`` is the inode number of its sysfs directory. kernfs never reuses one within a boot (fs/kernfs/dir.c,
    __kernfs_new_node), so together with the name it tells this incarnation from a later controller of the same name.
    """

    name: str
    instance: int
    nqn: str
    transport: str
    traddr: str
    trsvcid: str
    host_traddr: str
    host_iface: str
    state: str
    host_nqn: str
    host_id: str

    @property
    def live(self) -> bool:
        """Whether I/O can go this way now."""
        return self.state == "live"

    @property
    def going(self) -> bool:
        """Whether the kernel is deleting it (nvme_sysfs_show_state, drivers/nvme/host/sysfs.c)."""
        return self.state.startswith(("deleting", "dead"))

    @property
    def address(self) -> str:
        """The address in the notation that requests use."""
        if self.transport == Transport.LOOP:
            return "loop://"
        if self.transport == Transport.FC:
            return f"fc://{self.traddr}"
        host = f"[{self.traddr}]" if ":" in self.traddr else self.traddr
        return f"{self.transport}://{host}:{self.trsvcid}"

    def serves(self, address: Address) -> bool:
        """Whether this controller is the path that a resolved ``address`` names."""
        if self.transport != address.transport:
            return False
        if address.transport is Transport.LOOP:
            return True
        if address.transport is Transport.FC:
            return self.traddr == address.host and address.host_traddr in ("", self.host_traddr)
        try:
            same_host = normal_ip(self.traddr) == normal_ip(address.host)
            same_source = not address.host_traddr or normal_ip(self.host_traddr) == address.host_traddr
        except ValueError:
            return False
        return (
            same_host
            and self.trsvcid == str(address.port)
            and same_source
            and address.host_iface in ("", self.host_iface)
        )


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A block device of a namespace: the disk itself or one of its partitions."""

    name: str
    number: DeviceNumber


@dataclass(frozen=True, slots=True)
class Namespace:
    """One visible namespace (block disk) of a subsystem as sysfs shows it.

    With native multipath this is the head disk; hidden per-path disks are not listed. The name means nothing beyond
    this moment; ``wwid``, ``number`` and ``diskseq`` together identify this incarnation.
    """

    name: str
    number: DeviceNumber
    diskseq: int
    nqn: str
    nsid: int
    wwid: str
    uuid: str  # normalised digits, "" when the namespace has none; likewise nguid and eui64
    nguid: str
    eui64: str
    size: int  # bytes
    partitions: tuple[BlockDevice, ...] = ()
    generic: DeviceNumber | None = None  # the character device /dev/ngXnY

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/{self.name}"

    @property
    def devices(self) -> tuple[BlockDevice, ...]:
        """The disk and its partitions."""
        return (BlockDevice(self.name, self.number), *self.partitions)

    @property
    def generic_name(self) -> str:
        """The name of the character device: ng0n1 for nvme0n1 (nvme_cdev_add, drivers/nvme/host/core.c)."""
        return self.name.replace("nvme", "ng", 1)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all device nodes below /dev."""
        return (*(device.name for device in self.devices), self.generic_name)

    def same_incarnation(self, other: Namespace) -> bool:
        """Whether both are one and the same disk, not merely the same name or the same wwid."""
        return (self.wwid, self.number, self.diskseq) == (other.wwid, other.number, other.diskseq)

    def matches(self, wanted: NamespaceId) -> bool:
        """Whether a request that says ``wanted`` means this namespace."""
        match wanted.kind:
            case IdKind.NSID:
                return self.nsid == int(wanted.value)
            case IdKind.UUID:
                return bool(self.uuid) and self.uuid == wanted.value
            case IdKind.EUI:
                return wanted.value in (self.nguid, self.eui64)
            case IdKind.WWID:
                return self.wwid.lower() == wanted.value


@dataclass(frozen=True, slots=True)
class Subsystem:
    """One connected NVMe-oF subsystem as sysfs shows it: a consistent enough snapshot, never trusted twice."""

    nqn: str
    name: str  # nvme-subsys0
    controllers: tuple[Controller, ...] = ()
    namespaces: tuple[Namespace, ...] = ()

    @property
    def live_controllers(self) -> tuple[Controller, ...]:
        return tuple(c for c in self.controllers if c.live)


class UserKind(StrEnum):
    """What kind of thing uses a namespace; the values are those of the D-Bus API."""

    MOUNT = "mount"
    BLOCK_MOUNT = "block-mount"
    HOLDER = "holder"
    SWAP = "swap"
    CLAIM = "claim"
    OPEN = "open"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class User:
    """One user of a subsystem: its kind, the device it uses and what it is."""

    kind: UserKind
    device: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} {self.device} ({self.detail})"


class VolumeType(StrEnum):
    FILESYSTEM = "filesystem"
    BLOCK = "block"


class VolumeState(StrEnum):
    STAGED = "staged"
    DEGRADED = "degraded"
    LOST = "lost"


class FormatPolicy(StrEnum):
    NEVER = "never"
    IF_EMPTY = "if-empty"


class Step(StrEnum):
    """The step a job is in; the values are those of the D-Bus API."""

    QUEUED = "queued"
    CONNECTING = "connecting"
    WAITING = "waiting-for-device"
    PROBING = "probing"
    FORMATTING = "formatting"
    CHECKING = "checking"
    MOUNTING = "mounting"
    UNMOUNTING = "unmounting"
    VERIFYING = "verifying"
    DISCONNECTING = "disconnecting"
    ROLLING_BACK = "rolling-back"


class OperationKind(StrEnum):
    STAGE = "stage"
    UNSTAGE = "unstage"
    DISCONNECT = "disconnect"
    TIDY = "tidy"  # the daemon's own: disconnect an owned subsystem that nothing uses
