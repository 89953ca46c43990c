"""Intents and results on disk, so that ``kill -9`` at any point loses nothing.

One small JSON file per volume, per subsystem with controllers of this daemon, and per filesystem being made, below
/run/nvmeofd: what it describes (connections, mounts) does not survive a reboot either. Every write is a whole file
renamed into place. No secret is ever in here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from nvmeofd.addresses import Address, Transport
from nvmeofd.log import log, quoted
from nvmeofd.model import ControllerId, DeviceNumber, VolumeState, VolumeType
from nvmeofd.operations.volumes import Volume

VERSION = 1


class Phase(StrEnum):
    """How far a volume is. Only a record in phase STAGED is a staged volume."""

    STAGING = "staging"  # nothing of the volume itself was touched yet but perhaps its staging path
    MOUNTING = "mounting"  # the volume is complete but for the mount, which may or may not be there
    STAGED = "staged"
    UNSTAGING = "unstaging"  # the mount may or may not be there
    FORCING = "forcing"  # the same, and its dead subsystem is being disconnected under it
    UNDOING = "undoing"  # a Stage that failed left its mount behind; its caller knows that it failed
    UNMOUNTED = "unmounted"  # whoever mounts it there from now on is somebody else; the rest could not be undone yet


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """One volume. ``volume`` is None until its device is known."""

    nqn: str
    staging_path: str
    type: VolumeType
    phase: Phase
    creates_path: bool = False
    volume: Volume | None = None

    @property
    def to_unmount(self) -> Volume | None:
        """The volume, if this daemon may have mounted it. Before and after that, whoever has is somebody else."""
        return None if self.phase in (Phase.STAGING, Phase.UNMOUNTED) else self.volume


@dataclass(frozen=True, slots=True)
class ConnectIntent:
    """A connection about to be made, and the instances of all controllers that were there before it."""

    address: Address
    host_nqn: str
    known: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsystemRecord:
    """What this daemon has connected of one subsystem, or is disconnecting."""

    nqn: str
    controllers: tuple[ControllerId, ...] = ()
    intent: ConnectIntent | None = None
    keep: bool = False  # an Unstage asked to keep it connected
    leaving: tuple[ControllerId, ...] = ()  # those that a Disconnect is at work on, whoever connected them

    @property
    def empty(self) -> bool:
        return not self.controllers and self.intent is None and not self.leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRecord:
    """A filesystem being made on a device that was proven blank. Left over only when the daemon was killed meanwhile.

    ``size`` is in bytes, ``started_at`` in microseconds since the epoch.
    """

    nqn: str
    wwid: str
    size: int
    diskseq: int
    fstype: str
    uuid: str
    started_at: int


class Store(Protocol):
    """Where the files are: a directory, or memory in tests."""

    def load(self) -> Mapping[str, bytes]:
        """All files by name. Raises OSError."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole. Raises OSError."""

    def delete(self, name: str) -> None:
        """Remove a file; absent is success. Raises OSError."""


