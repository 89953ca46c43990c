"""What a simulated kernel answers at once: sysfs, the mount table, the registry; and the events it reports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from nvmeofd.kernel.interface import DeviceChanged, Event, EventKind, Swap
from nvmeofd.model import Controller, ControllerId, DeviceNumber, HostIdentity, Namespace, Subsystem
from tests.simulation.faults import FaultPlan
from tests.simulation.files import os_error
from tests.simulation.guardian import MOUNTS, OWNER, REGISTRY, looked
from tests.simulation.process import Calls
from tests.simulation.state import SimController, SimHead
from tests.simulation.world import SimWorld


class SimReads(Calls):
    """The reading half of the kernel as one daemon process sees it."""

    def __init__(self, world: SimWorld, faults: FaultPlan | None = None) -> None:
        super().__init__(world, faults or FaultPlan(world.rng.randrange(1 << 30)))
        self._generation = -1
        self._callbacks: list[Callable[[Event], None]] = []

    # ---- host

    def host_identity(self) -> HostIdentity:
        self.read("host_identity")
        return self.world.host

    async def establish_identity(self) -> HostIdentity:
        return self.host_identity()

    def multipath(self) -> bool:
        self.read("multipath")
        return self.world.multipath

    def mkfs_supported(self, fstype: str) -> bool:
        self.check_alive()
        return fstype in self.world.mkfs_types

    # ---- subsystems

    def subsystems(self) -> tuple[Subsystem, ...]:
        self.read("subsystems")
        found = [s.snapshot() for s in self.world.fabric.subsystems if s.controllers or s.heads]
        for subsystem in found:
            looked(subsystem.nqn, self.world.tick())
        return tuple(found)

    def subsystem(self, nqn: str) -> Subsystem | None:
        self.read("subsystem", nqn)
        looked(nqn, self.world.tick())
        subsystem = self.world.fabric.subsystem(nqn)
        return subsystem.snapshot() if subsystem and (subsystem.controllers or subsystem.heads) else None

    def controllers(self) -> frozenset[ControllerId]:
        self.read("controllers")
        return frozenset(controller.snapshot().id for controller in self.world.fabric.controllers())

    def holders(self, namespace: Namespace) -> tuple[tuple[str, str], ...]:
        self.read("holders", namespace.path)
        head = self.find_head(namespace)
        if head is None:
            raise os_error(errno.ENODEV, namespace.path)
        return tuple((h.device, h.name) for h in self.world.holders if h.head is head)

    def swaps(self) -> tuple[Swap, ...]:
        self.read("swaps")
        return tuple(
            Swap("/dev/other (deleted)", None, doubtful=True)
            if swap.nameless
            else Swap(f"/dev/{swap.device.name}", swap.device.number)
            for swap in self.world.swaps
        )

    def device_number(self, path: str) -> DeviceNumber | None:
        self.check_alive()
        for subsystem in self.world.fabric.subsystems:
            for head in subsystem.heads:
                for device in head.devices:
                    if path == f"/dev/{device.name}":
                        return device.number
        return None

    def btrfs_siblings(self, device: str) -> frozenset[str]:
        self.read("btrfs_siblings", device)
        heads = [h for s in self.world.fabric.subsystems for h in s.heads]
        own = next((h for h in heads if any(d.name == device for d in h.devices)), None)
        if own is None:
            return frozenset()
        family = [h for h in heads if h is own or (own.disk.btrfs_group and h.disk.btrfs_group == own.disk.btrfs_group)]
        mounted = any(m.fstype == "btrfs" for h in family for m in self.world.mounts.of(h))
        return frozenset(h.name for h in family) if mounted else frozenset()

    # ---- mount table

    def mounts_changed(self) -> bool:
        self.read("mounts_changed")
        changed = self.world.mounts.generation != self._generation
        self._generation = self.world.mounts.generation
        looked(MOUNTS, self.world.tick())
        return changed

    def mount_lines(self) -> tuple[bytes, ...]:
        self.read("mount_lines")
        looked(MOUNTS, self.world.tick())
        return self.world.mounts.host_lines()

    async def mount_lines_in_turns(self) -> tuple[bytes, ...]:
        lines = self.mount_lines()
        await asyncio.sleep(0)
        return lines

    # ---- registry

    def registry_owner(self, controller_name: str) -> str | None:
        self.read("registry_owner", controller_name)
        looked(REGISTRY + controller_name, self.world.tick())
        return self.world.registry.get(controller_name)

    def registry_claim(self, controller_name: str) -> None:
        self.read("registry_claim", controller_name)
        self.world.register(controller_name, OWNER)

    def registry_release(self, controller_name: str) -> None:
        self.read("registry_release", controller_name)
        if self.world.registry.get(controller_name) == OWNER:
            del self.world.registry[controller_name]

    # ---- events

    def watch(self, callback: Callable[[Event], None]) -> AbstractAsyncContextManager[None]:
        return self._watch(callback)

    @contextlib.asynccontextmanager
    async def _watch(self, callback: Callable[[Event], None]) -> AsyncIterator[None]:
        self.read("watch")
        self._callbacks.append(callback)
        try:
            yield
        finally:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def notify(self, event: Event) -> None:
        """The world reports an event; the plan may lose, double or delay it.

        What is lost is reported as an overflow, later, or not at all. A change of the mount table is a state and is
        never lost.
        """
        faults, rng = self.faults.events, self.faults.rng
        if not self._callbacks:
            return
        copies = 2 if rng.random() < faults.duplicate else 1
        if event.kind is EventKind.DEVICE and rng.random() < faults.silence:
            return
        if event.kind is EventKind.DEVICE and rng.random() < faults.loss:
            event = Event(EventKind.OVERFLOW)
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            for _ in range(copies):
                delay = rng.uniform(0, faults.delay) if faults.delay else 0.0
                loop.call_later(delay, self.deliver, callback, event, context=self.process.context)

    def deliver(self, callback: Callable[[Event], None], event: Event) -> None:
        """An event arrives."""
        if callback in self._callbacks:
            callback(event)

    # ---- finding what a value means

    def find_head(self, namespace: Namespace) -> SimHead | None:
        subsystem = self.world.fabric.subsystem(namespace.nqn)
        return next((h for h in subsystem.heads if h.is_incarnation(namespace)), None) if subsystem else None

    def require_head(self, namespace: Namespace) -> SimHead:
        head = self.find_head(namespace)
        if head is None:
            raise DeviceChanged(f"{namespace.path} is not the device it was")
        return head

    def find_controller(self, controller: Controller) -> SimController | None:
        for found in self.world.fabric.controllers():
            if (found.name, found.instance) == (controller.name, controller.instance):
                return found
        return None

    def require_controller(self, controller: Controller) -> SimController:
        found = self.find_controller(controller)
        if found is None:
            raise DeviceChanged(f"{controller.name} is not the controller it was")
        return found
