"""What the core needs of the kernel and the host: one interface, implemented for Linux and, in tests, simulated.

Rules that every implementation keeps:

* Plain methods are reads that do not block. They raise OSError when something cannot be read; a caller that decides
  whether something is in use takes that as "in use".
* Coroutine methods may take long. Cancelling one never abandons its side effect: the coroutine ends only when the
  thread or child process behind it has ended (a child is killed first), however long the kernel holds it, so that the
  caller always knows what happened. ``connect`` cancelled while the kernel works on it returns normally if the
  connection came about.
* Names of devices are hints. Everything that acts on a device is handed the whole value and refuses
  (:class:`DeviceChanged`) when the name now belongs to another incarnation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from nvmeofd.addresses import Address
from nvmeofd.log import quoted
from nvmeofd.model import Controller, ControllerId, DeviceNumber, HostIdentity, Namespace, Subsystem, VolumeType


class KernelError(Exception):
    """Base of what an implementation raises besides OSError. ``str()`` is a reason for people."""


class ConnectError(KernelError):
    """There is no connection; ``errno`` is the diagnosis."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


class CommandError(KernelError):
    """A tool ended with an error, or could not be run. ``reason`` is what it said, shortened to be shown."""

    def __init__(self, tool: str, status: int, reason: str) -> None:
        super().__init__(f"{tool}: {reason}")
        self.tool = tool
        self.status = status
        self.reason = reason


class MountMoved(CommandError):
    """What was to be unmounted is not what is mounted at that place, or not any more."""

    def __init__(self, reason: str) -> None:
        super().__init__("umount", 32, reason)


class ClaimBusy(KernelError):
    """A device could not be opened exclusively (EBUSY): something uses it."""

    def __init__(self, device: str) -> None:
        super().__init__(f"{device} is claimed")
        self.device = device


