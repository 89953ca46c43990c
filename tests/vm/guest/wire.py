"""D-Bus messages to and from bytes, apart from the library that the daemon uses: both cannot be wrong alike.

Values travel between host and guest as JSON. A variant is written as a plain value (bool b, str s, int u or i, list of
str as) or, where that is not meant, as {"type": signature, "value": value}; it is read as its plain value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
ALIGN = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "b": 4, "i": 4, "u": 4, "h": 4, "s": 4, "o": 4, "a": 4}

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = 1, 2, 3, 4, 5, 6, 7, 8
FIELD_TYPES = {PATH: "o", REPLY_SERIAL: "u", SIGNATURE: "g"}
FIELD_NAMES = {PATH: "path", INTERFACE: "interface", MEMBER: "member", ERROR_NAME: "error", SENDER: "sender"}
NO_REPLY_EXPECTED = 1


def split(signature: str) -> Iterator[str]:
    """The complete types of a signature, one by one."""
    while signature:
        end = 1
        while signature[end - 1] == "a":
            end += 1
        if signature[end - 1] in "({":
            depth = 1
            while depth:
                depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[end], 0)
                end += 1
        yield signature[:end]
        signature = signature[end:]


class Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        self.data += b"\0" * (-len(self.data) % size)

    def write(self, kind: str, value: Any) -> None:
        code = kind[0]
        if code in FIXED:
            self.align(struct.calcsize(FIXED[code]))
            self.data += struct.pack(f"<{FIXED[code]}", value)
        elif code in "so":
            raw = value.encode()
            self.write("u", len(raw))
            self.data += raw + b"\0"
        elif code == "g":
            self.data += bytes([len(value)]) + value.encode() + b"\0"
        elif code == "v":
            signature, inner = variant(value)
            self.write("g", signature)
            self.write(signature, inner)
        elif code == "a":
            self._array(kind[1:], value)
        else:
            self.align(8)
            for part, item in zip(split(kind[1:-1]), value, strict=True):
                self.write(part, item)

    def _array(self, element: str, value: Any) -> None:
        self.write("u", 0)
        length_at = len(self.data) - 4
        self.align(ALIGN.get(element[0], 8))
        start = len(self.data)
        for item in value.items() if element[0] == "{" else value:
            self.write(element, item)
        struct.pack_into("<I", self.data, length_at, len(self.data) - start)


def variant(value: Any) -> tuple[str, Any]:
    """The signature and value of a variant."""
    if isinstance(value, dict):
        return value["type"], value["value"]
    if isinstance(value, bool):
        return "b", value
    if isinstance(value, int):
        return ("u" if value >= 0 else "i"), value
    return ("s" if isinstance(value, str) else "as"), value


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def align(self, size: int) -> None:
        self.at += -self.at % size

    def read(self, kind: str) -> Any:
        code = kind[0]
        if code in FIXED:
            size = struct.calcsize(FIXED[code])
            self.align(size)
            (number,) = struct.unpack_from(f"<{FIXED[code]}", self.data, self.at)
            self.at += size
            return bool(number) if code == "b" else number
        if code in "so":
            return self._text(self.read("u"))
        if code == "g":
            return self._text(self.read("y"))
        if code == "v":
            return self.read(self.read("g"))
        if code == "a":
            return self._array(kind[1:])
        self.align(8)
        return [self.read(part) for part in split(kind[1:-1])]

    def _text(self, length: int) -> str:
        raw = self.data[self.at : self.at + length]
        self.at += length + 1
        return raw.decode()

    def _array(self, element: str) -> Any:
        length = self.read("u")
        self.align(ALIGN.get(element[0], 8))
        end = self.at + length
        items = []
        while self.at < end:
            items.append(self.read(element))
        if element[0] == "{":
            return dict(items)
        return items


def message(kind: int, serial: int, fields: dict[int, Any], signature: str, body: list[Any], flags: int = 0) -> bytes:
    """A whole message. Nothing is checked: tests send wrong ones on purpose."""
    payload = Writer()
    for part, value in zip(split(signature), body, strict=True):
        payload.write(part, value)
    if signature:
        fields = {**fields, SIGNATURE: signature}
    head = Writer()
    head.data += struct.pack("<cBBBII", b"l", kind, flags, 1, len(payload.data), serial)
    typed = [(code, {"type": FIELD_TYPES.get(code, "s"), "value": value}) for code, value in fields.items()]
    head.write("a(yv)", typed)
    head.align(8)
    return bytes(head.data + payload.data)


def total_length(start: bytes) -> int:
    """The length of a message, from its first 16 bytes."""
    body, _, fields = struct.unpack_from("<III", start, 4)
    return int(16 + fields + (-fields % 8) + body)


def parse(data: bytes) -> dict[str, Any]:
    """A message as a dictionary: type, serial, reply_serial, the names of its header, signature, body."""
    reader = Reader(data)
    reader.at = 1
    kind = reader.read("y")
    reader.at = 8
    serial = reader.read("u")
    fields = dict(reader.read("a(yv)"))
    reader.align(8)
    payload = Reader(data[reader.at :])
    signature = fields.get(SIGNATURE, "")
    result: dict[str, Any] = {name: fields.get(code, "") for code, name in FIELD_NAMES.items()}
    result |= {"type": kind, "serial": serial, "reply_serial": fields.get(REPLY_SERIAL, 0), "signature": signature}
    result["body"] = [payload.read(part) for part in split(signature)]
    return result
