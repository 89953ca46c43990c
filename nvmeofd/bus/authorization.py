"""Who may do what."""

from __future__ import annotations

from nvmeofd.bus.callers import Caller
from nvmeofd.bus.messages import ACCESS_DENIED, DBusError


async def authorize(sender: str, uid: int | None, member: str) -> Caller:
    """Let root pass, for calls that change something and for calls that read alike.

    The policy of the bus lets only root in, too; this holds where an administrator has opened that policy.

    Raises:
        DBusError: AccessDenied, also for a caller that has left (its uid is None): nobody can say who it was.
    """
    if uid is None:
        raise DBusError(ACCESS_DENIED, "the caller has left the bus")
    if uid != 0:
        raise DBusError(ACCESS_DENIED, f"{member} is for root only")
    return Caller(sender, uid)
