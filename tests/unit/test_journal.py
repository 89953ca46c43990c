"""The journal's files, whole and damaged: a record is read as it was written, or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.addresses import Address
from nvmeofd.journal import (
    ConnectIntent,
    DirectoryStore,
    FormatRecord,
    Journal,
    Phase,
    SubsystemRecord,
    VolumeRecord,
)
from nvmeofd.model import ControllerId, VolumeType
from tests.bus.fake import NQN, volume

from .fuzzing import damaged

PATH = "/srv/with blank/\udcff\u2603"
VOLUME = VolumeRecord(
    nqn=NQN,
    staging_path=PATH,
    type=VolumeType.FILESYSTEM,
    phase=Phase.STAGED,
    creates_path=True,
    volume=volume(PATH),
)
ADDRESS = Address.parse("tcp://192.0.2.1?host-iface=eth0")
SUBSYSTEM = SubsystemRecord(
    nqn=NQN,
    controllers=(ControllerId("nvme0", 12345), ControllerId("nvme1", 12346)),
    intent=ConnectIntent(ADDRESS, "nqn.2024-01.org.example:host", (1, 2)),
    keep=True,
)
FORMAT = FormatRecord(
    nqn=NQN, wwid="uuid.1", size=1 << 40, diskseq=7, fstype="ext4", uuid="0-0", started_at=1_700_000_000_000_000
)


class Files:
    """A store in memory."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def load(self) -> Mapping[str, bytes]:
        return self.files

    def write(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def delete(self, name: str) -> None:
        self.files.pop(name, None)


def records(journal: Journal) -> list[Any]:
    return [*journal.volumes.values(), *journal.subsystems.values(), *journal.formats.values()]


def loaded(files: Mapping[str, bytes]) -> list[Any]:
    journal = Journal(Files(files))
    journal.load()
    return records(journal)


def written(record: VolumeRecord | SubsystemRecord | FormatRecord) -> tuple[str, bytes]:
    """Name and content of the file of a record."""
    store = Files({})
    journal = Journal(store)
    if isinstance(record, VolumeRecord):
        journal.put_volume(record)
    elif isinstance(record, SubsystemRecord):
        journal.put_subsystem(record)
    else:
        journal.put_format(record)
    ((name, content),) = store.files.items()
    return name, content


RECORDS = pytest.mark.parametrize("record", [VOLUME, SUBSYSTEM, FORMAT], ids=lambda record: type(record).__name__)
ALL = [written(record) for record in (VOLUME, SUBSYSTEM, FORMAT)]


@RECORDS
def test_whole(record: Any) -> None:
    name, content = written(record)
    assert loaded({name: content}) == [record]


@RECORDS
def test_cut_off_at_every_byte(record: Any) -> None:
    name, content = written(record)
    for size in range(len(content)):
        assert loaded({name: content[:size]}) == []


@RECORDS
def test_every_bit_flipped(record: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "nvmeofd")  # thousands of refusals take longer to keep than to make
    name, content = written(record)
    for position in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        assert loaded({name: bytes(flipped)}) in ([], [record]), f"bit {position}"


@given(damaged(*(content for _, content in ALL)))
def test_damaged(content: bytes) -> None:
    assert all(record in (VOLUME, SUBSYSTEM, FORMAT) for record in loaded({"a.json": content}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["nqn", "volume"]), inner),
    ),
    st.sampled_from(["volume", "subsystem", "format", "x"]),
    st.booleans(),
)
def test_other_json(value: Any, kind: str, inside: bool) -> None:
    content = {"version": 1, "kind": kind, "record": value} if inside else value
    assert loaded({"a.json": json.dumps(content).encode()}) == []


def test_json_that_is_very_deep() -> None:
    assert loaded({"a.json": b"[" * 100_000, **dict(ALL)}) == [VOLUME, SUBSYSTEM, FORMAT]


def test_one_bad_file_spoils_nothing_else(tmp_path: Path) -> None:
    for name, content in ALL:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "volume-other.json").write_bytes(ALL[0][1][:-5])
    (tmp_path / ".volume-cut.json").write_bytes(b"{")
    (tmp_path / "README").write_bytes(b"not ours")
    journal = Journal(DirectoryStore(tmp_path))
    journal.load()
    assert records(journal) == [VOLUME, SUBSYSTEM, FORMAT]
    # what makes no sense stays for people to look at; a write that was cut short before its rename does not
    assert {path.name for path in tmp_path.iterdir()} == {*dict(ALL), "volume-other.json", "README"}


def test_a_file_under_the_name_of_another(tmp_path: Path) -> None:
    """Dropping the record would remove another file, and leave this one to come back."""
    assert loaded({"volume-0123.json": ALL[0][1]}) == []
