"""Disconnect: delete all controllers of a subsystem, only if nothing uses it."""

from __future__ import annotations

import asyncio
from logging import DEBUG, INFO
from typing import TYPE_CHECKING

from nvmeofd.errors import DisconnectFailed, InUse, Shared
from nvmeofd.jobs import Job
from nvmeofd.log import log
from nvmeofd.model import OperationKind
from nvmeofd.operations.guard import StillUsed, all_users, disconnect_unused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvmeofd.model import Controller, Subsystem, User
    from nvmeofd.operations.core import Core


async def disconnect(core: Core, job: Job, nqn: str) -> tuple[str, ...]:
    """Do one Disconnect. Returns the names of the deleted controllers, () when there were none.

    Raises:
        InUse: nothing was deleted; lists the users.
        Shared: nothing was deleted; names the owner.
        DisconnectFailed: the kernel did not delete a controller.
    """

    def all_controllers(subsystem: Subsystem) -> Sequence[Controller]:
        for controller in subsystem.controllers:
            try:
                owner = core.ownership.other_owner(controller)
            except OSError as error:
                raise DisconnectFailed(f"cannot tell who owns {controller.name}: {error}") from error
            if owner is not None:
                raise Shared(f"{controller.name} of {nqn} belongs to {owner}; disconnect it there")
        return subsystem.controllers

    if (before := core.kernel.subsystem(nqn)) is not None:
        core.ownership.leave(nqn, before.controllers)
    try:
        deleted = await disconnect_unused(core, job, nqn, all_controllers)
    except StillUsed as used:
        core.count("disconnects-refused")
        raise InUse(f"{nqn} is in use: {'; '.join(map(str, await _everybody(core, nqn, used)))}") from used
    finally:
        core.ownership.stay(nqn)
    return tuple(controller.name for controller in deleted)


async def disconnect_owned(core: Core, job: Job, nqn: str) -> bool:
    """Disconnect the controllers of this daemon if nothing uses the subsystem; never an error.

    Returns whether the subsystem is no longer connected. What had to be skipped is looked at again later.
    """
    if core.workers.stage_waiting(nqn):
        return not is_connected(core, nqn)
    _settle_intent(core, nqn)
    try:
        await disconnect_unused(core, job, nqn, core.ownership.owned)
    except StillUsed as used:
        core.count("disconnects-deferred")
        # the daemon's own jobs try again and again, as long as somebody stays
        log.log(INFO if job.visible else DEBUG, "%s: %s stays connected while it is used: %s", job, nqn, used)
    except DisconnectFailed as error:
        core.count("disconnects-failed")
        log.warning("%s: %s", job, error)
    except asyncio.CancelledError:
        # what was asked for is done; for this part there is another time
        if not job.stopping:
            raise
        core.count("disconnects-deferred")
        log.info("%s: out of time for disconnecting %s", job, nqn)
    return not is_connected(core, nqn)


def _settle_intent(core: Core, nqn: str) -> None:
    """What was connected and could not be written down then is to be disconnected, too."""
    try:
        core.ownership.adopt(nqn, core.kernel.subsystem(nqn))
    except OSError as error:
        log.warning("cannot tell what came of connecting %s: %s", nqn, error)


def is_connected(core: Core, nqn: str) -> bool:
    """Whether the subsystem has a controller. What cannot be told counts as connected."""
    try:
        subsystem = core.kernel.subsystem(nqn)
    except OSError as error:
        log.warning("cannot tell whether %s is connected: %s", nqn, error)
        return True
    return subsystem is not None and bool(subsystem.controllers)


def finish(core: Core) -> None:
    """At the start: queue what is left of each Disconnect that a crash cut short, which may be one path of two."""
    for nqn in core.ownership.left:
        core.workers.submit(
            Job(
                OperationKind.DISCONNECT,
                nqn,
                lambda job: _finish(core, job, job.nqn),
                timeout=core.config.timeout,
                visible=False,
            )
        )


async def _finish(core: Core, job: Job, nqn: str) -> tuple[str, ...]:
    """Tried once: should it be used by now, or somebody else's, it stays, as if it had been refused then."""
    try:
        deleted = await disconnect_unused(core, job, nqn, core.ownership.leaving)
    except StillUsed as used:
        log.info("%s: a Disconnect that was cut short is not finished: %s", job, used)
        raise InUse(f"{nqn} is in use: {used}") from used
    finally:
        core.ownership.stay(nqn)
    return tuple(controller.name for controller in deleted)


async def _everybody(core: Core, nqn: str, found: StillUsed) -> Sequence[User]:
    """The users that the guard stopped at, and all others: whoever wants it free has to know them all."""
    try:
        subsystem = core.kernel.subsystem(nqn)
    except OSError:
        return found.users
    others = await all_users(core, subsystem, claim=True) if subsystem is not None else ()
    return tuple(dict.fromkeys([*found.users, *others]))
