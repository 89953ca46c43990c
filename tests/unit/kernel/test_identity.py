"""The identity of the host: read, or made once, whoever else is at it."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.addresses import Address
from nvmeofd.kernel.fabrics import Fabrics
from nvmeofd.kernel.identity import Identity, firmware_uuid, machine_uuid
from nvmeofd.kernel.interface import ConnectError, ConnectParameters
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.kernel.roots import Roots
from nvmeofd.model import UUID_NQN, ControllerId, HostIdentity

from . import trees

UUID = "5f1c2c0e-8f3a-4d57-9d53-0c1e5a2b7d10"
OTHER = "ad24b111-02f0-4bdb-a36c-41e4e47e0bb0"
NQN = UUID_NQN + UUID
HOST = HostIdentity(NQN, UUID)
NAMED = "nqn.2024-01.org.example:host1"
MACHINE_ID = "0123456789abcdef0123456789abcdee"


class Host:
    """A host in a directory. Without a DMI UUID and a machine ID only chance is left."""

    def __init__(self, top: Path, *, dmi: str = "", machine_id: str = "") -> None:
        self.etc = top / "etc/nvme"
        self.etc.mkdir(parents=True)
        self.top = top
        if dmi:
            self.write(top / "sys/class/dmi/id/product_uuid", dmi)
        if machine_id:
            self.write(top / "etc/machine-id", machine_id)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.etc.iterdir()}

    def identity(self) -> Identity:
        top = str(self.top)
        return Identity(
            Roots(
                sys=f"{top}/sys",
                proc=f"{top}/proc",
                etc_nvme=str(self.etc),
                machine_id=f"{top}/etc/machine-id",
                run_nvmeofd=str(top),
            )
        )


def content(host: HostIdentity) -> dict[str, str]:
    return {"hostnqn": f"{host.nqn}\n", "hostid": f"{host.id}\n"}


# ---- made


def test_made_once_from_dmi(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=UUID.upper(), machine_id=MACHINE_ID)
    with pytest.raises(FileNotFoundError):
        host.identity().current()
    assert host.identity().establish() == HOST
    assert host.files() == content(HOST)
    assert {stat.S_IMODE(path.stat().st_mode) for path in host.etc.iterdir()} == {0o644}
    host.write(tmp_path / "sys/class/dmi/id/product_uuid", OTHER)
    assert host.identity().establish() == host.identity().current() == HOST


def test_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=UUID)
    host.etc.rmdir()
    previous = os.umask(0o077)
    try:
        host.identity().establish()
    finally:
        os.umask(previous)
    assert {stat.S_IMODE(path.stat().st_mode) for path in host.etc.iterdir()} == {0o644}
    assert stat.S_IMODE(host.etc.stat().st_mode) == 0o755


def test_device_tree(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=str(uuid.UUID(int=0)), machine_id=MACHINE_ID)
    path = tmp_path / "proc/device-tree/ibm,partition-uuid"
    path.parent.mkdir(parents=True)
    path.write_bytes(UUID.encode() + b"\0")
    assert host.identity().establish() == HOST


def test_machine_id(tmp_path: Path) -> None:
    host = Host(tmp_path, machine_id=MACHINE_ID)
    made = host.identity().establish()
    assert made.id == str(machine_uuid(MACHINE_ID))
    assert made.id.replace("-", "") != MACHINE_ID
    assert host.files() == content(made)


def test_chance(tmp_path: Path) -> None:
    hosts = [Host(tmp_path / name) for name in "ab"]
    made = [host.identity().establish() for host in hosts]
    assert made[0] != made[1]
    for host, one in zip(hosts, made, strict=True):
        assert uuid.UUID(one.id).version == 4
        assert one.nqn == UUID_NQN + one.id
        assert host.identity().establish() == one


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "Not Settable", "Not Present", UUID[:-1], f"{{{UUID}}}", UUID.replace("-", "")),
        *("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        *("03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009"),
        *("00010203-0405-0607-0809-0A0B0C0D0E0F", "11111111-2222-3333-4444-444444444444"),
    ],
)
def test_junk_of_firmware(text: str) -> None:
    assert firmware_uuid(text) is None


@given(st.uuids(version=4))
def test_uuids_of_firmware(value: uuid.UUID) -> None:
    assert firmware_uuid(f"{value}\n") == firmware_uuid(str(value).upper()) == value


def test_uuids_of_firmware_from_a_mac_address() -> None:
    assert firmware_uuid("00000000-0000-1000-8000-ac1f6b7b78ea") is not None


@given(st.text(max_size=40))
def test_any_machine_id(text: str) -> None:
    assert firmware_uuid(text) is None or "-" in text
    assert machine_uuid(text) is None or len(text.strip()) == 32


def test_no_machine_id() -> None:
    for text in ("", "uninitialized\n", "0" * 32, MACHINE_ID.upper(), MACHINE_ID[:-1]):
        assert machine_uuid(text) is None


# ---- one from the other


def test_id_from_the_nqn(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=OTHER)
    host.write(host.etc / "hostnqn", NQN)
    assert host.identity().establish() == HOST
    assert host.files() == content(HOST)


def test_nqn_from_the_id(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=OTHER)
    host.write(host.etc / "hostid", UUID)
    assert host.identity().establish() == HOST
    assert host.files() == content(HOST)


def test_nqn_without_a_uuid(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=UUID)
    host.write(host.etc / "hostnqn", NAMED)
    assert host.identity().establish() == HostIdentity(NAMED, UUID)
    assert host.files() == content(HostIdentity(NAMED, UUID))


# ---- what is there


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("hostnqn", b""),
        ("hostnqn", b"\n"),
        ("hostnqn", b"hostname\n"),
        ("hostnqn", b"nqn.2024-01.org.example:a b\n"),
        ("hostnqn", b"nqn.2024-01.org.example:a,hostid=b\n"),
        ("hostnqn", b"nqn.2024-01.org.example:\xff\n"),
        ("hostnqn", b"nqn.2024-01.org.example:" + b"x" * 5000),
        ("hostid", b""),
        ("hostid", b"host1\n"),
        ("hostid", UUID[:-1].encode()),
    ],
)
@pytest.mark.parametrize("both", [True, False])
def test_malformed_is_named_and_left_alone(tmp_path: Path, name: str, raw: bytes, both: bool) -> None:
    host = Host(tmp_path, dmi=UUID)
    if both:
        for other, text in content(HOST).items():
            (host.etc / other).write_text(text)
    (host.etc / name).write_bytes(raw)
    before = {path.name: (path.read_bytes(), path.stat()) for path in host.etc.iterdir()}
    one = host.identity()
    for read in (one.current, one.establish):
        with pytest.raises(ValueError, match=f"{tmp_path}/etc/nvme/{name}: "):
            read()
    assert {path.name: (path.read_bytes(), path.stat()) for path in host.etc.iterdir()} == before


def test_something_else_than_a_file(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=UUID)
    os.mkfifo(host.etc / "hostnqn")
    with pytest.raises(ValueError, match="hostnqn: it is empty"):
        host.identity().establish()
    (host.etc / "hostnqn").unlink()
    (host.etc / "hostnqn").mkdir()
    with pytest.raises(OSError, match="hostnqn"):
        host.identity().establish()
    assert [path.name for path in host.etc.iterdir()] == ["hostnqn"]


def test_only_the_first_line_counts(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (host.etc / "hostnqn").write_text(f"{NQN}\nnqn.2024-01.org.example:other\n")
    (host.etc / "hostid").write_text(f"{UUID.upper()}\r\n")
    assert host.identity().current() == HOST


def test_pair_that_does_not_match_is_used(tmp_path: Path) -> None:
    host = Host(tmp_path, dmi=UUID)
    for name, text in (("hostnqn", NQN), ("hostid", OTHER)):
        host.write(host.etc / name, text)
    assert host.identity().establish() == HostIdentity(NQN, OTHER)
    assert host.files() == content(HostIdentity(NQN, OTHER))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (HOST, ()),
        (HostIdentity(UUID_NQN + UUID.upper(), UUID), ()),
        (HostIdentity(NAMED, UUID), ()),
        (HostIdentity(f"{UUID_NQN}none", UUID), ()),
        (HostIdentity(NQN, OTHER), (NQN, OTHER, f"write {UUID} into /etc/nvme/hostid")),
    ],
)
def test_mismatch(host: HostIdentity, said: tuple[str, ...]) -> None:
    assert all(part in host.mismatch for part in said)
    assert bool(host.mismatch) is bool(said)


# ---- what cannot be written


@contextmanager
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with a read-only /etc; permissions would not stop root."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", refuse)
        yield


@pytest.mark.parametrize("known", [{"dmi": UUID}, {"machine_id": MACHINE_ID}])
def test_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, str]) -> None:
    host = Host(tmp_path, **known)
    one = host.identity()
    with unwritable(monkeypatch):
        made = one.establish()
        assert one.current() == one.establish() == made
        assert host.identity().establish() == made  # the next start
        assert host.files() == {}
    for name, text in content(HostIdentity(NAMED, OTHER)).items():
        (host.etc / name).write_text(text)
    assert one.current() == HostIdentity(NAMED, OTHER)


def test_one_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    host.write(host.etc / "hostid", UUID)
    one = host.identity()
    with unwritable(monkeypatch):
        assert one.establish() == one.current() == HOST
        host.write(host.etc / "hostid", OTHER)
        with pytest.raises(FileNotFoundError):
            one.current()
        assert one.establish() == HostIdentity(UUID_NQN + OTHER, OTHER)


def test_nothing_lasting_and_nothing_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    one = host.identity()
    with unwritable(monkeypatch), pytest.raises(OSError, match="cannot be written"):
        one.establish()
    with pytest.raises(FileNotFoundError):
        one.current()


def test_second_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both or none."""
    host = Host(tmp_path, dmi=UUID)
    link, links = os.link, [0]

    def full(source: str, target: str) -> None:
        links[0] += 1
        if links[0] == 2:
            raise OSError(28, "No space left on device")
        link(source, target)

    monkeypatch.setattr(os, "link", full)
    assert host.identity().establish() == HOST
    assert host.files() == {}


