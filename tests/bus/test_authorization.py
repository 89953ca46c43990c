"""Others than root, once an administrator has let them through the policy of the bus: polkit decides, or nobody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from nvmeofd.bus import messages, polkit
from nvmeofd.bus.dbusnext import encode_body, variant
from nvmeofd.bus.dispatch import MAX_BODY_OF_OTHERS, MAX_OF_OTHERS, MAX_PER_OTHER_USER
from nvmeofd.bus.messages import BUS_NAME, BUS_PATH, DBusError, Flags, Message, MessageType
from nvmeofd.bus.paths import ROOT, SERVICE_NAME, job_path, subsystem_path, volume_path
from nvmeofd.bus.service import BusService
from nvmeofd.requests import parse_disconnect, parse_stage, parse_unstage
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import MANAGER, REPOSITORY, Client, PrivateBus, busctl, client, request, service
from tests.bus.polkit import CHALLENGE, NO, POLICY, YES, FakePolkit, Rule, authority

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

# Users that every Debian has: dbus-daemon lets in nobody that the machine does not know.
NOBODY = 65534
SOMEBODY, *OTHERS = 1, 2, 3, 5, 6
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
INVALID = "org.nvmeofd1.Error.InvalidArgument"
JOB = "org.nvmeofd1.Job"
INTERACTIVE = Flags.ALLOW_INTERACTIVE_AUTHORIZATION

STAGE: tuple[Any, ...] = ("Stage", "ssassa{sv}", NQN, "nsid.1", ["tcp://192.0.2.1"], "/srv/two", {})
UNSTAGE: tuple[Any, ...] = ("Unstage", "sa{sv}", "/srv/one", {})
DISCONNECT: tuple[Any, ...] = ("Disconnect", "sa{sv}", NQN, {})
VERBS = (STAGE, UNSTAGE, DISCONNECT)
# What looks at something: path, interface, member, signature, arguments.
LOOKS: list[tuple[Any, ...]] = [
    (ROOT, messages.PROPERTIES, "Get", "ss", MANAGER, "Version"),
    (ROOT, messages.PROPERTIES, "GetAll", "s", MANAGER),
    (ROOT, messages.OBJECT_MANAGER, "GetManagedObjects"),
    (ROOT, messages.INTROSPECTABLE, "Introspect"),
    ("/org", messages.INTROSPECTABLE, "Introspect"),
    (subsystem_path(NQN), "org.nvmeofd1.Subsystem", "ListUsers"),
    (subsystem_path(NQN), "", "ListUsers"),
    (volume_path("/srv/one"), messages.PROPERTIES, "GetAll", "s", "org.nvmeofd1.Volume"),
    (job_path(1), messages.PROPERTIES, "Get", "ss", JOB, "Operation"),
]


def new_core() -> FakeCore:
    core = FakeCore()
    core.connect(subsystem())
    core.add_volume(volume("/srv/one"))
    core.add_job(1)
    return core


class Stage:
    """The service, polkit, and a caller who is not root."""

    def __init__(self, core: FakeCore, running: BusService, fake: FakePolkit, nobody: Client) -> None:
        self.core = core
        self.running = running
        self.polkit = fake
        self.nobody = nobody

    def rooms(self) -> list[int]:
        return [room.taken for room in self.running._dispatcher._rooms.values()]


@asynccontextmanager
async def staged(bus: PrivateBus, rule: Rule = lambda _: NO) -> AsyncIterator[Stage]:
    core = new_core()
    async with service(bus, core) as running, authority(bus, rule) as fake, client(bus, uid=NOBODY) as nobody:
        yield Stage(core, running, fake, nobody)


async def denied(work: Any) -> str:
    """The text of the refusal."""
    with pytest.raises(DBusError) as raised:
        await work
    assert raised.value.name == DENIED, raised.value
    return raised.value.text


def nothing_done(core: FakeCore) -> bool:
    return core.requests == [] and not core.jobs[1].cancelled


# Who is asked what


async def test_root_is_never_asked_about(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus) as stage, client(polkit_bus) as root:
        for verb in VERBS:
            await root.manager(*verb)
        await root.call(job_path(1), JOB, "Cancel")
        for look in LOOKS[:5]:
            await root.call(*look)
        assert stage.polkit.questions == []
        assert [sender for _, sender in stage.core.requests] == [0, 0, 0]


async def test_what_each_action_is_told(polkit_bus: PrivateBus) -> None:
    options = {
        "format": variant("s", "if-empty"),
        "mkfs-options": variant("as", ["-L", "x"]),
        "mount-options": variant("as", ["noatime", "nodev"]),
        "host-nqn": variant("s", "nqn.2024-01.org.example:host"),
    }
    async with staged(polkit_bus, lambda _: YES) as stage:
        caller = stage.nobody
        await caller.manager("Stage", "ssassa{sv}", NQN, "nsid.1", ["tcp://192.0.2.1", "loop://"], "/srv/two", options)
        await caller.manager("Unstage", "sa{sv}", "/srv/two", {"force": variant("b", True)})
        await caller.manager(*DISCONNECT)
        await caller.get(ROOT, MANAGER, "Version")
        assert {question.subject for question in stage.polkit.questions} == {
            ("system-bus-name", caller.connection.unique_name)
        }
        assert {question.flags for question in stage.polkit.questions} == {0}
        assert len({question.cancellation for question in stage.polkit.questions} - {""}) == 4
        assert [(question.action, question.details) for question in stage.polkit.questions] == [
            (
                "org.nvmeofd1.stage",
                {
                    "nqn": NQN,
                    "namespace": "nsid.1",
                    "addresses": "tcp://192.0.2.1:4420 loop://",
                    "staging-path": "/srv/two",
                    "type": "filesystem",
                    "fstype": "",
                    "format": "if-empty",
                    "mkfs-options": "-L x",
                    "mount-options": "noatime,nosuid,nodev",
                    "read-only": "false",
                    "fsck": "true",
                    "min-paths": "1",
                    "host-nqn": "nqn.2024-01.org.example:host",
                    "host-id": "",
                    "cancel": "false",
                },
            ),
            (
                "org.nvmeofd1.unstage",
                {"staging-path": "/srv/two", "force": "true", "keep-connected": "false", "cancel": "false"},
            ),
            ("org.nvmeofd1.disconnect", {"nqn": NQN, "cancel": "false"}),
            ("org.nvmeofd1.read", {"member": "Get"}),
        ]
        assert [sender for _, sender in stage.core.requests] == [NOBODY] * 3


@pytest.mark.parametrize("look", LOOKS)
async def test_looking(polkit_bus: PrivateBus, look: tuple[Any, ...]) -> None:
    async with staged(polkit_bus, lambda _: YES) as stage:
        assert await stage.nobody.call(*look)
        assert stage.polkit.actions == ["org.nvmeofd1.read"]
        stage.polkit.rule = lambda question: NO if question.action == "org.nvmeofd1.read" else YES
        assert "org.nvmeofd1.read" in await denied(stage.nobody.call(*look))


@pytest.mark.parametrize("interface", [MANAGER, ""])
@pytest.mark.parametrize("verb", VERBS)
async def test_denied(polkit_bus: PrivateBus, verb: tuple[Any, ...], interface: str) -> None:
    """One action is no other one, however the method is named."""
    action = f"org.nvmeofd1.{verb[0].lower()}"
    async with staged(polkit_bus, lambda question: NO if question.action == action else YES) as stage:
        before = stage.core.scans
        assert action in await denied(stage.nobody.call(ROOT, interface, *verb))
        assert stage.polkit.actions == [action]
        assert nothing_done(stage.core)
        assert stage.core.scans == before
        assert stage.rooms() == [0, 0, 0, 0]


async def test_a_password_is_wanted(polkit_bus: PrivateBus) -> None:
    """polkit may ask a person only when the caller says so."""
    async with staged(polkit_bus, lambda question: YES if question.flags else CHALLENGE) as stage:
        assert "authenticate" in await denied(stage.nobody.manager(*STAGE))
        assert nothing_done(stage.core)
        await stage.nobody.call(ROOT, MANAGER, *STAGE, flags=INTERACTIVE)
        assert [question.flags for question in stage.polkit.questions] == [0, 1]
        assert len(stage.core.requests) == 1
        stage.polkit.rule = lambda _: CHALLENGE
        assert "agent" in await denied(stage.nobody.call(ROOT, MANAGER, *STAGE, flags=INTERACTIVE))
        assert len(stage.core.requests) == 1


async def test_busctl_asks_for_interaction(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus, lambda _: YES) as stage:
        for expected, option in enumerate(("no", "yes")):
            arguments = ("call", SERVICE_NAME, ROOT, MANAGER, "Disconnect", "sa{sv}", NQN, "0")
            done = await busctl(polkit_bus, f"--allow-interactive-authorization={option}", *arguments, user="nobody")
            assert done.returncode == 0, done.stderr
            assert stage.polkit.questions[-1].flags == expected


async def test_ping_and_its_like_are_for_everybody(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus) as stage:
        for path in (ROOT, "/nowhere", volume_path("/srv/one")):
            assert await stage.nobody.call(path, messages.PEER, "Ping") == []
            assert await stage.nobody.call(path, "", "GetMachineId")
        with pytest.raises(DBusError):
            await stage.nobody.call(ROOT, messages.PEER, "Ping", "s", "x")
        assert stage.polkit.questions == []


# What somebody without a right must not learn or do


async def test_refusals_tell_nothing_about_the_host(polkit_bus: PrivateBus) -> None:
    """What is there and what is not gets the same answer."""
    volumes = volume_path("/srv/one"), volume_path("/srv/two")
    subsystems = subsystem_path(NQN), subsystem_path(NQN + "x")
    jobs = job_path(1), job_path(2)
    pairs: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = [
        ((there, *rest), (missing, *rest))
        for (there, missing), rest in (
            (volumes, (messages.PROPERTIES, "GetAll", "s", "org.nvmeofd1.Volume")),
            (subsystems, ("org.nvmeofd1.Subsystem", "ListUsers")),
            (jobs, (JOB, "Cancel")),
            (jobs, (JOB, "Cancel", "s", "x")),
            (jobs, (messages.INTROSPECTABLE, "Introspect")),
            (jobs, ("a.b", "C")),
        )
    ]
    async with staged(polkit_bus) as stage:
        before = stage.core.scans
        stage.core.tell().subsystems_changed()
        for there, missing in pairs:
            assert await denied(stage.nobody.call(*there)) == await denied(stage.nobody.call(*missing))
        assert nothing_done(stage.core)
        assert stage.polkit.actions == ["org.nvmeofd1.read"] * 2 * len(pairs)
        asked = [question.details for question in stage.polkit.questions]
        assert asked[::2] == asked[1::2]
        # not even looked at, for somebody who may not know
        assert stage.core.scans - before <= 1


async def test_what_is_malformed_is_said_before_polkit_is_asked(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus) as stage:
        for member, signature, *arguments in (
            ("Unstage", "sa{sv}", "relative", {}),
            ("Unstage", "sa{sv}", "/srv/one", {"forced": variant("b", True)}),
            ("Disconnect", "sa{sv}", "nqn", {}),
        ):
            with pytest.raises(DBusError) as raised:
                await stage.nobody.manager(member, signature, *arguments)
            assert raised.value.name == INVALID
        with pytest.raises(DBusError) as raised:
            await stage.nobody.manager("Unstage", "s", "/srv/one")
        assert raised.value.name == messages.INVALID_ARGS
        assert stage.polkit.questions == []
        assert nothing_done(stage.core)


async def test_large_requests_are_for_root(polkit_bus: PrivateBus) -> None:
    large = {f"k{number}": variant("s", "x" * 1000) for number in range(MAX_BODY_OF_OTHERS // 1000)}
    async with staged(polkit_bus, lambda _: YES) as stage, client(polkit_bus) as root:
        for caller, name in ((stage.nobody, messages.INVALID_ARGS), (root, INVALID)):
            with pytest.raises(DBusError) as raised:
                await caller.manager("Unstage", "sa{sv}", "/srv/one", large)
            assert raised.value.name == name
        assert stage.polkit.questions == []


CONNECTION = {"ctrl-loss-tmo": variant("i", 0), "keep-alive-tmo": variant("u", 5), "hdr-digest": variant("b", True)}


@pytest.mark.parametrize("option", CONNECTION)
async def test_how_paths_behave_is_for_root_to_say(polkit_bus: PrivateBus, option: str) -> None:
    """They stay, for whoever uses them next, and no rule is told."""
    call = ("Stage", "ssassa{sv}", NQN, "nsid.1", ["loop://"], "/srv/two", {option: CONNECTION[option]})
    async with staged(polkit_bus, lambda _: YES) as stage, client(polkit_bus) as root:
        with pytest.raises(DBusError, match=option):
            await stage.nobody.manager(*call)
        assert stage.polkit.questions == []
        await root.manager(*call)
        assert [sender for _, sender in stage.core.requests] == [0]


@pytest.mark.parametrize("option", ["suid", "dev"])
async def test_setuid_programs_and_devices_are_for_root(polkit_bus: PrivateBus, option: str) -> None:
    options = {"mount-options": variant("as", [option])}
    async with staged(polkit_bus, lambda _: YES) as stage, client(polkit_bus) as root:
        with pytest.raises(DBusError) as raised:
            await stage.nobody.manager(*STAGE[:-1], options)
        assert raised.value.name == INVALID
        assert option in raised.value.text
        assert nothing_done(stage.core)
        await root.manager(*STAGE[:-1], options)
        await stage.nobody.manager(*STAGE)
        assert [request.mount_options for request, _ in stage.core.requests] == [(option,), ("nosuid", "nodev")]  # type: ignore[union-attr]


# Jobs


async def test_stopping_a_job_needs_what_the_job_needs(polkit_bus: PrivateBus) -> None:
    """Also a job of one's own: root may wait for the same one."""
    requests = (
        (parse_stage(NQN, "nsid.1", ["loop://"], "/srv/one", {}), "org.nvmeofd1.stage"),
        (parse_unstage("/srv/one", {}), "org.nvmeofd1.unstage"),
        (parse_disconnect(NQN, {}), "org.nvmeofd1.disconnect"),
    )
    async with staged(polkit_bus) as stage:
        job = stage.core.jobs[1]
        job.sender = NOBODY
        for job.request, action in requests:
            stage.polkit.questions.clear()
            stage.polkit.rule = lambda question: YES if question.action == "org.nvmeofd1.read" else NO
            assert action in await denied(stage.nobody.call(job_path(1), JOB, "Cancel"))
            assert not job.cancelled
            assert stage.polkit.actions == ["org.nvmeofd1.read", action]
            assert stage.polkit.questions[1].details["cancel"] == "true"
            # who may do everything but look does not even learn whether there is such a job
            stage.polkit.rule = lambda question: NO if question.action == "org.nvmeofd1.read" else YES
            await denied(stage.nobody.call(job_path(1), JOB, "Cancel"))
            assert not job.cancelled
        stage.polkit.rule = lambda question: YES
        await stage.nobody.call(job_path(1), "", "Cancel")
        assert job.cancelled


