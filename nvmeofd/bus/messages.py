"""Messages of the bus as values, and the names that the D-Bus specification fixes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

BUS_NAME = "org.freedesktop.DBus"  # the bus itself
BUS_PATH = "/org/freedesktop/DBus"

PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


class MessageType(IntEnum):
    METHOD_CALL = 1
    METHOD_RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flags(IntFlag):
    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. ``body`` is as it goes over the wire: it is decoded only where somebody wants it.

    A body larger than the limit is thrown away unread; ``oversized`` says so.
    """

    type: MessageType
    serial: int = 0
    flags: Flags = Flags.NONE
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    destination: str = ""
    sender: str = ""
    signature: str = ""
    body: bytes = b""
    little_endian: bool = True
    oversized: bool = False


class DBusError(Exception):
    """An error as it goes over the bus: its name and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class BusLost(ConnectionError):
    """The connection to the bus is gone, or could not be made."""


def _standard(name: str) -> str:
    return f"org.freedesktop.DBus.Error.{name}"


ACCESS_DENIED = _standard("AccessDenied")
INVALID_ARGS = _standard("InvalidArgs")
LIMITS_EXCEEDED = _standard("LimitsExceeded")
PROPERTY_READ_ONLY = _standard("PropertyReadOnly")
UNKNOWN_INTERFACE = _standard("UnknownInterface")
UNKNOWN_METHOD = _standard("UnknownMethod")
UNKNOWN_OBJECT = _standard("UnknownObject")
UNKNOWN_PROPERTY = _standard("UnknownProperty")
