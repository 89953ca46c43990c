"""What the simulated host consists of. These are the mutable insides; only the world's methods change them."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvmeofd.addresses import Address, Transport
from nvmeofd.kernel.interface import Mount
from nvmeofd.model import BlockDevice, Controller, DeviceNumber, HostIdentity, IdKind, Namespace, NamespaceId, Subsystem
from tests.simulation.target import Disk

BLOCK_MAJOR = 259  # blkext
GENERIC_MAJOR = 510


class Pool:
    """Small numbers, lowest free first, as the kernel's ida: what is given back is handed out again."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._used: set[int] = set()

    def take(self) -> int:
        number = self._first
        while number in self._used:
            number += 1
        self._used.add(number)
        return number

    def free(self, number: int) -> None:
        self._used.remove(number)


@dataclass(eq=False, slots=True, kw_only=True, repr=False)
class SimController:
    name: str
    index: int
    instance: int
    asked: str  # the NQN that was asked for
    subsystem: SimSubsystem
    address: Address
    host: HostIdentity
    ctrl_loss_tmo: int
    state: str = "live"
    live_since: int = 0  # when it came back
    down_since: int = 0  # which outage this is, so that an old timer does not end a new one
    by_daemon: bool = False
    # Somebody else connected it while the daemon was at it, too: nobody can tell whose it is.
    ambiguous: bool = False

    def __repr__(self) -> str:
        return f"<{self.name} {self.address} {self.state}>"

    def snapshot(self) -> Controller:
        return Controller(
            name=self.name,
            instance=self.instance,
            nqn=self.subsystem.nqn,
            transport=str(self.address.transport),
            traddr=self.address.host,
            trsvcid=str(self.address.port) if self.address.transport is not Transport.LOOP else "",
            host_traddr=self.address.host_traddr,
            host_iface=self.address.host_iface,
            state=self.state,
            host_nqn=self.host.nqn,
            host_id=self.host.id,
        )


@dataclass(eq=False, slots=True, kw_only=True, repr=False)
class SimHead:
    """One incarnation of a namespace's disk on the host."""

    name: str
    index: int
    number: DeviceNumber
    generic: DeviceNumber
    diskseq: int
    nsid: int
    disk: Disk
    subsystem: SimSubsystem
    size: int
    partitions: tuple[BlockDevice, ...]
    seq: int  # when it appeared
    paths: list[SimController] = field(default_factory=list)
    gone: bool = False
    read_only: bool = False
    unwritten: int = 0  # when somebody closed it after writing, and was not the last to close it
    _shown: Namespace | None = None  # asked for again and again, and only the size ever changes

    def __repr__(self) -> str:
        return f"<{self.name} nsid {self.nsid} diskseq {self.diskseq}{' gone' if self.gone else ''}>"

    @property
    def path(self) -> str:
        return f"/dev/{self.name}"

    @property
    def live(self) -> bool:
        return any(path.state == "live" for path in self.paths)

    @property
    def stuck(self) -> bool:
        """Whether I/O waits: there are paths, none of them works."""
        return bool(self.paths) and not self.live

    @property
    def devices(self) -> tuple[BlockDevice, ...]:
        return (BlockDevice(self.name, self.number), *self.partitions)

    def snapshot(self) -> Namespace:
        if self._shown is None or self._shown.size != self.size:
            self._shown = self._snapshot()
        return self._shown

    def _snapshot(self) -> Namespace:
        return Namespace(
            name=self.name,
            number=self.number,
            diskseq=self.diskseq,
            nqn=self.subsystem.nqn,
            nsid=self.nsid,
            wwid=self.disk.wwid(self.nsid),
            uuid=self.disk.uuid,
            nguid=self.disk.nguid,
            eui64=self.disk.eui64,
            size=self.size,
            partitions=self.partitions,
            generic=self.generic,
        )

    def is_meant_by(self, wanted: NamespaceId) -> bool:
        """Whether a request names this disk. Not what the daemon goes by: this is to judge it."""
        match wanted.kind:
            case IdKind.NSID:
                return str(self.nsid) == wanted.value
            case IdKind.UUID:
                return self.disk.uuid == wanted.value
            case IdKind.EUI:
                return wanted.value in (self.disk.nguid, self.disk.eui64)
            case IdKind.WWID:
                return self.disk.wwid(self.nsid) == wanted.value

    def is_incarnation(self, namespace: Namespace) -> bool:
        shown = self.snapshot()
        mine = (shown.wwid, shown.number, shown.diskseq)
        return not self.gone and mine == (namespace.wwid, namespace.number, namespace.diskseq)