class DirectoryStore:
    """Files in one directory, made if absent. Raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> Mapping[str, bytes]:
        files = {}
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith("."):
                path.unlink()  # a write that was cut short before its rename
            elif path.suffix == ".json":
                files[path.name] = path.read_bytes()
        return files

    def write(self, name: str, content: bytes) -> None:
        temporary = self._directory / f".{name}"
        # no fsync: a tmpfs has nothing to sync to, and after a reboot these files would be wrong anyway
        temporary.write_bytes(content)
        temporary.replace(self._directory / name)

    def delete(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)


class Journal:
    """Typed access to the records."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.volumes: dict[str, VolumeRecord] = {}
        self.subsystems: dict[str, SubsystemRecord] = {}
        self.formats: dict[str, FormatRecord] = {}
        self._unwritten: set[str] = set()  # NQNs of the subsystems whose file is not what is known

    def load(self) -> None:
        """Read everything. A file that makes no sense is logged and left alone. Raises OSError."""
        for name, content in self._store.load().items():
            try:
                data = json.loads(content)
                if data["version"] != VERSION:
                    raise ValueError(f"version {data['version']}")
                if data["digest"] != _digest(data["kind"], data["record"]):
                    raise ValueError("the record is not what was written")
                self._take(name, data["kind"], data["record"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                log.error("journal file %s makes no sense and is ignored: %r", name, error)

    def _take(self, name: str, kind: str, data: dict[str, Any]) -> None:
        if kind == "volume":
            volume_record = _volume_record(data)
            _require_name(name, kind, volume_record.staging_path)
            self.volumes[volume_record.staging_path] = volume_record
        elif kind == "subsystem":
            subsystem_record = _subsystem_record(data)
            _require_name(name, kind, subsystem_record.nqn)
            self.subsystems[subsystem_record.nqn] = subsystem_record
        elif kind == "format":
            format_record = FormatRecord(**data)
            _require_name(name, kind, format_record.wwid)
            self.formats[format_record.wwid] = format_record
        else:
            raise ValueError(f"kind {kind!r}")

    def put_volume(self, record: VolumeRecord) -> None:
        """Write the record of a volume. Raises OSError, and then nothing has changed."""
        self._write("volume", record.staging_path, record)
        self.volumes[record.staging_path] = record

    def remember(self, record: VolumeRecord | SubsystemRecord) -> None:
        """Have the record as it is known now, in memory even if it cannot be written. Logs that."""
        try:
            if isinstance(record, VolumeRecord):
                self.volumes[record.staging_path] = record
                self.put_volume(record)
            else:
                self.subsystems[record.nqn] = record
                self._unwritten.add(record.nqn)
                self.put_subsystem(record)
        except OSError as error:
            name = record.staging_path if isinstance(record, VolumeRecord) else record.nqn
            log.warning("cannot write the record of %s: %s", quoted(name), error)

    @property
    def complete(self) -> bool:
        """Whether everything that is known of subsystems is written."""
        return not self._unwritten

    def write_again(self) -> None:
        """Try to write the records of subsystems that could only be remembered."""
        for nqn in list(self._unwritten):
            self.remember(self.subsystems[nqn])

    def set_phase(self, staging_path: str, phase: Phase) -> None:
        """Raises OSError."""
        self.put_volume(replace(self.volumes[staging_path], phase=phase))

    def drop_volume(self, staging_path: str) -> None:
        """Raises OSError."""
        self._store.delete(_file_name("volume", staging_path))
        self.volumes.pop(staging_path, None)

    def put_subsystem(self, record: SubsystemRecord) -> None:
        """Write the record of a subsystem, or remove an empty one. Raises OSError, and then nothing has changed."""
        if record.empty:
            self._store.delete(_file_name("subsystem", record.nqn))
            self.subsystems.pop(record.nqn, None)
        else:
            self._write("subsystem", record.nqn, record)
            self.subsystems[record.nqn] = record
        self._unwritten.discard(record.nqn)

    def put_format(self, record: FormatRecord) -> None:
        """Raises OSError."""
        self._write("format", record.wwid, record)
        self.formats[record.wwid] = record

    def drop_format(self, wwid: str) -> None:
        """Raises OSError."""
        self._store.delete(_file_name("format", wwid))
        self.formats.pop(wwid, None)

    def _write(self, kind: str, key: str, record: VolumeRecord | SubsystemRecord | FormatRecord) -> None:
        fields = asdict(record)
        data = {"version": VERSION, "kind": kind, "record": fields, "digest": _digest(kind, fields)}
        self._store.write(_file_name(kind, key), json.dumps(data, indent=1).encode())


def _file_name(kind: str, key: str) -> str:
    # a digest, because staging paths and NQNs are longer than a file name may be
    return f"{kind}-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"


def _require_name(name: str, kind: str, key: str) -> None:
    """Raises ValueError. A record in another file than its own would come back after it was dropped."""
    if name != _file_name(kind, key):
        raise ValueError("the file has the name of another record")


def _digest(kind: str, fields: Any) -> str:
    """What tells a record that was damaged from one that was written: acting upon it could unmount what is in use."""
    return hashlib.sha256(json.dumps([kind, fields], sort_keys=True).encode()).hexdigest()[:32]


def _address(data: dict[str, Any]) -> Address:
    return Address(**{**data, "transport": Transport(data["transport"])})


def _volume(data: dict[str, Any]) -> Volume:
    return Volume(
        **{
            **data,
            "number": DeviceNumber(**data["number"]),
            "type": VolumeType(data["type"]),
            "mount_options": tuple(data["mount_options"]),
            "addresses": tuple(_address(a) for a in data["addresses"]),
            "state": VolumeState(data["state"]),
        }
    )


def _volume_record(data: dict[str, Any]) -> VolumeRecord:
    volume = data["volume"]
    return VolumeRecord(
        **{
            **data,
            "type": VolumeType(data["type"]),
            "phase": Phase(data["phase"]),
            "volume": None if volume is None else _volume(volume),
        }
    )


def _subsystem_record(data: dict[str, Any]) -> SubsystemRecord:
    intent = data["intent"]
    return SubsystemRecord(
        nqn=str(data["nqn"]),
        controllers=tuple(ControllerId(**c) for c in data["controllers"]),
        intent=None
        if intent is None
        else ConnectIntent(_address(intent["address"]), intent["host_nqn"], tuple(intent["known"])),
        keep=bool(data["keep"]),
        leaving=tuple(ControllerId(**c) for c in data.get("leaving", ())),
    )
