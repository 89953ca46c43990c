"""The picture of the host after events: the mount cache, the volumes, and what the daemon has connected.

No decision rests on it: each looks for itself. It is what clients are shown, and what sets off deferred disconnects.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.alarm import Alarm
from nvmeofd.journal import Phase
from nvmeofd.kernel.interface import Event, EventKind
from nvmeofd.log import log, quoted
from nvmeofd.model import OperationKind, Subsystem
from nvmeofd.operations.volumes import (
    NO_MOUNT,
    find_mount,
    find_moved,
    find_namespace,
    identifier,
    stale_mounts,
    state_with,
)

if TYPE_CHECKING:
    from nvmeofd.operations.core import Core
    from nvmeofd.operations.tidy import Tidier

# Bursts of events are worked off together, this many seconds after the first one.
COALESCE = 0.05
# After this many seconds the picture is brought up to date again when that failed.
RETRY = 1.0
# The same when only the journal could not be written.
WRITE_AGAIN = 30.0


class Picture:
    """Kept current from events; everything is called on the event loop."""

    def __init__(self, core: Core, tidier: Tidier) -> None:
        self._core = core
        self._tidier = tidier
        # What waits for another attempt must not hold up what is new: the soonest time counts.
        self._alarm = Alarm(self._start_update)
        self._updating: asyncio.Task[None] | None = None
        self._devices_changed = False
        self._seen_version = -1  # of the mount cache: any decision may be the one that finds a change
        self._closed = False

    def stop(self) -> None:
        """Begin no further update."""
        self._closed = True
        self._alarm.cancel()

    async def close(self) -> None:
        """End the update that is under way, too."""
        self.stop()
        if self._updating is not None:
            self._updating.cancel()
            await asyncio.wait({self._updating})

    def on_event(self, event: Event) -> None:
        """Something happened on the host."""
        self._core.count("events")
        self._tidier.note_change()
        if event.kind is EventKind.OVERFLOW:
            log.warning("events were lost, rebuilding from the kernel")
            self._core.counters["overflows"] += 1
            self._core.cache.forget()
        if event.kind is not EventKind.MOUNTS:
            # a bind of a device node that is removed shows so, without the mount table counting as changed
            self._core.cache.invalidate()
            self._core.changes.announce()
        self.schedule(devices=event.kind is not EventKind.MOUNTS)

    def schedule(self, *, devices: bool, delay: float = COALESCE) -> None:
        """Have the picture brought up to date soon; ``devices``: more than mounts has changed."""
        self._devices_changed = self._devices_changed or devices
        if not self._closed:
            self._alarm.at(asyncio.get_running_loop().time() + delay)

    def _start_update(self) -> None:
        if self._updating is not None and not self._updating.done():
            self.schedule(devices=False)
            return
        self._updating = asyncio.create_task(self._update(), name="update")

    async def _update(self) -> None:
        """Bring the picture up to date after a burst of events."""
        devices, self._devices_changed = self._devices_changed, False
        try:
            await self._core.cache.follow()
            mounts = self._core.cache.version != self._seen_version
            if devices:
                self._forget_controllers()
            if devices or mounts:
                self._update_volumes()
            self._seen_version = self._core.cache.version
        except OSError as error:
            # not lost: every decision reads again, and refuses what it cannot read
            log.error("cannot bring the picture of the host up to date: %s", error)
            self.schedule(devices=True, delay=RETRY)
        if devices:
            self._core.observer.subsystems_changed()
        self._tidier.look()

    def _forget_controllers(self) -> None:
        """Those that are gone. Where that cannot be told it is for another time, and holds up nothing else."""
        for nqn in self._core.ownership.nqns:
            if self._core.workers.idle(nqn):
                try:
                    self._core.ownership.prune(nqn, self._core.kernel.subsystem(nqn))
                except OSError as error:
                    log.warning("cannot tell what is left of the connections to %s: %s", quoted(nqn), error)
                    self.schedule(devices=True, delay=WRITE_AGAIN)

    def _update_volumes(self) -> None:
        subsystems: dict[str, Subsystem | None] = {}
        # A volume whose Unstage has taken the mount away is not lost. There is another look when the job ends.
        leaving = {
            job.staging_path
            for job in self._core.workers.jobs.values()
            if job.started and job.operation is OperationKind.UNSTAGE
        }
        for volume in list(self._core.volumes.values()):
            if volume.staging_path in leaving:
                continue
            if volume.nqn not in subsystems:
                subsystems[volume.nqn] = self._core.kernel.subsystem(volume.nqn)
            cache, subsystem = self._core.cache, subsystems[volume.nqn]
            mount = find_mount(cache, subsystem, volume)
            state = state_with(mount, subsystem, volume)
            mount_id = volume.mount_id
            if mount is not None:
                mount_id = identifier(self._core, volume, mount)
            elif not (find_moved(self._core, volume) or stale_mounts(cache, volume)):
                mount_id = NO_MOUNT  # the kernel gives the number to another mount
            if state is not volume.state:
                what = (volume.wwid, volume.nqn, volume.staging_path, state)
                log.info("volume %s of %s at %s is %s", *what, extra=volume.log_extra)
            namespace = find_namespace(subsystem, volume)
            size = namespace.size if namespace else volume.size
            now = replace(volume, state=state, mount_id=mount_id, size=size)
            if now != volume:
                self._core.change_volume(now)
            self._write_down(volume.staging_path, mount_id)

    def _write_down(self, staging_path: str, mount_id: int) -> None:
        """For the next life, which could not tell the volume's mount from another one."""
        record = self._core.journal.volumes.get(staging_path)
        known = record.volume if record is not None and record.phase is Phase.STAGED else None
        if record is not None and known is not None and known.mount_id != mount_id:
            try:
                self._core.journal.put_volume(replace(record, volume=replace(known, mount_id=mount_id)))
            except OSError as error:
                log.warning("cannot write the record of %s: %s", quoted(staging_path), error)
                self.schedule(devices=True, delay=WRITE_AGAIN)