# ---- others make it at the same time


@pytest.mark.parametrize(("name", "text"), [("hostnqn", UUID_NQN + OTHER), ("hostid", OTHER)])
@pytest.mark.parametrize("moment", [1, 2])
def test_file_of_somebody_else_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, moment: int
) -> None:
    """It comes just before one of the two links."""
    host = Host(tmp_path, dmi=UUID)
    link, links = os.link, [0]

    def meanwhile(source: str, target: str) -> None:
        links[0] += 1
        if links[0] == moment and not (host.etc / name).exists():
            host.write(host.etc / name, text)
        link(source, target)

    monkeypatch.setattr(os, "link", meanwhile)
    made = host.identity().establish()
    ours_was_first = (name, moment) == ("hostnqn", 2)
    assert made == (HOST if ours_was_first else HostIdentity(UUID_NQN + OTHER, OTHER))
    assert host.files() == content(made)


def test_shell_that_has_not_written_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, dmi=UUID)
    link = os.link

    def meanwhile(source: str, target: str) -> None:
        (host.etc / "hostnqn").touch()
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", meanwhile)
        with pytest.raises(ValueError, match="hostnqn: it is empty"):
            host.identity().establish()
    assert host.files() == {"hostnqn": ""}
    host.write(host.etc / "hostnqn", UUID_NQN + OTHER)
    assert host.identity().establish() == HostIdentity(UUID_NQN + OTHER, OTHER)