@dataclass(eq=False, slots=True, kw_only=True, repr=False)
class SimSubsystem:
    """A subsystem on the host. It has the index of its first controller, and keeps it to its own end."""

    nqn: str
    index: int
    controllers: list[SimController] = field(default_factory=list)
    heads: list[SimHead] = field(default_factory=list)
    zombies: list[SimHead] = field(default_factory=list)  # gone, but something still has them open
    head_pool: Pool = field(default_factory=lambda: Pool(1))

    def __repr__(self) -> str:
        return f"<{self.name} {self.nqn} {self.controllers} {self.heads}>"

    @property
    def name(self) -> str:
        return f"nvme-subsys{self.index}"

    def snapshot(self) -> Subsystem:
        return Subsystem(
            self.nqn,
            self.name,
            tuple(c.snapshot() for c in self.controllers),
            tuple(h.snapshot() for h in self.heads),
        )


@dataclass(eq=False, slots=True, kw_only=True)
class SimMount:
    """One mount. ``space`` is the mount namespace: 0 is the host's, any other the pid of a process that has it."""

    mount_id: int
    parent_id: int
    number: DeviceNumber
    root: str
    mount_point: str
    fstype: str
    source: str
    options: tuple[str, ...] = ("rw", "relatime")
    super_options: tuple[str, ...] = ("rw",)
    space: int = 0
    head: SimHead | None = None  # the disk, or (block bind) the disk whose node it is
    seq: int = 0
    by_daemon: bool = False
    made_at: str = ""  # the path, before a directory above was renamed

    @property
    def block_bind(self) -> bool:
        return self.fstype == "devtmpfs" and self.head is not None

    @property
    def shown_root(self) -> str:
        return self.root + "//deleted" if self.block_bind and self.head is not None and self.head.gone else self.root

    def snapshot(self) -> Mount:
        return Mount(
            self.mount_id,
            self.parent_id,
            self.number,
            self.shown_root,
            self.mount_point,
            self.options,
            self.fstype,
            self.source,
            self.super_options,
        )

    def line(self) -> bytes:
        """The line of mountinfo."""
        fields = (
            str(self.mount_id),
            str(self.parent_id),
            str(self.number),
            escape(self.shown_root),
            escape(self.mount_point),
            ",".join(self.options),
            "shared:1",
            "-",
            self.fstype,
            escape(self.source),
            ",".join(self.super_options),
        )
        return " ".join(fields).encode("utf-8", "surrogateescape")


def escape(text: str) -> str:
    """As mangle() in fs/proc_namespace.c."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)


@dataclass(eq=False, slots=True, kw_only=True)
class Opener:
    """A process that has a disk (or one of its partitions, or its character device) open."""

    pid: int
    command: str
    head: SimHead
    number: DeviceNumber
    seq: int
    exclusive: bool = False
    transient: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class Holder:
    """A device stacked on a disk: device-mapper, LVM, md."""

    name: str
    head: SimHead
    device: str
    seq: int


@dataclass(eq=False, slots=True, kw_only=True)
class SimSwap:
    head: SimHead
    device: BlockDevice
    seq: int
    nameless: bool = False  # its node was removed


@dataclass(frozen=True, slots=True)
class Use:
    """One reason why a disk is in use. ``exclusive``: it makes O_EXCL fail."""

    kind: str
    detail: str
    seq: int
    exclusive: bool
