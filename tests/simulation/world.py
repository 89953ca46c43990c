"""The simulated world: a host, targets, and everybody else who uses them.

:class:`SimWorld` is what tests talk to. It holds the truth, lets others act on it, and writes down every violation of
the daemon's promises. It is deterministic: all chance comes from one seed, all delays from the event loop's clock.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from nvmeofd.addresses import Address
from nvmeofd.kernel.interface import Event, EventKind
from nvmeofd.model import HostIdentity
from tests.simulation.fabric import Fabric
from tests.simulation.files import Files, os_error
from tests.simulation.mounts import MountTable
from tests.simulation.state import Holder, Opener, SimController, SimHead, SimSwap, Use
from tests.simulation.target import Disk, Target

if TYPE_CHECKING:
    from tests.simulation.kernel import SimKernel

HOST = HostIdentity(
    "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-555555555555"
)


class SimWorld:
    """Everything outside the daemon. ``instant``: no delays, what follows from an act happens at once."""

    def __init__(self, seed: int = 0, *, instant: bool = False) -> None:
        self.handles: list[SimKernel] = []
        self._seq = 0
        self._pid = 100
        self._context = contextvars.Context()
        self._waiters: list[asyncio.Future[None]] = []
        self.rng = random.Random(seed)
        self.instant = instant
        self.host = HOST
        self.multipath = True
        self.mkfs_types = {"ext4", "xfs", "btrfs"}
        self.dns: dict[str, tuple[str, ...]] = {}
        self.registry: dict[str, str] = {}
        self.registered: dict[str, int] = {}  # when that was written
        self.registry_rule = True  # the udev rule of libnvme that removes entries of controllers that went
        self.violations: list[str] = []
        # how often others changed something, by what: "mounts", "paths" (controllers), "disks", "users", "files"
        self.meddling: Counter[str] = Counter()
        self.forced: dict[str, int] = {}  # staging path that somebody wants unstaged by force → since when
        self.kept: set[str] = set()  # subsystems that the last Unstage was to keep connected
        self.asked_to_keep: set[str] = set()  # those that may be kept: whether it came so far, or was killed, or not
        self.on_connect: list[Callable[[SimController], None]] = []  # told when somebody else connects
        self.openers: list[Opener] = []
        self.holders: list[Holder] = []
        self.swaps: list[SimSwap] = []
        self.unreadable_pids: tuple[int, ...] = ()
        self.unreadable_since = 0
        self.fabric = Fabric(self)
        self.files = Files(lambda path: self.mounts.kind_at(path))  # noqa: PLW0108 - the table is made after it
        self.mounts = MountTable(self)

    # ---- targets

    def add_target(self, nqn: str, addresses: list[str], *disks: Disk, allowed_hosts: set[str] | None = None) -> Target:
        """A subsystem at a target with namespaces 1, 2, …; addresses as in requests."""
        target = Target(nqn, [str(Address.parse(a)) for a in addresses], dict(enumerate(disks, 1)), allowed_hosts)
        self.fabric.targets[nqn] = target
        return target

    def remove_namespace(self, nqn: str, nsid: int) -> Disk:
        disk = self.fabric.targets[nqn].namespaces.pop(nsid)
        self.fabric.announce(nqn)
        return disk

    def add_namespace(self, nqn: str, nsid: int, disk: Disk) -> None:
        self.fabric.targets[nqn].namespaces[nsid] = disk
        self.fabric.announce(nqn)

    def grow_namespace(self, nqn: str, nsid: int, size: int) -> None:
        disk = self.fabric.targets[nqn].namespaces[nsid]
        disk.size = size
        disk.unfinished = False  # after a crash, what a mkfs has left there is for people to deal with from now on
        self.fabric.announce(nqn)

    # ---- looking

    def head(self, nqn: str, nsid: int) -> SimHead:
        """The disk of a namespace as the host has it now. Raises LookupError."""
        subsystem = self.fabric.subsystem(nqn)
        for head in subsystem.heads if subsystem else ():
            if head.nsid == nsid:
                return head
        raise LookupError(f"{nqn} nsid {nsid} is not there")

    def connected(self, nqn: str) -> bool:
        subsystem = self.fabric.subsystem(nqn)
        return subsystem is not None and bool(subsystem.controllers)

    def head_of_number(self, text: str) -> SimHead | None:
        return next((h for h in self.fabric.heads() if any(str(d.number) == text for d in h.devices)), None)

    def uses(self, head: SimHead, *, but: SimKernel | None = None) -> list[Use]:
        """Who uses a disk right now, udev's short looks and the claims of ``but`` excepted."""
        found = self.mounts.uses(head)
        found += [Use("holder", holder.name, holder.seq, True) for holder in self.holders if holder.head is head]
        found += [Use("swap", swap.device.name, swap.seq, True) for swap in self.swaps if swap.head is head]
        found += [
            Use("open", f"{opener.pid} {opener.command}", opener.seq, opener.exclusive)
            for opener in self.openers
            if opener.head is head and not opener.transient
        ]
        found += [Use("claim", "a daemon", 0, True) for h in self.handles if h is not but and head in h.claims]
        return found

    def subsystem_uses(self, nqn: str, *, but: SimKernel | None = None) -> list[Use]:
        subsystem = self.fabric.subsystem(nqn)
        heads = (*subsystem.heads, *subsystem.zombies) if subsystem else ()
        return [use for head in heads for use in self.uses(head, but=but)]

    def pins(self, head: SimHead) -> bool:
        """Whether anything has the disk open, so that its name and number stay taken."""
        return (
            any(use.kind != "block-mount" for use in self.uses(head))
            or any(opener.head is head for opener in self.openers)
            or any(head in handle.opened for handle in self.handles)
        )

    # ---- others: connections

    def connect(self, nqn: str, address: str, *, host: HostIdentity = HOST, owner: str = "") -> SimController:
        """Somebody else connects a path. Raises OSError."""
        controller = self.fabric.connect(nqn, Address.parse(address), host, loss=None, by_daemon=False)
        self.meddling["paths"] += 1
        if owner:
            self.register(controller.name, owner)
        for tell in self.on_connect:
            tell(controller)
        return controller

    def disconnect(self, nqn: str) -> None:
        """Somebody else deletes all controllers, without a look at who uses them."""
        subsystem = self.fabric.subsystem(nqn)
        self.meddling["paths"] += 1
        for controller in list(subsystem.controllers) if subsystem else ():
            self.registry.pop(controller.name, None)
            self.fabric.remove(controller)

    def owned_by_daemon(self, controller: SimController) -> bool:
        """Whether the daemon connected it, and nobody has taken it over since."""
        return controller.by_daemon and self.registry.get(controller.name, "nvmeofd") == "nvmeofd"

    def register(self, name: str, owner: str) -> None:
        """Somebody puts his name on a controller."""
        self.registry[name] = owner
        self.registered[name] = self.tick()

    def path_down(self, address: str) -> None:
        self.fabric.path_down(str(Address.parse(address)))

    def path_up(self, address: str) -> None:
        self.fabric.path_up(str(Address.parse(address)))

    # ---- others: users of disks

    def require_free(self, head: SimHead, *, by: SimKernel | None = None) -> None:
        """What an open with O_EXCL does. Raises OSError (ENXIO, EBUSY)."""
        if head.gone:
            raise os_error(errno.ENXIO, head.path)
        if any(use.exclusive for use in self.uses(head, but=by)):
            raise os_error(errno.EBUSY, head.path)

    def mount(self, head: SimHead, path: str, *, fstype: str = "", space: int = 0) -> None:
        """Somebody mounts a disk, here or (``space``: pid) in a mount namespace of their own. Raises OSError."""
        self.mounts.mount(head, path, fstype or head.disk.fstype, (), space=space)
        self.meddling["mounts"] += 1

    def bind(self, source: str, path: str, *, space: int = 0) -> None:
        """Somebody binds a mounted path to another place."""
        self.mounts.bind(source, path, space=space)
        self.meddling["mounts"] += 1

    def bind_device(self, head: SimHead, path: str, *, space: int = 0) -> None:
        """Somebody binds the device node onto a file."""
        self.mounts.bind_device(head, path, space=space)
        self.meddling["mounts"] += 1

    def unmount(self, path: str, *, space: int = 0, lazy: bool = False) -> None:
        """Somebody unmounts the topmost mount of a path. Raises OSError."""
        self.mounts.unmount(path, space=space, lazy=lazy)
        if space == 0:
            self.mounts.uncovered[path] = self.tick()
        self.meddling["mounts"] += 1

    def rename(self, old: str, new: str) -> None:
        """Whoever owns a directory renames it, with whatever is mounted below."""
        self.files.rename(old, new)
        self.mounts.rename(old, new)
        for mount in self.mounts.mounts:
            if mount.head is not None and mount.head.gone and mount.mount_point.startswith(new + "/"):
                mount.by_daemon = False  # of a disk that is gone, and not where it was made: not to be told from others
        self.meddling["mounts"] += 1
        self.meddling["files"] += 1

    def unshare(self) -> int:
        """A process takes a copy of the host's mount namespace for itself. Returns its pid."""
        pid = self.new_pid()
        self.mounts.copy(pid)
        self.meddling["mounts"] += 1
        return pid

    def end_process(self, pid: int) -> None:
        """A process ends: its mount namespace and open files go."""
        self.meddling["mounts"] += 1
        self.meddling["users"] += 1
        self.mounts.drop_space(pid)
        for opener in [opener for opener in self.openers if opener.pid == pid]:
            self.close(opener)
        self.released()

    def open(self, head: SimHead, *, command: str = "dd", exclusive: bool = False, generic: bool = False) -> Opener:
        """A process opens the disk. Raises OSError."""
        if exclusive:
            self.require_free(head)
        if head.gone:
            raise os_error(errno.ENXIO, head.path)
        number = head.generic if generic else head.number
        opener = Opener(
            pid=self.new_pid(), command=command, head=head, number=number, seq=self.tick(), exclusive=exclusive
        )
        self.openers.append(opener)
        self.meddling["users"] += 1
        self.changed()
        return opener

    def hide(self, pid: int = 77) -> None:
        """A process whose open files cannot be read."""
        self.unreadable_pids, self.unreadable_since = (pid,), self.tick()
        self.meddling["users"] += 1

    def close(self, opener: Opener) -> None:
        if opener in self.openers:
            self.openers.remove(opener)
            if not opener.transient:
                self.meddling["users"] += 1
                opener.head.unwritten = self.tick()
        self.released()

    def hold(self, head: SimHead, name: str = "") -> Holder:
        """A device-mapper device is stacked on the disk. Raises OSError."""
        self.require_free(head)
        used = {holder.name for holder in self.holders}
        free = next(f"dm-{i}" for i in range(1000) if f"dm-{i}" not in used)
        holder = Holder(name=name or free, head=head, device=head.name, seq=self.tick())
        self.holders.append(holder)
        self.meddling["users"] += 1
        self.emit_device("add", "block", holder.name)
        self.changed()
        return holder

    def release(self, holder: Holder) -> None:
        if holder in self.holders:
            self.holders.remove(holder)
            self.meddling["users"] += 1
            self.emit_device("remove", "block", holder.name)
        self.released()

    def swapon(self, head: SimHead, *, nameless: bool = False) -> None:
        """Raises OSError."""
        self.require_free(head)
        self.swaps.append(SimSwap(head=head, device=head.devices[-1], seq=self.tick(), nameless=nameless))
        self.meddling["users"] += 1
        self.changed()

    def swapoff(self, head: SimHead) -> None:
        self.swaps[:] = [swap for swap in self.swaps if swap.head is not head]
        self.meddling["users"] += 1
        self.released()

    def udev_probes(self, head: SimHead) -> None:
        """udev opens a new disk for a moment."""
        opener = Opener(
            pid=self.new_pid(), command="(udev-worker)", head=head, number=head.number, seq=self.tick(), transient=True
        )
        if not self.instant:
            self.openers.append(opener)
            self.later(self.rng.uniform(0, 0.05), lambda: self.close(opener))

    @property
    def udev_busy(self) -> bool:
        return any(opener.transient for opener in self.openers)

    # ---- the machinery of the world

    def tick(self) -> int:
        """The next moment: larger than every one before."""
        self._seq += 1
        return self._seq

    def new_pid(self) -> int:
        self._pid += 1
        return self._pid

    def scan_delay(self) -> float:
        return self.rng.choice((0.0, 0.001, 0.05, 0.3))

    def later(self, delay: float, action: Callable[[], None], *, always: bool = False) -> None:
        """Do something after ``delay`` seconds; at once when ``instant`` or nothing runs (``always``: then never)."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or (self.instant and not always):
            if not always:
                action()
            return
        loop.call_later(delay, action, context=self._context)

    def changed(self) -> None:
        """Wake whoever waits for the world to be different."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def released(self) -> None:
        """Something let go of a disk. When the last one does, the kernel writes what is dirty (bdev_release)."""
        for head in self.fabric.heads():
            if head.unwritten and not self.pins(head):
                head.unwritten = 0
        self.fabric.reap()
        self.changed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def emit_device(self, action: str, subsystem: str, name: str) -> None:
        self.emit(Event(EventKind.DEVICE, action, subsystem, name))

    def emit(self, event: Event) -> None:
        for handle in list(self.handles):
            handle.notify(event)

    def violation(self, text: str) -> None:
        self.violations.append(text)
