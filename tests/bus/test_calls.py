"""Calls and their errors: arguments, options, names of errors, and what never reaches a caller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvmeofd import errors
from nvmeofd.bus.dbusnext import variant
from nvmeofd.bus.messages import (
    INTROSPECTABLE,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    DBusError,
    Flags,
    Message,
    MessageType,
)
from nvmeofd.bus.paths import ROOT, subsystem_path, volume_path
from nvmeofd.errors import InUse, NvmeofdError, dbus_name
from nvmeofd.model import FormatPolicy, HostIdentity, NamespaceId, User, UserKind, VolumeType
from nvmeofd.requests import DisconnectRequest, StageRequest, UnstageRequest
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import MANAGER, Client, PrivateBus, busctl, client, request, service

STAGE = "ssassa{sv}"
STANDARD = "org.freedesktop.DBus.Error."


def stage(**options: Any) -> tuple[Any, ...]:
    return (NQN, "nsid.1", ["tcp://127.0.0.1"], "/srv/one", {k.replace("_", "-"): v for k, v in options.items()})


async def error_of(caller: Client, *arguments: Any) -> DBusError:
    with pytest.raises(DBusError) as raised:
        await caller.call(*arguments)
    assert "Traceback" not in raised.value.text
    assert "File " not in raised.value.text
    return raised.value


async def test_stage(bus: PrivateBus) -> None:
    core = FakeCore()
    options = stage(
        type=variant("s", "filesystem"),
        fstype=variant("s", "xfs"),
        format=variant("s", "if-empty"),
        mount_options=variant("as", ["noatime"]),
        min_paths=variant("u", 1),
        ctrl_loss_tmo=variant("i", -1),
        hdr_digest=variant("b", True),
        timeout=variant("u", 5),
    )
    async with service(bus, core), client(bus) as caller:
        assert await caller.manager("Stage", STAGE, *options) == [volume_path("/srv/one"), "/dev/nvme0n1"]
        assert await caller.get(volume_path("/srv/one"), "org.nvmeofd1.Volume", "NQN") == NQN
    ((request, sender),) = core.requests
    assert isinstance(request, StageRequest)
    assert sender == 0
    assert (request.nqn, request.namespace) == (NQN, NamespaceId.parse("nsid.1"))
    assert (request.type, request.fstype, request.format) == (VolumeType.FILESYSTEM, "xfs", FormatPolicy.IF_EMPTY)
    assert (request.mount_options, request.timeout) == (("noatime",), 5)
    assert (request.connect.ctrl_loss_tmo, request.connect.hdr_digest) == (-1, True)


async def test_unstage_and_disconnect(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        assert await caller.manager("Unstage", "sa{sv}", "/srv/one", {"keep-connected": variant("b", True)}) == [True]
        assert await caller.manager("Disconnect", "sa{sv}", NQN, {"timeout": variant("u", 9)}) == [["nvme0", "nvme1"]]
    assert core.requests == [
        (UnstageRequest(staging_path="/srv/one", keep_connected=True), 0),
        (DisconnectRequest(nqn=NQN, timeout=9), 0),
    ]


async def test_list_users(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    core.users = (User(UserKind.OPEN, "/dev/nvme0n1", "12 dd"), User(UserKind.MOUNT, "/dev/nvme0n1p1", "/mnt/\udcff"))
    async with service(bus, core), client(bus) as caller:
        assert await caller.call(subsystem_path(NQN), "org.nvmeofd1.Subsystem", "ListUsers") == [
            [["open", "/dev/nvme0n1", "12 dd"], ["mount", "/dev/nvme0n1p1", "/mnt/\\udcff"]]
        ]


_OPTIONS = {
    "s": ["type", "fstype", "format", "host-nqn", "host-id"],
    "b": ["read-only", "fsck", "hdr-digest", "data-digest"],
    "as": ["mkfs-options", "mount-options"],
    "u": ["min-paths", "reconnect-delay", "keep-alive-tmo", "nr-io-queues", "queue-size", "timeout"],
    "i": ["ctrl-loss-tmo", "fast-io-fail-tmo"],
}
_VALUES: dict[str, Any] = {"s": "x", "b": True, "as": ["x"], "u": 1, "i": 1, "ay": b"x", "d": 1.5, "t": 1, "a{sv}": {}}


async def test_options_of_wrong_type_are_named(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        for expected, keys in _OPTIONS.items():
            for key in keys:
                for signature in _VALUES.keys() - {expected}:
                    options = stage(**{key: variant(signature, _VALUES[signature])})
                    error = await error_of(caller, ROOT, MANAGER, "Stage", STAGE, *options)
                    assert error.name == "org.nvmeofd1.Error.InvalidArgument"
                    assert f"option {key}" in error.text
    assert core.requests == []


@pytest.mark.parametrize(
    ("member", "signature", "arguments", "named"),
    [
        ("Stage", STAGE, stage(bogus=variant("s", "x")), "bogus"),
        ("Stage", STAGE, stage(dhchap_secret=variant("s", "DHHC-1:00:x:")), "dhchap-secret"),
        ("Stage", STAGE, stage(type=variant("s", "file")), "type"),
        ("Stage", STAGE, stage(timeout=variant("u", 0)), "timeout"),
        ("Stage", STAGE, ("nqn", *stage()[1:]), "nqn"),
        ("Stage", STAGE, (NQN, "n", *stage()[2:]), "namespace"),
        ("Stage", STAGE, (NQN, "nsid.1", [], "/srv/one", {}), "addresses"),
        ("Stage", STAGE, (NQN, "nsid.1", ["x"], "/srv/one", {}), "address"),
        ("Stage", STAGE, (NQN, "nsid.1", ["tcp://127.0.0.1"], "srv", {}), "staging path"),
        ("Unstage", "sa{sv}", ("/srv/one", {"lazy": variant("b", True)}), "lazy"),
        ("Unstage", "sa{sv}", ("/srv/one", {"timeout": variant("i", 1)}), "timeout"),
        ("Disconnect", "sa{sv}", (NQN, {"keep-connected": variant("b", True)}), "keep-connected"),
        ("Disconnect", "sa{sv}", ("x y", {}), "nqn"),
    ],
)
async def test_invalid_arguments(
    bus: PrivateBus, member: str, signature: str, arguments: tuple[Any, ...], named: str
) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        error = await error_of(caller, ROOT, MANAGER, member, signature, *arguments)
    assert error.name == "org.nvmeofd1.Error.InvalidArgument"
    assert named in error.text
    assert core.requests == []


ERRORS = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, NvmeofdError) and one is not NvmeofdError
]


async def test_every_error_has_its_name_and_keeps_its_text(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        for kind in ERRORS:

            async def fail(kind: type[NvmeofdError] = kind) -> None:
                raise kind("what happened, and /srv/\udcff")

            core.work = fail
            error = await error_of(caller, ROOT, MANAGER, "Unstage", "sa{sv}", "/srv/one", {})
            assert error.name == dbus_name(kind()) == f"org.nvmeofd1.Error.{kind.__name__}"
            assert error.text == "what happened, and /srv/\\udcff"


@pytest.mark.parametrize(
    "error", [RuntimeError("secret detail"), OSError(5, "secret detail"), KeyError("secret detail")]
)
async def test_the_unexpected_is_for_the_log_only(
    bus: PrivateBus, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    core = FakeCore()

    async def fail() -> None:
        raise error

    core.work = fail
    async with service(bus, core), client(bus) as caller:
        answer = await error_of(caller, ROOT, MANAGER, "Unstage", "sa{sv}", "/srv/one", {})
    assert answer.name == "org.nvmeofd1.Error.Failed"
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


async def test_a_cancelled_handler_still_answers(bus: PrivateBus) -> None:
    core = FakeCore()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    core.work = cancelled
    async with service(bus, core), client(bus) as caller:
        error = await error_of(caller, ROOT, MANAGER, "Unstage", "sa{sv}", "/srv/one", {})
    assert error.name == "org.nvmeofd1.Error.ShuttingDown"


UNKNOWN = [
    ("/nowhere", MANAGER, "Stage", "UnknownObject"),
    ("/nowhere", INTROSPECTABLE, "Introspect", "UnknownObject"),
    (f"{ROOT}/subsystem/x", "org.nvmeofd1.Subsystem", "ListUsers", "UnknownObject"),
    (ROOT, "org.nvmeofd1.Nothing", "Stage", "UnknownInterface"),
    (ROOT, "org.nvmeofd1.Volume", "Stage", "UnknownInterface"),
    (volume_path("/srv/one"), OBJECT_MANAGER, "GetManagedObjects", "UnknownInterface"),
    ("/org", PROPERTIES, "GetAll", "UnknownInterface"),
    ("/org", OBJECT_MANAGER, "GetManagedObjects", "UnknownInterface"),
    (ROOT, MANAGER, "Frobnicate", "UnknownMethod"),
    (ROOT, MANAGER, "Version", "UnknownMethod"),
    (ROOT, MANAGER, "__init__", "UnknownMethod"),
    (ROOT, MANAGER, "refresh", "UnknownMethod"),
    (ROOT, PEER, "Pong", "UnknownMethod"),
    (ROOT, "", "Frobnicate", "UnknownMethod"),
]


@pytest.mark.parametrize(("path", "interface", "member", "name"), UNKNOWN)
async def test_unknown(bus: PrivateBus, path: str, interface: str, member: str, name: str) -> None:
    core = FakeCore()
    core.add_volume(volume("/srv/one"))
    async with service(bus, core), client(bus) as caller:
        assert (await error_of(caller, path, interface, member)).name == STANDARD + name


async def test_arguments_of_wrong_types(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        for signature, arguments in [("", ()), ("s", ("/x",)), ("ss", ("/x", "")), ("sa{ss}", ("/x", {"a": "b"}))]:
            error = await error_of(caller, ROOT, MANAGER, "Unstage", signature, *arguments)
            assert error.name == STANDARD + "InvalidArgs"
            assert "sa{sv}" in error.text


async def test_an_enormous_request_is_refused_unread(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        options = {"mount-options": variant("as", ["x" * 200] * 20_000)}
        error = await error_of(caller, ROOT, MANAGER, "Stage", STAGE, *stage()[:4], options)
        assert error.name == STANDARD + "InvalidArgs"
        assert "too large" in error.text
        assert await caller.get(ROOT, MANAGER, "Version")
    assert core.requests == []


async def test_properties_errors(bus: PrivateBus) -> None:
    path = volume_path("/srv/one")
    core = FakeCore()
    core.add_volume(volume("/srv/one"))
    async with service(bus, core), client(bus) as caller:

        async def name(member: str, signature: str, *arguments: Any) -> str:
            return (await error_of(caller, path, PROPERTIES, member, signature, *arguments)).name.removeprefix(STANDARD)

        ours = "org.nvmeofd1.Volume"
        assert await name("Get", "ss", ours, "Nothing") == "UnknownProperty"
        assert await name("Get", "ss", ours, "volume") == "UnknownProperty"
        assert await name("Get", "ss", PEER, "NQN") == "UnknownProperty"
        assert await name("Get", "ss", "org.nvmeofd1.Job", "NQN") == "UnknownInterface"
        assert await name("GetAll", "s", "org.nvmeofd1.Job") == "UnknownInterface"
        assert await name("GetAll", "s", "") == "UnknownInterface"
        assert await name("Set", "ssv", ours, "NQN", variant("s", "x")) == "PropertyReadOnly"
        assert await name("Set", "ssv", ours, "Nothing", variant("s", "x")) == "UnknownProperty"
        assert await caller.get_all(path, PEER) == {}


async def test_calls_without_an_interface(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()), client(bus) as caller:
        assert await caller.call(ROOT, "", "Disconnect", "sa{sv}", NQN, {}) == [["nvme0", "nvme1"]]
        assert await caller.call(ROOT, "", "Ping") == []
        (text,) = await caller.call(ROOT, "", "Introspect")
        assert MANAGER in text


async def test_peer(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()), client(bus) as caller:
        assert await caller.call("/anywhere", PEER, "Ping") == []
        (machine,) = await caller.call(ROOT, PEER, "GetMachineId")
        assert len(machine) == 32
        assert (await error_of(caller, ROOT, PEER, "Ping", "s", "x")).name == STANDARD + "InvalidArgs"


async def test_no_reply_when_none_is_wanted(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        got: list[Message] = []
        handle = caller.connection._handle

        def watch(message: Message) -> None:
            got.append(message)
            handle(message)

        monkeypatch.setattr(caller.connection, "_handle", watch)
        for nqn in (NQN, "wrong"):
            caller.connection.send(
                request(ROOT, MANAGER, "Disconnect", "sa{sv}", nqn, {}, flags=Flags.NO_REPLY_EXPECTED)
            )
        assert await caller.get(ROOT, MANAGER, "Version")
        assert len([message for message in got if message.type is not MessageType.SIGNAL]) == 1
    assert len(core.requests) == 1


async def test_host_identity_that_cannot_be_read(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        core.identity = OSError(2, "no such file")
        assert await caller.get(ROOT, MANAGER, "HostNQN") == ""
        core.identity = HostIdentity("nqn.2024-01.org.example:new", "id")
        assert (await caller.get_all(ROOT, MANAGER))["HostNQN"] == "nqn.2024-01.org.example:new"


async def test_busctl_as_documented(bus: PrivateBus) -> None:
    async with service(bus, FakeCore()):
        done = await busctl(
            bus, "call", "org.nvmeofd1", "/org/nvmeofd1", "org.nvmeofd1.Manager", "Stage", "ssassa{sv}", NQN,
            "uuid.6c5a4a4e-0000-4000-8000-000000000001", "2", "tcp://127.0.0.1:4420", "tcp://127.0.0.2:4420",
            "/srv/vol1", "2", "fstype", "s", "ext4", "format", "s", "if-empty",
        )  # fmt: skip
        assert done.stdout == 'os "/org/nvmeofd1/volume/_2fsrv_2fvol1" "/dev/nvme0n1"\n', done.stderr


async def test_the_text_of_an_error_reaches_busctl(bus: PrivateBus) -> None:
    core = FakeCore()

    async def fail() -> None:
        raise InUse("/dev/nvme0n1 is mounted at /srv")

    core.work = fail
    async with service(bus, core):
        done = await busctl(bus, "call", "org.nvmeofd1", ROOT, MANAGER, "Disconnect", "sa{sv}", NQN, "0")
        assert "is mounted at /srv" in done.stderr
