"""Who may do what: root may, and polkit decides about everybody else.

The policy of the bus lets only root in, so this is for hosts where an administrator has opened that policy.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType

from nvmeofd.bus.callers import Caller, Callers
from nvmeofd.bus.messages import ACCESS_DENIED, DBusError
from nvmeofd.bus.polkit import Answer, NoAnswer, Polkit
from nvmeofd.errors import InvalidArgument
from nvmeofd.model import VolumeType
from nvmeofd.requests import DisconnectRequest, StageRequest, UnstageRequest

Request = StageRequest | UnstageRequest | DisconnectRequest


class Action(StrEnum):
    """As in polkit/org.nvmeofd1.policy."""

    STAGE = "org.nvmeofd1.stage"
    UNSTAGE = "org.nvmeofd1.unstage"
    DISCONNECT = "org.nvmeofd1.disconnect"
    READ = "org.nvmeofd1.read"


@dataclass(frozen=True, slots=True)
class Need:
    """What a call needs, and what is told to polkit's rules about it.

    All details of an action are always there, so that a rule can say what it allows and need not think of what it
    has to forbid. They hold what the caller has said, or may read, and nothing else: they are shown to the caller's
    authentication agent.
    """

    action: Action
    details: Mapping[str, str]


def reading(member: str) -> Need:
    """What looking at something needs, which ``member`` does."""
    return Need(Action.READ, MappingProxyType({"member": member}))


def needed(request: object, *, cancel: bool = False) -> Need:
    """What a request needs. With ``cancel``, what stopping it needs: the same, and rules can tell.

    Raises:
        DBusError: AccessDenied, for what is none of the requests known here.
    """
    match request:
        case StageRequest():
            action = Action.STAGE
            details = {
                "nqn": request.nqn,
                "namespace": str(request.namespace),
                "addresses": " ".join(map(str, request.addresses)),
                "staging-path": request.staging_path,
                "type": str(request.type),
                "fstype": request.fstype or "",
                "format": str(request.format),
                "mkfs-options": shlex.join(request.mkfs_options),
                "mount-options": ",".join(request.mount_options),
                "read-only": _flag(request.read_only),
                "fsck": _flag(request.fsck),
                "min-paths": str(request.min_paths),
                "host-nqn": request.connect.host_nqn or "",
                "host-id": request.connect.host_id or "",
            }
        case UnstageRequest():
            action = Action.UNSTAGE
            details = {
                "staging-path": request.staging_path,
                "force": _flag(request.force),
                "keep-connected": _flag(request.keep_connected),
            }
        case DisconnectRequest():
            action = Action.DISCONNECT
            details = {"nqn": request.nqn}
        case _:
            raise DBusError(ACCESS_DENIED, "this is for root only")
    return Need(action, MappingProxyType({**details, "cancel": _flag(cancel)}))


def _flag(value: bool) -> str:
    return "true" if value else "false"


# Options of the connection that are told to the rules, and stay for no other host identity.
_OF_ANYBODY = frozenset({"host_nqn", "host_id"})


def restricted(request: StageRequest) -> StageRequest:
    """``request`` as users other than root may make it.

    A filesystem brings no setuid programs and no device nodes: who may name a target brings a filesystem of their own
    making, and would be root with it. And how a path behaves is root's to say: it stays for the next who uses it.

    Raises:
        InvalidArgument: the opposite is asked for.
    """
    for one in fields(request.connect):
        if one.name not in _OF_ANYBODY and getattr(request.connect, one.name) != one.default:
            raise InvalidArgument(f"option {one.name.replace('_', '-')} is for root only")
    if request.type is not VolumeType.FILESYSTEM:
        return request
    for option in ("suid", "dev"):
        if option in request.mount_options:
            raise InvalidArgument(f"option mount-options: {option!r} is for root only")
    # At the end: of options that contradict each other mount(8) takes the last.
    kept = tuple(one for one in request.mount_options if one not in {"nosuid", "nodev"})
    return replace(request, mount_options=(*kept, "nosuid", "nodev"))


class Authorizer:
    """Lets a caller do something, or raises."""

    def __init__(self, callers: Callers, polkit: Polkit) -> None:
        self._callers = callers
        self._polkit = polkit

    async def permit(self, caller: Caller, need: Need, *, interactive: bool) -> None:
        """Return when ``caller`` may do what ``need`` says. Root is not asked about.

        ``interactive``: the caller is willing to wait for a person who is asked for a password.

        Raises:
            DBusError: AccessDenied, in any case of doubt.
        """
        if caller.uid == 0:
            return
        try:
            answer = await self._polkit.check(caller.name, need.action, need.details, interactive=interactive)
        except NoAnswer as error:
            raise _denied(need, f"{error}; without polkit only root may call (package polkitd or polkit)") from None
        if answer is Answer.NEEDS_AUTHENTICATION:
            why = (
                "an administrator has to authenticate, and no authentication agent did that (pkttyagent is one)"
                if interactive
                else "an administrator has to authenticate: allow interactive authorization, or have a polkit rule made"
            )
            raise _denied(need, why)
        if answer is not Answer.AUTHORIZED:
            raise _denied(need, f"user {caller.uid} is not authorized; a polkit rule can allow it")
        # What nobody waits for must not begin, and the news that the caller has left may be on their way still. polkit
        # itself has taken a caller that had just left for root (CVE-2021-3560).
        if await self._callers.ask(caller.name) != caller.uid:
            raise _denied(need, "the caller has left the bus")


def _denied(need: Need, why: str) -> DBusError:
    return DBusError(ACCESS_DENIED, f"{need.action}: {why}")
