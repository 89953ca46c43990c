"""Values: what is accepted, how it is normalised, and that every refusal names what is wrong."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.addresses import Address, Transport
from nvmeofd.errors import InvalidArgument
from nvmeofd.model import (
    NQN_MAX_BYTES,
    Controller,
    DeviceNumber,
    IdKind,
    Namespace,
    NamespaceId,
    Subsystem,
    User,
    UserKind,
    parse_host_id,
    parse_nqn,
    parse_subsystem_nqn,
)

NQN = "nqn.2024-01.org.example:one"
HEX = "0123456789abcdef0123456789abcdef"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
FC = "nn-0x1000000044001123:pn-0x2000000055001123"


def refusal(parse: Callable[[str], object], text: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    return str(caught.value)


class TestNqn:
    @pytest.mark.parametrize(
        "text",
        [
            NQN,
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2014-12.x",
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2024-01.org.example:größe",
            "nqn.2024-01.org.example:" + "a" * (NQN_MAX_BYTES - 24),
        ],
    )
    def test_accepted(self, text: str) -> None:
        assert parse_nqn(text) == text

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "is not an NQN"),
            ("iqn.2024-01.org.example:one", "is not an NQN"),
            ("NQN.2024-01.org.example:one", "is not an NQN"),
            ("nqn.2024-13.org.example:one", "is not an NQN"),
            ("nqn.2024-00.org.example:one", "is not an NQN"),
            ("nqn.24-01.org.example:one", "is not an NQN"),
            ("nqn.2024-01.", "is not an NQN"),
            ("nqn.2024-01..example", "is not an NQN"),
            ("nqn.2024-01.org.example:a,transport=loop", "a comma"),
            ("nqn.2024-01.org.example:a b", "white space"),
            ("nqn.2024-01.org.example:a\n", "control character"),
            ("nqn.2024-01.org.example:a\0", "control character"),
            ("nqn.2024-01.org.example:\u2028", "control character"),
            ("nqn.2024-01.org.example:\udc80", "not valid UTF-8"),
            ("nqn.2024-01.org.example:" + "a" * (NQN_MAX_BYTES - 23), "224 bytes long"),
            ("nqn.2024-01.org.example:" + "ä" * 100, "224 bytes long"),
        ],
    )
    def test_refused(self, text: str, reason: str) -> None:
        message = refusal(parse_nqn, text)
        assert message.startswith("nqn: ")
        assert reason in message

    def test_names_the_argument(self) -> None:
        assert refusal(lambda t: parse_nqn(t, what="host-nqn"), "x").startswith("host-nqn: ")

    def test_discovery(self) -> None:
        assert "discovery" in refusal(parse_subsystem_nqn, "nqn.2014-08.org.nvmexpress.discovery")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        for candidate in (text, NQN + text):
            try:
                accepted = parse_nqn(candidate)
            except InvalidArgument:
                continue
            # what is accepted cannot end the option in the string that is written to the kernel
            assert not set(accepted) & set(", \n\t\0")
            assert len(accepted.encode()) <= NQN_MAX_BYTES


class TestHostId:
    def test_canonical(self) -> None:
        assert parse_host_id(UUID.upper()) == UUID
        assert parse_host_id(HEX) == UUID

    def test_refused(self) -> None:
        assert refusal(parse_host_id, "nobody") == "host-id: 'nobody' is not a UUID"


class TestNamespaceId:
    @pytest.mark.parametrize(
        ("text", "kind", "value"),
        [
            (f"uuid.{UUID}", IdKind.UUID, HEX),
            (UUID, IdKind.UUID, HEX),
            (UUID.upper(), IdKind.UUID, HEX),
            (HEX, IdKind.UUID, HEX),
            ("eui.0025385B71B00A1F", IdKind.EUI, "0025385b71b00a1f"),
            (f"eui.{HEX}", IdKind.EUI, HEX),
            ("nsid.1", IdKind.NSID, "1"),
            ("nsid.007", IdKind.NSID, "7"),
            ("nsid.4294967294", IdKind.NSID, "4294967294"),
            ("nvme.1AF4-ab-cd-00000001", IdKind.WWID, "nvme.1af4-ab-cd-00000001"),
            ("nvme.1af4--cd-00000001", IdKind.WWID, "nvme.1af4--cd-00000001"),
        ],
    )
    def test_accepted(self, text: str, kind: IdKind, value: str) -> None:
        parsed = NamespaceId.parse(text)
        assert (parsed.kind, parsed.value) == (kind, value)
        assert NamespaceId.parse(str(parsed)) == parsed

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ".",
            "1",
            "uuid.",
            "uuid.1234",
            "uuid." + "0" * 32,
            UUID + "0",
            "uuid." + "g" * 32,
            "eui.1234",
            "eui." + "0" * 16,
            "nsid.",
            "nsid.0",
            "nsid.-1",
            "nsid.4294967295",
            "nsid.\u0661",
            "nsid.1.2",
            "nsid." + "9" * 250,
            "nvme.",
            "nvme.xyz-1-2-3",
            "nvme.1-2",
            "UUID." + UUID,
            "serial.123",
            "a" * 300,
            UUID + "\n",
            "urn:uuid:" + UUID,
            "{" + UUID + "}",
        ],
    )
    def test_refused(self, text: str) -> None:
        message = refusal(NamespaceId.parse, text)
        assert message.startswith("namespace: ")
        assert len(message) < 450

    @given(st.text(max_size=300))
    def test_any_text(self, text: str) -> None:
        for prefix in ("", "uuid.", "eui.", "nsid.", "nvme."):
            try:
                parsed = NamespaceId.parse(prefix + text)
            except InvalidArgument:
                continue
            assert NamespaceId.parse(str(parsed)) == parsed


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("tcp://127.0.0.1", Address(Transport.TCP, "127.0.0.1", 4420)),
            ("tcp://127.0.0.1:1", Address(Transport.TCP, "127.0.0.1", 1)),
            ("tcp://127.0.0.1:4420/", Address(Transport.TCP, "127.0.0.1", 4420)),
            ("tcp://storage-1.example.org:65535", Address(Transport.TCP, "storage-1.example.org", 65535)),
            ("tcp://[2001:DB8:0:0::1]:4421", Address(Transport.TCP, "2001:db8::1", 4421)),
            ("tcp://[fe80::1%eth0]", Address(Transport.TCP, "fe80::1%eth0", 4420)),
            ("rdma://192.0.2.1", Address(Transport.RDMA, "192.0.2.1", 4420)),
            (
                "tcp://192.0.2.1?host-traddr=192.0.2.9&host-iface=eth0.7",
                Address(Transport.TCP, "192.0.2.1", 4420, "192.0.2.9", "eth0.7"),
            ),
            ("rdma://192.0.2.1?host-traddr=2001:DB8::1", Address(Transport.RDMA, "192.0.2.1", 4420, "2001:db8::1")),
            (f"fc://{FC}", Address(Transport.FC, FC)),
            (f"fc://{FC}?host-traddr={FC}", Address(Transport.FC, FC, 0, FC)),
            ("loop://", Address(Transport.LOOP, "")),
        ],
    )
    def test_accepted(self, text: str, address: Address) -> None:
        assert Address.parse(text) == address

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "expected tcp://"),
            ("127.0.0.1", "expected tcp://"),
            ("TCP://127.0.0.1", "expected tcp://"),
            ("pcie://0000:01:00.0", "expected tcp://"),
            ("tcp://", "no host"),
            ("tcp://:4420", "no host"),
            ("tcp://host:", "'' is not a port"),
            ("tcp://host:0", "'0' is not a port"),
            ("tcp://host:65536", "'65536' is not a port"),
            ("tcp://host:-1", "'-1' is not a port"),
            ("tcp://host:4\u06642", "is not a port"),
            ("tcp://host:4420/path", "is not a port"),
            ("tcp://2001:db8::1:4420", "must be in brackets"),
            ("tcp://[2001:db8::1", "expected [IPv6 address]:PORT"),
            ("tcp://[2001:db8::1]4420", "expected [IPv6 address]:PORT"),
            ("tcp://[127.0.0.1]", "'127.0.0.1' is not an IPv6 address"),
            ("tcp://[host]", "'host' is not an IPv6 address"),
            ("tcp://127.0.0.256", "neither an IP address nor a host name"),
            ("tcp://127.0.0", "neither an IP address nor a host name"),
            ("tcp://user@host", "neither an IP address nor a host name"),
            ("tcp://-host", "neither an IP address nor a host name"),
            ("tcp://" + "a" * 254, "neither an IP address nor a host name"),
            ("tcp://host?", ""),
            ("tcp://host?x=1", "unknown query parameter 'x'"),
            ("tcp://host?host-traddr", "malformed query"),
            ("tcp://host?host-traddr=", "host-traddr is empty"),
            ("tcp://host?host-traddr=nowhere", "host-traddr is not an IP address"),
            ("tcp://host?host-traddr=1.2.3.4%2Cnqn=x", "host-traddr is not an IP address"),
            ("tcp://host?host-iface=eth0%2Chostnqn", "host-iface must name a network interface"),
            ("tcp://host?host-iface=" + "e" * 16, "host-iface must name a network interface"),
            ("tcp://host?host-iface=a&host-iface=b", "given twice"),
            ("tcp://host?host-iface=none", "no interface may be called so"),
            ("rdma://host?host-iface=ib0", "only tcp has it"),
            ("loop://host", "loop:// has no address"),
            ("loop://?host-traddr=1.2.3.4", "loop:// has no address"),
            ("fc://host", "expected nn-0x"),
            (f"fc://{FC}:4420", "expected nn-0x"),
            (f"fc://{FC}?host-traddr=1.2.3.4", "expected nn-0x"),
            ("tcp://ho st", "white space"),
            ("tcp://host,nqn=x", "a comma"),
            ("tcp://host\n", "control character"),
            ("tcp://" + "a" * 600, "too long"),
        ],
    )
    def test_refused(self, text: str, reason: str) -> None:
        if not reason:
            assert Address.parse(text).host == "host"  # an empty query is no query
            return
        message = refusal(Address.parse, text)
        assert message.startswith("address: ")
        assert reason in message

    @given(st.text(max_size=600), st.sampled_from(["", "tcp://", "rdma://", "fc://", "loop://", "tcp://["]))
    def test_any_text(self, text: str, scheme: str) -> None:
        try:
            address = Address.parse(scheme + text)
        except InvalidArgument as error:
            assert str(error).startswith("address: ")  # noqa: PT017 - most examples are refused, all may be
            return
        # nothing of it can end an option in the string that is written to the kernel
        for part in (address.host, address.host_traddr, address.host_iface):
            assert not set(part) & set(", \n\t\0")

    @given(
        st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
        st.integers(1, 65535),
        st.sampled_from(["tcp", "rdma"]),
    )
    def test_round_trip(self, host: str, port: int, scheme: str) -> None:
        shown = f"[{host}]" if ":" in host else host
        address = Address.parse(f"{scheme}://{shown}:{port}")
        assert (address.host, address.port) == (host, port)
        assert Address.parse(str(address)) == address
        assert not address.needs_resolving

    def test_needs_resolving(self) -> None:
        assert Address.parse("tcp://localhost").needs_resolving
        assert not Address.parse("tcp://[::1]").needs_resolving
        assert not Address.parse("loop://").needs_resolving
        assert not Address.parse(f"fc://{FC}").needs_resolving


def controller(**changes: str) -> Controller:
    values: dict[str, str] = {
        "name": "nvme0",
        "nqn": NQN,
        "transport": "tcp",
        "traddr": "192.0.2.1",
        "trsvcid": "4420",
        "host_traddr": "",
        "host_iface": "",
        "state": "live",
        "host_nqn": "nqn.2014-08.org.nvmexpress:uuid:" + UUID,
        "host_id": UUID,
        **changes,
    }
    return Controller(instance=1, **values)


class TestController:
    @pytest.mark.parametrize(
        ("changes", "address", "serves"),
        [
            ({}, "tcp://192.0.2.1", True),
            ({}, "tcp://192.0.2.1:4421", False),
            ({}, "tcp://192.0.2.2", False),
            ({}, "rdma://192.0.2.1", False),
            ({}, "tcp://192.0.2.1?host-traddr=192.0.2.9", False),
            ({"host_traddr": "192.0.2.9"}, "tcp://192.0.2.1?host-traddr=192.0.2.9", True),
            ({"host_traddr": "192.0.2.9"}, "tcp://192.0.2.1", True),
            ({"host_iface": "eth0"}, "tcp://192.0.2.1?host-iface=eth0", True),
            ({"host_iface": "eth1"}, "tcp://192.0.2.1?host-iface=eth0", False),
            ({"traddr": "2001:db8:0:0:0:0:0:1"}, "tcp://[2001:db8::1]", True),
            ({"traddr": "::ffff:192.0.2.1"}, "tcp://192.0.2.1", False),
            ({"traddr": "somewhere"}, "tcp://192.0.2.1", False),
            ({}, "tcp://192.0.2.1.example", False),
            ({"transport": "loop", "traddr": "", "trsvcid": ""}, "loop://", True),
            ({"transport": "fc", "traddr": FC, "trsvcid": ""}, f"fc://{FC}", True),
            ({"transport": "fc", "traddr": FC, "trsvcid": ""}, f"fc://{FC}?host-traddr={FC}", False),
        ],
    )
    def test_serves(self, changes: dict[str, str], address: str, serves: bool) -> None:
        assert controller(**changes).serves(Address.parse(address)) is serves

    def test_address(self) -> None:
        assert controller().address == "tcp://192.0.2.1:4420"
        assert controller(traddr="2001:db8::1").address == "tcp://[2001:db8::1]:4420"
        assert controller(transport="loop", traddr="").address == "loop://"
        assert controller(transport="fc", traddr=FC).address == f"fc://{FC}"

    def test_live(self) -> None:
        down = controller(name="nvme1", state="connecting")
        assert Subsystem(NQN, "nvme-subsys0", (controller(), down)).live_controllers == (controller(),)


def namespace(**changes: object) -> Namespace:
    values: dict[str, object] = {
        "name": "nvme0n1",
        "number": DeviceNumber(259, 0),
        "diskseq": 7,
        "nqn": NQN,
        "nsid": 1,
        "wwid": f"uuid.{UUID}",
        "uuid": HEX,
        "nguid": "f" * 32,
        "eui64": "0025385b71b00a1f",
        "size": 1 << 30,
        **changes,
    }
    return Namespace(**values)  # type: ignore[arg-type]


class TestNamespace:
    @pytest.mark.parametrize(
        ("wanted", "matches"),
        [
            (f"uuid.{UUID}", True),
            (HEX, True),
            (f"uuid.{uuid.UUID(int=5)}", False),
            ("nsid.1", True),
            ("nsid.2", False),
            ("eui." + "F" * 32, True),
            ("eui.0025385b71b00a1f", True),
            ("eui.0025385b71b00a10", False),
            (f"eui.{HEX}", False),
            ("nvme.1af4-ab-cd-00000001", False),
        ],
    )
    def test_matches(self, wanted: str, matches: bool) -> None:
        assert namespace().matches(NamespaceId.parse(wanted)) is matches

    def test_matches_wwid_without_identifiers(self) -> None:
        bare = namespace(wwid="nvme.1AF4-ab-cd-00000001", uuid="", nguid="", eui64="")
        assert bare.matches(NamespaceId.parse("nvme.1af4-AB-cd-00000001"))
        assert not bare.matches(NamespaceId.parse(UUID))
        assert not bare.matches(NamespaceId.parse(f"eui.{HEX}"))

    def test_incarnation(self) -> None:
        assert namespace().same_incarnation(namespace(name="nvme1n1", size=5))
        for change in ({"wwid": "x"}, {"number": DeviceNumber(259, 1)}, {"diskseq": 8}):
            assert not namespace().same_incarnation(namespace(**change))

    def test_path(self) -> None:
        assert namespace().path == "/dev/nvme0n1"


class TestDeviceNumber:
    @given(st.integers(0, 4095), st.integers(0, 1 << 20))
    def test_round_trip(self, major: int, minor: int) -> None:
        assert DeviceNumber.parse(f"{major}:{minor}\n") == DeviceNumber(major, minor)
        assert str(DeviceNumber(major, minor)) == f"{major}:{minor}"

    @pytest.mark.parametrize("text", ["", "259", "259:", ":1", "a:b", "1:2:3"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"not a device number|invalid literal"):
            DeviceNumber.parse(text)


def test_user_is_readable() -> None:
    assert str(User(UserKind.BLOCK_MOUNT, "/dev/nvme0n1", "/srv/x")) == "block-mount /dev/nvme0n1 (/srv/x)"
