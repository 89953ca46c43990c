"""Objects that come, change and go, and what the bus is told of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from nvmeofd.bus.messages import OBJECT_MANAGER, PROPERTIES, DBusError, Message
from nvmeofd.bus.paths import ROOT, job_path, subsystem_path, volume_path
from nvmeofd.errors import MountFailed
from nvmeofd.model import Step, Subsystem, VolumeState
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import Client, PrivateBus, body, busctl_json, client, service

SUBSYSTEM = "org.nvmeofd1.Subsystem"
VOLUME = "org.nvmeofd1.Volume"
JOB = "org.nvmeofd1.Job"
OTHER = "nqn.2024-01.org.example:other"


def plain(value: Any) -> Any:
    """Variants as their values."""
    if hasattr(value, "signature"):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value


async def managed(caller: Client) -> dict[str, Any]:
    (objects,) = await caller.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    found: dict[str, Any] = plain(objects)
    return found


def sent_by(signal: Message) -> tuple[str, str]:
    return signal.path, signal.interface


async def test_managed_objects(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    core.connect(subsystem(OTHER, 1))
    core.add_volume(volume("/srv/one"))
    core.add_job(7)
    async with service(bus, core), client(bus) as caller:
        objects = await managed(caller)
        assert {path: list(interfaces) for path, interfaces in objects.items()} == {
            subsystem_path(NQN): [SUBSYSTEM],
            subsystem_path(OTHER): [SUBSYSTEM],
            volume_path("/srv/one"): [VOLUME],
            job_path(7): [JOB],
        }
        for path, interfaces in objects.items():
            for interface, values in interfaces.items():
                assert values == await caller.get_all(path, interface)
        again = await busctl_json(bus, "call", "org.nvmeofd1", ROOT, OBJECT_MANAGER, "GetManagedObjects")
        assert again["data"][0].keys() == objects.keys()


async def test_values(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    core.owned_nqns.add(NQN)
    core.add_volume(volume("/srv/one"))
    core.add_job(7)
    async with service(bus, core), client(bus) as caller:
        assert await caller.get_all(subsystem_path(NQN), SUBSYSTEM) == {
            "NQN": NQN,
            "Name": "nvme-subsys0",
            "Owned": True,
            "Controllers": [["nvme0", "tcp", "tcp://127.0.0.1:4420", "live"]],
            "Namespaces": [["/dev/nvme0n1", "uuid.6c5a4a4e-0000-4000-8000-000000000001", 1 << 30]],
            "Pending": 1,
        }
        assert await caller.get_all(volume_path("/srv/one"), VOLUME) == {
            "NQN": NQN,
            "Namespace": "uuid.6c5a4a4e-0000-4000-8000-000000000001",
            "Device": "/dev/nvme0n1",
            "StagingPath": "/srv/one",
            "Type": "filesystem",
            "Filesystem": "ext4",
            "MountOptions": ["noatime"],
            "ReadOnly": False,
            "Size": 1 << 30,
            "StagedAt": 1_700_000_000_000_000,
            "State": "staged",
        }
        assert await caller.get_all(job_path(7), JOB) == {
            "Operation": "stage",
            "NQN": NQN,
            "StagingPath": "/srv/one",
            "Step": "queued",
            "QueuedAt": 1_700_000_000_000_000,
            "StartedAt": 0,
            "Sender": 0,
        }


async def test_what_is_live_is_asked_for(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    core.add_volume(volume("/srv/one"))
    async with service(bus, core), client(bus) as caller:
        core.connected[NQN] = subsystem(state="connecting")
        core.states["/srv/one"] = VolumeState.DEGRADED
        assert (await caller.get(subsystem_path(NQN), SUBSYSTEM, "Controllers"))[0][3] == "connecting"
        assert await caller.get(volume_path("/srv/one"), VOLUME, "State") == "degraded"
        core.connected[NQN] = subsystem(state="resetting")
        core.states["/srv/one"] = VolumeState.LOST
        objects = await managed(caller)
        assert objects[subsystem_path(NQN)][SUBSYSTEM]["Controllers"][0][3] == "resetting"
        assert objects[volume_path("/srv/one")][VOLUME]["State"] == "lost"


async def test_volume_comes_changes_and_goes(bus: PrivateBus) -> None:
    core = FakeCore()
    path = volume_path("/srv/one")
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        core.add_volume(volume("/srv/one"))
        added = await caller.signal("InterfacesAdded")
        assert sent_by(added) == (ROOT, OBJECT_MANAGER)
        assert plain(body(added)) == [path, {VOLUME: await caller.get_all(path, VOLUME)}]

        grown = replace(volume("/srv/one", size=2 << 30), state=VolumeState.LOST)
        core.volumes["/srv/one"] = grown
        running.volume_changed(grown)
        changed = await caller.signal("PropertiesChanged")
        assert sent_by(changed) == (path, PROPERTIES)
        # State is not announced, as it changes without anybody noticing
        assert plain(body(changed)) == [VOLUME, {"Size": 2 << 30}, []]
        running.volume_changed(grown)

        del core.volumes["/srv/one"]
        running.volume_removed("/srv/one")
        removed = await caller.signal("InterfacesRemoved")
        assert sent_by(removed) == (ROOT, OBJECT_MANAGER)
        assert body(removed) == [path, [VOLUME]]
        assert caller.signals == []
        with pytest.raises(DBusError, match="UnknownObject"):
            await caller.get_all(path, VOLUME)


async def test_job_from_beginning_to_end(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        job = core.add_job(1)
        assert body(await caller.signal("InterfacesAdded"))[0] == job_path(1)
        job.step, job.started_at = Step.CONNECTING, 5
        running.job_changed(job)
        changed = await caller.signal("PropertiesChanged", job_path(1))
        assert plain(body(changed)) == [JOB, {"Step": "connecting", "StartedAt": 5}, []]
        await caller.call(job_path(1), JOB, "Cancel")
        assert job.cancelled
        core.finish_job(1, MountFailed("wrong superblock\udcff"))
        await caller.signal("InterfacesRemoved")
        # before the object was removed: already there when that was
        (completed,) = caller.signals
        assert sent_by(completed) == (job_path(1), JOB)
        assert body(completed) == [False, "org.nvmeofd1.Error.MountFailed", "wrong superblock\\udcff"]
        with pytest.raises(DBusError, match="UnknownObject"):
            await caller.call(job_path(1), JOB, "Cancel")


async def test_subsystems_come_change_and_go(bus: PrivateBus) -> None:
    core = FakeCore()
    path = subsystem_path(NQN)
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        core.connect(subsystem())
        added = await caller.signal("InterfacesAdded")
        assert sent_by(added) == (ROOT, OBJECT_MANAGER)
        assert plain(body(added))[1][SUBSYSTEM]["Name"] == "nvme-subsys0"

        core.owned_nqns.add(NQN)
        core.connect(subsystem(NQN, 3))
        changed = await caller.signal("PropertiesChanged")
        assert sent_by(changed) == (path, PROPERTIES)
        assert plain(body(changed)) == [SUBSYSTEM, {"Name": "nvme-subsys3", "Owned": True}, []]

        core.vanish(NQN)
        assert body(await caller.signal("InterfacesRemoved")) == [path, [SUBSYSTEM]]
        assert caller.signals == []
        assert not running.lost.done()


async def test_news_in_a_burst_cost_one_look(bus: PrivateBus) -> None:
    core = FakeCore()
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        before = core.scans
        for _ in range(500):
            core.connect(subsystem())
        await caller.signal("InterfacesAdded")
        assert core.scans == before + 1
        for _ in range(10):
            await caller.get_all(ROOT, "org.nvmeofd1.Manager")
        assert core.scans == before + 1
        assert not running._rescan_alarm.is_set()


async def test_news_without_end_leave_time_for_other_things(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    core = FakeCore()
    quick = core.subsystems

    def slow() -> tuple[Subsystem, ...]:
        time.sleep(0.1)
        return quick()

    monkeypatch.setattr(core, "subsystems", slow)
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        core.connect(subsystem())
        await caller.signal("InterfacesAdded")
        now = asyncio.get_running_loop().time()
        core.connect(subsystem(OTHER))
        timer = running._rescan_alarm._timer
        assert timer is not None
        assert timer.when() >= now + 0.2
        await caller.signal("InterfacesAdded")


async def test_a_slow_look_does_not_put_the_next_one_off_for_long(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvmeofd.bus.service.RESCAN_PAUSE", 1e9)
    core = FakeCore()
    async with service(bus, core) as running:
        running._look()
        core.connect(subsystem())
        timer = running._rescan_alarm._timer
        assert timer is not None
        assert timer.when() <= asyncio.get_running_loop().time() + 1.0


async def test_the_number_of_subsystems_is_told(bus: PrivateBus) -> None:
    """Only then is it known: the news themselves come before the look."""
    core, counts = FakeCore(), []
    async with service(bus, core) as running, client(bus) as caller:
        running.on_count = lambda: counts.append(running.subsystem_count)
        await caller.subscribe()
        core.connect(subsystem())
        await caller.signal("InterfacesAdded")
        core.connect(replace(subsystem(), name="nvme-subsys7"))
        await caller.signal("PropertiesChanged")
        core.vanish(NQN)
        await caller.signal("InterfacesRemoved")
    assert counts == [1, 0]


async def test_a_subsystem_is_there_as_soon_as_its_news(bus: PrivateBus) -> None:
    """Without waiting for the end of the burst: a client that has its reply looks at once."""
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        core.connect(subsystem())
        assert await caller.get(subsystem_path(NQN), SUBSYSTEM, "Name") == "nvme-subsys0"


async def test_a_subsystem_that_goes_without_news(bus: PrivateBus) -> None:
    core = FakeCore()
    core.connect(subsystem())
    async with service(bus, core), client(bus) as caller:
        await caller.subscribe()
        del core.connected[NQN]
        with pytest.raises(DBusError, match="UnknownObject"):
            await caller.get_all(subsystem_path(NQN), SUBSYSTEM)
        await caller.signal("InterfacesRemoved")


THIRD = "nqn.2024-01.org.example:third"


async def test_one_subsystem_that_cannot_be_read(bus: PrivateBus) -> None:
    """It is shown as it was last, and nothing else is the worse for it."""
    core = FakeCore()
    core.connect(subsystem())
    core.connect(subsystem(OTHER))
    async with service(bus, core), client(bus) as caller:
        await caller.subscribe()
        core.unreadable = {NQN}
        core.connect(replace(subsystem(OTHER), name="nvme-subsys7"))
        core.connected[THIRD] = subsystem(THIRD)
        core.add_volume(volume("/srv/third", THIRD))
        objects = await managed(caller)
        assert set(objects) == {*map(subsystem_path, (NQN, OTHER, THIRD)), volume_path("/srv/third")}
        assert objects[subsystem_path(OTHER)][SUBSYSTEM]["Name"] == "nvme-subsys7"
        assert await caller.get(volume_path("/srv/third"), VOLUME, "StagingPath") == "/srv/third"


async def test_a_failed_look_is_made_up_for(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a call, and without more news."""
    monkeypatch.setattr("nvmeofd.bus.service.RESCAN_DELAY", 3600)
    monkeypatch.setattr("nvmeofd.bus.service.RETRY_DELAY", 0.05)
    core = FakeCore()
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        core.unreadable = {NQN}
        core.connect(subsystem())
        running._look()
        core.unreadable = set()
        await caller.signal("InterfacesAdded")


