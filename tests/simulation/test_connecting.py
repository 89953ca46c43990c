"""Connecting and waiting for the namespace: what is refused by name, and what is asked for once more."""

from __future__ import annotations

import asyncio
import errno

import pytest

from nvmeofd.errors import AuthenticationFailed, ConnectFailed, InvalidArgument, NamespaceNotFound
from nvmeofd.kernel.interface import ConnectError
from tests.simulation.harness import Host
from tests.simulation.setting import A1, A2, EXT4, ONE, PATHS, simulated

PATH = "/srv/a"


def key_required() -> ConnectError:
    return ConnectError(errno.ENOKEY, "the target requires DH-HMAC-CHAP")


@simulated()
async def test_several_paths_without_multipath(host: Host) -> None:
    """Each would be a disk of its own, and two of them mounted at once would be the end of the filesystem."""
    host.world.multipath = False
    with pytest.raises(InvalidArgument, match=r"nvme_core\.multipath"):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert not host.world.connected(ONE)
    await host.stage(ONE, EXT4, PATHS[:1], PATH)
    assert await host.unstage(PATH) is True


@simulated()
async def test_key_required_at_every_path(host: Host) -> None:
    host.kernel.faults.fail("connect", key_required(), times=2)
    with pytest.raises(AuthenticationFailed) as caught:
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert A1 in str(caught.value)
    assert A2 in str(caught.value)
    assert not host.world.connected(ONE)


@simulated()
async def test_key_required_at_one_path_and_nobody_at_the_other(host: Host) -> None:
    host.kernel.faults.fail("connect", key_required(), detail=A1)
    host.kernel.faults.fail("connect", ConnectError(errno.ECONNREFUSED, "nothing listens"), detail=A2)
    with pytest.raises(ConnectFailed):
        await host.stage(ONE, EXT4, PATHS, PATH)


@simulated()
async def test_key_required_at_one_path_and_the_other_does(host: Host) -> None:
    host.kernel.faults.fail("connect", key_required())
    await host.stage(ONE, EXT4, PATHS, PATH)
    assert len(host.world.fabric.controllers()) == 1


@simulated()
async def test_host_without_an_identity(host: Host) -> None:
    host.kernel.faults.fail("host_identity", FileNotFoundError(errno.ENOENT, "No such file", "/etc/nvme/hostnqn"))
    with pytest.raises(InvalidArgument, match="hostnqn"):
        await host.stage(ONE, EXT4, PATHS, PATH)
    assert not host.world.connected(ONE)


@simulated()
async def test_rescanned_once_at_half_the_time(host: Host) -> None:
    """The kernel misses that the target has a new namespace (AEN lost): asked to look again, it finds it."""
    host.world.fabric.targets[ONE].silent = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    await host.stage(ONE, EXT4, PATHS[:1], PATH, timeout=60)
    assert 20 < loop.time() - began < 30


@simulated()
async def test_what_does_not_appear_is_told_with_what_is_there(host: Host) -> None:
    with pytest.raises(NamespaceNotFound, match=EXT4):
        await host.stage(ONE, "nsid.77", PATHS, PATH)
    assert not host.world.connected(ONE)


@simulated()
async def test_namespace_that_grows(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, PATH)
    size = host.engine.volumes[PATH].size
    host.world.grow_namespace(ONE, 1, size * 2)
    await host.quiesce(1)
    assert host.observer.volumes[PATH].size == size * 2
    assert await host.unstage(PATH) is True
