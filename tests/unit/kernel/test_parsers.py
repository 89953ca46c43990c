"""Forms of what the kernel and tools say: fabrics options, blkid, swaps, host identity, registry."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.addresses import Address
from nvmeofd.kernel import fabrics, host, tools
from nvmeofd.kernel.controllers import Controllers
from nvmeofd.kernel.interface import ConnectError, ConnectParameters, Content
from nvmeofd.kernel.registry import Registry
from nvmeofd.model import ControllerId, DeviceNumber, HostIdentity

from . import trees
from .trees import NQN

HOST = HostIdentity("nqn.2014-08.org.example:host", "00000000-0000-4000-8000-000000000001")
LISTED = (
    "instance=-1,cntlid=-1,transport=%s,traddr=%s,trsvcid=%s,nqn=%s,queue_size=%d,hostnqn=%s,hostid=%s,hdr_digest,tls\n"
)


# ---- fabrics


def parameters(address: str = "tcp://127.0.0.1", **more: object) -> ConnectParameters:
    return ConnectParameters(nqn=NQN, address=Address.parse(address), host=HOST, **more)  # type: ignore[arg-type]


def test_options_that_a_kernel_lists() -> None:
    assert fabrics.parse_options(LISTED) == {
        *("transport", "traddr", "trsvcid", "nqn", "queue_size", "hostnqn", "hostid", "hdr_digest", "tls")
    }


def test_options_of_a_connection() -> None:
    options = fabrics.build_options(parameters(ctrl_loss_tmo=-1, keep_alive_tmo=0, hdr_digest=True))
    assert options == {
        "nqn": NQN,
        "transport": "tcp",
        "traddr": "127.0.0.1",
        "trsvcid": "4420",
        "hostnqn": HOST.nqn,
        "hostid": HOST.id,
        "ctrl_loss_tmo": "-1",
        "keep_alive_tmo": "0",
        "hdr_digest": None,
    }
    assert "traddr" not in fabrics.build_options(parameters("loop://"))
    fc = fabrics.build_options(parameters("fc://nn-0x0000000000000001:pn-0x0000000000000002"))
    assert fc["traddr"] == "nn-0x0000000000000001:pn-0x0000000000000002"
    assert "trsvcid" not in fc
    source = fabrics.build_options(parameters("tcp://[::1]:4421?host-traddr=::2&host-iface=eth0"))
    assert (source["traddr"], source["host_traddr"], source["host_iface"]) == ("::1", "::2", "eth0")


def test_an_option_that_the_kernel_does_not_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nvme-fabrics").write_text(LISTED)
    with pytest.raises(ConnectError, match="data_digest") as caught:
        asyncio.run(fabrics.Fabrics(str(tmp_path), Controllers(str(tmp_path))).connect(parameters(data_digest=True)))
    assert caught.value.errno == errno.EINVAL
    assert (tmp_path / "nvme-fabrics").read_text() == LISTED, "nothing was written"


def test_without_the_module(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="nvme_fabrics") as caught:
        asyncio.run(fabrics.Fabrics(str(tmp_path), Controllers(str(tmp_path))).connect(parameters()))
    assert caught.value.errno == errno.ENOENT


def answering(root: Path, answer: str) -> fabrics.Fabrics:
    """A device that takes a connection without an address, and has this to say of it."""
    options = fabrics.build_options(parameters("loop://"))
    listed = ",".join(f"{name}=%s" for name in options)
    written = ",".join(f"{name}={value}" for name, value in options.items())
    (root / "nvme-fabrics").write_text(f"{listed},".ljust(len(written), ",") + answer)
    return fabrics.Fabrics(str(root), Controllers(str(root)))


def test_connected_controller_is_known_by_its_instance(tmp_path: Path) -> None:
    device = trees.controller(tmp_path, trees.subsystem(tmp_path, "nvme-subsys0"), "nvme7")
    found = asyncio.run(answering(tmp_path, "instance=7,cntlid=1\n").connect(parameters("loop://")))
    assert found == ControllerId("nvme7", device.stat().st_ino)


def test_connected_and_gone_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="nvme7") as caught:
        asyncio.run(answering(tmp_path, "instance=7,cntlid=1\n").connect(parameters("loop://")))
    assert caught.value.errno == errno.ENODEV


def test_no_thread_to_connect_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was connected, so nothing is to be looked for."""

    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    fabric = answering(tmp_path, "instance=7,cntlid=1\n")
    monkeypatch.setattr(threading.Thread, "start", cannot)
    with pytest.raises(ConnectError) as caught:
        asyncio.run(fabric.connect(parameters("loop://")))
    assert caught.value.errno == errno.EAGAIN


def test_connected_as_what_cannot_be_told(tmp_path: Path) -> None:
    """Not a ConnectError: somebody has to look for it."""
    with pytest.raises(OSError, match="cntlid"):
        asyncio.run(answering(tmp_path, "cntlid=1\n").connect(parameters("loop://")))


def test_reasons() -> None:
    assert fabrics.reason(errno.ECONNREFUSED).endswith("(ECONNREFUSED)")
    assert fabrics.reason(errno.EXDEV) == f"{os.strerror(errno.EXDEV)} (EXDEV)"
    assert "12345" in fabrics.reason(12345)


