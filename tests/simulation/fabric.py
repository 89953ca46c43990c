"""Connections: controllers, namespaces appearing and vanishing, and the names the kernel gives them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from nvmeofd.addresses import Address
from nvmeofd.model import BlockDevice, DeviceNumber, HostIdentity
from tests.simulation.files import os_error
from tests.simulation.state import (
    BLOCK_MAJOR,
    GENERIC_MAJOR,
    Pool,
    SimController,
    SimHead,
    SimSubsystem,
)
from tests.simulation.target import Disk, Target, place_of

if TYPE_CHECKING:
    from tests.simulation.world import SimWorld

DEFAULT_LOSS_TMO = 600  # NVMF_DEF_CTRL_LOSS_TMO


class Fabric:
    """Targets, and the host's connections to them."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self.targets: dict[str, Target] = {}
        self.unreachable: dict[str, int] = {}  # address → errno of connecting to it
        self.down: set[str] = set()  # addresses whose network is cut: connections there are not live
        self.subsystems: list[SimSubsystem] = []
        self.pending: list[SimController] = []  # in no subsystem yet
        self._indexes = Pool()
        self._minors = Pool()
        self._generic = Pool()
        self._instance = 1000
        self._diskseq = 0

    # ---- looking

    def subsystem(self, nqn: str) -> SimSubsystem | None:
        return next((s for s in self.subsystems if s.nqn == nqn), None)

    def controllers(self) -> list[SimController]:
        return [*(c for s in self.subsystems for c in s.controllers), *self.pending]

    def heads(self) -> list[SimHead]:
        """The disks that are there, and those that are gone but still open."""
        return [h for s in self.subsystems for h in (*s.heads, *s.zombies)]

    # ---- controllers

    def connect(
        self, nqn: str, address: Address, host: HostIdentity, *, loss: int | None, by_daemon: bool
    ) -> SimController:
        """The write to /dev/nvme-fabrics. Raises OSError."""
        place = place_of(address)
        for other in self.controllers():
            if other.host.id == host.id and other.host.nqn != host.nqn:
                raise os_error(errno.EINVAL)
            same_path = place_of(other.address) == place and address.host_traddr in ("", other.address.host_traddr)
            if other.asked == nqn and other.host == host and same_path:
                raise os_error(errno.EALREADY)
        if place in self.down:
            raise os_error(errno.ETIMEDOUT)
        if place in self.unreachable:
            raise os_error(self.unreachable[place])
        if not any(target.listens_on(address) for target in self.targets.values()):
            raise os_error(errno.ECONNREFUSED)
        target = self.targets.get(nqn)
        if target is None or not target.listens_on(address):
            raise os_error(errno.EIO)
        if target.allowed_hosts is not None and host.nqn not in target.allowed_hosts:
            raise os_error(errno.EIO)
        index = self._indexes.take()
        shown = target.says or nqn
        self._instance += self._world.rng.randint(1, 40)
        controller = SimController(
            name=f"nvme{index}",
            index=index,
            instance=self._instance,
            asked=nqn,
            subsystem=self.subsystem(shown) or SimSubsystem(nqn=shown, index=index),
            address=address,
            host=host,
            ctrl_loss_tmo=DEFAULT_LOSS_TMO if loss is None else loss,
            by_daemon=by_daemon,
        )
        self._world.emit_device("add", "nvme", controller.name)
        if target.late:
            controller.state = "connecting"
            self.pending.append(controller)
            self._world.later(target.late, lambda: self._attach(controller), always=True)
            self._give_up_later(controller, controller.down_since)
        else:
            self._attach(controller)
        return controller

    def _attach(self, controller: SimController) -> None:
        """The controller becomes a path of its subsystem, unless the kernel has given it up."""
        if controller in self.pending:
            self.pending.remove(controller)
            controller.state, controller.live_since = "live", self._world.tick()
        elif controller.state != "live":
            return
        subsystem = self.subsystem(controller.subsystem.nqn)
        if subsystem is None:
            subsystem = SimSubsystem(nqn=controller.subsystem.nqn, index=controller.index)
            self.subsystems.append(subsystem)
            self._world.emit_device("add", "nvme-subsystem", subsystem.name)
        controller.subsystem = subsystem
        subsystem.controllers.append(controller)
        self._world.emit_device("change", "nvme", controller.name)
        target = self.targets.get(subsystem.nqn)
        if target is not None and not target.silent:
            self._world.later(self._world.scan_delay(), lambda: self.scan(controller))
        self._world.changed()

    def remove(self, controller: SimController) -> None:
        """The controller goes away, and with the last path of each disk the disk."""
        subsystem = controller.subsystem
        if controller in self.pending:
            self.pending.remove(controller)
            self._indexes.free(controller.index)
            self._world.emit_device("remove", "nvme", controller.name)
            self._world.changed()
        if controller not in subsystem.controllers:
            return
        for head in list(subsystem.heads):
            self._drop_path(head, controller)
        subsystem.controllers.remove(controller)
        if not subsystem.controllers:
            self._world.kept.discard(subsystem.nqn)
            self._world.asked_to_keep.discard(subsystem.nqn)
        if controller.index != subsystem.index:
            self._indexes.free(controller.index)
        if self._world.registry_rule:
            self._world.registry.pop(controller.name, None)
        self._world.emit_device("remove", "nvme", controller.name)
        self.reap()
        self._world.changed()

    def path_down(self, address: str) -> None:
        """Cut the network to an address. Without an event; the controllers give up after their ctrl_loss_tmo."""
        self.down.add(address)
        self._world.meddling["paths"] += 1
        for controller in self.controllers():
            if place_of(controller.address) == address and controller.state == "live":
                controller.state = "connecting"
                controller.down_since += 1
                self._give_up_later(controller, controller.down_since)
        self._world.changed()

    def _give_up_later(self, controller: SimController, outage: int) -> None:
        def give_up() -> None:
            if controller.state == "connecting" and controller.down_since == outage:
                self._world.meddling["paths"] += 1
                self.remove(controller)

        if controller.ctrl_loss_tmo >= 0:
            self._world.later(controller.ctrl_loss_tmo, give_up, always=True)

    def path_up(self, address: str) -> None:
        self.down.discard(address)
        self._world.meddling["paths"] += 1
        for controller in self.controllers():
            if place_of(controller.address) == address and controller.state == "connecting":
                controller.state, controller.live_since = "live", self._world.tick()
                self._world.emit_device("change", "nvme", controller.name)
                self._world.later(self._world.scan_delay(), lambda c=controller: self.scan(c))  # type: ignore[misc]
        self._world.changed()

    # ---- namespaces

    def scan(self, controller: SimController) -> None:
        """The kernel's scan work of one controller. What comes first gets the lower name."""
        subsystem = controller.subsystem
        target = self.targets.get(subsystem.nqn)
        if controller not in subsystem.controllers or controller.state != "live" or target is None:
            return
        for head in list(subsystem.heads):
            if target.namespaces.get(head.nsid) is not head.disk:
                self._world.meddling["disks"] += 1
                self._drop_path(head, controller)
        nsids = list(target.namespaces)
        self._world.rng.shuffle(nsids)
        for nsid in nsids:
            self._revalidate(controller, nsid, target.namespaces[nsid])
        self.reap()
        self._world.changed()

    def _revalidate(self, controller: SimController, nsid: int, disk: Disk) -> None:
        subsystem = controller.subsystem
        head = next((h for h in subsystem.heads if h.nsid == nsid and h.disk is disk), None)
        if head is None:
            if any(h.nsid == nsid for h in subsystem.heads):
                return  # the old one with this nsid still has other paths: the kernel refuses the new one
            head = self._new_head(subsystem, nsid, disk)
            subsystem.heads.append(head)
            head.paths.append(controller)
            self._world.emit_device("add", "block", head.name)
            for partition in head.partitions:
                self._world.emit_device("add", "block", partition.name)
            self._world.udev_probes(head)
            return
        if controller not in head.paths:
            head.paths.append(controller)
        if head.size != disk.size:
            self._world.meddling["disks"] += 1
            head.size = disk.size
            self._world.emit_device("change", "block", head.name)

    def _new_head(self, subsystem: SimSubsystem, nsid: int, disk: Disk) -> SimHead:
        index = subsystem.head_pool.take()
        name = f"nvme{subsystem.index}n{index}"
        self._diskseq += 1
        return SimHead(
            name=name,
            index=index,
            number=DeviceNumber(BLOCK_MAJOR, self._minors.take()),
            generic=DeviceNumber(GENERIC_MAJOR, self._generic.take()),
            diskseq=self._diskseq,
            nsid=nsid,
            disk=disk,
            subsystem=subsystem,
            size=disk.size,
            partitions=tuple(
                BlockDevice(f"{name}p{i + 1}", DeviceNumber(BLOCK_MAJOR, self._minors.take()))
                for i in range(disk.partitions)
            ),
            seq=self._world.tick(),
        )

    def _drop_path(self, head: SimHead, controller: SimController) -> None:
        if controller not in head.paths:
            return
        head.paths.remove(controller)
        if head.paths:
            return
        head.gone = True
        head.subsystem.heads.remove(head)
        head.subsystem.zombies.append(head)
        for partition in head.partitions:
            self._world.emit_device("remove", "block", partition.name)
        self._world.emit_device("remove", "block", head.name)

    def reap(self) -> None:
        """Give back the names and numbers of what is gone and no longer open."""
        for subsystem in list(self.subsystems):
            for head in list(subsystem.zombies):
                if not self._world.pins(head):
                    subsystem.zombies.remove(head)
                    subsystem.head_pool.free(head.index)
                    self._generic.free(head.generic.minor)
                    for device in head.devices:
                        self._minors.free(device.number.minor)
            if not (subsystem.controllers or subsystem.heads or subsystem.zombies):
                self.subsystems.remove(subsystem)
                self._indexes.free(subsystem.index)
                self._world.emit_device("remove", "nvme-subsystem", subsystem.name)

    # ---- the target changes

    def announce(self, nqn: str) -> None:
        """The target tells every controller that its namespaces changed."""
        subsystem = self.subsystem(nqn)
        target = self.targets[nqn]
        for controller in list(subsystem.controllers) if subsystem and not target.silent else ():
            self._world.later(self._world.scan_delay(), lambda c=controller: self.scan(c))  # type: ignore[misc]
