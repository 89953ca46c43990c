"""Start-up: what the journal tells of an earlier life, held against what the kernel shows.

Staged volumes are found again at once. Half-done work is classified at once too, and finished or undone by a job on
the queue of its subsystem, so that a stuck device does not hold up the start.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.jobs import now_us
from nvmeofd.journal import FormatRecord, Phase, VolumeRecord
from nvmeofd.log import log, quoted
from nvmeofd.operations import disconnect
from nvmeofd.operations.guard import visible_users
from nvmeofd.operations.volumes import current_state, find_moved, identifier, own_mount

if TYPE_CHECKING:
    from nvmeofd.operations.core import Core


def recover(core: Core) -> tuple[VolumeRecord, ...]:
    """Take over what is there. Returns the records of half-done work, for ``clean_up``.

    Raises:
        OSError: the journal, sysfs or the mount table cannot be read; then nothing can be decided safely.
    """
    core.journal.load()
    for nqn in core.ownership.nqns:
        subsystem = core.kernel.subsystem(nqn)
        core.ownership.adopt(nqn, subsystem)
        core.ownership.prune(nqn, subsystem)
        core.ownership.reclaim(subsystem)
    disconnect.finish(core)
    for record in list(core.journal.formats.values()):
        _spare_what_is_used(core, record)
    return tuple(record for record in list(core.journal.volumes.values()) if not _take_over(core, record))


def _spare_what_is_used(core: Core, record: FormatRecord) -> None:
    """A mkfs that was cut short is to be wiped off, unless somebody has found good enough what it left. Raises OSError.

    By the time of the wiping that may be over. Then there can be data that nobody could make again.
    """
    subsystem = core.kernel.subsystem(record.nqn)
    if users := visible_users(core, subsystem.identified(record.wwid) if subsystem else ()):
        log.warning("a mkfs on %s was cut short, and is used by now: %s", record.wwid, "; ".join(map(str, users)))
        core.journal.drop_format(record.wwid)


def _take_over(core: Core, record: VolumeRecord) -> bool:
    """Whether the record is a staged volume (again)."""
    path, volume = record.staging_path, record.to_unmount
    if volume is None:
        return False
    mount = own_mount(core, volume)
    if record.phase is not Phase.STAGED:
        if mount is None or record.phase in (Phase.UNDOING, Phase.FORCING) or find_moved(core, volume) is not None:
            return False
        # the mount was made just before the stop, or not removed before it: either way it is there now
        volume = replace(volume, staged_at=volume.staged_at or now_us())
    if mount is not None:
        volume = replace(volume, mount_id=identifier(core, volume, mount))
    if (record.phase, record.volume) != (Phase.STAGED, volume):
        core.journal.remember(replace(record, phase=Phase.STAGED, volume=volume))
    state = current_state(core.cache, core.kernel.subsystem(volume.nqn), volume)
    core.add_volume(replace(volume, state=state))
    where = quoted(volume.nqn), quoted(path)
    log.info("found %s of %s at %s again: %s", volume.wwid, *where, state, extra=volume.log_extra)
    return True
