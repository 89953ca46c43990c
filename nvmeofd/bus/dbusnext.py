"""The wire format, by dbus-next. No other module imports that library.

Only its marshalling is used. Its connection gives up when the socket is full, its service layer sends tracebacks to
callers, and both hang once the bus is gone; :mod:`nvmeofd.bus.connection` and :mod:`nvmeofd.bus.dispatch` stand in.
"""

from __future__ import annotations

import io
import sys
import typing
import warnings
from functools import lru_cache
from typing import Any

from nvmeofd.bus.messages import Flags, Message, MessageType
from nvmeofd.typed import Typed

if not hasattr(typing, "no_type_check_decorator"):
    # Gone in Python 3.15; dbus-next 0.2.3 applies it at import to decorators that are not used here.
    typing.no_type_check_decorator = lambda decorator: decorator

_GLIB = "gi"
_glib = sys.modules.get(_GLIB)
# The library imports GLib's bindings wherever they are installed, which costs 5 MiB and is of no use here.
sys.modules[_GLIB] = None  # type: ignore[assignment]
try:
    with warnings.catch_warnings():
        # no_type_check_decorator again, deprecated since Python 3.13.
        warnings.simplefilter("ignore", DeprecationWarning)
        from dbus_next import signature as _signature
        from dbus_next._private import address as _address
        from dbus_next._private import marshaller as _marshaller
        from dbus_next._private import unmarshaller as _unmarshaller
finally:
    del sys.modules[_GLIB]
    if _glib is not None:
        sys.modules[_GLIB] = _glib

# The library has no annotations.
_Marshaller: Any = _marshaller.Marshaller
_Unmarshaller: Any = _unmarshaller.Unmarshaller
_SignatureTree: Any = _signature.SignatureTree
_Variant: Any = _signature.Variant
_parse_address: Any = _address.parse_address
_get_system_bus_address: Any = _address.get_system_bus_address

PROTOCOL_VERSION = 1
# No option of ours comes near; a signature of 255 characters makes a tree of some 46 KiB.
MAX_VARIANT_SIGNATURE = 64

_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)


class BadMessage(ValueError):
    """Bytes that are not a D-Bus message, or a body that is not what its signature says."""


@lru_cache(maxsize=128)
def _tree(signature: str) -> Any:
    """The parsed signature. The library's own cache keeps every signature that any caller ever sent."""
    return _SignatureTree(signature)


_HEADER_FIELDS = _tree("a(yv)").types[0]


def _reader(data: bytes, *, little_endian: bool) -> Any:
    reader = _Unmarshaller(io.BytesIO())  # reading past the end of data raises EOFError
    reader.buf = bytearray(data)
    reader.endian = ord("l" if little_endian else "B")

    def read_variant(_: Any = None) -> Typed:
        signature = reader.read_signature()
        if len(signature) > MAX_VARIANT_SIGNATURE:
            raise BadMessage(f"a variant's signature is longer than {MAX_VARIANT_SIGNATURE} characters")
        types = _tree(signature).types
        if len(types) != 1:
            raise BadMessage("a variant holds exactly one complete type")
        return Typed(signature, reader.read_argument(types[0]))

    reader.readers["v"] = read_variant
    return reader


def decode(header: bytes, body: bytes = b"", *, oversized: bool = False) -> Message:
    """The message whose header (with its padding) and body are given. Header fields of later protocols are ignored.

    Raises:
        BadMessage: whatever is wrong with it.
    """
    try:
        little_endian = header[0] == ord("l")
        reader = _reader(header, little_endian=little_endian)
        reader.offset = 8
        serial = reader.read_uint32()
        fields = {code: field.value for code, field in reader.read_argument(_HEADER_FIELDS)}
        return Message(
            type=MessageType(header[1]),
            serial=serial,
            flags=Flags(header[2] & 0x07),
            path=fields.get(_PATH, ""),
            interface=fields.get(_INTERFACE, ""),
            member=fields.get(_MEMBER, ""),
            error_name=fields.get(_ERROR_NAME, ""),
            reply_serial=fields.get(_REPLY_SERIAL, 0),
            destination=fields.get(_DESTINATION, ""),
            sender=fields.get(_SENDER, ""),
            signature=fields.get(_SIGNATURE, ""),
            body=body,
            little_endian=little_endian,
            oversized=oversized,
        )
    except Exception as error:  # the library raises nearly anything
        raise BadMessage(f"malformed header: {type(error).__name__}: {error}") from error


def decode_body(message: Message) -> list[Any]:
    """The arguments of ``message``: structures as lists, variants as :class:`Typed`.

    Raises:
        BadMessage: it is not what the signature says.
    """
    try:
        reader = _reader(message.body, little_endian=message.little_endian)
        values = [reader.read_argument(one) for one in _tree(message.signature).types]
    except Exception as error:  # the library raises nearly anything, RecursionError included
        raise BadMessage(f"malformed body: {type(error).__name__}: {error}") from error
    if reader.offset != len(message.body):
        raise BadMessage("malformed body: longer than its signature")
    return values


def valid_text(text: str) -> str:
    """``text`` as the bus accepts it: UTF-8 without NUL. The bus cuts off whoever sends anything else."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def encode_body(signature: str, values: list[Any]) -> bytes:
    """The bytes of ``values``. Only signatures that this program fixes may come here: the library keeps them.

    Raises:
        ValueError: a value does not fit its type.
    """
    writer = _Marshaller(signature, values)
    write_string = writer.write_string
    writer.writers["s"] = lambda text, type_=None: write_string(valid_text(text), type_)
    return bytes(writer.marshall())


def variant(signature: str, value: Any) -> Any:
    """A value for a place of type ``v`` in :func:`encode_body`. Raises ValueError when it does not fit."""
    return _Variant(signature, value)


def encode(message: Message) -> bytes:
    """The bytes of ``message``, which must have its serial."""
    fields = [
        [code, _Variant(signature, value)]
        for code, signature, value in (
            (_PATH, "o", message.path),
            (_INTERFACE, "s", message.interface),
            (_MEMBER, "s", message.member),
            (_ERROR_NAME, "s", message.error_name),
            (_REPLY_SERIAL, "u", message.reply_serial),
            (_DESTINATION, "s", message.destination),
            (_SENDER, "s", message.sender),
            (_SIGNATURE, "g", message.signature),
        )
        if value
    ]
    prologue = [ord("l"), int(message.type), int(message.flags), PROTOCOL_VERSION, len(message.body), message.serial]
    writer = _Marshaller("yyyyuua(yv)", [*prologue, fields])
    writer.marshall()
    writer.align(8)
    return bytes(writer.buffer) + message.body


def socket_addresses(address: str | None = None) -> list[str]:
    """Where the bus listens, for AF_UNIX, in the order of ``address`` (by default that of the system bus).

    Raises:
        ValueError: no address of it names a Unix socket.
    """
    found: list[str] = []
    for transport, options in _parse_address(address or _get_system_bus_address()):
        if transport == "unix" and "path" in options:
            found.append(options["path"])
        elif transport == "unix" and "abstract" in options:
            found.append("\0" + options["abstract"])
    if not found:
        raise ValueError(f"no Unix socket in the bus address {address!r}")
    return found
