"""Subsystems, controllers and namespaces read from a sysfs tree."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.addresses import Address
from nvmeofd.kernel.attributes import Gone, present
from nvmeofd.kernel.sysfs import Sysfs, hex_digits, parse_uevent
from nvmeofd.model import DeviceNumber, NamespaceId

from . import trees
from .trees import NQN, UUID

identifiers = st.binary(min_size=16, max_size=16)


@given(identifiers)
def test_forms_of_an_identifier(identifier: bytes) -> None:
    digits = identifier.hex() if any(identifier) else ""
    assert hex_digits(str(uuid.UUID(bytes=identifier))) == digits
    assert hex_digits(identifier.hex(" ")) == digits
    assert hex_digits(identifier.hex().upper()) == digits


def test_events_of_a_controller() -> None:
    assert parse_uevent(trees.uevent("fe80::1%eth0", "eth0")) == {
        "MAJOR": "243",
        "MINOR": "0",
        "DEVNAME": "nvme0",
        "NVME_TRTYPE": "tcp",
        "NVME_TRADDR": "fe80::1%eth0",
        "NVME_TRSVCID": "4420",
        "NVME_HOST_IFACE": "eth0",
    }
    assert parse_uevent("\n") == {}
    assert parse_uevent("NVME_TRADDR=127.0.0.1\n=4420\nNVME_TRSVCID") == {"NVME_TRADDR": "127.0.0.1"}
    assert parse_uevent("NVME_TRTYPE=loop\nNVME_TRADDR=(null)\nNVME_TRSVCID=none") == {"NVME_TRTYPE": "loop"}
    assert parse_uevent("NVME_TRADDR=nn-0x1:pn-0x2\n") == {"NVME_TRADDR": "nn-0x1:pn-0x2"}


def test_the_attribute_that_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may crash over ``address``."""
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0", address="traddr=127.0.0.7,trsvcid=1")
    opened = []
    really = os.open

    def noted(path: str, *args: Any, **kwargs: Any) -> int:
        opened.append(path)
        return really(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", noted)
    (found,) = Sysfs(str(tmp_path)).subsystems()
    assert found.controllers[0].traddr == "127.0.0.1"
    assert "uevent" in opened
    assert "address" not in opened


def test_no_nvme_at_all(tmp_path: Path) -> None:
    assert Sysfs(str(tmp_path)).subsystems() == ()
    assert Sysfs(str(tmp_path)).multipath()
    assert Sysfs(str(tmp_path)).btrfs_siblings("nvme0n1") == frozenset()


def test_two_paths_and_two_namespaces(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    first = trees.controller(tmp_path, subsystem, "nvme0")
    trees.controller(tmp_path, subsystem, "nvme1", uevent=trees.uevent("127.0.0.2"), state="connecting")
    trees.disk(tmp_path, subsystem, "nvme0n1", dev="259:4", partitions=2, nguid=UUID, eui="00 11 22 33 44 55 66 77")
    trees.disk(tmp_path, subsystem, "nvme0n2", dev="259:9", diskseq="18", nsid="2")
    trees.disk(tmp_path, first, "nvme0c0n1", hidden="1")
    trees.write(tmp_path / "class/nvme-generic/ng0n1", dev="240:0")

    (found,) = Sysfs(str(tmp_path)).subsystems()
    assert (found.nqn, found.name) == (NQN, "nvme-subsys0")
    assert [(c.name, c.traddr, c.trsvcid, c.state) for c in found.controllers] == [
        ("nvme0", "127.0.0.1", "4420", "live"),
        ("nvme1", "127.0.0.2", "4420", "connecting"),
    ]
    assert found.controllers[0].instance == os.stat(first).st_ino
    assert found.controllers[0].serves(Address.parse("tcp://127.0.0.1"))
    one, two = found.namespaces
    assert (one.name, one.number, one.diskseq, one.nsid, one.size) == ("nvme0n1", DeviceNumber(259, 4), 17, 1, 1 << 20)
    assert one.matches(NamespaceId.parse(UUID))
    assert one.nguid == UUID.replace("-", "")
    assert one.eui64 == "0011223344556677"
    assert [p.name for p in one.partitions] == ["nvme0n1p1", "nvme0n1p2"]
    assert one.generic == DeviceNumber(240, 0)
    assert (two.name, two.generic, two.nqn) == ("nvme0n2", None, NQN)
    assert Sysfs(str(tmp_path)).subsystem(NQN) == found
    assert Sysfs(str(tmp_path)).subsystem(NQN + "x") is None
    same = Sysfs(str(tmp_path)).namespace("nvme0n1")
    assert same
    assert same.same_incarnation(one)
    assert Sysfs(str(tmp_path)).namespace("nvme0c0n1") is None
    assert Sysfs(str(tmp_path)).namespace("nvme7n1") is None


def test_the_nguid_in_the_uuid_attribute_is_no_uuid(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0")
    digits = UUID.replace("-", "")
    trees.disk(tmp_path, subsystem, "nvme0n1", wwid=f"eui.{digits}", uuid=UUID, nguid=UUID)
    (found,) = Sysfs(str(tmp_path)).subsystems()
    (namespace,) = found.namespaces
    assert (namespace.uuid, namespace.nguid) == ("", digits)
    assert not namespace.matches(NamespaceId.parse(UUID))
    assert namespace.matches(NamespaceId.parse(f"eui.{digits}"))


def test_without_multipath_the_disks_are_below_the_controllers(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.disk(tmp_path, trees.controller(tmp_path, subsystem, "nvme0"), "nvme0n1")
    trees.disk(tmp_path, trees.controller(tmp_path, subsystem, "nvme1"), "nvme1n1")
    (found,) = Sysfs(str(tmp_path)).subsystems()
    assert [n.name for n in found.namespaces] == ["nvme0n1", "nvme1n1"]


def test_local_disks_are_not_listed(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0", transport="pcie", uevent="DEVNAME=nvme0\nNVME_TRTYPE=pcie")
    trees.disk(tmp_path, subsystem, "nvme0n1")
    assert Sysfs(str(tmp_path)).subsystems() == ()


def test_a_subsystem_with_disks_left_but_no_controllers_is_listed(tmp_path: Path) -> None:
    trees.disk(tmp_path, trees.subsystem(tmp_path, "nvme-subsys0"), "nvme0n1")
    trees.subsystem(tmp_path, "nvme-subsys1", NQN + "2")
    (found,) = Sysfs(str(tmp_path)).subsystems()
    assert found.controllers == ()
    assert len(found.namespaces) == 1


def test_two_directories_with_one_nqn_are_one_subsystem(tmp_path: Path) -> None:
    trees.disk(tmp_path, trees.subsystem(tmp_path, "nvme-subsys0"), "nvme0n1")
    trees.controller(tmp_path, trees.subsystem(tmp_path, "nvme-subsys3"), "nvme3")
    found = Sysfs(str(tmp_path)).subsystem(NQN)
    assert found
    assert (found.name, len(found.controllers), len(found.namespaces)) == ("nvme-subsys3", 1, 1)


def test_a_subsystem_is_found_whatever_is_the_matter_with_others(tmp_path: Path) -> None:
    trees.disk(tmp_path, trees.subsystem(tmp_path, "nvme-subsys0", NQN + "2"), "nvme0n1", size="nonsense")
    trees.controller(tmp_path, trees.subsystem(tmp_path, "nvme-subsys1"), "nvme1")
    found = Sysfs(str(tmp_path)).subsystem(NQN)
    assert found
    assert found.name == "nvme-subsys1"
    for look in (Sysfs(str(tmp_path)).subsystems, lambda: Sysfs(str(tmp_path)).subsystem(NQN + "2")):
        with pytest.raises(OSError, match="nonsense"):
            look()


def test_a_vanished_controller_is_left_out(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0")
    shutil.rmtree(trees.controller(tmp_path, subsystem, "nvme1"))
    (found,) = Sysfs(str(tmp_path)).subsystems()
    assert [c.name for c in found.controllers] == ["nvme0"]


@pytest.mark.parametrize("attribute", ["wwid", "dev", "diskseq", "size", "nsid", "hidden"])
def test_what_is_there_but_cannot_be_read_is_an_error(tmp_path: Path, attribute: str) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0")
    (trees.disk(tmp_path, subsystem, "nvme0n1") / attribute).unlink()
    with pytest.raises(OSError, match="cannot be read"):
        Sysfs(str(tmp_path)).subsystems()


@pytest.mark.parametrize("attribute", ["transport", "state"])
def test_a_controller_that_cannot_be_read_is_an_error(tmp_path: Path, attribute: str) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    (trees.controller(tmp_path, subsystem, "nvme0") / attribute).unlink()
    with pytest.raises(OSError, match="cannot be read"):
        Sysfs(str(tmp_path)).subsystems()


def test_a_subsystem_that_is_not_complete_is_none(tmp_path: Path) -> None:
    """Without its attributes it has neither controllers nor namespaces: nothing to wait for."""
    trees.controller(tmp_path, trees.subsystem(tmp_path, "nvme-subsys1", NQN + "2"), "nvme1")
    (trees.subsystem(tmp_path, "nvme-subsys0") / "subsysnqn").unlink()
    sysfs = Sysfs(str(tmp_path))
    assert [one.name for one in sysfs.subsystems()] == ["nvme-subsys1"]
    assert sysfs.subsystem(NQN) is None


@pytest.mark.parametrize("member", ["nvme0", "nvme0n1"])
def test_a_subsystem_without_its_name_is_an_error_as_long_as_there_is_something_in_it(
    tmp_path: Path, member: str
) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    (trees.disk if "n1" in member else trees.controller)(tmp_path, subsystem, member)
    (subsystem / "subsysnqn").unlink()
    for look in (Sysfs(str(tmp_path)).subsystems, lambda: Sysfs(str(tmp_path)).subsystem(NQN)):
        with pytest.raises(OSError, match=r"cannot be read: no .*subsysnqn"):
            look()


def test_the_error_names_the_attribute(tmp_path: Path) -> None:
    attribute = trees.subsystem(tmp_path, "nvme-subsys0") / "subsysnqn"
    attribute.unlink()
    attribute.mkdir()
    with pytest.raises(IsADirectoryError, match="class/nvme-subsystem/nvme-subsys0/subsysnqn"):
        Sysfs(str(tmp_path)).subsystems()


def test_malformed_numbers_are_errors(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.disk(tmp_path, subsystem, "nvme0n1", size="many")
    with pytest.raises(OSError, match="size contains 'many'"):
        Sysfs(str(tmp_path)).subsystems()


@pytest.mark.parametrize("call", ["open", "read"])
def test_an_attribute_that_is_being_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """It can be seen still, but not be opened any more, or not be read: ENODEV. The device is looked at again."""
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0")
    trees.disk(tmp_path, subsystem, "nvme0n1")
    sysfs = Sysfs(str(tmp_path))
    whole = sysfs.subsystems()
    really: Callable[..., Any] = getattr(os, call)
    number = wrong = 0

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal number
        number += 1
        if number == wrong:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return really(*args, **kwargs)

    monkeypatch.setattr(os, call, fails_once)
    assert sysfs.subsystems() == whole
    for position in range(1, number + 1):
        number, wrong = 0, position
        found = sysfs.subsystems()
        assert [one.controllers[0].name for one in found] == ["nvme0"]
        assert [one.namespaces[0].wwid for one in found] == [whole[0].namespaces[0].wwid]


class Clock:
    """What :mod:`time` is to what waits. ``device`` goes when ``lifetime`` seconds have passed."""

    def __init__(self, device: Path, lifetime: float) -> None:
        self._device = device
        self._lifetime = lifetime
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > 1000.0 + self._lifetime:
            shutil.rmtree(self._device, ignore_errors=True)


def without_attributes(path: str) -> None:
    raise Gone(f"{path}/dev")


def test_a_device_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attributes go first, and the thread that removes it may have to wait for a processor then."""
    device = trees.write(tmp_path / "device", dev="1:2")
    clock = Clock(device, lifetime=0.05)
    monkeypatch.setattr("nvmeofd.kernel.attributes.time", clock)
    assert present(without_attributes, str(device)) is None


def test_a_device_that_stays_without_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = trees.write(tmp_path / "device", dev="1:2")
    clock = Clock(device, lifetime=3600)
    monkeypatch.setattr("nvmeofd.kernel.attributes.time", clock)
    with pytest.raises(OSError, match=f"{device} is there but cannot be read: no {device}/dev"):
        present(without_attributes, str(device))
    assert clock.now < 1001


def test_holders(tmp_path: Path) -> None:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    disk = trees.disk(tmp_path, subsystem, "nvme0n1", partitions=1)
    sysfs = Sysfs(str(tmp_path))
    namespace = sysfs.namespace("nvme0n1")
    assert namespace
    assert sysfs.holders(namespace) == ()
    trees.link(disk / "holders/dm-0", tmp_path / "dm-0")
    trees.link(disk / "nvme0n1p1/holders/md127", tmp_path / "md127")
    assert sysfs.holders(namespace) == (("nvme0n1", "dm-0"), ("nvme0n1p1", "md127"))
    (disk / "diskseq").write_text("99\n")
    with pytest.raises(OSError, match="gone"):
        sysfs.holders(namespace)


def test_btrfs_siblings(tmp_path: Path) -> None:
    trees.write(tmp_path / "fs/btrfs/features")
    for filesystem, names in {UUID: ("nvme0n1", "nvme1n1"), "other": ("sda",)}.items():
        for name in names:
            trees.link(tmp_path / "fs/btrfs" / filesystem / "devices" / name, tmp_path)
    assert Sysfs(str(tmp_path)).btrfs_siblings("nvme1n1") == {"nvme0n1", "nvme1n1"}
    assert Sysfs(str(tmp_path)).btrfs_siblings("nvme7n1") == frozenset()


def test_multipath(tmp_path: Path) -> None:
    parameters = tmp_path / "module/nvme_core/parameters"
    trees.write(parameters, multipath="N")
    assert not Sysfs(str(tmp_path)).multipath()
    trees.write(parameters, multipath="Y")
    assert Sysfs(str(tmp_path)).multipath()
    (parameters / "multipath").unlink()
    assert not Sysfs(str(tmp_path)).multipath()
