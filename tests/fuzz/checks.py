"""What is fuzzed: the checks that hypothesis runs, each with input as raw bytes, in groups of one process each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmeofd.bus.dbusnext import BadMessage, decode_body, encode
from nvmeofd.bus.frames import BrokenStream, FrameReader
from nvmeofd.journal import VERSION, _digest
from nvmeofd.kernel.mountspaces import _index
from tests.bus import test_wire
from tests.unit import test_fuzz_parsers as parsers
from tests.unit import test_journal as journal
from tests.unit.kernel import trees


@dataclass(frozen=True)
class Check:
    run: Callable[[bytes, Path], object]  # an input, and a directory for files
    samples: Sequence[bytes]


def _inner(test: Any) -> Any:
    """A test as it was before hypothesis took it."""
    return test.hypothesis.inner_test


def _plain(run: Callable[[bytes], object], *samples: bytes) -> Check:
    return Check(lambda data, _: run(data), samples)


def _bytes(test: Any, *samples: bytes) -> Check:
    return _plain(_inner(test), *samples)


def _text(test: Any, *samples: str) -> Check:
    inner = _inner(test)
    return _plain(lambda data: inner(data.decode("utf-8", "surrogateescape")), *(sample.encode() for sample in samples))


def _file(test: Any, argument: str, *samples: bytes, **others: Any) -> Check:
    """A test of what is read from a file."""
    inner = _inner(test)
    return Check(lambda data, directory: inner(tmp_path=directory, **{argument: data}, **others), samples)


# Groups


def _cache(data: bytes) -> None:
    """Tables one after the other, with a blank line between them."""
    tables = [table.split(b"\n") for table in data.split(b"\n\n")]
    _inner(parsers.test_mount_cache)([([line for line in table if line], parsers.LINES[:3]) for table in tables[:8]])


def _frames(data: bytes) -> None:
    """However the stream is cut, the messages are the same, and their bodies are right or refused."""
    found: list[list[Any]] = []
    for size in (len(data) or 1, 1, 7):
        reader = FrameReader()
        messages: list[Any] = []
        try:
            for start in range(0, len(data), size):
                reader.feed(data[start : start + size])
                while (message := reader.take()) is not None:
                    messages.append(message)
                    with suppress(BadMessage):
                        decode_body(message)
        except BrokenStream:
            messages.append(None)
        found.append(messages)
    assert found[0] == found[1] == found[2]


def _body(data: bytes) -> None:
    """A signature, a null byte, and the body."""
    signature, _, raw = data.partition(b"\0")
    _inner(test_wire.test_no_body_raises_anything_else)(signature.decode("latin-1"), raw)


def _record(data: bytes) -> None:
    """A record that somebody wrote who knows how: the digest is right."""
    try:
        kind, record = json.loads(data)
        content = json.dumps({"version": VERSION, "kind": kind, "record": record, "digest": _digest(kind, record)})
    except (ValueError, TypeError, RecursionError):
        return
    journal.loaded({"a.json": content.encode()})


_RECORDS = [json.loads(content) for _, content in journal.ALL]

GROUPS: Mapping[str, Sequence[Check]] = {
    "mounts": (
        _bytes(parsers.test_mount_line, *parsers.LINES),
        _plain(_cache, b"\n".join(parsers.LINES), b"\n\n".join(parsers.LINES)),
        _plain(_index, b"\n".join(parsers.LINES)),
        _file(parsers.test_mount_table_of_another_namespace, "table", b"\n".join(parsers.LINES)),
    ),
    "kernel": (
        *(
            _file(parsers.test_sysfs, "content", b"2048\n", b"259:7\n", trees.NQN.encode(), b"NVME_TRADDR=1", name=name)
            for name in (*parsers.SYSFS_ATTRIBUTES, *parsers.CONTROLLER_ATTRIBUTES, "subsysnqn")
        ),
        _file(parsers.test_swaps, "content", b"Filename\tType\tSize\n/dev/vda2 partition 8 0 -2\n/swap\\040f file 8\n"),
        _file(parsers.test_registry, "owner", b"nvmeofd\n", b"stas\n"),
        _file(parsers.test_host_identity, "nqn", trees.NQN.encode(), uuid=trees.UUID.encode()),
        _file(parsers.test_host_identity, "uuid", trees.UUID.encode(), nqn=trees.NQN.encode()),
        _text(parsers.test_options_of_the_kernel, "nqn,transport=%s,traddr=%s,hdr_digest,\n", "instance=-1,cntlid=-1"),
        _text(parsers.test_address_in_sysfs, trees.uevent()),
        _text(parsers.test_answer_of_blkid, "DEVNAME=/dev/nvme0n1\nTYPE=ext4\nUSAGE=filesystem\n", "PTTYPE=gpt\n"),
    ),
    "requests": (
        _text(parsers.test_address, *parsers.ADDRESSES),
        _text(parsers.test_nqn, trees.NQN, "nqn.2014-08.org.nvmexpress:uuid:x"),
        _text(
            parsers.test_namespace, f"uuid.{trees.UUID}", "eui.0123456789abcdef", "nsid.7", "nvme.1b36-31-51-00000001"
        ),
        _text(parsers.test_host_id, trees.UUID),
        _text(parsers.test_staging_path, "/srv/volume", "/srv/with blank/ünïcode"),
        # What to choose, not text: hypothesis makes the options of it.
        _plain(vars(parsers.test_options_of_stage)["hypothesis"].fuzz_one_input, bytes(64), bytes(range(256))),
    ),
    "files": (
        _file(parsers.test_config, "content", parsers.CONFIG),
        _bytes(journal.test_damaged, *(content for _, content in journal.ALL)),
        _plain(_record, *(json.dumps([one["kind"], one["record"]]).encode() for one in _RECORDS)),
    ),
    "frames": (
        _plain(_frames, encode(test_wire.call(1, "sa{sv}", "text", {})), encode(test_wire.call(2, "ay", b"x")) * 2),
        _plain(_body, b"sa{sv}\0\1\0\0\0x\0\0\0\0\0\0\0", b"v\0\1u\0\0\7\0\0\0", b"aay\0\4\0\0\0\0\0\0\0"),
    ),
}


def seeds(group: str) -> list[bytes]:
    """Inputs to begin with."""
    return [bytes([number]) + sample for number, check in enumerate(GROUPS[group]) for sample in check.samples]


def run(group: str, data: bytes, directory: Path) -> None:
    """One input: the first byte chooses the check of the group, the rest is for that. The directory is for files."""
    checks = GROUPS[group]
    if data:
        checks[data[0] % len(checks)].run(data[1:], directory)
