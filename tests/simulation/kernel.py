"""One process lifetime's view of the simulated world: implements :class:`nvmeofd.kernel.interface.Kernel`.

``SimKernel(world)`` is a daemon that just started; ``kill()`` ends it as SIGKILL does, and another ``SimKernel`` on the
same world is the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from nvmeofd.addresses import Address
from nvmeofd.kernel.interface import (
    Claim,
    ClaimBusy,
    CommandError,
    ConnectError,
    ConnectParameters,
    ForeignMount,
    HeldElsewhere,
    LockedDevice,
    Mount,
    MountMoved,
    OpenFile,
    PathKind,
    ProcessScan,
    StagingPathError,
)
from nvmeofd.model import Controller, ControllerId, DeviceNumber, Namespace, VolumeType
from tests.simulation.device import SimLockedDevice
from tests.simulation.faults import FaultPlan
from tests.simulation.files import Node
from tests.simulation.guardian import CLAIM, PROCESSES, REFUSED, Guardian, looked
from tests.simulation.reads import SimReads
from tests.simulation.state import SimHead, SimMount
from tests.simulation.world import SimWorld


class SimClaim:
    def __init__(self, kernel: SimKernel, heads: Sequence[SimHead]) -> None:
        self._kernel = kernel
        self._heads = heads

    async def write_back(self) -> None:
        def effect() -> None:
            for head in self._heads:
                head.unwritten = 0

        def possible() -> bool:
            return not any(head.unwritten and head.stuck for head in self._heads)

        await self._kernel.call("write_back", effect, ready=possible)


class SimKernel(SimReads):
    """The kernel as one daemon process sees it."""

    def __init__(self, world: SimWorld, faults: FaultPlan | None = None) -> None:
        super().__init__(world, faults)
        self.claims: list[SimHead] = []
        self.opened: list[SimHead] = []  # held open (claims and locks)
        self.guardian = Guardian(self)
        self._locks: list[SimHead] = []
        world.handles.append(self)

    def _died(self) -> None:
        self.claims.clear()
        self.opened.clear()
        self._locks.clear()
        self._callbacks.clear()
        if self in self.world.handles:
            self.world.handles.remove(self)
        self.world.released()

    async def rescan(self, controller: Controller) -> None:
        def effect() -> None:
            self.world.fabric.scan(self.require_controller(controller))

        await self.call("rescan", effect, detail=controller.name)

    # ---- connections

    async def resolve(self, address: Address) -> tuple[Address, ...]:
        def effect() -> tuple[Address, ...]:
            if not address.needs_resolving:
                return (address,)
            if address.host not in self.world.dns:
                raise ConnectError(113, f"{address.host}: Name or service not known")
            return tuple(
                Address(address.transport, host, address.port, address.host_traddr, address.host_iface)
                for host in self.world.dns[address.host]
            )

        return await self.call("resolve", effect, detail=str(address))

    async def connect(self, parameters: ConnectParameters) -> ControllerId:
        def effect() -> ControllerId:
            try:
                controller = self.world.fabric.connect(
                    parameters.nqn,
                    parameters.address,
                    parameters.host,
                    loss=parameters.ctrl_loss_tmo,
                    by_daemon=True,
                )
            except OSError as error:
                raise ConnectError(error.errno or 0, error.strerror or "") from error
            return controller.snapshot().id

        return await self.call("connect", effect, detail=f"{parameters.nqn} {parameters.address}", keeps_result=True)

    async def delete_controller(self, controller: Controller) -> None:
        def effect() -> None:
            found = self.find_controller(controller)
            if found is not None:
                self.guardian.check_deletion(found)
                self.world.fabric.remove(found)

        await self.call("delete_controller", effect, detail=f"{controller.nqn} {controller.name}")

    # ---- the claim

    def claim(self, namespaces: Sequence[Namespace]) -> AbstractAsyncContextManager[Claim]:
        return self._claim(tuple(namespaces))

    @contextlib.asynccontextmanager
    async def _claim(self, namespaces: tuple[Namespace, ...]) -> AsyncIterator[Claim]:
        mine: list[SimHead] = []
        moments: list[int] = []

        def effect() -> None:
            try:
                for namespace in namespaces:
                    head = self.require_head(namespace)
                    try:
                        self.world.require_free(head)
                    except OSError as error:
                        raise ClaimBusy(namespace.path) from error
                    mine.append(head)
                    self.claims.append(head)
                    self.opened.append(head)
                moments.append(self.world.tick())
            except BaseException:
                release()
                raise

        def release() -> None:
            for head in mine:
                if head in self.claims:
                    self.claims.remove(head)
                    self.opened.remove(head)
            mine.clear()
            self.world.released()

        detail = " ".join(n.path for n in namespaces)
        try:
            # an error that comes after the effect closes the descriptors, too
            await self.call("claim", effect, detail=detail, undo=release)
            looked(CLAIM, moments[-1])
        except BaseException as error:
            if isinstance(error, ClaimBusy) and len(namespaces) == 1:
                looked(REFUSED + namespaces[0].path, self.world.tick())
            if not self.killed:
                release()
            raise
        try:
            yield SimClaim(self, mine)
        finally:
            if not self.killed:
                release()

    async def scan_processes(self, numbers: Collection[DeviceNumber], names: Collection[str]) -> ProcessScan:
        moments: list[int] = []

        def effect() -> ProcessScan:
            world = self.world
            moments.append(world.tick())
            return ProcessScan(
                open_files=tuple(
                    OpenFile(o.pid, o.command, o.number, o.transient) for o in world.openers if o.number in numbers
                ),
                foreign_mounts=tuple(
                    ForeignMount(m.space, "bash", m.snapshot())
                    for m in world.mounts.mounts
                    if m.space and self._is_of(m, numbers, names)
                ),
                unreadable=world.unreadable_pids,
            )

        scan = await self.call("scan_processes", effect)
        looked(PROCESSES, moments[-1])
        return scan

    @staticmethod
    def _is_of(mount: SimMount, numbers: Collection[DeviceNumber], names: Collection[str]) -> bool:
        if mount.block_bind:
            return mount.shown_root.removeprefix("/") in names
        return mount.number in numbers or mount.source.removeprefix("/dev/") in names

    async def settle(self) -> None:
        await self.call("settle", lambda: None, ready=lambda: not self.world.udev_busy, child=True)

    # ---- devices and mounts

    def lock_device(self, namespace: Namespace, *, read_only: bool) -> AbstractAsyncContextManager[LockedDevice]:
        return self._lock_device(namespace, read_only)

    @contextlib.asynccontextmanager
    async def _lock_device(self, namespace: Namespace, read_only: bool) -> AsyncIterator[LockedDevice]:
        mine: list[SimHead] = []

        def effect() -> SimHead:
            head = self.require_head(namespace)
            mine.append(head)
            self._locks.append(head)
            self.opened.append(head)
            return head

        def release() -> None:
            for head in mine:
                if head in self._locks:
                    self._locks.remove(head)
                    self.opened.remove(head)
            mine.clear()
            self.world.released()

        def unlocked() -> bool:
            return not any(h.is_incarnation(namespace) for handle in self.world.handles for h in handle._locks)

        try:
            head = await self.call("lock_device", effect, detail=namespace.path, ready=unlocked, undo=release)
            yield SimLockedDevice(self, head, namespace, read_only=read_only)
        finally:
            if not self.killed:
                release()

    async def mount(self, namespace: Namespace, path: str, fstype: str, options: Sequence[str]) -> int:
        made: list[SimMount] = []

        def effect() -> int:
            head = self.require_head(namespace)
            self._check_not_link(path)
            try:
                made.append(self.world.mounts.mount(head, path, fstype, options, by=self))
            except OSError as error:
                raise CommandError("mount", 32, f"{path}: {error.strerror}") from error
            self.guardian.check_mount(head, path, VolumeType.FILESYSTEM, options)
            return made[-1].mount_id

        ready = self._io(namespace)
        with self._undone_elsewhere(made, path):
            return await self.call("mount", effect, detail=f"{namespace.path} {path}", ready=ready, child=True)

    async def bind_device(self, namespace: Namespace, path: str, *, read_only: bool) -> int:
        made: list[SimMount] = []

        def effect() -> int:
            head = self.require_head(namespace)
            self._check_not_link(path)
            try:
                mount = self.world.mounts.bind_device(head, path, by=self)
            except OSError as error:
                raise CommandError("mount", 32, f"{path}: {error.strerror}") from error
            made.append(mount)
            if read_only:
                mount.options = ("ro", "relatime")
            self.guardian.check_mount(head, path, VolumeType.BLOCK, mount.options)
            return mount.mount_id

        with self._undone_elsewhere(made, path):
            return await self.call("bind_device", effect, detail=f"{namespace.path} {path}", child=True)

    @contextlib.contextmanager
    def _undone_elsewhere(self, made: list[SimMount], path: str) -> Iterator[None]:
        """Of a mount that was cancelled, whose identifier nobody will know: as nvmeofd.kernel.mounting does."""
        try:
            yield
        except asyncio.CancelledError:
            for mount in made:
                if not self.killed and mount in self.world.mounts.mounts and mount.mount_point != path:
                    self.world.mounts.remove(mount)
            raise

    async def unmount(self, mount: Mount, path: str) -> None:
        place = mount.mount_point

        def effect() -> None:
            there = self.world.mounts.at(place)
            if not there or there[-1].mount_id != mount.mount_id:
                raise MountMoved(f"{place}: something else is mounted there, or nothing")
            self.guardian.check_unmount(place)
            try:
                self.world.mounts.unmount(place)
            except OSError as error:
                reason = "not mounted" if error.errno == 22 else error.strerror
                raise CommandError("umount", 32, f"{place}: {reason}") from error

        def ready() -> bool:
            mounts = self.world.mounts.at(place)
            return not (mounts and mounts[-1].head and not mounts[-1].block_bind and mounts[-1].head.stuck)

        await self.call("unmount", effect, detail=path, ready=ready, child=True)

    # ---- staging paths

    async def inspect_path(self, path: str) -> PathKind:
        return await self.call("inspect_path", lambda: self.world.files.inspect(path), detail=path)

    async def create_path(self, path: str, kind: VolumeType) -> None:
        await self.call("create_path", lambda: self.world.files.create(path, kind), detail=path)

    async def remove_path(self, path: str, kind: VolumeType) -> None:
        def effect() -> None:
            held = self.world.mounts.elsewhere(path)
            if held is not None and path in self.world.files.nodes:
                self.world.files.made.discard(path)  # it is left
                raise HeldElsewhere(path, ForeignMount(held.space, "bash", held.snapshot()))
            theirs = path in self.world.files.theirs
            self.world.files.unlink(path, kind)
            if theirs:
                self.world.violation(f"removed {path}, which was there before")

        await self.call("remove_path", effect, detail=path)

    def _io(self, namespace: Namespace) -> Callable[[], bool]:
        def ready() -> bool:
            head = self.find_head(namespace)
            return head is None or not head.stuck

        return ready

    def _check_not_link(self, path: str) -> None:
        if self.world.files.nodes.get(path) is Node.SYMLINK:
            raise StagingPathError(f"{path} is a symbolic link")

    def spawn(self, coro: Any, *, name: str | None = None) -> asyncio.Task[Any]:
        """Run a coroutine as part of this process."""
        return self.process.spawn(coro, name=name)
