"""The other side of the fabric: subsystems of a target, their namespaces and what these hold."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from functools import cache

from nvmeofd.addresses import Address
from nvmeofd.kernel.interface import Content

MIB = 1 << 20


@dataclass(eq=False, slots=True, kw_only=True)
class Disk:
    """The storage behind a namespace: identity, size in bytes and content. It outlives what the host sees of it."""

    uuid: str = ""  # 32 digits
    nguid: str = ""
    eui64: str = ""
    size: int = 1024 * MIB
    fstype: str = ""
    fs_uuid: str = ""
    other: str = ""  # a signature that is not a filesystem, as blkid would tell
    ambivalent: bool = False
    garbage: bool = False  # no signature, but the edges are not zeros
    damaged: bool = False  # the filesystem checker finds damage that it does not repair by itself
    unreadable: bool = False  # every read ends in EIO
    writable: bool = True
    partitions: int = 0
    btrfs_group: str = ""  # devices of one btrfs share it
    unfinished: bool = False  # a mkfs of the daemon began here and did not end
    untouched: bool = False  # whatever is on it comes from a mkfs of the daemon, and was never mounted
    formatted: list[str] = field(default_factory=list)  # the types it was formatted with, in order

    @property
    def blank(self) -> bool:
        return not (self.fstype or self.other or self.ambivalent or self.garbage or self.partitions)

    @property
    def content(self) -> Content:
        """What blkid -p says."""
        if self.ambivalent:
            return Content(ambivalent=True)
        if self.partitions:
            return Content(other="gpt partition table")
        return Content(fstype=self.fstype, uuid=self.fs_uuid, other=self.other)

    def wwid(self, nsid: int) -> str:
        """As nvme_ns_head_wwid_show in the kernel: the first identifier that there is."""
        if self.uuid:
            return f"uuid.{_with_dashes(self.uuid)}"
        if self.nguid or self.eui64:
            return f"eui.{self.nguid or self.eui64}"
        return f"nvme.1af4-{'73696d'}-{'73696d'}-{nsid:08x}"


@cache
def _with_dashes(digits: str) -> str:
    return str(uuid.UUID(digits))


def filesystem(fstype: str = "ext4", **kwargs: object) -> dict[str, object]:
    """Keyword arguments for :class:`Disk`: it holds a filesystem."""
    return {"fstype": fstype, "fs_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, fstype)), **kwargs}


@dataclass(eq=False, slots=True)
class Target:
    """A subsystem at the target."""

    nqn: str
    addresses: list[str] = field(default_factory=list)  # as str(Address)
    namespaces: dict[int, Disk] = field(default_factory=dict)
    allowed_hosts: set[str] | None = None  # None: every host
    # The namespaces are there, but the host learns of them by an explicit rescan only.
    silent: bool = False
    # What it identifies as, if that is not what it was asked for.
    says: str = ""
    # The kernel is at the connection for so many seconds after it has said that it is made, as with FC.
    late: float = 0.0

    def listens_on(self, address: Address) -> bool:
        return place_of(address) in self.addresses


def place_of(address: Address) -> str:
    """Where an address leads, whatever way the connection takes out of the host."""
    return str(replace(address, host_traddr="", host_iface=""))
