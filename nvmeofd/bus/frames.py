"""Cuts the stream of the bus into messages."""

from __future__ import annotations

import struct

from nvmeofd.bus.dbusnext import PROTOCOL_VERSION, BadMessage, decode
from nvmeofd.bus.messages import Message
from nvmeofd.log import log, quoted

# The longest request that is accepted (64 addresses, 128 tool options, a path) has some 80 KiB. Decoding costs about
# 0.7 s for a MiB of options, during which the loop stands still.
MAX_BODY = 256 * 1024
# A path of 4,096 bytes has up to 12 KiB once it is escaped.
MAX_HEADER = 64 * 1024
_PROLOGUE = 16  # up to and with the length of the header fields


class BrokenStream(ConnectionError):
    """What comes in are not D-Bus messages: there is no way to find the next one."""


class FrameReader:
    """Takes bytes in pieces of any size and gives messages.

    A message that cannot be decoded is dropped, and the next one is found all the same. A body over the limit is
    skipped as it comes in, so it never takes memory; its message is marked as oversized and can be answered.
    """

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._buffer += data[skipped:] if skipped else data

    def take(self) -> Message | None:
        """The next complete message, None until more bytes are fed. Raises BrokenStream."""
        while len(self._buffer) >= _PROLOGUE:
            order = {ord("l"): "<", ord("B"): ">"}.get(self._buffer[0])
            if order is None or self._buffer[3] != PROTOCOL_VERSION:
                raise BrokenStream("the bus sent something that is not a D-Bus message")
            body_size, _, fields_size = struct.unpack_from(order + "III", self._buffer, 4)
            header_size = (_PROLOGUE + fields_size + 7) & ~7
            if header_size > MAX_HEADER:
                log.debug("bus: dropped a message with a header of %d bytes", header_size)
                self._discard(header_size + body_size)
                continue
            oversized = body_size > self._max_body
            size = header_size if oversized else header_size + body_size
            if len(self._buffer) < size:
                return None
            header, body = bytes(self._buffer[:header_size]), bytes(self._buffer[header_size:size])
            self._discard(header_size + body_size)
            try:
                return decode(header, body, oversized=oversized)
            except BadMessage as error:
                log.warning("bus: dropped a message: %s", quoted(str(error)))
        return None

    def _discard(self, size: int) -> None:
        here = min(size, len(self._buffer))
        del self._buffer[:here]
        self._skip = size - here
