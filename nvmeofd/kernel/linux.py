"""The Linux implementation of the kernel interface: one object over the modules that each know one thing."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

from nvmeofd.addresses import Address
from nvmeofd.kernel import backing, claims, devices, fabrics, host, mounting, paths, tools, uevents, users
from nvmeofd.kernel.commands import Commands
from nvmeofd.kernel.controllers import Controllers
from nvmeofd.kernel.identity import Identity
from nvmeofd.kernel.interface import (
    Claim,
    ConnectError,
    ConnectParameters,
    Event,
    LockedDevice,
    Mount,
    PathKind,
    ProcessScan,
    Swap,
)
from nvmeofd.kernel.mountinfo import MountTable
from nvmeofd.kernel.registry import Registry
from nvmeofd.kernel.roots import Roots
from nvmeofd.kernel.sysfs import Sysfs
from nvmeofd.kernel.threads import in_thread
from nvmeofd.model import Controller, ControllerId, DeviceNumber, HostIdentity, Namespace, Subsystem, VolumeType


class LinuxKernel:
    """See :class:`nvmeofd.kernel.interface.Kernel`, whose docstrings hold for every method here.

    To be closed at the end, or used as a context manager.
    """

    def __init__(self, roots: Roots | None = None, *, commands: Commands | None = None) -> None:
        """Raises OSError when the mount table cannot be opened."""
        self._roots = roots or Roots()
        self._commands = commands or Commands()
        self._sysfs = Sysfs(self._roots.sys)
        self._controllers = Controllers(self._roots.sys)
        self._fabrics = fabrics.Fabrics(self._roots.dev, self._controllers)
        self._registry = Registry(self._roots.run_nvme, self._roots.sys)
        self._identity = Identity(self._roots)
        self._mounts = MountTable(self._roots.proc)

    def close(self) -> None:
        """Close what is kept open."""
        self._mounts.close()

    def __enter__(self) -> LinuxKernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- host

    def host_identity(self) -> HostIdentity:
        return self._identity.current()

    async def establish_identity(self) -> HostIdentity:
        with contextlib.suppress(FileNotFoundError):
            return self._identity.current()
        return await in_thread(self._identity.establish, name="make the identity of the host")

    def multipath(self) -> bool:
        return self._sysfs.multipath()

    def mkfs_supported(self, fstype: str) -> bool:
        return tools.mkfs_supported(self._commands, fstype)

    # ---- subsystems (sysfs)

    def subsystems(self) -> tuple[Subsystem, ...]:
        return self._sysfs.subsystems()

    def subsystem(self, nqn: str) -> Subsystem | None:
        return self._sysfs.subsystem(nqn)

    def holders(self, namespace: Namespace) -> tuple[tuple[str, str], ...]:
        return self._sysfs.holders(namespace)

    def swaps(self) -> tuple[Swap, ...]:
        return host.swaps(self._roots.proc, self._roots.sys)

    def device_number(self, path: str) -> DeviceNumber | None:
        # Only below /dev: a source elsewhere can be on a filesystem whose server is down, and the loop would wait.
        if not path.startswith("/dev/") or ".." in path.split("/"):
            return None
        return host.device_number(self._roots.dev + path.removeprefix("/dev"))

    def btrfs_siblings(self, device: str) -> frozenset[str]:
        return self._sysfs.btrfs_siblings(device)

    async def rescan(self, controller: Controller) -> None:
        await self._controllers.rescan(controller)

    # ---- mount table

    def mounts_changed(self) -> bool:
        return self._mounts.changed()

    def mount_lines(self) -> tuple[bytes, ...]:
        return self._mounts.lines()

    async def mount_lines_in_turns(self) -> tuple[bytes, ...]:
        return await self._mounts.lines_in_turns()

    # ---- connections

    async def resolve(self, address: Address) -> tuple[Address, ...]:
        return await fabrics.resolve(address)

    async def connect(self, parameters: ConnectParameters) -> ControllerId:
        try:
            return await self._fabrics.connect(parameters)
        except ConnectError as error:
            clash = self._clash(parameters.host) if error.errno == errno.EINVAL else ""
            if clash:
                raise ConnectError(errno.EINVAL, f"{clash} ({error})") from error
            raise

    def controllers(self) -> frozenset[ControllerId]:
        return self._controllers.all()

    def _clash(self, host: HostIdentity) -> str:
        """Who has one half of this identity but not the other; "" when nobody is to be seen.

        The kernel takes a host NQN with one host ID only, and the other way round (nvmf_host_add,
        drivers/nvme/host/fabrics.c, since 6.5), and says no more than EINVAL.
        """
        try:
            controllers = [one for subsystem in self._sysfs.subsystems() for one in subsystem.controllers]
        except OSError:
            return ""
        for one in controllers:
            if (one.host_nqn == host.nqn) != (one.host_id.lower() == host.id):
                return (
                    f"this host introduces itself as {host.nqn} with host ID {host.id}, but {one.name} is connected "
                    f"as {one.host_nqn} with host ID {one.host_id}, and the kernel wants every host NQN to have one "
                    "host ID of its own: make them agree, or disconnect it first"
                )
        return ""

    async def delete_controller(self, controller: Controller) -> None:
        await self._controllers.delete(controller)

    def limit_loss(self, controller: Controller, seconds: int) -> None:
        """See Controllers. Only for the end of the host, so not in the interface."""
        self._controllers.limit_loss(controller, seconds)

    async def host_is_stopping(self) -> bool:
        """Whether the host is being shut down. Raises CommandError."""
        return await tools.host_is_stopping(self._commands)

    # ---- the claim

    def claim(self, namespaces: Sequence[Namespace]) -> AbstractAsyncContextManager[Claim]:
        return claims.claim(namespaces, self._roots.dev)

    async def scan_processes(self, numbers: Collection[DeviceNumber], names: Collection[str]) -> ProcessScan:
        wanted, named, roots = frozenset(numbers), frozenset(names), self._roots

        def scan() -> ProcessScan:
            found = users.scan(roots.proc, wanted, named)
            inside = backing.kernel_users(roots.sys, roots.dev, wanted)
            return ProcessScan(inside + found.open_files, found.foreign_mounts, found.unreadable)

        return await in_thread(scan, name="scan processes")

    async def settle(self) -> None:
        await tools.settle(self._commands)

    # ---- devices and mounts

    def lock_device(self, namespace: Namespace, *, read_only: bool) -> AbstractAsyncContextManager[LockedDevice]:
        return devices.lock(
            namespace,
            dev=self._roots.dev,
            commands=self._commands,
            read=self._sysfs.namespace,
            read_only=read_only,
        )

    async def mount(self, namespace: Namespace, path: str, fstype: str, options: Sequence[str]) -> int:
        return await self._mount(namespace, path, fstype, options)

    async def bind_device(self, namespace: Namespace, path: str, *, read_only: bool) -> int:
        # "ro" makes the mount read-only, not the device: that is set_read_only().
        return await self._mount(namespace, path, "", ("ro", "_netdev") if read_only else ("_netdev",))

    async def _mount(self, namespace: Namespace, path: str, fstype: str, options: Sequence[str]) -> int:
        what = mounting.What(f"{self._roots.dev}/{namespace.name}", namespace.number, fstype, options)
        # The node cannot become another device's meanwhile. Raises DeviceChanged as well.
        async with devices.hold(namespace, self._roots.dev):
            return await mounting.mount(self._commands, self._roots.proc, what, path)

    async def unmount(self, mount: Mount, path: str) -> None:
        await mounting.unmount(self._commands, mount.mount_point, mount.mount_id, path)

    # ---- staging paths

    async def inspect_path(self, path: str) -> PathKind:
        return await in_thread(lambda: paths.inspect(path), name=f"look at {path}")

    async def create_path(self, path: str, kind: VolumeType) -> None:
        await in_thread(lambda: paths.create(path, kind), name=f"create {path}")

    async def remove_path(self, path: str, kind: VolumeType) -> None:
        await in_thread(lambda: paths.remove(path, kind, self._roots.proc), name=f"remove {path}")

    # ---- ownership registry

    def registry_owner(self, controller_name: str) -> str | None:
        return self._registry.owner(controller_name)

    def registry_claim(self, controller_name: str) -> None:
        self._registry.claim(controller_name)

    def registry_release(self, controller_name: str) -> None:
        self._registry.release(controller_name)

    # ---- events

    def watch(self, callback: Callable[[Event], None]) -> AbstractAsyncContextManager[None]:
        return uevents.watch(callback, self._roots.proc)