async def test_a_job_that_is_for_no_request_is_for_root(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus, lambda _: YES) as stage, client(polkit_bus) as root:
        job = stage.core.jobs[1]
        job.request = None  # type: ignore[assignment]
        await denied(stage.nobody.call(job_path(1), JOB, "Cancel"))
        assert not job.cancelled
        await root.call(job_path(1), JOB, "Cancel")
        assert job.cancelled


async def test_a_job_that_ends_while_polkit_decides(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus, lambda question: YES if question.action == "org.nvmeofd1.read" else None) as stage:
        job = stage.core.jobs[1]
        cancel = asyncio.create_task(stage.nobody.call(job_path(1), JOB, "Cancel"))
        await stage.polkit.until(asked=2)
        stage.core.finish_job(1)
        stage.polkit.reply(stage.polkit.questions[1], "(bba{ss})", [*YES, {}])
        with pytest.raises(DBusError) as raised:
            await cancel
        assert raised.value.name == messages.UNKNOWN_OBJECT
        assert not job.cancelled


# polkit that is not there, hangs, lies, or goes away


async def test_no_polkit(open_bus: PrivateBus) -> None:
    core = new_core()
    async with service(open_bus, core), client(open_bus, uid=NOBODY) as nobody:
        for verb in VERBS:
            assert "polkit is not running" in await denied(nobody.manager(*verb))
        for look in LOOKS:
            assert "polkit is not running" in await denied(nobody.call(*look))
    assert nothing_done(core)


