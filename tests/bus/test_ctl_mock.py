"""nvmeofctl against a mock of the service: a later version of it, and signals that are not what they should be."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nvmeofd.bus.dbusnext import encode_body, variant
from nvmeofd.bus.messages import BUS_NAME, OBJECT_MANAGER, PROPERTIES, Message, MessageType
from nvmeofd.bus.paths import ROOT
from nvmeofd.ctl.outcome import Exit
from tests.bus.ctl import ctl, ctl_json, environment, running
from tests.bus.fake import FakeCore, volume
from tests.bus.harness import Client, PrivateBus, body, client, service
from tests.bus.later_daemon import NQN

TEMPLATE = Path(__file__).with_name("later_daemon.py")


@asynccontextmanager
async def later(bus: PrivateBus) -> AsyncIterator[Client]:
    """The mock, and a client for what a test does with it."""
    async with client(bus) as watcher:
        await watcher.subscribe(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged',arg0='org.nvmeofd1'")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dbusmock",
            "--template",
            str(TEMPLATE),
            env=environment(bus.address),
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            await watcher.signal("NameOwnerChanged")
            yield watcher
        finally:
            process.terminate()
            await process.wait()


async def test_a_later_version(bus: PrivateBus) -> None:
    async with later(bus):
        assert (await ctl_json(bus, "show"))["Uptime"] == 17
        assert "Features: tls\n          raid\n" in (await ctl(bus, "show")).stdout
        (listed,) = await ctl_json(bus, "list")
        assert (listed["Snapshots"], listed["State"]) == (3, "frozen")
        assert "/srv/later" in (await ctl(bus, "list")).stdout
        shown = (await ctl(bus, "status")).stdout.splitlines()
        assert shown[1:3] == ["├─staged at /srv/later    frozen", "├─zoned-append  /dev/nvme9n1"]
        assert "job 7  resize" in shown[3]
        (status,) = await ctl_json(bus, "status", NQN)
        assert (status["Colour"], status["Jobs"][0]["Operation"]) == ("green", "resize")
        assert (await ctl_json(bus, "jobs"))[0]["Job"] == 7
        assert (await ctl(bus, "jobs")).returncode == 0
        done = await ctl(bus, "__complete", "--", "show", "")
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [NQN, "/srv/later", "7", "manager"]


async def test_errors_that_nobody_knows(bus: PrivateBus) -> None:
    async with later(bus):
        stage = ("stage", NQN, "nsid.1", "tcp://127.0.0.1")
        full = await ctl(bus, *stage, "/srv/full")
        assert full.returncode == Exit.FAILED
        assert "QuotaExceeded: quota of 3 volumes" in full.stderr
        assert "journalctl" in full.stderr
        strange = await ctl(bus, *stage, "/srv/one")
        assert strange.returncode == Exit.FAILED
        assert "com.example.Strange: not so" in strange.stderr
        done = await ctl(bus, *stage, "/srv/one", "--timeout=5")
        assert (done.returncode, done.stdout) == (0, "Staged /dev/nvme9n1 at /srv/one\n")
        assert (await ctl(bus, "disconnect", NQN)).returncode == Exit.FAILED  # it has no such method


def forged(member: str, interface: str, signature: str, *values: object, to: str = "") -> Message:
    return Message(
        type=MessageType.SIGNAL,
        destination=to,
        path=ROOT,
        interface=interface,
        member=member,
        signature=signature,
        body=encode_body(signature, list(values)),
    )


async def test_signals_of_others_do_not_count(open_bus: PrivateBus) -> None:
    """Anybody can send a signal to anybody; only those of the daemon are shown."""
    core = FakeCore()
    async with service(open_bus, core) as serving, client(open_bus) as forger:
        await forger.subscribe(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged'")
        async with running(open_bus, "monitor", "--json") as process:
            assert process.stdout is not None
            assert json.loads(await process.stdout.readline())["Running"] is True
            # The monitor is one of those who came.
            names = [one for one in forger.signals if one.member == "NameOwnerChanged"]
            monitors = {str(body(one)[0]) for one in names} - {forger.connection.unique_name}
            properties = {"org.nvmeofd1.Volume": {"StagingPath": variant("s", "/srv/forged")}}
            for name in monitors:
                forger.connection.send(
                    forged("InterfacesAdded", OBJECT_MANAGER, "oa{sa{sv}}", f"{ROOT}/volume/x", properties, to=name)
                )
            await forger.connection.call_bus("GetId")
            # And of the daemon itself, but malformed: these are left out.
            serving._connection.send(forged("InterfacesAdded", OBJECT_MANAGER, "s", "rubbish"))
            serving._connection.send(forged("PropertiesChanged", PROPERTIES, "u", 7))
            core.add_volume(volume("/srv/real"))
            assert json.loads(await process.stdout.readline())["Name"] == "/srv/real"
