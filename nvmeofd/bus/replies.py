"""Replies to calls: values, and errors by name and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nvmeofd.bus import messages
from nvmeofd.bus.dbusnext import BadMessage, encode_body
from nvmeofd.bus.messages import DBusError, Flags, Message, MessageType
from nvmeofd.errors import Failed, NvmeofdError, dbus_name
from nvmeofd.log import log, quoted


class Reply(NamedTuple):
    signature: str = ""
    body: bytes = b""


class Replies:
    """Hands replies to ``send``, unless the caller wants none."""

    def __init__(self, send: Callable[[Message], object]) -> None:
        self._send = send

    def send(self, call: Message, reply: Reply) -> None:
        if not call.flags & Flags.NO_REPLY_EXPECTED:
            self._send(
                Message(
                    type=MessageType.METHOD_RETURN,
                    reply_serial=call.serial,
                    destination=call.sender,
                    signature=reply.signature,
                    body=reply.body,
                )
            )

    def fail(self, call: Message, error: BaseException) -> None:
        name, text = _described(call, error)
        if not call.flags & Flags.NO_REPLY_EXPECTED:
            self._send(
                Message(
                    type=MessageType.ERROR,
                    reply_serial=call.serial,
                    destination=call.sender,
                    error_name=name,
                    signature="s",
                    body=encode_body("s", [text]),
                )
            )


def _described(call: Message, error: BaseException) -> tuple[str, str]:
    """Name and text of an error for the caller. What nobody expected is for the log only."""
    match error:
        case DBusError():
            return error.name, error.text
        case NvmeofdError():
            return dbus_name(error), str(error)
        case BadMessage():
            return messages.INVALID_ARGS, str(error)
        case OSError():
            log.error("bus: %s on %s failed: %s", call.member, quoted(call.path), quoted(str(error)))
        case _:
            log.error("bus: %s on %s failed", call.member, quoted(call.path), exc_info=error)
    return dbus_name(Failed()), "internal error; the log of nvmeofd has the details"
