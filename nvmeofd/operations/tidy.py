"""Deferred disconnects: what this daemon connected and nothing uses any more is disconnected.

After every relevant event, and every 30 seconds while there is such a subsystem, because some users (a process with
the device open, a mount in another mount namespace) leave without an event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from nvmeofd.errors import NvmeofdError
from nvmeofd.jobs import Job
from nvmeofd.log import about, log
from nvmeofd.model import OperationKind, VolumeState
from nvmeofd.operations.clearing import half_done
from nvmeofd.operations.disconnect import disconnect_owned
from nvmeofd.operations.guard import visible_users

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvmeofd.journal import VolumeRecord
    from nvmeofd.operations.core import Core

PERIOD = 30.0  # seconds
# A volume whose mount somebody else removed may be mounted back by the same somebody (umount, fsck, mount). Only
# after this many seconds does the subsystem count as left behind.
GRACE = 10.0
# An attempt costs a look at all processes. Whatever events come, the second one waits this many seconds, and each
# further one twice as long, up to PERIOD. It begins anew when there was a user who could be seen without such a look:
# what was in vain before says nothing about the time after him.
FIRST_INTERVAL = 0.5


class _Attempt(NamedTuple):
    when: float
    change: int  # how many changes the host had seen then
    interval: float  # seconds that the next one waits even if there are changes


class Tidier:
    """Looks for owned subsystems that nothing uses."""

    def __init__(self, core: Core, clean_up: Callable[[VolumeRecord], None]) -> None:
        self._core = core
        self._clean_up = clean_up
        self._swept: dict[str, float] = {}  # staging path of half-done work → when it was last tried to clear it
        self._timer: asyncio.TimerHandle | None = None
        self._left_since: dict[str, float] = {}  # NQN → when it was first seen with no volume but lost ones
        self._tried: dict[str, _Attempt] = {}  # NQN → last attempt
        self._written = -PERIOD  # when that was last tried for what could only be remembered
        self._change = 0
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def note_change(self) -> None:
        """Something happened on the host: what was found in use before may be unused now."""
        self._change += 1

    def note_job(self, nqn: str) -> None:
        """A job of a client has ended: from here on the subsystem may be left behind."""
        self._left_since.pop(nqn, None)
        self._tried.pop(nqn, None)
        self.note_change()

    def look(self) -> None:
        """Queue a disconnect for each subsystem that seems unused, and come back for those that do not yet."""
        if self._stopped:
            return
        now = asyncio.get_running_loop().time()
        again = self._sweep(now)
        if not (self._settle_intents() and self._drop_formats()):
            again.append(now + PERIOD)
        again += self._write(now)
        candidates = [nqn for nqn in self._core.ownership.nqns if self._left_behind(nqn)]
        self._left_since = {nqn: self._left_since.get(nqn, now) for nqn in candidates}
        owned = self._core.ownership.nqns
        self._tried = {nqn: tried for nqn, tried in self._tried.items() if nqn in owned and not self._needed(nqn)}
        for nqn in candidates:
            unused = self._seems_unused(nqn)
            if not unused and nqn in self._tried:
                self._tried[nqn] = self._tried[nqn]._replace(interval=FIRST_INTERVAL)
            due = self._due(nqn, now)
            if now < due:
                again.append(due)
                continue
            again.append(now + PERIOD)
            if unused:
                before = self._tried.get(nqn)
                interval = min(before.interval * 2, PERIOD) if before else FIRST_INTERVAL
                self._tried[nqn] = _Attempt(now, self._change, interval)
                self._submit(nqn)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if again:
            self._timer = asyncio.get_running_loop().call_at(min(again), self.look)

    def _settle_intents(self) -> bool:
        """Take over connections that came about although that could not be written down at the time.

        Returns whether none is left to be settled.
        """
        settled = True
        for nqn, record in list(self._core.journal.subsystems.items()):
            if record.intent is not None and self._core.workers.idle(nqn):
                try:
                    self._core.ownership.adopt(nqn, self._core.kernel.subsystem(nqn))
                except OSError as error:
                    log.warning("cannot tell what came of connecting %s: %s", nqn, error, extra=about(nqn=nqn))
                    settled = False
        return settled

    def _write(self, now: float) -> list[float]:
        """Try to write what could only be remembered, PERIOD after the last time at the soonest; when to come back."""
        journal = self._core.journal
        if not journal.complete and now >= self._written + PERIOD:
            self._written = now
            journal.write_again()
        return [] if journal.complete else [self._written + PERIOD]

    def _drop_formats(self) -> bool:
        """Remove notes of a mkfs that is over, where that was not possible at the time: after a restart they would
        have the device wiped. Returns whether none is left.
        """
        for record in list(self._core.journal.formats.values()):
            if self._core.workers.idle(record.nqn):
                try:
                    self._core.journal.drop_format(record.wwid)
                except OSError as error:
                    subject = about(nqn=record.nqn)
                    log.warning("cannot remove the note of the mkfs on %s: %s", record.wwid, error, extra=subject)
                    return False
        return True

    def _sweep(self, now: float) -> list[float]:
        """Queue another try for work that could not be undone; return when to come back for the rest."""
        records = {record.staging_path: record for record in half_done(self._core)}
        self._swept = {path: tried for path, tried in self._swept.items() if path in self._core.journal.volumes}
        due = {path: self._swept.get(path, now - PERIOD) + PERIOD for path in records}
        for path, record in records.items():
            if due[path] <= now:
                self._swept[path] = now
                self._clean_up(record)
                due[path] = now + PERIOD
        return list(due.values())

    def _left_behind(self, nqn: str) -> bool:
        """Whether nothing that the daemon knows of needs the subsystem."""
        return self._core.workers.idle(nqn) and not self._needed(nqn)

    def _needed(self, nqn: str) -> bool:
        """Whether it is to stay connected, for a volume or because somebody wants that."""
        return self._core.ownership.keeps(nqn) or any(
            volume.nqn == nqn and volume.state is not VolumeState.LOST for volume in self._core.volumes.values()
        )

    def _due(self, nqn: str, now: float) -> float:
        grace = GRACE if self._has_lost_volumes(nqn) else 0.0
        due = self._left_since[nqn] + max(grace, self._core.config.disconnect_delay)
        if nqn in self._tried:
            last = self._tried[nqn]
            due = max(due, last.when + (PERIOD if last.change == self._change else last.interval))
        return due

    def _has_lost_volumes(self, nqn: str) -> bool:
        return any(volume.nqn == nqn for volume in self._core.volumes.values())

    def _seems_unused(self, nqn: str) -> bool:
        try:
            subsystem = self._core.kernel.subsystem(nqn)
            if subsystem is None or not self._core.ownership.owned(subsystem):
                self._core.ownership.prune(nqn, subsystem)
                return False
            return not visible_users(self._core, subsystem.namespaces)
        except OSError as error:
            log.warning("cannot tell whether %s is used: %s", nqn, error, extra=about(nqn=nqn))
            return False

    def _submit(self, nqn: str) -> None:
        job = Job(
            OperationKind.TIDY,
            nqn,
            lambda job: disconnect_owned(self._core, job, nqn),
            timeout=self._core.config.timeout,
            visible=False,
        )
        try:
            self._core.workers.submit(job)
        except NvmeofdError as error:
            log.info("not disconnecting %s now: %s", nqn, error, extra=about(nqn=nqn))
