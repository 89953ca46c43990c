"""Values of the domain: parsed and validated once at the edge, frozen afterwards.

Nothing here touches the system. Whoever holds one of these values may rely on it being well formed.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from nvmeofd.addresses import Address, Transport, normal_ip
from nvmeofd.errors import InvalidArgument

NQN_MAX_BYTES = 223  # NVMe base specification 2.0, section 4.5; NVMF_NQN_SIZE in include/linux/nvme.h
# What the NQN of a host that is known by a UUID begins with: NVMe Qualified Names, NVM Express Base Specification.
UUID_NQN = "nqn.2014-08.org.nvmexpress:uuid:"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"


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
class ControllerId:
    """Which controller it is, from its connection to its end.

    ``instance`` is the inode number of its sysfs directory. kernfs never reuses one within a boot (fs/kernfs/dir.c,
    __kernfs_new_node), so together with the name it tells this incarnation from a later controller of the same name.
    """

    name: str
    instance: int


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller (path) of a subsystem as sysfs shows it. For ``instance`` see ControllerId."""

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
    def id(self) -> ControllerId:
        return ControllerId(self.name, self.instance)

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

    def identified(self, wwid: str) -> tuple[Namespace, ...]:
        """Those with that identity: one, or one for each controller without native multipath."""
        return tuple(namespace for namespace in self.namespaces if namespace.wwid == wwid)


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
