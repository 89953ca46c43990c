"""NVMe subsystems, controllers and namespaces as sysfs shows them. Reading only; controllers.py acts."""

from __future__ import annotations

import errno
import os
import re

from nvmeofd.kernel.attributes import Directory, Gone, number_at, present
from nvmeofd.model import BlockDevice, Controller, DeviceNumber, Namespace, Subsystem

SECTOR = 512  # bytes; the unit of "size" in sysfs whatever the device's block size (include/linux/blk_types.h)

# Sectors are what the target says, and 64 bits of them are more bytes than a number on the bus can be.
_LARGEST = (1 << 64) - 1

_SUBSYSTEM = re.compile(r"nvme-subsys\d+")
_CONTROLLER = re.compile(r"nvme\d+")
# nvme0n1: a namespace, with native multipath the head of its paths; nvme0c1n1: one path of it, hidden.
_DISK = re.compile(r"nvme\d+(c\d+)?n\d+")
_MEMBER = re.compile(r"nvme\d")
_LOCAL_TRANSPORTS = frozenset({"pcie", "apple-nvme"})


class Sysfs:
    """The part of sysfs that NVMe subsystems are in."""

    def __init__(self, root: str) -> None:
        self._root = root

    # ---- subsystems

    def subsystems(self) -> tuple[Subsystem, ...]:
        """Every subsystem reached over a fabric. Raises OSError."""
        return self._find(None)

    def subsystem(self, nqn: str) -> Subsystem | None:
        """Raises OSError."""
        return next(iter(self._find(nqn)), None)

    def _find(self, nqn: str | None) -> tuple[Subsystem, ...]:
        """The one with this NQN, or all. Of the others only the NQN is read: a decision costs what it is about."""
        directory = f"{self._root}/class/nvme-subsystem"
        try:
            names = sorted(name for name in os.listdir(directory) if _SUBSYSTEM.fullmatch(name))
        except FileNotFoundError:  # nvme_core is not loaded
            return ()
        found: dict[str, Subsystem] = {}
        for name in names:
            read = present(lambda path: self._subsystem(path, nqn), f"{directory}/{name}")
            if read is None or not (read.controllers or read.namespaces):
                continue
            # While a subsystem is taken down a new one with the same NQN can come up next to it.
            other = found.get(read.nqn)
            found[read.nqn] = read if other is None else _merged(other, read)
        return tuple(found.values())

    def _subsystem(self, path: str, wanted: str | None) -> Subsystem | None:
        """The subsystem at ``path``, None when another one is wanted, or it is not complete yet."""
        with Directory(path) as directory:
            nqn = directory.read("subsysnqn")
            if nqn is None and any(map(_MEMBER.match, directory.names())):
                raise Gone(f"{path}/subsysnqn")
            # Its place in the class comes before its attributes (device_add, drivers/base/core.c), its first controller
            # and namespace after them; and they go before (nvme_init_subsystem, nvme_free_ctrl and nvme_free_ns_head,
            # drivers/nvme/host/core.c). So there is nothing in it.
            if nqn is None or wanted not in (None, nqn):
                return None
            name = os.path.basename(path)
            controllers: list[Controller] = []
            namespaces: list[Namespace] = []
            local = False
            # With native multipath the disks are below the subsystem, without it below the controllers.
            places = [path]
            for entry in directory.names():
                if not _CONTROLLER.fullmatch(entry):
                    continue
                controller = present(lambda p: self._controller(p, nqn), f"{path}/{entry}")
                if controller is not None and controller.transport in _LOCAL_TRANSPORTS:
                    local = True
                elif controller is not None:
                    controllers.append(controller)
                    places.append(f"{path}/{entry}")
            if local and not controllers:
                return Subsystem(nqn, name)
            for place in places:
                namespaces += present(lambda p: self._namespaces(p, nqn), place) or ()
            return Subsystem(nqn, name, tuple(controllers), tuple(namespaces))

    def _controller(self, path: str, nqn: str) -> Controller:
        with Directory(path) as directory:
            said = parse_uevent(directory.need("uevent"))
            return Controller(
                name=os.path.basename(path),
                instance=directory.instance,
                nqn=nqn,
                transport=directory.need("transport"),
                traddr=said.get("NVME_TRADDR", ""),
                trsvcid=said.get("NVME_TRSVCID", ""),
                host_traddr=said.get("NVME_HOST_TRADDR", ""),
                host_iface=said.get("NVME_HOST_IFACE", ""),
                host_nqn=directory.read("hostnqn") or "",
                host_id=directory.read("hostid") or "",
                state=directory.need("state"),
            )

    # ---- namespaces

    def _namespaces(self, place: str, nqn: str) -> tuple[Namespace, ...]:
        with Directory(place) as directory:
            entries = [name for name in directory.names() if _DISK.fullmatch(name)]
        disks = (present(lambda path: self._namespace(path, nqn), f"{place}/{name}") for name in entries)
        return tuple(disk for disk in disks if disk is not None)

    def namespace(self, name: str) -> Namespace | None:
        """The visible disk of this name, None when there is none. Its ``nqn`` is not looked up. Raises OSError."""
        return present(lambda path: self._namespace(path, ""), f"{self._root}/class/block/{name}")

    def _namespace(self, path: str, nqn: str) -> Namespace | None:
        with Directory(path) as directory:
            if directory.need("hidden") == "1":
                return None
            number = directory.device_number()
            size = min(directory.parsed("size", _count) * SECTOR, _LARGEST)
            diskseq = directory.parsed("diskseq", _count)
            nsid = directory.parsed("nsid", _count)
            uuid, nguid, eui64 = (hex_digits(directory.read(name) or "") for name in ("uuid", "nguid", "eui"))
            partitions = self._partitions(directory)
            # Last: it is the first of these attributes to be removed (nvme_ns_attrs, drivers/nvme/host/sysfs.c), so
            # whatever of the optional ones was missing so far was really not there.
            wwid = directory.need("wwid")
            name = os.path.basename(path)
            return Namespace(
                name=name,
                number=number,
                diskseq=diskseq,
                nqn=nqn,
                nsid=nsid,
                wwid=wwid,
                # "uuid" shows the NGUID when there is no UUID (uuid_show, drivers/nvme/host/sysfs.c).
                uuid=uuid if wwid.startswith("uuid.") else "",
                nguid=nguid,
                eui64=eui64,
                size=size,
                partitions=partitions,
                generic=self._generic(name),
            )

    @staticmethod
    def _partitions(disk: Directory) -> tuple[BlockDevice, ...]:
        prefix = os.path.basename(disk.path) + "p"
        found = []
        for name in disk.names():
            if not (name.startswith(prefix) and name[len(prefix) :].isdecimal()):
                continue
            number = present(number_at, f"{disk.path}/{name}")
            if number is not None:
                found.append(BlockDevice(name, number))
        return tuple(found)

    def _generic(self, disk: str) -> DeviceNumber | None:
        # nvme0n1 and ng0n1 (nvme_cdev_add, drivers/nvme/host/core.c). Optional: csi unknown, or an older kernel.
        return present(number_at, f"{self._root}/class/nvme-generic/ng{disk.removeprefix('nvme')}")

    # ---- what is on top of a namespace

    def holders(self, namespace: Namespace) -> tuple[tuple[str, str], ...]:
        """(device, holder) for the disk and its partitions as they are now. Raises OSError, also when it is gone."""
        path = f"{self._root}/class/block/{namespace.name}"
        try:
            with Directory(path) as disk:
                if (disk.device_number(), disk.parsed("diskseq", int)) != (namespace.number, namespace.diskseq):
                    raise Gone(path)
                devices = [namespace.name, *(part.name for part in self._partitions(disk))]
                found = [
                    (device, holder)
                    for device in devices
                    for holder in self._holders(path if device == namespace.name else f"{path}/{device}")
                ]
        except Gone as error:
            raise OSError(errno.ENODEV, f"{namespace.name} is gone") from error
        return tuple(found)

    @staticmethod
    def _holders(path: str) -> list[str]:
        with Directory(f"{path}/holders") as directory:
            return directory.names()

    def btrfs_siblings(self, device: str) -> frozenset[str]:
        """All devices of the btrfs that ``device`` is part of. Raises OSError."""
        root = f"{self._root}/fs/btrfs"
        siblings: set[str] = set()
        try:
            filesystems = os.listdir(root)
        except FileNotFoundError:  # btrfs is not loaded
            return frozenset()
        for filesystem in filesystems:
            try:
                devices = os.listdir(f"{root}/{filesystem}/devices")
            except (FileNotFoundError, NotADirectoryError):  # just unmounted, or "features" and the like
                continue
            if device in devices:
                siblings.update(devices)
        return frozenset(siblings)

    def multipath(self) -> bool:
        """Whether nvme_core runs with native multipath. Raises OSError."""
        try:
            fd = os.open(f"{self._root}/module/nvme_core/parameters/multipath", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Either not loaded, and it will be there by default; or built without CONFIG_NVME_MULTIPATH.
            return not os.path.isdir(f"{self._root}/module/nvme_core")
        with os.fdopen(fd) as file:
            return file.read().strip() == "Y"


# ---- forms


def parse_uevent(text: str) -> dict[str, str]:
    """Parse the attribute ``uevent`` of a controller; what the controller was not given is left out.

    It has the address as it was asked for (nvme_class_uevent, drivers/nvme/host/core.c). So has ``address``, but there
    the kernel adds the source address of the socket, for which nvme_tcp_get_address (drivers/nvme/host/tcp.c, seen in
    6.12) looks whether there is a socket before it takes the lock: reading it while a path is torn down can be the end
    of the host.
    """
    pairs = (line.partition("=") for line in text.split("\n"))
    # "(null)" is how the kernel prints what is not there: the loop transport needs no address.
    return {key: value for key, equals, value in pairs if key and equals and value not in ("", "none", "(null)")}


def hex_digits(text: str) -> str:
    """An identifier as lower-case digits, "" when it is zero.

    sysfs has blanks in ``eui`` (%8ph) and hyphens in ``uuid`` and ``nguid`` (%pU).
    """
    digits = "".join(text.split()).replace("-", "").lower()
    return digits if digits.strip("0") else ""


def _count(text: str) -> int:
    """Raises ValueError."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text[:64]!r} is not a number")
    return int(text)


def _merged(one: Subsystem, other: Subsystem) -> Subsystem:
    name = one.name if one.controllers or not other.controllers else other.name
    return Subsystem(one.nqn, name, one.controllers + other.controllers, one.namespaces + other.namespaces)