async def test_looks_that_fail_are_not_made_with_every_call(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them may hold up the loop. Nor is each of them in the log."""
    monkeypatch.setattr("nvmeofd.bus.service.RETRY_DELAY", 3600)
    core = FakeCore()
    async with service(bus, core), client(bus) as caller:
        core.unreadable = {NQN}
        core.connect(subsystem())
        await managed(caller)
        before = core.scans
        for _ in range(5):
            assert await managed(caller) == {}
            await caller.get(ROOT, "org.nvmeofd1.Manager", "Version")
        assert core.scans == before


async def test_names_that_are_not_utf8(bus: PrivateBus) -> None:
    core = FakeCore()
    strange = NQN + b"\xff".decode("utf-8", "surrogateescape")
    core.connect(subsystem(strange))
    async with service(bus, core), client(bus) as caller:
        objects = await managed(caller)
        path = f"{ROOT}/subsystem/nqn_2e2024_2d01_2eorg_2eexample_3aone_ff"
        assert objects[path][SUBSYSTEM]["NQN"] == NQN + "\\udcff"
        assert await caller.get(path, SUBSYSTEM, "NQN") == NQN + "\\udcff"


async def test_a_listing_does_not_contradict_the_signals_before_it(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects come and go while a listing is made in portions."""
    monkeypatch.setattr("nvmeofd.bus.tree.LISTING_TURN", 0.0)
    core = FakeCore()
    for number in range(50):
        core.add_volume(volume(f"/srv/{number}"))
    async with service(bus, core) as running, client(bus) as caller:
        await caller.subscribe()
        plain_state = core.volume_state

        def meddle(staging_path: str) -> VolumeState:
            if staging_path == "/srv/10":
                for gone in ("/srv/5", "/srv/30"):
                    del core.volumes[gone]
                    running.volume_removed(gone)
                core.add_volume(volume("/srv/new"))
            return plain_state(staging_path)

        monkeypatch.setattr(core, "volume_state", meddle)
        objects = await managed(caller)
        assert set(objects) == {volume_path(path) for path in core.volumes}
        assert {body(one)[0] for one in caller.signals if one.member == "InterfacesRemoved"} == {
            volume_path("/srv/5"),
            volume_path("/srv/30"),
        }


async def test_many_objects(bus: PrivateBus) -> None:
    core = FakeCore()
    for number in range(2000):
        core.add_volume(volume(f"/srv/volume-{number}"))
    async with service(bus, core), client(bus, max_body=64 << 20) as caller:
        assert len(await managed(caller)) == 2000
        core.states["/srv/volume-7"] = VolumeState.LOST
        assert (await managed(caller))[volume_path("/srv/volume-7")][VOLUME]["State"] == "lost"
