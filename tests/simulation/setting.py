"""The usual setting of the tests: two subsystems, two addresses each, a few namespaces, a few directories."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.clock import run
from tests.simulation.files import Node
from tests.simulation.harness import Host
from tests.simulation.target import Disk
from tests.simulation.world import SimWorld

ONE = "nqn.2024-01.org.example:one"
TWO = "nqn.2024-01.org.example:two"
A1 = "tcp://127.0.0.1:4420"
A2 = "tcp://127.0.0.2:4420"
PATHS = [A1, A2]
TARGET = "target.example"  # resolves to the hosts of both
EXT4 = "uuid.11111111-1111-1111-1111-111111111111"
XFS = "uuid.22222222-2222-2222-2222-222222222222"
BLANK = "uuid.33333333-3333-3333-3333-333333333333"
BTRFS = "uuid.44444444-4444-4444-4444-444444444444"
OTHER = "uuid.55555555-5555-5555-5555-555555555555"  # ext4, in the second subsystem
SPARE = "uuid.66666666-6666-6666-6666-666666666666"  # blank, in the second subsystem
DIRECTORIES = ("/srv/a", "/srv/b", "/srv/c", "/mnt/x", "/mnt/y")
FILE = "/srv/file"


def disk(wwid: str, **content: Any) -> Disk:
    return Disk(uuid=wwid.removeprefix("uuid.").replace("-", ""), **content)


def make_world(seed: int = 0, *, instant: bool = False) -> SimWorld:
    """ONE has EXT4, XFS, BLANK and BTRFS as namespaces 1 to 4; TWO has OTHER and SPARE."""
    world = SimWorld(seed, instant=instant)
    world.add_target(
        ONE,
        PATHS,
        disk(EXT4, fstype="ext4", fs_uuid="e4"),
        disk(XFS, fstype="xfs", fs_uuid="f5"),
        disk(BLANK),
        disk(BTRFS, fstype="btrfs", fs_uuid="b7"),
    )
    world.add_target(TWO, PATHS, disk(OTHER, fstype="ext4", fs_uuid="e8"), disk(SPARE))
    world.dns[TARGET] = ("127.0.0.1", "127.0.0.2")
    for path in DIRECTORIES:
        world.files.add(path)
    world.files.add(FILE, Node.EMPTY_FILE)
    return world


def simulated(*, seeds: int = 3) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Run a test on a booted host, in virtual time, on a few seeds; at the end nothing may be wrong.

    The test gets the host, and its parameters by name.
    """

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        async def main(seed: int, parameters: dict[str, Any]) -> None:
            host = Host(make_world(seed))
            await host.boot()
            await test(host, **parameters)
            await host.quiesce()
            found = host.complaints()
            assert not found, found
            await host.stop()

        def wrapper(**parameters: Any) -> None:
            for seed in range(seeds):
                run(main(seed, parameters))

        wrapper.__name__ = test.__name__
        wrapper.__doc__ = test.__doc__
        signature = inspect.signature(test)
        vars(wrapper)["__signature__"] = signature.replace(parameters=list(signature.parameters.values())[1:])
        return wrapper

    return decorate
