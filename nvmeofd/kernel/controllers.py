"""Acting on controllers through sysfs: always on one incarnation, never on a name."""

from __future__ import annotations

import asyncio
import os

from nvmeofd.kernel.attributes import GONE, Directory, Gone, instance_at, present
from nvmeofd.kernel.interface import DeviceChanged
from nvmeofd.kernel.threads import in_thread
from nvmeofd.kernel.uevents import DeviceMonitor
from nvmeofd.model import Controller, ControllerId


class Controllers:
    """Controllers below /sys/class/nvme."""

    def __init__(self, sys: str) -> None:
        self._root = f"{sys}/class/nvme"

    def all(self) -> frozenset[ControllerId]:
        """Every controller, local ones too. Raises OSError."""
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:  # nvme_core is not loaded
            return frozenset()
        return frozenset(found for name in names if (found := self.named(name)) is not None)

    def named(self, name: str) -> ControllerId | None:
        """The controller that has this name now. Raises OSError."""
        instance = present(instance_at, f"{self._root}/{name}")
        return None if instance is None else ControllerId(name, instance)

    async def rescan(self, controller: Controller) -> None:
        """Have the namespaces scanned again; the scan itself goes on in the kernel. Raises OSError, DeviceChanged."""
        if not await in_thread(lambda: self._write(controller, "rescan_controller"), name=f"rescan {controller.name}"):
            raise DeviceChanged(f"{controller.name} is gone or another controller now")

    def limit_loss(self, controller: Controller, seconds: int) -> None:
        """Have the controller given up when it has been lost for this long. Does not block. Raises OSError."""
        self._write(controller, "ctrl_loss_tmo", str(seconds))

    async def delete(self, controller: Controller) -> None:
        """Delete the controller and return when sysfs shows it gone; gone already is success.

        The write blocks until the controller is deleted, in state D while a dead path holds its I/O. When somebody
        else is deleting it, the attribute is missing or the write returns at once; then the event of its end is
        waited for.

        Raises:
            OSError: EBUSY while the controller is being connected for the first time (kernels since 5.12).
        """
        await in_thread(lambda: self._write(controller, "delete_controller"), name=f"delete {controller.name}")
        if self.named(controller.name) != controller.id:
            return
        changed = asyncio.Event()
        with DeviceMonitor(lambda _: changed.set()).attach():
            # The link in the class goes before the event is sent (device_del, drivers/base/core.c).
            while self.named(controller.name) == controller.id:
                await changed.wait()
                changed.clear()

    def _write(self, controller: Controller, attribute: str, value: str = "1") -> bool:
        """Write to an attribute of this very controller. False when it is gone. Raises OSError."""
        try:
            # The open directory stays that of this controller. When it is removed, and another one gets its name,
            # opening an attribute relative to it fails.
            with Directory(f"{self._root}/{controller.name}") as directory:
                if directory.instance != controller.instance or directory.need("subsysnqn") != controller.nqn:
                    return False
                fd = os.open(attribute, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory.fd)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
        except Gone:
            return False
        except OSError as error:
            if error.errno in GONE:
                return False
            raise
        return True