class DeviceChanged(KernelError):
    """The device is not, or no longer, the one that was meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectParameters:
    """Everything for one connection. ``address`` is resolved. None and False options are not sent to the kernel."""

    nqn: str
    address: Address
    host: HostIdentity
    ctrl_loss_tmo: int | None = None
    fast_io_fail_tmo: int | None = None
    reconnect_delay: int | None = None
    keep_alive_tmo: int | None = None
    nr_io_queues: int | None = None
    queue_size: int | None = None
    hdr_digest: bool = False
    data_digest: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo, see proc_pid_mountinfo(5). Strings are unescaped and decoded with surrogateescape."""

    mount_id: int
    parent_id: int
    number: DeviceNumber
    root: str
    mount_point: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Swap:
    """One active swap area by its device number: None for a file, and where that cannot be told (``doubtful``).

    A doubtful one is no reason to take every device for used: swap claims its device (swapon, mm/swapfile.c), so the
    claim finds it. Where the holder of a claim is guessed at, it is one more who may be.
    """

    name: str
    number: DeviceNumber | None
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A process that has a device open."""

    pid: int
    command: str
    number: DeviceNumber

    # udevd and its workers open devices for a moment to probe them and go away by themselves
    transient: bool = False


@dataclass(frozen=True, slots=True)
class ForeignMount:
    """A mount that exists in another mount namespace, seen through /proc/PID/mountinfo of one of its processes."""

    pid: int
    command: str
    mount: Mount


@dataclass(frozen=True, slots=True)
class ProcessScan:
    """What all processes of the host have to do with some devices. ``unreadable`` counts processes that hid it."""

    open_files: tuple[OpenFile, ...] = ()
    foreign_mounts: tuple[ForeignMount, ...] = ()
    unreadable: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """What blkid -p says of a device. All empty: no signature found (which does not mean blank)."""

    fstype: str = ""  # TYPE, when USAGE=filesystem
    uuid: str = ""
    other: str = ""  # something that is not a filesystem: "crypto_LUKS", "gpt partition table", …
    ambivalent: bool = False  # more than one signature

    @property
    def nothing_found(self) -> bool:
        return not (self.fstype or self.other or self.ambivalent)


class PathKind(Enum):
    """What is at a staging path (never followed through symbolic links)."""

    ABSENT = auto()
    EMPTY_DIRECTORY = auto()
    DIRECTORY = auto()
    EMPTY_FILE = auto()
    OTHER = auto()


class StagingPathError(KernelError):
    """The staging path cannot be used: a component is a symbolic link, the parent is missing, …"""


class HeldElsewhere(KernelError):
    """Another mount namespace has something mounted on a path, and would lose that along with the path."""

    def __init__(self, path: str, held: ForeignMount) -> None:
        where = f"{quoted(held.mount.mount_point)} in the mount namespace of pid {held.pid} {quoted(held.command)}"
        super().__init__(f"{quoted(held.mount.source)} is still mounted at {where}")
        self.path = path


class EventKind(Enum):
    MOUNTS = auto()  # the mount table changed
    DEVICE = auto()  # something about an nvme or block device changed
    OVERFLOW = auto()  # events were lost: everything may have changed


@dataclass(frozen=True, slots=True)
class Event:
    """A hint that something changed. ``name`` and ``action`` as in the uevent, empty for other kinds."""

    kind: EventKind
    action: str = ""
    subsystem: str = ""  # "block", "nvme", "nvme-subsystem"
    name: str = ""


class LockedDevice(Protocol):
    """A namespace held open and flock()ed (LOCK_EX), its identity verified on the open file descriptor.

    While it is held, udev does not probe the device (systemd's block device locking, see
    https://systemd.io/BLOCK_DEVICE_LOCKING), and its kernel name cannot pass to another device.
    """

    async def probe(self) -> Content:
        """blkid -p on the device. Raises CommandError, OSError."""

    async def edges_are_zero(self) -> bool:
        """Whether the first and last MiB, read with O_DIRECT, are all zeros. Raises OSError on a read error."""

    async def make_filesystem(self, fstype: str, *, uuid: str, options: Sequence[str]) -> None:
        """Run mkfs with the given filesystem UUID, without forcing.

        mkfs.xfs and mkfs.btrfs refuse a device with a known signature; mke2fs asks only people, so it does not.
        Raises CommandError.
        """

    async def wipe(self) -> None:
        """Make blank again what a mkfs that did not end well has written: signatures, first and last MiB.

        Only for a device that was proven blank before the mkfs, and on which nothing is found that is not its own. The
        caller holds the claim, from that look on: nothing here finds out whether somebody uses the device. Raises
        CommandError, OSError.
        """

    async def check_filesystem(self, fstype: str) -> None:
        """Run the checker that the type wants before a mount (``e2fsck -p`` for ext2/3/4; others none).

        Raises CommandError when damage is left.
        """

    async def set_read_only(self, read_only: bool) -> None:
        """BLKROSET. Raises OSError."""

    async def verify(self) -> None:
        """Check that the node, name, wwid, size and diskseq still belong to this open device. Raises DeviceChanged."""


class Claim(Protocol):
    """Namespaces that are held open exclusively."""

    async def write_back(self) -> None:
        """Have what is dirty of them written, and wait for that.

        The kernel does so by itself for the last one who closes a device (bdev_release, block/bdev.c), and as long as
        the claim is held nobody else is the last one. Without anything dirty it needs no path. Raises OSError, and
        DeviceChanged when a partition is not there any more.
        """


class Kernel(Protocol):
    """The kernel and the host as the core sees them."""

    # ---- host

    def host_identity(self) -> HostIdentity:
        """/etc/nvme/hostnqn and hostid. Raises FileNotFoundError, OSError, ValueError (malformed)."""

    async def establish_identity(self) -> HostIdentity:
        """The same, and made if it is not there yet. Raises OSError, ValueError (malformed)."""

    def multipath(self) -> bool:
        """Whether nvme_core runs with native multipath. True when the module is not loaded. Raises OSError."""

    def mkfs_supported(self, fstype: str) -> bool:
        """Whether this host has mkfs for the type and the daemon knows how to run it."""

    # ---- subsystems (sysfs)

    def subsystems(self) -> tuple[Subsystem, ...]:
        """Every connected NVMe-oF subsystem (PCIe ones are not listed). Raises OSError."""

    def subsystem(self, nqn: str) -> Subsystem | None:
        """The subsystem with this NQN, None when it has neither controllers nor namespaces. Raises OSError.

        A device that vanishes while it is read is left out; anything else that cannot be read raises.
        """

    def holders(self, namespace: Namespace) -> tuple[tuple[str, str], ...]:
        """(device, holder) names for the disk and its partitions, e.g. ("nvme0n1p1", "dm-0"). Raises OSError."""

    def swaps(self) -> tuple[Swap, ...]:
        """/proc/swaps. Raises OSError."""

    def device_number(self, path: str) -> DeviceNumber | None:
        """The device number of a device node, None when it is not a device or absent. For mount sources."""

    def btrfs_siblings(self, device: str) -> frozenset[str]:
        """Kernel names of all devices of the mounted btrfs that ``device`` (kernel name) is part of; empty if none."""

    async def rescan(self, controller: Controller) -> None:
        """Ask the controller to scan its namespaces again. Raises OSError, DeviceChanged."""

    # ---- mount table

    def mounts_changed(self) -> bool:
        """One poll(2): whether the mount table changed since the last call. True the first time. Raises OSError."""

    def mount_lines(self) -> tuple[bytes, ...]:
        """The lines of /proc/self/mountinfo, complete. Raises OSError."""

    async def mount_lines_in_turns(self) -> tuple[bytes, ...]:
        """The same, with turns of the loop while it is read.

        Every mount that existed throughout is among them; what changed meanwhile may be, and :meth:`mounts_changed`
        says so afterwards. Raises OSError.
        """

    # ---- connections

    async def resolve(self, address: Address) -> tuple[Address, ...]:
        """The addresses behind a host name, in the resolver's order, at least one. Raises ConnectError."""

    async def connect(self, parameters: ConnectParameters) -> ControllerId:
        """Connect one path and return its controller. That may be gone by then, and may not be in the subsystem.

        Cancelled, it returns that all the same if it is known; what was to be raised else is the cause of the
        CancelledError.

        Raises:
            ConnectError: it did not come about (EALREADY included), or has come to its end already.
            OSError: it may have come about; as which controller is not known.
        """

    def controllers(self) -> frozenset[ControllerId]:
        """Every NVMe controller of the host, local ones too, whether or not it is in a subsystem yet. Raises OSError.

        One that is being connected has not told its subsystem yet. With FC that can take long: the write returns, and
        the kernel goes on trying (nvme_fc_init_ctrl, drivers/nvme/host/fc.c).
        """

    async def delete_controller(self, controller: Controller) -> None:
        """Delete exactly this incarnation of the controller and return when sysfs shows it gone.

        Already gone is success. Raises OSError.
        """

    # ---- the claim

    def claim(self, namespaces: Sequence[Namespace]) -> AbstractAsyncContextManager[Claim]:
        """Hold all namespaces open with O_EXCL, each verified to be this incarnation.

        Entering raises ClaimBusy, DeviceChanged, OSError, and has then released what it had.
        """

    async def scan_processes(self, numbers: Collection[DeviceNumber], names: Collection[str]) -> ProcessScan:
        """Who has one of these devices open, or mounted in another mount namespace (own process excepted).

        ``numbers`` are block and character devices; ``names`` are kernel names, for block binds. Raises OSError.
        """

    async def settle(self) -> None:
        """Wait until udev has worked off its queue (``udevadm settle``). Raises CommandError."""

    # ---- devices and mounts

    def lock_device(self, namespace: Namespace, *, read_only: bool) -> AbstractAsyncContextManager[LockedDevice]:
        """Open and flock the namespace. Entering raises DeviceChanged, OSError."""

    async def mount(self, namespace: Namespace, path: str, fstype: str, options: Sequence[str]) -> int:
        """mount(8) of a filesystem; returns the identifier of the mount. Raises CommandError, StagingPathError."""

    async def bind_device(self, namespace: Namespace, path: str, *, read_only: bool) -> int:
        """Bind the device node onto the file ``path``; as :meth:`mount`."""

    async def unmount(self, mount: Mount, path: str) -> None:
        """umount(8) of this very mount, made at ``path`` and topmost where it is now; never lazy, never forced.

        Raises:
            MountMoved: it is not there any more, is covered, or a directory above has been renamed.
            CommandError
        """

    # ---- staging paths

    async def inspect_path(self, path: str) -> PathKind:
        """What is there. Raises StagingPathError when a component is a symbolic link or the parent is missing."""

    async def create_path(self, path: str, kind: VolumeType) -> None:
        """Make the directory (0750) or empty file (0600) itself, never a parent. Raises StagingPathError, OSError."""

    async def remove_path(self, path: str, kind: VolumeType) -> None:
        """Remove the empty directory or empty file. Absent is success.

        Raises:
            HeldElsewhere: another mount namespace has something mounted there.
            OSError
        """

    # ---- ownership registry of libnvme, see docs of libnvme "registry"

    def registry_owner(self, controller_name: str) -> str | None:
        """Who owns the controller, None when nobody says so. Raises OSError."""

    def registry_claim(self, controller_name: str) -> None:
        """Write this daemon down as owner. Raises OSError."""

    def registry_release(self, controller_name: str) -> None:
        """Remove the entry if it is this daemon's. Raises OSError."""

    # ---- events

    def watch(self, callback: Callable[[Event], None]) -> AbstractAsyncContextManager[None]:
        """Deliver events to ``callback`` on the event loop until the context ends. Entering raises OSError."""
