"""Damaged input of every kind: what the parsers say is right or a refusal that they document, and comes soon.

How soon is up to hypothesis, which fails an example that takes longer than 200 ms.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nvmeofd.addresses import Address
from nvmeofd.bus.dbusnext import encode_body, valid_text
from nvmeofd.bus.objects import SubsystemObject
from nvmeofd.bus.tree import ObjectTree
from nvmeofd.cache import MountCache
from nvmeofd.config import Config
from nvmeofd.configfile import ConfigError
from nvmeofd.errors import InvalidArgument
from nvmeofd.kernel import fabrics, host, tools, users
from nvmeofd.kernel.identity import Identity
from nvmeofd.kernel.interface import Kernel, Mount
from nvmeofd.kernel.mountinfo import parse_mount
from nvmeofd.kernel.registry import Registry
from nvmeofd.kernel.roots import Roots
from nvmeofd.kernel.sysfs import Sysfs, hex_digits, parse_uevent
from nvmeofd.model import (
    BlockDevice,
    DeviceNumber,
    Namespace,
    NamespaceId,
    parse_host_id,
    parse_nqn,
    parse_subsystem_nqn,
)
from nvmeofd.requests import parse_stage, parse_staging_path
from nvmeofd.typed import Typed
from tests.bus.fake import FakeCore

from .fuzzing import damaged, damaged_text
from .kernel import trees

# A message is shown to people, and sent over the bus.
LONGEST_MESSAGE = 8 << 10

LINES = (
    b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue",
    rb"102 28 259:3 / /srv/with\040blank\134 rw,relatime shared:59 - ext4 /dev/nvme0n1 rw,stripe=256",
    b"103 28 0:6 /nvme0n1 /srv/block rw,nosuid shared:2 - devtmpfs udev rw,size=1000360k,mode=755,inode64",
    b"104 28 0:6 /nvme0n1//deleted /srv/gone ro - devtmpfs udev rw",
    b"105 28 0:51 /subvol /srv/b rw - btrfs /dev/nvme0n1p1 rw,space_cache=v2,subvol=/subvol",
    b"22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc  rw",
)
DISK = Namespace(
    name="nvme0n1",
    number=DeviceNumber(259, 3),
    diskseq=9,
    nqn=trees.NQN,
    nsid=1,
    wwid=f"uuid.{trees.UUID}",
    uuid="",
    nguid="",
    eui64="",
    size=1 << 30,
    partitions=(BlockDevice("nvme0n1p1", DeviceNumber(259, 4)),),
)


class Table:
    """As much of a kernel as the cache needs."""

    def __init__(self) -> None:
        self.lines: tuple[bytes, ...] = ()

    def mounts_changed(self) -> bool:
        return True

    def mount_lines(self) -> tuple[bytes, ...]:
        return self.lines

    def btrfs_siblings(self, device: str) -> frozenset[str]:
        return frozenset({device})

    def device_number(self, path: str) -> DeviceNumber | None:
        return DISK.partitions[0].number if path == "/dev/nvme0n1p1" else None


def picture(cache: MountCache) -> Any:
    """All that the cache says."""
    paths = {mount.mount_point for mount in cache._by_line.values()}
    at = {path: cache.mounts_at(path) for path in paths}
    return len(cache), at, cache.mounts_of(DISK), sorted(map(str, cache.block_mounts_of(DISK))), len(cache._sources)


@given(damaged(*LINES))
def test_mount_line(line: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(parse_mount(line), Mount)


@given(st.lists(st.tuples(st.lists(damaged(*LINES), max_size=6), st.lists(st.sampled_from(LINES), max_size=6))))
def test_mount_cache(tables: list[tuple[list[bytes], list[bytes]]]) -> None:
    """Whatever it was shown before, it says the same as one that has seen the last table only."""
    kernel = Table()
    cache = MountCache(cast(Kernel, kernel))
    for hostile, good in tables:
        kernel.lines = (*hostile, *good)
        with suppress(OSError):
            cache.refresh()
        kernel.lines = tuple(good)
        cache.refresh()
        fresh = MountCache(cast(Kernel, kernel))
        fresh.refresh()
        assert picture(cache) == picture(fresh)


def test_a_number_that_passes_on_while_the_table_is_read() -> None:
    """One reading shows a mount that goes, and another that comes and gets its number."""
    kernel = Table()
    cache = MountCache(cast(Kernel, kernel))
    gone, come = (b"50 28 259:3 / /srv/%s rw - ext4 /dev/nvme0n1 rw" % name for name in (b"gone", b"come"))
    kernel.lines = (gone, come)
    cache.refresh()
    kernel.lines = (come,)
    cache.refresh()
    assert [mount.mount_point for _, mount in cache.mounts_of(DISK)] == ["/srv/come"]
    kernel.lines = ()
    cache.refresh()
    assert picture(cache) == picture(MountCache(cast(Kernel, kernel)))


def test_a_tall_stack_of_mounts() -> None:
    """Each mount covers the one before it, all at one path."""
    kernel = Table()
    kernel.lines = tuple(b"%d %d 259:3 / /srv/one rw - ext4 /dev/nvme0n1 rw" % (i, i - 1) for i in range(100, 20_100))
    cache = MountCache(cast(Kernel, kernel))
    cache.refresh()
    assert [mount.mount_id for mount in cache.mounts_at("/srv/one")] == list(range(100, 20_100))


many_files = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many_files
@given(table=st.lists(damaged(*LINES), max_size=4).map(b"\n".join))
def test_mount_table_of_another_namespace(tmp_path: Path, table: bytes) -> None:
    """Anybody can have a mount namespace: one that makes no sense counts as unreadable, and the others are seen."""
    proc = tmp_path / "proc"
    shutil.rmtree(proc, ignore_errors=True)
    for pid, content in (("self", b""), ("4000001", table), ("4000002", LINES[1])):
        task = proc / pid / "task" / pid
        for folder in (proc / pid, task):
            (folder / "ns").mkdir(parents=True)
            (folder / "ns" / "mnt").symlink_to(f"mnt:[{pid}]")
            (folder / "root").symlink_to("/")
            (folder / "fd").mkdir()
            (folder / "mountinfo").write_bytes(content)
    found = users.scan(str(proc), [DISK.number], ["nvme0n1"])
    assert 4000002 in {mount.pid for mount in found.foreign_mounts}
    assert set(found.unreadable) <= {4000001}


SYSFS_ATTRIBUTES = ("size", "dev", "diskseq", "nsid", "wwid", "uuid", "hidden", "nguid")
CONTROLLER_ATTRIBUTES = ("uevent", "transport", "state", "hostnqn", "hostid")


@many_files
@given(
    name=st.sampled_from(SYSFS_ATTRIBUTES + CONTROLLER_ATTRIBUTES + ("subsysnqn",)),
    content=st.one_of(
        damaged(
            b"2048\n",
            b"259:7\n",
            b"tcp\n",
            b"uuid." + trees.UUID.encode(),
            trees.NQN.encode(),
            b"NVME_TRADDR=1\nNVME_TRSVCID=2",
        ),
        st.integers().map(lambda number: b"%d\n" % number),
    ),
)
@example(name="size", content=b"18446744073709551615\n")
def test_sysfs(tmp_path: Path, name: str, content: bytes) -> None:
    """It is read or refused; what was read can be shown on the bus."""
    root = tmp_path / "sys"
    shutil.rmtree(root, ignore_errors=True)
    subsystem = trees.subsystem(root, "nvme-subsys0")
    controller = trees.controller(root, subsystem, "nvme0")
    disk = trees.disk(root, subsystem, "nvme0n1", nguid="00000000-0000-0000-0000-000000000001")
    place = disk if name in SYSFS_ATTRIBUTES else subsystem if name == "subsysnqn" else controller
    (place / name).write_bytes(content)
    try:
        found = Sysfs(str(root)).subsystems()
    except OSError:
        return
    tree = ObjectTree(lambda _: None)
    for one in found:
        tree.add(SubsystemObject(cast(Any, FakeCore()), one, lambda: None))


@many_files
@given(content=damaged(b"Filename\tType\tSize\n/dev/vda2 partition 8 0 -2\n/swap\\040file file 8 0 -3\n"))
def test_swaps(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "swaps").write_bytes(content)
    for name, number in (("vda2", b"254:2\n"), ("vda", b"none")):
        place = tmp_path / "class/block" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "dev").write_bytes(number)
    with suppress(OSError):
        host.swaps(str(tmp_path), str(tmp_path))


@many_files
@given(nqn=damaged(b"nqn.2014-08.org.nvmexpress:uuid:" + trees.UUID.encode()), uuid=damaged(trees.UUID.encode()))
def test_host_identity(tmp_path: Path, nqn: bytes, uuid: bytes) -> None:
    (tmp_path / "hostnqn").write_bytes(nqn)
    (tmp_path / "hostid").write_bytes(uuid)
    with suppress(ValueError):
        identity = Identity(Roots(etc_nvme=str(tmp_path))).current()
        assert parse_nqn(identity.nqn) == identity.nqn
        assert parse_host_id(identity.id) == identity.id


@many_files
@given(owner=damaged(b"nvmeofd\n", b"stas\n", b""))
def test_registry(tmp_path: Path, owner: bytes) -> None:
    entry = tmp_path / "registry" / "nvme0"
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "owner").write_bytes(owner)
    registry = Registry(str(tmp_path), str(tmp_path))
    ours = registry.owner("nvme0") == "nvmeofd"
    registry.release("nvme0")
    assert entry.exists() is not ours


@given(damaged_text("nqn,transport=%s,traddr=%s,hdr_digest,\n", "instance=-1,cntlid=-1"))
def test_options_of_the_kernel(text: str) -> None:
    assert all(isinstance(name, str) for name in fabrics.parse_options(text))


@given(damaged_text(trees.uevent(), "NVME_TRADDR=fe80::1%eth0\nNVME_TRSVCID=4420"))
def test_address_in_sysfs(text: str) -> None:
    said = parse_uevent(text)
    assert not {"", "none", "(null)"} & set(said.values())
    assert all(f"{key}={value}" in text.split("\n") for key, value in said.items())
    assert set(hex_digits(text)) <= set(text.lower())


@given(damaged_text("DEVNAME=/dev/nvme0n1\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n", "PTTYPE=gpt\n", "USAGE=raid"))
def test_answer_of_blkid(text: str) -> None:
    tags = tools.parse_export(text)
    assert tools.content_of(tags).fstype in ("", tags.get("TYPE"))


# What callers send


def refused(parse: Callable[..., object], *arguments: object) -> bool:
    """Whether it is refused, in a way that can be answered."""
    try:
        parse(*arguments)
    except InvalidArgument as error:
        text = str(error)
        assert text
        assert len(text) < LONGEST_MESSAGE
        encode_body("s", [text])
        return True
    return False


FC = "nn-0x10000090fa942779:pn-0x10000090fa942779"
ADDRESSES = (
    "tcp://192.0.2.1:4420",
    "rdma://storage.example.org",
    "tcp://[fe80::1%eth0]:4420?host-traddr=fe80::2%25eth0&host-iface=eth0",
    "tcp://192.0.2.1?host-traddr=2001:db8::1",
    f"fc://{FC}?host-traddr={FC}",
    "loop://",
)


@given(damaged_text(*ADDRESSES))
@example("tcp://192.0.2.1?host-traddr=fe80::2%25a%2Cnqn=nqn.2024-01.org.example:other")
@example("tcp://192.0.2.1?host-traddr=fe80::2%25a%0Aqueue_size=1")
@example("tcp://[fe80::1%a=b]")
@example("tcp://192.0.2.1?host-traddr=fe80::2%25ab0")
def test_address(text: str) -> None:
    if refused(Address.parse, text):
        return
    address = Address.parse(text)
    for part in (address.host, address.host_traddr, address.host_iface):
        assert part.isprintable(), "it would be cut, or shown wrongly"
        assert not set(part) & set(", \n\t\0"), "it would end the option in what is written to the kernel"
    assert Address.parse(str(address)) == address


@given(damaged_text(trees.NQN, "nqn.2014-08.org.nvmexpress.discovery", "nqn.2014-08.org.nvmexpress:uuid:x"))
def test_nqn(text: str) -> None:
    if not refused(parse_subsystem_nqn, text):
        assert parse_subsystem_nqn(text) == text
        assert not set(text) & set(", \n\t\0")
        assert len(text.encode()) <= 223


@given(damaged_text(f"uuid.{trees.UUID}", trees.UUID, "eui.0123456789abcdef", "nsid.7", "nvme.1b36-31-51-00000001"))
def test_namespace(text: str) -> None:
    if not refused(NamespaceId.parse, text):
        wanted = NamespaceId.parse(text)
        assert NamespaceId.parse(str(wanted)) == wanted
        DISK.matches(wanted)


@given(damaged_text(trees.UUID))
def test_host_id(text: str) -> None:
    if not refused(parse_host_id, text):
        assert parse_host_id(parse_host_id(text)) == parse_host_id(text)


@given(damaged_text("/srv/volume", "/srv/with blank/ünïcode", "/var/lib/x"))
def test_staging_path(text: str) -> None:
    if not refused(parse_staging_path, text):
        assert os.path.normpath(text) == text
        assert "\0" not in text


OPTIONS: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "fstype": ("s", damaged_text("ext4", "xfs")),
    "type": ("s", damaged_text("block", "filesystem")),
    "format": ("s", damaged_text("if-empty")),
    "mount-options": (
        "as",
        st.lists(damaged_text("noatime", "commit=5", "context=system_u:object_r:x:s0"), max_size=3),
    ),
    "mkfs-options": ("as", st.lists(damaged_text("-L", "label", "-E", "lazy_itable_init=1", "--label=x"), max_size=4)),
    "min-paths": ("u", st.integers(0, 2**32 - 1)),
    "timeout": ("u", st.integers(0, 2**32 - 1)),
    "ctrl-loss-tmo": ("i", st.integers(-(2**31), 2**31 - 1)),
    "host-nqn": ("s", damaged_text(trees.NQN)),
    "host-id": ("s", damaged_text(trees.UUID)),
    "read-only": ("b", st.booleans()),
}


@st.composite
def options(draw: st.DrawFn) -> dict[str, Typed]:
    found = {}
    for key in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=4, unique=True)):
        signature, values = OPTIONS[key]
        found[draw(damaged_text(key)) if draw(st.integers(0, 9)) == 0 else key] = Typed(
            draw(st.sampled_from([signature] * 9 + ["v", "a{sv}", "(" * 32])), draw(values)
        )
    return found


@given(options())
def test_options_of_stage(given_options: dict[str, Typed]) -> None:
    if refused(parse_stage, trees.NQN, "nsid.1", ["loop://"], "/srv/x", given_options):
        return
    request = parse_stage(trees.NQN, "nsid.1", ["loop://"], "/srv/x", given_options)
    joined = ",".join(request.mount_options)
    assert joined.split(",") == list(request.mount_options) or not joined, "one option is one option to mount(8)"


CONFIG = b"""# comment
[Daemon]
LogLevel=info
[Operation]
TimeoutSec=60
QueueLimit=64
[Connect]
CtrlLossTimeoutSec=-1
QueueSize=128
"""


@many_files
@given(content=damaged(CONFIG))
def test_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "nvmeofd.conf"
    path.write_bytes(content)
    try:
        config = Config.load([path])
    except ConfigError as error:
        said = str(error)
    else:
        assert 1 <= config.timeout <= 86_400
        assert config.connect.queue_size is None or 16 <= config.connect.queue_size <= 1024
        return
    assert said.startswith(f"{path}:")
    assert len(said) < LONGEST_MESSAGE
    assert valid_text(said) == said
