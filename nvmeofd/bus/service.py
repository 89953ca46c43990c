"""The service on the bus: what the daemon starts, stops and waits for. It is also what the core tells its news to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from nvmeofd.alarm import Alarm
from nvmeofd.bus.authorization import Authorizer
from nvmeofd.bus.callers import Callers
from nvmeofd.bus.connection import Connection
from nvmeofd.bus.core import Core, Job
from nvmeofd.bus.dbusnext import BadMessage
from nvmeofd.bus.dispatch import Dispatcher
from nvmeofd.bus.messages import BUS_NAME, BusLost, DBusError, Message
from nvmeofd.bus.objects import JobObject, ManagerObject, SubsystemObject, VolumeObject
from nvmeofd.bus.paths import SERVICE_NAME, job_path, volume_path
from nvmeofd.bus.polkit import Polkit
from nvmeofd.bus.tree import ObjectTree
from nvmeofd.errors import NvmeofdError, dbus_name
from nvmeofd.log import log, quoted
from nvmeofd.model import OperationKind, Subsystem
from nvmeofd.operations.volumes import Volume

# News about subsystems come in bursts: they are looked at together, this many seconds after the first.
RESCAN_DELAY = 0.05
# The loop stands still meanwhile, and while there is news without end it must have most of its time for other things.
# So after each no other is made for so many times as long as it took; at most for so many seconds.
RESCAN_PAUSE = 3
LONGEST_PAUSE = 1.0
# After a look that failed none is made for so long, and then one by itself: the news may all have been sent.
RETRY_DELAY = 0.5

_DO_NOT_QUEUE = 4
_PRIMARY_OWNER = 1


class NameTaken(Exception):
    """Somebody else owns the bus name: most likely another instance of the daemon."""


class BusService:
    """The daemon on the bus, in the order of the methods: connect, export, own_name, close.

    Implements :class:`nvmeofd.operations.observer.Observer`; before ``export``, and once the bus is
    lost, news go nowhere. ``on_count`` is called after a look that found more subsystems than the last one, or fewer.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tree = ObjectTree(connection.send)
        self._callers = Callers(connection, self._on_vanished)
        authorizer = Authorizer(self._callers, Polkit(connection))
        self._dispatcher = Dispatcher(
            connection, self._tree, self._callers, authorizer, settle=self._settle, rescan=self._look
        )
        self._core: Core | None = None
        self._subsystems: dict[str, SubsystemObject] = {}
        self._stale = False
        self.on_count: Callable[[], None] = lambda: None
        self._pause_until = 0.0  # by the clock of the loop
        self._blind_until = 0.0  # likewise; 0 unless the last look failed
        self._rescan_alarm = Alarm(self._settle)
        connection.on_signal = self._on_signal

    @classmethod
    async def connect(cls, address: str | None = None) -> Self:
        """Connect to the bus at ``address``, by default the system bus. Nothing is answered yet.

        Raises:
            BusLost: it says which step failed.
        """
        return cls(await Connection.open(address))

    @property
    def lost(self) -> asyncio.Future[str]:
        """Gets the reason when the bus or the name is lost. The daemon must end then: there is no way back."""
        return self._connection.lost

    def export(self, core: Core) -> None:
        """Make the objects of ``core``, and answer calls from now on. Raises OSError from looking at the subsystems."""
        self._core = core
        self._tree.add(ManagerObject(core))
        self._rescan(core)
        for volume in core.volumes.values():
            self.volume_added(volume)
        for job in core.jobs.values():
            self.job_added(job)
        # Before this, nobody can know this connection but by its unique name.
        self._connection.on_call = self._dispatcher.handle

    async def own_name(self) -> None:
        """Own the name of the service, at once or not at all.

        Raises:
            NameTaken: somebody else does.
            BusLost: the bus is gone or does not let this process own the name.
        """
        try:
            (answer,) = await self._connection.call_bus("RequestName", "su", SERVICE_NAME, _DO_NOT_QUEUE)
        except (DBusError, BadMessage, TimeoutError) as error:
            raise BusLost(f"the bus does not give the name {SERVICE_NAME}: {error}") from None
        if answer != _PRIMARY_OWNER:
            raise NameTaken(f"the bus name {SERVICE_NAME} is taken: is another nvmeofd running?")

    async def close(self) -> None:
        """Answer what still waits, give up the name, and close the connection."""
        self._core = None
        self._rescan_alarm.cancel()
        await self._dispatcher.close()
        await self._callers.close()
        await self._connection.close()

    # From the connection

    def _on_signal(self, signal: Message) -> None:
        self._callers.on_signal(signal)
        if signal.sender == BUS_NAME and signal.member == "NameLost":
            self._connection.fail(f"the bus took the name {SERVICE_NAME} away")

    def _on_vanished(self, sender: str) -> None:
        self._dispatcher.vanished(sender)

    # Subsystems

    def subsystems_changed(self) -> None:
        self._stale = True
        self._schedule(RESCAN_DELAY)

    def _schedule(self, delay: float) -> None:
        if self._core is not None:
            now = asyncio.get_running_loop().time()
            self._rescan_alarm.at(max(now + delay, self._pause_until, self._blind_until))

    def _settle(self) -> None:
        if self._stale:
            self._look()

    def _look(self) -> None:
        """Rescan. Where one subsystem cannot be read, perhaps because it is just going, it is shown as it was last.

        It must not make the others unreachable; and as the loop waits for it, it is not looked at with every call.
        What is shown decides nothing: jobs look for themselves.
        """
        core, loop = self._core, asyncio.get_running_loop()
        if core is None:
            return
        if loop.time() < self._blind_until:
            self._schedule(0.0)
            return
        # What was asked for comes with this look, and later news shall have to wait again.
        self._rescan_alarm.cancel()
        count, start = self.subsystem_count, loop.time()
        try:
            self._rescan(core)
        except OSError as error:
            if not self._blind_until:
                log.warning("bus: cannot look at the subsystems: %s", quoted(str(error)))
            self._rescan_one_by_one(core)
            self._stale = True
            self._blind_until = loop.time() + RETRY_DELAY
            self._schedule(0.0)
        else:
            self._blind_until = 0.0
        now = loop.time()
        self._pause_until = now + min(RESCAN_PAUSE * (now - start), LONGEST_PAUSE)
        if self.subsystem_count != count:
            self.on_count()

    def _rescan_one_by_one(self, core: Core) -> None:
        """The subsystems that are known already, and those of volumes: others wait until all can be read."""
        for nqn in dict.fromkeys([*self._subsystems, *(volume.nqn for volume in core.volumes.values())]):
            with suppress(OSError):
                self._show(core, nqn, core.subsystem(nqn))

    def _rescan(self, core: Core) -> None:
        """Look at the subsystems in sysfs, and export what is there. Raises OSError."""
        now = {one.nqn: one for one in core.subsystems()}
        self._stale = False
        for nqn in dict.fromkeys([*self._subsystems, *now]):
            self._show(core, nqn, now.get(nqn))

    def _show(self, core: Core, nqn: str, now: Subsystem | None) -> None:
        obj = self._subsystems.get(nqn)
        if now is None:
            if obj is not None:
                self._tree.remove(self._subsystems.pop(nqn).path)
        elif obj is None:
            obj = self._subsystems[nqn] = SubsystemObject(core, now, self.subsystems_changed)
            self._tree.add(obj)
        else:
            obj.known = now
            self._tree.changed(obj)

    @property
    def subsystem_count(self) -> int:
        """How many subsystems are exported: as many as were connected when they were last looked at."""
        return len(self._subsystems)

    # From the core

    def volume_added(self, volume: Volume) -> None:
        if self._core is not None:
            self._tree.add(VolumeObject(self._core, volume))

    def volume_changed(self, volume: Volume) -> None:
        obj = self._tree.get(volume_path(volume.staging_path))
        if isinstance(obj, VolumeObject):
            obj.update(volume)
            self._tree.changed(obj)

    def volume_removed(self, staging_path: str) -> None:
        self._tree.remove(volume_path(staging_path))

    def job_added(self, job: Job) -> None:
        if self._core is not None:
            self._tree.add(JobObject(job))

    def job_changed(self, job: Job) -> None:
        obj = self._tree.get(job_path(job.number))
        if obj is not None:
            self._tree.changed(obj)

    def job_finished(self, job: Job, error: NvmeofdError | None) -> None:
        # The news from the kernel may be on their way still when the caller, who has its reply, looks.
        self.subsystems_changed()
        path = job_path(job.number)
        obj = self._tree.get(path)
        if obj is None:
            return
        name, text = ("", "") if error is None else (dbus_name(error), str(error))
        interface = obj.interface
        self._tree.signal(path, interface.name, "Completed", interface.signals["Completed"], error is None, name, text)
        self._tree.remove(path)

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        """Its caller is told, and there is no object for it."""
