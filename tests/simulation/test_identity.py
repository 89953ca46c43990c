"""A host without an identity: what is staged is served all the same, and a Stage is refused until it has one."""

from __future__ import annotations

import errno

import pytest

from nvmeofd.errors import InvalidArgument
from tests.simulation.clock import run
from tests.simulation.faults import FaultPlan
from tests.simulation.harness import Host
from tests.simulation.setting import EXT4, ONE, PATHS, make_world


@pytest.mark.parametrize(
    "error",
    [
        ValueError("/etc/nvme/hostid: 'x' is not a UUID"),
        PermissionError(errno.EACCES, "Permission denied", "/etc/nvme/hostid"),
    ],
)
def test_none_to_be_had(error: Exception) -> None:
    async def main() -> None:
        host = Host(make_world(1))
        await host.boot()
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
        host.kill()
        faults = FaultPlan(1)
        faults.fail("host_identity", error, times=3)  # at the start, and twice below
        await host.boot(faults)
        assert await host.unstage("/srv/a")
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="/etc/nvme/hostid"):
                await host.stage(ONE, EXT4, PATHS, "/srv/a")
            assert not host.world.connected(ONE)
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
        assert host.complaints() == []
        await host.stop()

    run(main())


def test_given_in_the_request() -> None:
    async def main() -> None:
        host = Host(make_world(1))
        faults = FaultPlan(1)
        faults.fail("host_identity", ValueError("malformed"), times=1000)
        await host.boot(faults)
        nqn = "nqn.2024-01.org.example:given"
        await host.stage(ONE, EXT4, PATHS, "/srv/a", host_nqn=nqn, host_id="99999999-2222-3333-4444-555555555555")
        subsystem = host.world.fabric.subsystem(ONE)
        assert subsystem is not None
        assert {controller.host.nqn for controller in subsystem.controllers} == {nqn}
        await host.stop()

    run(main())