def test_resolving() -> None:
    address = Address.parse("tcp://192.0.2.1:4421")
    assert asyncio.run(fabrics.resolve(address)) == (address,)
    found = asyncio.run(fabrics.resolve(Address.parse("tcp://localhost:4421?host-iface=lo")))
    assert {a.host for a in found} <= {"127.0.0.1", "::1"}
    assert {(a.port, a.host_iface) for a in found} == {(4421, "lo")}
    with pytest.raises(ConnectError, match="cannot resolve nowhere"):
        asyncio.run(fabrics.resolve(Address.parse("tcp://nowhere.invalid")))


# ---- blkid


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,12}", fullmatch=True), st.text(alphabet="ab \\'\"$=é#", max_size=12)))
def test_blkid_export_round_trips(tags: dict[str, str]) -> None:
    def quote(value: str) -> str:
        return "".join(f"\\{c}" if c in "\"'\\$ " else c for c in value)

    text = "".join(f"{key}={quote(value)}\n" for key, value in tags.items())
    assert tools.parse_export(text) == tags


@pytest.mark.parametrize(
    ("tags", "content"),
    [
        ({"DEVNAME": "/dev/x"}, Content()),
        ({"TYPE": "ext4", "USAGE": "filesystem", "UUID": "u"}, Content("ext4", "u")),
        ({"TYPE": "crypto_LUKS", "USAGE": "crypto", "UUID": "u"}, Content(other="crypto_LUKS")),
        ({"TYPE": "swap", "USAGE": "other"}, Content(other="swap")),
        ({"PTTYPE": "gpt", "PTUUID": "u"}, Content(other="gpt partition table")),
        ({"TYPE": "vfat", "USAGE": "filesystem", "PTTYPE": "dos"}, Content("vfat", other="dos partition table")),
    ],
)
def test_content(tags: dict[str, str], content: Content) -> None:
    assert tools.content_of(tags) == content


# ---- host


def test_swaps(tmp_path: Path) -> None:
    (tmp_path / "swaps").write_bytes(
        b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        b"/dev/nvme0n1p2                          partition\t1048572\t\t0\t\t-2\n"
        b"/srv/a\\040swap\\012file                  file\t\t1048572\t\t0\t\t-3\n"
    )
    trees.write(tmp_path / "class/block/nvme0n1p2", dev="259:3")
    first, second = host.swaps(str(tmp_path), str(tmp_path))
    assert (first.name, first.number) == ("/dev/nvme0n1p2", DeviceNumber(259, 3))
    assert (second.name, second.number) == ("/srv/a swap\nfile", None)
    assert not first.doubtful
    assert not second.doubtful
    assert host.swaps("/proc", "/sys") is not None


@pytest.mark.parametrize("name", ["/dev/nvme0n1\\040(deleted)", "/dev/sdb2\\040(deleted)", "/nowhere/dev"])
def test_swap_that_cannot_be_told(tmp_path: Path, name: str) -> None:
    """A disk that was pulled out, or a node that is not here: no reason to refuse whatever is asked of other disks."""
    (tmp_path / "swaps").write_text(f"Filename\n{name} partition 1 0 -2\n")
    trees.write(tmp_path / "class/block/nvme0n1", dev="259:3")  # another one by now
    (swap,) = host.swaps(str(tmp_path), str(tmp_path))
    assert swap.number is None
    assert swap.doubtful


def test_device_number_of_what_is_no_block_device(tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path), f"{tmp_path}/absent", "/dev/null/x", "a\0b"):
        assert host.device_number(path) is None


# ---- registry


def test_registry(tmp_path: Path) -> None:
    trees.write(tmp_path / "sys/kernel", uevent_seqnum="1234")
    registry = Registry(str(tmp_path / "run"), str(tmp_path / "sys"))
    root = tmp_path / "run/registry"
    assert registry.owner("nvme0") is None
    registry.release("nvme0")
    previous = os.umask(0o077)
    try:
        registry.claim("nvme0")
    finally:
        os.umask(previous)
    assert (root / "nvme0/owner").read_bytes() == b"nvmeofd\n"
    assert (root / "nvme0/seqnum").read_bytes() == b"1234\n"
    assert stat.S_IMODE((root / "nvme0").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "nvme0/owner").stat().st_mode) == 0o644
    assert registry.owner("nvme0") == "nvmeofd"
    registry.release("nvme0")
    assert os.listdir(root) == []


def test_registry_entries_of_others(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path), str(tmp_path))
    trees.write(tmp_path / "registry/nvme1", owner="stas", note="x")
    assert registry.owner("nvme1") == "stas"
    registry.release("nvme1")
    assert registry.owner("nvme1") == "stas"
    registry.claim("nvme1")
    assert sorted(os.listdir(tmp_path / "registry/nvme1")) == ["owner"]
    assert registry.owner("nvme1") == "nvmeofd"
    (tmp_path / "registry/nvme1/owner").write_text("")
    assert registry.owner("nvme1") is None
    with pytest.raises(ValueError, match="not the name"):
        registry.owner("../nvme1")
    (tmp_path / "registry/nvme2").mkdir()
    assert registry.owner("nvme2") is None
    (tmp_path / "registry/nvme2/owner").mkdir()
    with pytest.raises(IsADirectoryError):
        registry.owner("nvme2")
