"""Disconnect: delete all controllers of a subsystem, only if nothing uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvmeofd.errors import DisconnectFailed, InUse, Shared
from nvmeofd.operations.guard import StillUsed, all_users, disconnect_unused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvmeofd.model import Controller, Subsystem, User
    from nvmeofd.operations.core import Core
    from nvmeofd.workers import Job


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

    try:
        deleted = await disconnect_unused(core, job, nqn, all_controllers)
    except StillUsed as used:
        core.count("disconnects-refused")
        raise InUse(f"{nqn} is in use: {'; '.join(map(str, await _everybody(core, nqn, used)))}") from used
    return tuple(controller.name for controller in deleted)


async def _everybody(core: Core, nqn: str, found: StillUsed) -> Sequence[User]:
    """The users that the guard stopped at, and all others: whoever wants it free has to know them all."""
    try:
        subsystem = core.kernel.subsystem(nqn)
    except OSError:
        return found.users
    others = await all_users(core, subsystem, claim=True) if subsystem is not None else ()
    return tuple(dict.fromkeys([*found.users, *others]))
