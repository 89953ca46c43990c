"""The wire format: what is read is what was written, and what is not a message does no harm."""

from __future__ import annotations

import struct
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from dbus_next.signature import SignatureTree
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.bus.dbusnext import (
    MAX_VARIANT_SIGNATURE,
    BadMessage,
    decode_body,
    encode,
    encode_body,
    socket_addresses,
    valid_text,
    variant,
)
from nvmeofd.bus.frames import MAX_BODY, MAX_HEADER, BrokenStream, FrameReader
from nvmeofd.bus.messages import Flags, Message, MessageType
from nvmeofd.typed import Typed


def call(serial: int = 1, signature: str = "", *values: Any) -> Message:
    return Message(
        type=MessageType.METHOD_CALL,
        serial=serial,
        flags=Flags.ALLOW_INTERACTIVE_AUTHORIZATION,
        path="/org/nvmeofd1",
        interface="org.nvmeofd1.Manager",
        member="Stage",
        destination="org.nvmeofd1",
        sender=":1.7",
        signature=signature,
        body=encode_body(signature, list(values)),
    )


def read_all(data: bytes, sizes: list[int] | None = None) -> list[Message]:
    reader, found, start = FrameReader(), [], 0
    for size in [*(sizes or []), len(data)]:
        reader.feed(data[start : start + size])
        start += size
        while (message := reader.take()) is not None:
            found.append(message)
    return found


@given(st.lists(st.integers(1, 200), max_size=8), st.lists(st.text(), max_size=4))
def test_any_cut_of_the_stream_gives_the_same_messages(sizes: list[int], texts: list[str]) -> None:
    texts = [text.replace("\0", "") for text in texts]
    sent = [call(number, "sas", "x", texts) for number in range(1, 4)]
    assert read_all(b"".join(map(encode, sent)), sizes) == sent


def test_arguments_survive() -> None:
    options = {"fsck": variant("b", False), "n": variant("u", 7), "l": variant("as", ["a", "b"])}
    message = call(1, "ssasa{sv}", "x", "", ["q"], options)
    assert decode_body(message) == [
        "x",
        "",
        ["q"],
        {"fsck": Typed("b", False), "n": Typed("u", 7), "l": Typed("as", ["a", "b"])},
    ]


def test_big_endian() -> None:
    fields = b"\1\1o\0\0\0\0\1/\0".ljust(16, b"\0") + b"\3\1s\0\0\0\0\1M\0\0\0\0\0\0\0" + b"\x08\1g\0\1u\0"
    header = b"B\1\0\1" + struct.pack(">III", 4, 9, len(fields)) + fields
    header = header.ljust((len(header) + 7) & ~7, b"\0")
    (message,) = read_all(header + struct.pack(">I", 77))
    assert (message.serial, message.path, message.member) == (9, "/", "M")
    assert decode_body(message) == [77]


def test_unknown_header_fields_and_flags_are_ignored() -> None:
    raw = bytearray(encode(call()))
    raw[2] |= 0xF0
    size = struct.unpack_from("<I", raw, 12)[0]
    padded = (16 + size + 7) & ~7
    extra = bytes(padded - 16 - size) + b"\x63\1s\0\1\0\0\0x\0"
    struct.pack_into("<I", raw, 12, size + len(extra))
    framed = bytes(raw[: 16 + size]) + extra
    (message,) = read_all(framed.ljust((len(framed) + 7) & ~7, b"\0"))
    assert message == call()


def test_a_bad_message_is_dropped_and_the_next_one_found(caplog: pytest.LogCaptureFixture) -> None:
    bad = bytearray(encode(call(1, "s", "body")))
    bad[1] = 77  # no such type of message
    assert [message.serial for message in read_all(bytes(bad) + encode(call(2)))] == [2]
    assert "dropped a message" in caplog.text


@given(st.binary(max_size=64))
def test_no_header_makes_more_than_a_bad_message(garbage: bytes) -> None:
    raw = b"l\1\0\1" + struct.pack("<III", 0, 1, len(garbage)) + garbage
    raw = raw.ljust((len(raw) + 7) & ~7, b"\0")
    assert [message.serial for message in read_all(raw + encode(call(2)))][-1:] == [2]


