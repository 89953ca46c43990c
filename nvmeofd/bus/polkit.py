"""polkit, asked whether a caller may do something.

Its interface: https://www.freedesktop.org/software/polkit/docs/latest/eggdbus-interface-org.freedesktop.PolicyKit1.Authority.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import Enum
from itertools import count

from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import BadMessage, encode_body, variant
from nvmeofd.bus.messages import BusLost, DBusError, Flags, Message, MessageType
from nvmeofd.log import quoted

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"

# Seconds for the whole of a check. A person who is asked for a password may take longer.
CHECK_SECONDS = 30.0
INTERACTIVE_SECONDS = 120.0

_ALLOW_USER_INTERACTION = 1
_NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"


class Answer(Enum):
    AUTHORIZED = "authorized"
    NEEDS_AUTHENTICATION = "needs authentication"
    DENIED = "denied"


class NoAnswer(Exception):
    """polkit is not there, does not answer in time, or what it says makes no sense. The text says which."""


class Polkit:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = count(1)

    async def check(self, name: str, action: str, details: Mapping[str, str], *, interactive: bool) -> Answer:
        """Whether the connection with this unique name may do ``action``.

        The subject is a name on the bus, which belongs to one process for ever, and not a process ID, which can be
        another program's by the time polkit looks (CVE-2013-4288). ``interactive``: polkit may ask a person. A check
        that is cancelled, or takes too long, is cancelled with polkit, too.

        Raises:
            NoAnswer: nothing is known, so nothing is allowed.
        """
        timeout = INTERACTIVE_SECONDS if interactive else CHECK_SECONDS
        try:
            async with asyncio.timeout(timeout):
                authority = await self._owner() or await self._start()
                answer = await self._ask(authority, name, action, details, interactive=interactive, timeout=timeout)
                if await self._owner() != authority:
                    raise NoAnswer("polkit ended, or was replaced, while it decided")
        except TimeoutError:
            raise NoAnswer(f"polkit did not answer within {timeout:.0f} s") from None
        except DBusError as error:
            raise NoAnswer(f"polkit answered with an error: {quoted(str(error))}") from None
        except (BadMessage, BusLost) as error:
            raise NoAnswer(f"no answer of polkit: {quoted(str(error))}") from None
        return answer

    async def _owner(self) -> str:
        """The unique name of polkit, "" when it is not running. Nobody else can send under it."""
        try:
            (owner,) = await self._connection.call_bus("GetNameOwner", "s", NAME)
        except DBusError as error:
            if error.name == _NO_OWNER:
                return ""
            raise
        return str(owner)

    async def _start(self) -> str:
        try:
            await self._connection.call_bus("StartServiceByName", "su", NAME, 0)
        except DBusError:
            raise NoAnswer("polkit is not running and could not be started") from None
        started = await self._owner()
        if not started:
            raise NoAnswer("polkit was started and is not running")
        return started

    async def _ask(
        self,
        authority: str,
        name: str,
        action: str,
        details: Mapping[str, str],
        *,
        interactive: bool,
        timeout: float,
    ) -> Answer:
        subject = ["system-bus-name", {"name": variant("s", name)}]
        flags = _ALLOW_USER_INTERACTION if interactive else 0
        cancellation = f"nvmeofd-{next(self._numbers)}"
        call = _authority_call(
            authority, "CheckAuthorization", "(sa{sv})sa{ss}us", subject, action, dict(details), flags, cancellation
        )
        try:
            ((authorized, challenge, _),) = await self._connection.call(
                call, timeout=timeout, reply_signature="(bba{ss})"
            )
        except (asyncio.CancelledError, TimeoutError):
            self._connection.send(
                _authority_call(authority, "CancelCheckAuthorization", "s", cancellation, flags=Flags.NO_REPLY_EXPECTED)
            )
            raise
        if authorized and challenge:
            raise NoAnswer("polkit said yes and asked for a password at once")
        if authorized:
            return Answer.AUTHORIZED
        return Answer.NEEDS_AUTHENTICATION if challenge else Answer.DENIED


def _authority_call(authority: str, member: str, signature: str, *values: object, flags: Flags = Flags.NONE) -> Message:
    return Message(
        type=MessageType.METHOD_CALL,
        flags=flags | Flags.NO_AUTO_START,
        destination=authority,
        path=PATH,
        interface=INTERFACE,
        member=member,
        signature=signature,
        body=encode_body(signature, list(values)),
    )