@pytest.mark.parametrize("turn", range(20))
def test_many_at_once(tmp_path: Path, turn: int) -> None:
    """Threads of one daemon, and a second daemon, on a host that chance has to tell."""
    host = Host(tmp_path)
    one, start = host.identity(), threading.Barrier(4)
    made: list[HostIdentity] = []

    def establish(by: Identity) -> None:
        start.wait()
        made.append(by.establish())

    threads = [threading.Thread(target=establish, args=(by,)) for by in (one, one, one, host.identity())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert all(first == second for first, second in pairwise(made))
    assert host.files() == content(made[0])


@given(st.binary(max_size=300), st.sampled_from(["hostnqn", "hostid"]))
def test_any_content(tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str) -> None:
    host = Host(tmp_path_factory.mktemp("any"), dmi=UUID)
    (host.etc / name).write_bytes(raw)
    with suppress(ValueError):
        assert host.identity().establish() == host.identity().current()
    assert (host.etc / name).read_bytes() == raw


# ---- the kernel has another half of it


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"hostnqn": NQN, "hostid": UUID}, False),
        ({"hostnqn": NAMED, "hostid": OTHER}, False),
        ({"hostnqn": NAMED, "hostid": UUID}, True),
        ({"hostnqn": NQN, "hostid": OTHER}, True),
    ],
)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_connection_as_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str], said: bool, number: int
) -> None:
    trees.controller(tmp_path, trees.subsystem(tmp_path, "nvme-subsys0"), "nvme0", **attributes)

    async def refuse(*_: object) -> ControllerId:
        raise ConnectError(number, "no")

    monkeypatch.setattr(Fabrics, "connect", refuse)
    parameters = ConnectParameters(nqn=trees.NQN, address=Address.parse("tcp://127.0.0.1"), host=HOST)
    with LinuxKernel(Roots(sys=str(tmp_path))) as kernel, pytest.raises(ConnectError) as caught:
        asyncio.run(kernel.connect(parameters))
    assert caught.value.errno == number
    parts = (f"nvme0 is connected as {attributes['hostnqn']}", attributes["hostid"], NQN, UUID)
    assert all(part in str(caught.value) for part in parts) is (said and number == errno.EINVAL)
