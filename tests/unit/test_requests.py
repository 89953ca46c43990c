"""Requests: every option by name and type, and that every refusal names what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.addresses import Address
from nvmeofd.errors import InvalidArgument
from nvmeofd.model import FormatPolicy, NamespaceId, VolumeType
from nvmeofd.requests import (
    ConnectOptions,
    DisconnectRequest,
    StageRequest,
    UnstageRequest,
    parse_disconnect,
    parse_stage,
    parse_staging_path,
    parse_unstage,
)
from nvmeofd.typed import Typed

NQN = "nqn.2024-01.org.example:one"
NS = "nsid.1"
A1 = "tcp://127.0.0.1"
A2 = "tcp://127.0.0.2"
HOST_ID = "01234567-89ab-cdef-0123-456789abcdef"


def stage(options: dict[str, Typed] | None = None, *, addresses: tuple[str, ...] = (A1, A2)) -> StageRequest:
    return parse_stage(NQN, NS, addresses, "/srv/a", options or {})


def stage_refusal(**options: Typed) -> str:
    with pytest.raises(InvalidArgument) as caught:
        stage({key.replace("_", "-"): value for key, value in options.items()})
    return str(caught.value)


def test_defaults() -> None:
    assert stage() == StageRequest(
        nqn=NQN,
        namespace=NamespaceId.parse(NS),
        addresses=(Address.parse(A1), Address.parse(A2)),
        staging_path="/srv/a",
        type=VolumeType.FILESYSTEM,
        fstype=None,
        format=FormatPolicy.NEVER,
        mkfs_options=(),
        mount_options=(),
        read_only=False,
        fsck=True,
        min_paths=1,
        timeout=None,
        connect=ConnectOptions(),
    )
    assert parse_unstage("/srv/a", {}) == UnstageRequest(staging_path="/srv/a", keep_connected=False, timeout=None)
    assert parse_disconnect(NQN, {}) == DisconnectRequest(nqn=NQN, timeout=None)


def test_all_options_of_stage() -> None:
    request = stage(
        {
            "type": Typed("s", "filesystem"),
            "fstype": Typed("s", "xfs"),
            "format": Typed("s", "if-empty"),
            "mkfs-options": Typed("as", ["-L", "data", "-K"]),
            "mount-options": Typed("as", ["noatime", "subvol=x"]),
            "read-only": Typed("b", True),
            "fsck": Typed("b", False),
            "min-paths": Typed("u", 2),
            "host-nqn": Typed("s", "nqn.2014-08.org.nvmexpress:uuid:x"),
            "host-id": Typed("s", HOST_ID.upper()),
            "ctrl-loss-tmo": Typed("i", -1),
            "fast-io-fail-tmo": Typed("i", 5),
            "reconnect-delay": Typed("u", 2),
            "keep-alive-tmo": Typed("u", 0),
            "nr-io-queues": Typed("u", 4),
            "queue-size": Typed("u", 128),
            "hdr-digest": Typed("b", True),
            "data-digest": Typed("b", True),
            "timeout": Typed("u", 10),
        }
    )
    assert request == StageRequest(
        nqn=NQN,
        namespace=NamespaceId.parse(NS),
        addresses=(Address.parse(A1), Address.parse(A2)),
        staging_path="/srv/a",
        type=VolumeType.FILESYSTEM,
        fstype="xfs",
        format=FormatPolicy.IF_EMPTY,
        mkfs_options=("-L", "data", "-K"),
        mount_options=("noatime", "subvol=x"),
        read_only=True,
        fsck=False,
        min_paths=2,
        timeout=10,
        connect=ConnectOptions(
            host_nqn="nqn.2014-08.org.nvmexpress:uuid:x",
            host_id=HOST_ID,
            ctrl_loss_tmo=-1,
            fast_io_fail_tmo=5,
            reconnect_delay=2,
            keep_alive_tmo=0,
            nr_io_queues=4,
            queue_size=128,
            hdr_digest=True,
            data_digest=True,
        ),
    )


def test_options_of_unstage_and_disconnect() -> None:
    request = parse_unstage("/srv/a", {"timeout": Typed("u", 5), "keep-connected": Typed("b", True)})
    assert request == UnstageRequest(staging_path="/srv/a", keep_connected=True, timeout=5)
    force = {"force": Typed("b", True)}
    assert parse_unstage("/srv/a", force) == UnstageRequest(staging_path="/srv/a", force=True)
    with pytest.raises(InvalidArgument, match="option force: disconnects, so keep-connected"):
        parse_unstage("/srv/a", {**force, "keep-connected": Typed("b", True)})
    with pytest.raises(InvalidArgument, match="option force: expected a boolean"):
        parse_unstage("/srv/a", {"force": Typed("s", "yes")})
    assert parse_disconnect(NQN, {"timeout": Typed("u", 5)}).timeout == 5
    with pytest.raises(InvalidArgument, match="option 'format' is unknown"):
        parse_unstage("/srv/a", {"format": Typed("s", "never")})
    with pytest.raises(InvalidArgument, match="option 'keep-connected' is unknown"):
        parse_disconnect(NQN, {"keep-connected": Typed("b", True)})


SIGNATURES = {
    "type": "s",
    "fstype": "s",
    "format": "s",
    "mkfs-options": "as",
    "mount-options": "as",
    "read-only": "b",
    "fsck": "b",
    "min-paths": "u",
    "host-nqn": "s",
    "host-id": "s",
    "ctrl-loss-tmo": "i",
    "fast-io-fail-tmo": "i",
    "reconnect-delay": "u",
    "keep-alive-tmo": "u",
    "nr-io-queues": "u",
    "queue-size": "u",
    "hdr-digest": "b",
    "data-digest": "b",
    "timeout": "u",
}
EXAMPLES: dict[str, Any] = {"s": "x", "as": ["x"], "b": True, "u": 20, "i": 20, "t": 20, "v": 1}


@pytest.mark.parametrize("key", SIGNATURES)
def test_wrong_type(key: str) -> None:
    for signature, example in EXAMPLES.items():
        if signature != SIGNATURES[key]:
            message = stage_refusal(**{key: Typed(signature, example)})
            assert message.startswith(f"option {key}: expected ")
            assert f"got D-Bus type {signature}" in message


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("type", "raw", "'raw' is not filesystem or block"),
        ("format", "always", "'always' is not never or if-empty"),
        ("fstype", "", "is not the name of a filesystem type"),
        ("fstype", "Ext4", "is not the name of a filesystem type"),
        ("fstype", "../ext4", "is not the name of a filesystem type"),
        ("fstype", "-t", "is not the name of a filesystem type"),
        ("fstype", "a" * 33, "is not the name of a filesystem type"),
        ("fstype", "ext4\n", "is not the name of a filesystem type"),
        ("min-paths", 0, "0 is not between 1 and 64"),
        ("min-paths", 65, "65 is not between 1 and 64"),
        ("min-paths", 3, "3 paths cannot come from 2 addresses"),
        ("timeout", 0, "0 is not between 1 and 86400"),
        ("timeout", 4294967295, "is not between"),
        ("ctrl-loss-tmo", -2, "-2 is not between -1 and"),
        ("fast-io-fail-tmo", -2147483648, "is not between -1 and"),
        ("reconnect-delay", 0, "0 is not between 1 and"),
        ("keep-alive-tmo", 65536, "is not between 0 and 65535"),
        ("nr-io-queues", 0, "is not between 1 and 65535"),
        ("queue-size", 15, "is not between 16 and 1024"),
        ("mkfs-options", ["x"] * 65, "65 entries, at most 64"),
        ("mount-options", ["x"] * 65, "65 entries, at most 64"),
    ],
)
def test_bad_value(key: str, value: Any, reason: str) -> None:
    message = stage_refusal(**{key: Typed(SIGNATURES[key], value)})
    assert message.startswith(f"option {key}: ")
    assert reason in message


@pytest.mark.parametrize(("key", "what"), [("host-nqn", "host-nqn: "), ("host-id", "host-id: ")])
def test_bad_host(key: str, what: str) -> None:
    assert stage_refusal(**{key: Typed("s", "nobody")}).startswith(what)


def test_unknown_option() -> None:
    assert stage_refusal(colour=Typed("s", "red")) == "option 'colour' is unknown"
    assert stage_refusal(fstyp=Typed("s", "ext4")) == "option 'fstyp' is unknown, did you mean 'fstype'?"
    assert len(stage_refusal(**{"x" * 1000: Typed("s", "")})) < 200


@pytest.mark.parametrize(
    "key", ["dhchap-secret", "dhchap-secret-file", "dhchap-ctrl-secret", "dhchap-ctrl-secret-file"]
)
def test_secrets_are_refused_and_not_repeated(key: str) -> None:
    message = stage_refusal(**{key: Typed("s", "DHHC-1:00:geheim:")})
    assert message.startswith(f"option {key}: ")
    assert "geheim" not in message


def test_addresses() -> None:
    with pytest.raises(InvalidArgument, match="addresses: at least one"):
        stage(addresses=())
    with pytest.raises(InvalidArgument, match="addresses: 65 given, at most 64"):
        stage(addresses=tuple(f"tcp://10.0.0.{i}" for i in range(65)))
    with pytest.raises(InvalidArgument, match="address: 'x'"):
        stage(addresses=(A1, "x"))
    # two spellings of one address are one path
    assert len(stage(addresses=("tcp://[::1]", "tcp://[0:0::1]:4420")).addresses) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("fstype", "ext4"), ("fstype", "never"), ("format", "if-empty"), ("mount-options", ["noatime"])],
)
def test_block_volumes_have_no_filesystem(key: str, value: Any) -> None:
    message = stage_refusal(type=Typed("s", "block"), **{key: Typed(SIGNATURES[key], value)})
    assert message == f"option {key}: applies to type filesystem only"


def test_block_volume_with_what_says_nothing() -> None:
    options = {
        "type": Typed("s", "block"),
        "format": Typed("s", "never"),
        "mkfs-options": Typed("as", []),
        "mount-options": Typed("as", []),
        "read-only": Typed("b", True),
    }
    assert stage(options).type is VolumeType.BLOCK


def test_mkfs_options_need_format() -> None:
    assert stage_refusal(mkfs_options=Typed("as", ["-q"])) == "option mkfs-options: needs format=if-empty"


@pytest.mark.parametrize(
    ("fstype", "values"),
    [
        ("ext4", ["/dev/sda"]),
        ("ext4", ["-J", "device=/dev/sda"]),
        ("ext4", ["-J", "device=UUID=1234"]),
        ("ext4", ["-J", "size=4,device=x"]),
        ("ext4", ["-Jdevice=LABEL=x"]),
        ("ext4", ["-E", "offset=4096"]),
        ("ext4", ["-E", "nodiscard,offset=1"]),
        ("ext4", ["-z", "undo"]),
        ("ext4", ["-d", "etc"]),
        ("ext4", ["-l", "list"]),
        ("ext4", ["-U", "clear"]),
        ("ext4", ["-n"]),
        ("ext4", ["-S"]),
        ("ext4", ["-F"]),
        ("ext4", ["-q", "-F", "-F"]),
        ("ext4", ["-qF"]),
        ("ext4", ["-K"]),
        ("xfs", ["-l", "logdev=x"]),
        ("xfs", ["-l", "size=10m,logdev=x"]),
        ("xfs", ["-llogdev=x"]),
        ("xfs", ["-r", "size=1,rtdev=x"]),
        ("xfs", ["-d", "name=x"]),
        ("xfs", ["-d", "file,name=swapfile"]),
        ("xfs", ["-m", "uuid=x"]),
        ("xfs", ["-c", "options=x"]),
        ("xfs", ["-p", "proto"]),
        ("xfs", ["-f"]),
        ("xfs", ["-f", "swapfile"]),
        ("btrfs", ["--force"]),
        ("btrfs", ["-f"]),
        ("btrfs", ["--rootdir", "etc"]),
        ("btrfs", ["--rootdir=etc"]),
        ("btrfs", ["-U", "x"]),
        ("btrfs", ["-K", "nvme5n1"]),
        ("vfat", ["-n", "x"]),
        (None, ["sda"]),
        (None, ["-q", "a"]),
        (None, ["-"]),
        (None, ["--"]),
        (None, [""]),
        (None, ["-L"]),
        (None, ["-L", "a\nb"]),
        (None, ["-L", "a" * 257]),
        (None, ["-L", "a/b"]),
    ],
)
def test_mkfs_options_refused(fstype: str | None, values: list[str]) -> None:
    options = {} if fstype is None else {"fstype": Typed("s", fstype)}
    message = stage_refusal(**options, format=Typed("s", "if-empty"), mkfs_options=Typed("as", values))
    assert message.startswith("option mkfs-options: ")


@pytest.mark.parametrize(
    ("fstype", "values"),
    [
        (None, ["-L", "data"]),
        (None, ["-L", "device"]),
        (None, ["-Ldata"]),
        ("ext4", ["-m", "0", "-i", "65536"]),
        ("ext4", ["-E", "lazy_itable_init=0,nodiscard"]),
        ("ext3", ["-O", "^resize_inode", "-j"]),
        ("ext2", []),
        ("xfs", ["-d", "agcount=4"]),
        ("xfs", ["-m", "crc=1,reflink=0", "-K"]),
        ("xfs", ["-l", "size=64m"]),
        ("btrfs", ["--nodiscard", "--label=data", "-m", "dup"]),
        ("vfat", []),
    ],
)
def test_mkfs_options_accepted(fstype: str | None, values: list[str]) -> None:
    options = {} if fstype is None else {"fstype": Typed("s", fstype)}
    request = stage({**options, "format": Typed("s", "if-empty"), "mkfs-options": Typed("as", values)})
    assert request.mkfs_options == tuple(values)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "ro",
        "bind",
        "rbind",
        "move",
        "remount",
        "shared",
        "rslave",
        "private",
        "make-private",
        "loop",
        "loop=/dev/loop0",
        "offset=1",
        "sizelimit=1",
        "encryption=x",
        "helper=x",
        "uhelper=x",
        "X-mount.mkdir",
        "x-mount.mkdir=0700",
        "x-systemd.automount",
        "verity.hashdevice=x",
        "user",
        "users",
        "owner",
        "group",
        "nofail",
        "noauto",
        "device=/dev/sda",
        "logdev=/dev/sda",
        "rtdev=/dev/sda",
        "journal_path=/dev/sda",
        "journal_dev=8:0",
        "noatime,ro",
        "-o",
        "a b",
        "a\nb",
        "a" * 257,
        "subvol=x\\",
        'context="x"',
        "ro=vfs",
        "rw=recursive",
        "user=bob",
        "x-gvfs-show",
    ],
)
def test_mount_options_refused(value: str) -> None:
    message = stage_refusal(mount_options=Typed("as", ["noatime", value]))
    assert message.startswith("option mount-options: ")


@pytest.mark.parametrize("value", ["noatime", "discard", "subvol=x", "data=ordered", "user_xattr", "_netdev", "nouuid"])
def test_mount_options_accepted(value: str) -> None:
    assert stage({"mount-options": Typed("as", [value])}).mount_options == (value,)


class TestStagingPath:
    @pytest.mark.parametrize(
        "path",
        [
            "/srv/a",
            "/a",
            "/srv/with space\n\tand \\ and ü",
            "/srv/...",
            "/srv/.hidden",
            "/devices/a",
            "/process",
            "/run/nvmeofd2",
            "/run/x",
            "/srv/" + "a" * 255,
        ],
    )
    def test_accepted(self, path: str) -> None:
        assert parse_staging_path(path) == path

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("", "is not absolute"),
            ("srv/a", "is not absolute"),
            ("/", "root directory or not in normal form"),
            ("//srv/a", "not in normal form"),
            ("/srv//a", "not in normal form"),
            ("/srv/a/", "not in normal form"),
            ("/srv/./a", "not in normal form"),
            ("/srv/../a", "not in normal form"),
            ("/srv/a\0b", "NUL"),
            ("/srv/\ud800", "not encodable"),
            ("/srv/" + "a" * 256, "a component is longer than 255 bytes"),
            ("/srv/" + "ä" * 128, "a component is longer than 255 bytes"),
            ("/a" * 2048, "4096 bytes long, the limit is 4095"),
            ("/proc", "/proc, where nothing may be staged"),
            ("/proc/1/x", "/proc, where nothing may be staged"),
            ("/sys/x", "/sys, where nothing may be staged"),
            ("/dev", "/dev, where nothing may be staged"),
            ("/dev/shm/x", "/dev, where nothing may be staged"),
            ("/run/nvmeofd", "/run/nvmeofd, where nothing may be staged"),
            ("/run/nvmeofd/x", "/run/nvmeofd, where nothing may be staged"),
        ],
    )
    def test_refused(self, path: str, reason: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            parse_staging_path(path)
        assert str(caught.value).startswith("staging path: ")
        assert reason in str(caught.value)

    @given(st.text(max_size=50))
    def test_any_text(self, text: str) -> None:
        for candidate in (text, "/" + text, "/srv/" + text, "/dev/" + text):
            try:
                path = parse_staging_path(candidate)
            except InvalidArgument:
                continue
            assert path == candidate
            assert path.startswith("/")
            assert not {"", ".", ".."} & set(path.split("/")[1:])
            assert not path.startswith(("/dev/", "/proc/", "/sys/"))


values = st.one_of(
    st.text(max_size=20).map(lambda v: Typed("s", v)),
    st.booleans().map(lambda v: Typed("b", v)),
    st.integers(0, 2**32 - 1).map(lambda v: Typed("u", v)),
    st.integers(-(2**31), 2**31 - 1).map(lambda v: Typed("i", v)),
    st.lists(st.text(max_size=10), max_size=5).map(lambda v: Typed("as", v)),
)


@given(st.dictionaries(st.sampled_from([*SIGNATURES, "x"]), values, max_size=4))
def test_any_options(options: dict[str, Typed]) -> None:
    try:
        request = stage(options)
    except InvalidArgument as error:
        assert any(key in str(error) for key in options)  # noqa: PT017 - most examples are refused, all may be
        return
    assert all(option.signature == SIGNATURES[key] for key, option in options.items())
    assert hash(request) == hash(stage(options))
