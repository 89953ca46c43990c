"""The service with the real core on a simulated host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from nvmeofd.bus.core import Core
from nvmeofd.bus.dbusnext import variant
from nvmeofd.bus.messages import OBJECT_MANAGER, DBusError
from nvmeofd.bus.paths import ROOT, job_path, subsystem_path, volume_path
from nvmeofd.bus.service import BusService
from nvmeofd.config import Config
from nvmeofd.journal import Journal
from nvmeofd.operations.engine import Engine
from nvmeofd.operations.observer import Observer
from tests.bus.harness import MANAGER, Client, PrivateBus, body, client
from tests.bus.test_objects import JOB, SUBSYSTEM, VOLUME, plain
from tests.simulation.harness import MemoryStore, StoreOfProcess
from tests.simulation.kernel import SimKernel
from tests.simulation.target import Disk
from tests.simulation.world import SimWorld

NQN = "nqn.2024-01.org.example:storage"
ADDRESSES = ["tcp://127.0.0.1:4420", "tcp://127.0.0.2:4420"]
UUIDS = ["6c5a4a4e-0000-4000-8000-000000000001", "6c5a4a4e-0000-4000-8000-000000000002"]


@dataclass
class Running:
    world: SimWorld
    service: BusService
    engine: Engine
    client: Client

    async def stage(self, number: int, path: str, **options: Any) -> list[Any]:
        given = {"format": variant("s", "if-empty"), **options}
        return await self.client.manager("Stage", "ssassa{sv}", NQN, f"uuid.{UUIDS[number]}", ADDRESSES, path, given)

    async def unstage(self, path: str) -> bool:
        (disconnected,) = await self.client.manager("Unstage", "sa{sv}", path, {})
        return bool(disconnected)


@asynccontextmanager
async def running(
    bus: PrivateBus, observe: Callable[[BusService], Observer] = lambda service: service
) -> AsyncIterator[Running]:
    """``observe`` makes of the service what the core tells its news to."""
    world = SimWorld(instant=True)
    world.add_target(NQN, ADDRESSES, *(Disk(uuid=uuid.replace("-", "")) for uuid in UUIDS))
    kernel = SimKernel(world)
    journal = Journal(StoreOfProcess(MemoryStore(), kernel))
    service = await BusService.connect(bus.address)
    engine = Engine(kernel=kernel, journal=journal, config=Config(), observer=observe(service))
    await engine.start()
    try:
        service.export(engine)
        await service.own_name()
        async with client(bus) as caller:
            await caller.subscribe()
            yield Running(world, service, engine, caller)
        await engine.drain()
    finally:
        await service.close()
        await engine.close()
    assert world.violations == []


def as_core(engine: Engine) -> Core:
    """That an engine is all that the bus needs is for mypy to see."""
    return engine


async def test_the_main_job(bus: PrivateBus) -> None:
    async with running(bus) as host:
        one = await host.stage(0, "/srv/one")
        assert one[0] == volume_path("/srv/one")
        await host.stage(1, "/srv/two", type=variant("s", "filesystem"))
        caller = host.client
        subsystem = await caller.get_all(subsystem_path(NQN), SUBSYSTEM)
        assert subsystem["Owned"] is True
        assert [(address, state) for _, _, address, state in subsystem["Controllers"]] == [
            (address, "live") for address in ADDRESSES
        ]
        assert [wwid for _, wwid, _ in subsystem["Namespaces"]] == [f"uuid.{uuid}" for uuid in UUIDS]
        shown = await caller.get_all(volume_path("/srv/one"), VOLUME)
        assert (shown["Namespace"], shown["State"], shown["Filesystem"]) == (f"uuid.{UUIDS[0]}", "staged", "ext4")
        assert shown["Device"] == one[1]

        (users,) = await caller.call(subsystem_path(NQN), SUBSYSTEM, "ListUsers")
        assert {(kind, detail) for kind, _, detail in users} >= {("mount", "/srv/one"), ("mount", "/srv/two")}
        with pytest.raises(DBusError, match=r"org\.nvmeofd1\.Error\.InUse.*/srv/one"):
            await caller.manager("Disconnect", "sa{sv}", NQN, {})

        assert await host.unstage("/srv/one") is False
        assert await host.unstage("/srv/two") is True
        assert not host.world.connected(NQN)
        (objects,) = await caller.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        assert objects == {}
        counters = await caller.get(ROOT, MANAGER, "Counters")
        assert (counters["stage-succeeded"], counters["unstage-succeeded"]) == (2, 2)


async def test_what_a_watcher_sees(bus: PrivateBus) -> None:
    async with running(bus) as host:
        await host.stage(0, "/srv/one")
        watcher = host.client
        added = [body(one) for one in watcher.signals if one.member == "InterfacesAdded"]
        assert added[0][0] == job_path(1)
        assert volume_path("/srv/one") in [path for path, _ in added]
        steps = [
            plain(body(one))[1]["Step"]
            for one in watcher.signals
            if (one.member, one.path) == ("PropertiesChanged", job_path(1)) and "Step" in plain(body(one))[1]
        ]
        assert steps[0] == "connecting"
        assert steps[-1] == "mounting"
        completed = await watcher.signal("Completed", job_path(1))
        assert body(completed) == [True, "", ""]
        assert body(await watcher.signal("InterfacesRemoved")) == [job_path(1), [JOB]]


async def test_errors_of_the_core(bus: PrivateBus) -> None:
    async with running(bus) as host:
        with pytest.raises(DBusError, match=r"Error\.NoFilesystem"):
            await host.stage(0, "/srv/one", format=variant("s", "never"))
        host.world.path_down(ADDRESSES[0])
        host.world.path_down(ADDRESSES[1])
        with pytest.raises(DBusError, match=r"Error\.ConnectFailed") as raised:
            await host.stage(0, "/srv/one")
        assert all(address in raised.value.text for address in ADDRESSES)
        assert not host.world.connected(NQN)


async def test_a_caller_goes_away_and_its_volume_is_staged(bus: PrivateBus) -> None:
    async with running(bus) as host:
        async with client(bus) as leaving:
            await leaving.get(ROOT, MANAGER, "Version")
            staging = asyncio.create_task(
                leaving.manager(
                    "Stage",
                    "ssassa{sv}",
                    NQN,
                    f"uuid.{UUIDS[0]}",
                    ADDRESSES,
                    "/srv/one",
                    {"format": variant("s", "if-empty")},
                )
            )
            await host.client.signal("InterfacesAdded", ROOT)
        await asyncio.gather(staging, return_exceptions=True)
        while not host.engine.volumes:
            await host.client.signal("InterfacesAdded", ROOT)
        assert await host.client.get(volume_path("/srv/one"), VOLUME, "State") == "staged"
        assert await host.unstage("/srv/one") is True


async def test_foreign_subsystems_are_shown(bus: PrivateBus) -> None:
    async with running(bus) as host:
        host.world.connect(NQN, ADDRESSES[0])
        path = body(await host.client.signal("InterfacesAdded", ROOT))[0]
        assert path == subsystem_path(NQN)
        assert await host.client.get(path, SUBSYSTEM, "Owned") is False
        assert await host.client.manager("Disconnect", "sa{sv}", NQN, {}) == [["nvme0"]]
        assert body(await host.client.signal("InterfacesRemoved", ROOT))[0] == job_path(1)
        assert body(await host.client.signal("InterfacesRemoved", ROOT))[0] == path


async def test_a_lost_volume(bus: PrivateBus) -> None:
    async with running(bus) as host:
        await host.stage(0, "/srv/one")
        host.world.unmount("/srv/one")
        assert await host.client.get(volume_path("/srv/one"), VOLUME, "State") == "lost"
        host.world.path_down(ADDRESSES[0])
        await host.unstage("/srv/one")