def test_an_oversized_body_is_not_kept() -> None:
    big = Message(
        type=MessageType.METHOD_CALL, serial=1, path="/", member="M", signature="ay", body=bytes(MAX_BODY + 1)
    )
    reader, sizes = FrameReader(), []
    for start in range(0, MAX_BODY + 512, 4096):
        reader.feed(encode(big)[start : start + 4096])
        if (message := reader.take()) is not None:
            assert message.oversized
            assert message.body == b""
        sizes.append(len(reader._buffer))
    assert max(sizes) < 4096
    reader.feed(encode(call(2)))
    assert reader.take() == call(2)


def test_an_oversized_header_is_skipped() -> None:
    huge = b"l\1\0\1" + struct.pack("<III", 3, 1, MAX_HEADER) + bytes(MAX_HEADER) + b"abc"
    assert read_all(huge + encode(call(2)), [1000] * 70) == [call(2)]


@pytest.mark.parametrize("start", [b"x\1\0\1", b"l\1\0\2"])
def test_something_else_than_messages(start: bytes) -> None:
    reader = FrameReader()
    reader.feed(start + bytes(20))
    with pytest.raises(BrokenStream):
        reader.take()


@pytest.mark.parametrize(
    ("signature", "raw"),
    [
        ("s", b""),
        ("s", b"\xff\0\0\0x\0"),
        ("s", b"\1\0\0\0\xff\0"),
        ("u", b"\1\0\0\0\0\0\0\0"),
        ("", b"\0"),
        ("z", b"\0"),
        ("v", b"\2ss\0"),
        ("v", b"\1v\0" * 5000),
        ("a{sv}", b"\xff\xff\xff\xff\0\0\0\0"),
    ],
)
def test_bodies_that_are_not_what_the_signature_says(signature: str, raw: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_body(replace(call(), signature=signature, body=raw))


@given(st.text(alphabet="sbiuva(){}", max_size=12), st.binary(max_size=80))
def test_no_body_raises_anything_else(signature: str, raw: bytes) -> None:
    with suppress(BadMessage):
        decode_body(replace(call(), signature=signature, body=raw))


def test_signatures_of_callers_are_not_kept() -> None:
    known = len(SignatureTree._cache)
    for number in range(1, 500):
        signature = "(" + "sbiu"[number % 4] * (1 + number % 60) + "y" * (number // 60) + ")"
        if len(signature) <= MAX_VARIANT_SIGNATURE:
            raw = bytes([len(signature)]) + signature.encode() + b"\0"
            with pytest.raises(BadMessage):
                decode_body(replace(call(), signature="v", body=raw))
    assert len(SignatureTree._cache) == known


def test_a_long_variant_signature_is_refused() -> None:
    signature = "s" * (MAX_VARIANT_SIGNATURE + 1)
    raw = bytes([len(signature)]) + signature.encode() + b"\0"
    with pytest.raises(BadMessage, match="longer than"):
        decode_body(replace(call(), signature="v", body=raw))


@given(st.text(st.characters()))
def test_text_is_always_valid_for_the_bus(text: str) -> None:
    raw = valid_text(text).encode("utf-8")
    assert b"\0" not in raw


def test_text_that_is_not_utf8_is_shown_escaped() -> None:
    shown = b"/srv/\xff\xfe".decode("utf-8", "surrogateescape")
    assert decode_body(call(1, "sas", shown, [shown])) == ["/srv/\\udcff\\udcfe", ["/srv/\\udcff\\udcfe"]]


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket_addresses("unix:path=/a;tcp:host=x,port=1;unix:abstract=b,guid=00") == ["/a", "\0b"]
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/of/the/system")
    assert socket_addresses() == ["/of/the/system"]
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS")
    assert socket_addresses() == ["/var/run/dbus/system_bus_socket"]
    for wrong in ("tcp:host=x", "unix", "unix:path"):
        with pytest.raises(ValueError, match="address"):
            socket_addresses(wrong)


def test_recursion_limit_is_far() -> None:
    """The bus refuses more than 64 levels; what it lets pass must be readable."""
    assert sys.getrecursionlimit() >= 1000
    assert decode_body(replace(call(), signature="v", body=b"\1v\0" * 60 + b"\1y\0\7"))