async def test_polkit_hangs(polkit_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person gets longer than a program."""
    monkeypatch.setattr(polkit, "CHECK_SECONDS", 0.05)
    async with staged(polkit_bus, lambda _: None) as stage:
        person = asyncio.create_task(stage.nobody.call(ROOT, MANAGER, *STAGE, flags=INTERACTIVE))
        await stage.polkit.until(asked=1)
        assert "did not answer" in await denied(stage.nobody.manager(*STAGE))
        await stage.polkit.until(cancelled=1)
        first, second = stage.polkit.questions
        assert stage.polkit.cancelled == [second.cancellation]
        assert nothing_done(stage.core)
        # too late
        stage.polkit.reply(second, "(bba{ss})", [*YES, {}])
        await stage.nobody.call(ROOT, messages.PEER, "Ping")
        assert nothing_done(stage.core)
        assert not person.done()
        stage.polkit.reply(first, "(bba{ss})", [*YES, {}])
        await person
        assert len(stage.core.requests) == 1


async def test_a_person_does_not_get_for_ever(polkit_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "INTERACTIVE_SECONDS", 0.05)
    async with staged(polkit_bus, lambda _: None) as stage:
        await denied(stage.nobody.call(ROOT, MANAGER, *STAGE, flags=INTERACTIVE))
        await stage.polkit.until(cancelled=1)
        assert nothing_done(stage.core)
        assert stage.rooms() == [0, 0, 0, 0]


NONSENSE: list[tuple[str, list[Any]]] = [
    ("", []),
    ("b", [True]),
    ("(bb)", [[True, False]]),
    ("bba{ss}", [True, False, {}]),
    ("(bba{ss})b", [[True, False, {}], True]),
    ("(uua{ss})", [[1, 0, {}]]),
    ("(bba{ss})", [[True, True, {}]]),
    ("(bba{ss})", [[True, False, {"x": "y" * (300 << 10)}]]),  # more than is ever read
]


@pytest.mark.parametrize(("signature", "values"), NONSENSE)
async def test_polkit_talks_nonsense(polkit_bus: PrivateBus, signature: str, values: list[Any]) -> None:
    async with staged(polkit_bus, lambda _: None) as stage:
        call = asyncio.create_task(stage.nobody.manager(*STAGE))
        await stage.polkit.until(asked=1)
        stage.polkit.reply(stage.polkit.questions[0], signature, *values)
        assert "polkit" in await denied(call)
        assert nothing_done(stage.core)


async def test_polkit_answers_with_an_error(polkit_bus: PrivateBus) -> None:
    async with staged(polkit_bus, lambda _: None) as stage:
        call = asyncio.create_task(stage.nobody.manager(*STAGE))
        await stage.polkit.until(asked=1)
        stage.polkit.error(stage.polkit.questions[0], "org.freedesktop.PolicyKit1.Error.Failed", "no such action")
        assert "no such action" in await denied(call)
        assert nothing_done(stage.core)


async def test_polkit_ends_while_it_decides(polkit_bus: PrivateBus) -> None:
    core = new_core()
    async with service(polkit_bus, core), client(polkit_bus, uid=NOBODY) as nobody:
        async with authority(polkit_bus, lambda _: None) as first:
            call = asyncio.create_task(nobody.manager(*STAGE))
            await first.until(asked=1)
        assert "polkit" in await denied(call)
        assert nothing_done(core)
        assert "not running" in await denied(nobody.manager(*STAGE))
        async with authority(polkit_bus, lambda _: YES):
            await nobody.manager(*STAGE)
        assert len(core.requests) == 1


async def test_polkit_is_replaced_while_it_decides(polkit_bus: PrivateBus) -> None:
    """The old one is asked, and its answer counts for nothing any more."""
    async with staged(polkit_bus, lambda _: None) as stage, authority(polkit_bus, own=False) as heir:
        call = asyncio.create_task(stage.nobody.manager(*STAGE))
        await stage.polkit.until(asked=1)
        await heir.own()
        stage.polkit.reply(stage.polkit.questions[0], "(bba{ss})", [*YES, {}])
        assert "replaced" in await denied(call)
        assert nothing_done(stage.core)
        heir.rule = lambda _: YES
        await stage.nobody.manager(*STAGE)
        assert len(heir.questions) == 1


# Any reply, asked for or not, whoever it comes from: no system bus has this, and the daemon does not rely on that.
NAIVE = """
  <policy context="default">
    <allow send_requested_reply="false" send_type="method_return"/>
    <allow send_requested_reply="false" send_type="error"/>
    <allow receive_requested_reply="false" receive_type="method_return"/>
    <allow receive_requested_reply="false" receive_type="error"/>
    <allow send_destination="org.nvmeofd1" send_requested_reply="false"/>
    <allow send_destination="org.freedesktop.PolicyKit1" send_requested_reply="false"/>
  </policy>"""


async def test_replies_of_others_are_not_polkits() -> None:
    """With the very serial, to every question that the daemon asks for the call, polkit's and the bus's alike."""
    with PrivateBus(extra_policy=POLICY + NAIVE) as bus:
        async with staged(bus, lambda _: None) as stage, client(bus, uid=NOBODY) as forger:
            connection = stage.running._connection
            arrived: list[str] = []
            handle = connection._handle

            def count(message: Message) -> None:
                if message.sender == forger.connection.unique_name:
                    arrived.append(message.body.hex())
                handle(message)

            connection._handle = count  # type: ignore[method-assign]
            call = asyncio.create_task(stage.nobody.manager(*STAGE))
            await stage.polkit.until(asked=1)
            question = stage.polkit.questions[0]
            stage.polkit.reply(question, "(bba{ss})", [*YES, {}], by=forger.connection)
            forger.connection.send(
                Message(
                    type=MessageType.ERROR,
                    error_name=DENIED,
                    reply_serial=question.call.serial,
                    destination=question.call.sender,
                )
            )
            await forger.call(ROOT, messages.PEER, "Ping")
            assert len(arrived) == 3
            assert not call.done()
            assert nothing_done(stage.core)
            stage.polkit.reply(question, "(bba{ss})", [*NO, {}])
            await denied(call)
            assert nothing_done(stage.core)


# Callers that go away


async def test_a_caller_that_vanishes_meanwhile(polkit_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "CHECK_SECONDS", 600)
    async with staged(polkit_bus, lambda _: None) as stage:
        async with client(polkit_bus, uid=NOBODY) as leaving:
            leaving.connection.send(request(ROOT, MANAGER, *STAGE))
            await stage.polkit.until(asked=1)
        await stage.polkit.until(cancelled=1)
        (question,) = stage.polkit.questions
        assert stage.polkit.cancelled == [question.cancellation]
        stage.polkit.reply(question, "(bba{ss})", [*YES, {}])
        await denied_after(stage, NO)
        assert nothing_done(stage.core)
        assert stage.rooms() == [0, 0, 0, 0]


async def test_a_caller_that_vanishes_unheard_of(polkit_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """polkit says yes about somebody who has left, and the news of that are late."""
    async with staged(polkit_bus, lambda _: None) as stage, client(polkit_bus) as watcher:
        await watcher.subscribe(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged'")
        monkeypatch.setattr(stage.running._callers, "on_signal", lambda _: None)
        async with client(polkit_bus, uid=NOBODY) as leaving:
            leaving.connection.send(request(ROOT, MANAGER, *STAGE))
            await stage.polkit.until(asked=1)
        await watcher.signal("NameOwnerChanged")
        stage.polkit.reply(stage.polkit.questions[0], "(bba{ss})", [*YES, {}])
        await denied_after(stage, NO)
        assert nothing_done(stage.core)
        assert stage.rooms() == [0, 0, 0, 0]


async def denied_after(stage: Stage, verdict: tuple[bool, bool]) -> None:
    """Another call, which is worked on after whatever came in before it."""
    stage.polkit.rule = lambda _: verdict
    await denied(stage.nobody.manager(*DISCONNECT))


async def test_forged_news_of_a_caller(polkit_bus: PrivateBus) -> None:
    """Somebody else who says that the caller has left does not stop its call."""
    async with staged(polkit_bus, lambda _: None) as stage, client(polkit_bus, uid=SOMEBODY) as forger:
        call = asyncio.create_task(stage.nobody.manager(*STAGE))
        await stage.polkit.until(asked=1)
        name = stage.nobody.connection.unique_name
        for path, interface in ((BUS_PATH, BUS_NAME), (polkit.PATH, polkit.INTERFACE)):
            for member, signature, values in (
                ("NameOwnerChanged", "sss", [name, name, ""]),
                ("NameOwnerChanged", "sss", [polkit.NAME, "", forger.connection.unique_name]),
                ("NameLost", "s", [SERVICE_NAME]),
                ("Changed", "", []),
            ):
                forger.connection.send(
                    Message(
                        type=MessageType.SIGNAL,
                        destination=SERVICE_NAME,
                        path=path,
                        interface=interface,
                        member=member,
                        signature=signature,
                        body=encode_body(signature, values),
                    )
                )
        await forger.call(ROOT, messages.PEER, "Ping")
        assert stage.polkit.cancelled == []
        stage.polkit.reply(stage.polkit.questions[0], "(bba{ss})", [*YES, {}])
        await call
        assert len(stage.core.requests) == 1


async def test_the_service_closes_while_polkit_decides(polkit_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeofd.bus.dispatch.CLOSE_SECONDS", 0.01)
    core = new_core()
    async with authority(polkit_bus, lambda _: None) as fake, client(polkit_bus, uid=NOBODY) as nobody:
        async with service(polkit_bus, core):
            call = asyncio.create_task(nobody.manager(*STAGE))
            await fake.until(asked=1)
        with pytest.raises(DBusError) as raised:
            await call
        assert raised.value.name == "org.nvmeofd1.Error.ShuttingDown"
        await fake.until(cancelled=1)
        assert nothing_done(core)


# Many


async def test_a_thousand_checks(polkit_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take room from nobody but the user who asks, over however many connections."""
    monkeypatch.setattr(polkit, "INTERACTIVE_SECONDS", 600)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(staged(polkit_bus, lambda _: None))
        root = await stack.enter_async_context(client(polkit_bus))
        somebody = await stack.enter_async_context(client(polkit_bus, uid=SOMEBODY))
        callers = [stage.nobody]
        for _ in range(9):
            callers.append(await stack.enter_async_context(client(polkit_bus, uid=NOBODY)))
        for caller in callers:
            await caller.call(ROOT, messages.PEER, "Ping")
        calls = [
            asyncio.create_task(caller.call(ROOT, MANAGER, *STAGE, flags=INTERACTIVE))
            for _ in range(100)
            for caller in callers
        ]
        refused = len(calls) - MAX_PER_OTHER_USER
        await stage.polkit.until(asked=MAX_PER_OTHER_USER)
        done: set[asyncio.Task[list[Any]]] = set()
        while len(done) < refused:
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
        for one in done:
            error = one.exception()
            assert isinstance(error, DBusError)
            assert error.name == messages.LIMITS_EXCEEDED
        assert len(stage.polkit.questions) == MAX_PER_OTHER_USER
        # root, and another user
        for verb in VERBS:
            await root.manager(*verb)
        assert len((await root.call(ROOT, messages.OBJECT_MANAGER, "GetManagedObjects"))[0]) > 1
        stage.polkit.rule = lambda _: YES
        await somebody.manager(*DISCONNECT)
        # the same user can still look
        assert await stage.nobody.get(ROOT, MANAGER, "Version")
        pending = stage.polkit.questions[:MAX_PER_OTHER_USER]
        for question in pending:
            stage.polkit.reply(question, "(bba{ss})", [*NO, {}])
        for one in set(calls) - done:
            await denied(one)
        assert stage.rooms() == [0, 0, 0, 0]
        assert len(stage.core.requests) == 4


async def test_many_users_leave_room_for_root(polkit_bus: PrivateBus) -> None:
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(staged(polkit_bus, lambda _: None))
        root = await stack.enter_async_context(client(polkit_bus))
        for uid in OTHERS:
            caller = await stack.enter_async_context(client(polkit_bus, uid=uid))
            await caller.call(ROOT, messages.PEER, "Ping")
            for _ in range(MAX_PER_OTHER_USER):
                caller.connection.send(request(ROOT, MANAGER, *STAGE))
                caller.connection.send(request(*LOOKS[0]))
        # what waits for replies of polkit stays below what the system bus grants a connection
        await stage.polkit.until(asked=2 * MAX_OF_OTHERS)
        assert sum(stage.rooms()) == 2 * MAX_OF_OTHERS < 128
        for verb in VERBS:
            await root.manager(*verb)
        assert len(stage.polkit.questions) == 2 * MAX_OF_OTHERS
    assert len(stage.core.requests) == 3


async def test_strangers_that_come_all_at_once(polkit_bus: PrivateBus) -> None:
    """Root is among them, last, and gets its answer."""
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(staged(polkit_bus))
        flood = [await stack.enter_async_context(client(polkit_bus, uid=NOBODY)) for _ in range(60)]
        root = await stack.enter_async_context(client(polkit_bus))
        for stranger in flood:
            for _ in range(100):
                stranger.connection.send(request(ROOT, MANAGER, *DISCONNECT))
        assert await root.manager(*DISCONNECT)
        assert await root.get(ROOT, MANAGER, "Version")
        for stranger in flood:
            await denied_or_limited(stranger)
        assert [sender for _, sender in stage.core.requests] == [0]
        assert stage.rooms() == [0, 0, 0, 0]


async def denied_or_limited(caller: Client) -> None:
    with pytest.raises(DBusError) as raised:
        await caller.manager(*DISCONNECT)
    assert raised.value.name in {DENIED, messages.LIMITS_EXCEEDED}


# The drop-in that is shipped as an example


def storage_policy() -> str:
    """Its policy for a group that every machine has, and that the user nobody is in."""
    text = (REPOSITORY / "examples" / "nvmeofd-storage.conf").read_text()
    start, end = text.index("<policy"), text.index("</policy>") + len("</policy>")
    return text[start:end].replace('group="storage"', 'group="nogroup"')


@pytest.fixture(params=[False, True], ids=["daemon", "broker"])
def storage_bus(request: pytest.FixtureRequest) -> Any:
    from tests.bus import broker  # noqa: PLC0415

    if request.param and (why := broker.missing()):
        pytest.skip(why)
    with (broker.PrivateBroker if request.param else PrivateBus)(extra_policy=storage_policy() + POLICY) as private:
        yield private


async def test_the_example_lets_a_group_call_and_nothing_else(storage_bus: PrivateBus) -> None:
    async with staged(storage_bus, lambda _: YES) as stage, client(storage_bus, uid=SOMEBODY) as other:
        await stage.nobody.manager(*DISCONNECT)
        assert len(stage.core.requests) == 1
        await denied(other.manager(*DISCONNECT))
        assert len(stage.polkit.questions) == 1
        seen: list[Message] = []
        stage.running._connection.on_signal = seen.append
        for caller in (stage.nobody, other):
            forged = Message(type=MessageType.SIGNAL, destination=SERVICE_NAME, path="/", interface="a.b", member="C")
            caller.connection.send(forged)
            await caller.connection.call_bus("GetId")
        await stage.nobody.call(ROOT, messages.PEER, "Ping")
        assert seen == []


async def test_the_example_shows_no_signals(storage_bus: PrivateBus) -> None:
    async with staged(storage_bus) as stage, client(storage_bus) as root:
        for listener in (root, stage.nobody):
            await listener.subscribe()
        stage.core.add_volume(volume("/srv/secret"))
        await root.signal("InterfacesAdded")
        await stage.nobody.call(ROOT, messages.PEER, "Ping")
        assert stage.nobody.signals == []


async def test_the_bus_is_lost_while_polkit_decides(polkit_bus: PrivateBus) -> None:
    core = new_core()
    async with authority(polkit_bus, lambda _: None) as fake, client(polkit_bus, uid=NOBODY) as nobody:
        running = await BusService.connect(polkit_bus.address)
        core.observer = running
        running.export(core)
        await running.own_name()
        nobody.connection.send(request(ROOT, MANAGER, *STAGE))
        await fake.until(asked=1)
        running._connection.fail("a test")
        assert running.lost.done()
        await running.close()
        assert nothing_done(core)
