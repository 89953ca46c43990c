"""The simulated kernel holds to what was measured on a real one."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from nvmeofd.addresses import Address
from nvmeofd.kernel.interface import (
    ClaimBusy,
    CommandError,
    ConnectError,
    ConnectParameters,
    DeviceChanged,
    Event,
    EventKind,
    PathKind,
    StagingPathError,
)
from nvmeofd.kernel.mountinfo import parse_mount
from nvmeofd.model import Namespace, Subsystem, VolumeType
from tests.simulation.clock import run
from tests.simulation.faults import FaultPlan
from tests.simulation.files import Node
from tests.simulation.kernel import SimKernel
from tests.simulation.target import Disk
from tests.simulation.world import HOST, SimWorld

NQN = "nqn.2024-01.org.example:one"
A1 = "tcp://127.0.0.1:4420"
A2 = "tcp://127.0.0.2:4420"
U1 = "11111111111111111111111111111111"
U2 = "22222222222222222222222222222222"


def make(seed: int = 0, **disk: Any) -> tuple[SimWorld, SimKernel]:
    world = SimWorld(seed)
    first = Disk(uuid=U1, **({"fstype": "ext4", "fs_uuid": "f1"} | disk))
    world.add_target(NQN, [A1, A2], first, Disk(uuid=U2))
    for path in ("/srv/a", "/srv/b"):
        world.files.add(path)
    world.files.add("/srv/file", Node.EMPTY_FILE)
    return world, SimKernel(world)


def parameters(address: str = A1, nqn: str = NQN) -> ConnectParameters:
    return ConnectParameters(nqn=nqn, address=Address.parse(address), host=HOST)


async def connected(kernel: SimKernel, *addresses: str) -> Subsystem:
    for address in addresses or (A1, A2):
        await kernel.connect(parameters(address))
    await asyncio.sleep(1)
    subsystem = kernel.subsystem(NQN)
    assert subsystem is not None
    return subsystem


def namespace(subsystem: Subsystem, nsid: int = 1) -> Namespace:
    return next(n for n in subsystem.namespaces if n.nsid == nsid)


Test = Callable[[SimWorld, SimKernel], Coroutine[Any, Any, None]]


def simulated(test: Test) -> Callable[[], None]:
    """Run the test in virtual time, on a few seeds."""

    def wrapper() -> None:
        for seed in range(5):
            world, kernel = make(seed)
            run(test(world, kernel))

    wrapper.__name__ = test.__name__
    return wrapper


@simulated
async def test_one_head_for_two_paths(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    assert [c.name for c in subsystem.controllers] == ["nvme0", "nvme1"]
    assert sorted(n.name for n in subsystem.namespaces) == ["nvme0n1", "nvme0n2"]
    assert namespace(subsystem).wwid == "uuid.11111111-1111-1111-1111-111111111111"


@pytest.mark.parametrize(
    ("prepare", "number"),
    [
        (lambda w: w.fabric.unreachable.update({A1: errno.EHOSTUNREACH}), errno.EHOSTUNREACH),
        (lambda w: w.path_down(A1), errno.ETIMEDOUT),
        (lambda w: w.fabric.targets.clear(), errno.ECONNREFUSED),
        (lambda w: setattr(w.fabric.targets[NQN], "allowed_hosts", set()), errno.EIO),
        (lambda w: w.fabric.targets.update({NQN: w.fabric.targets.pop(NQN)}) or w.connect(NQN, A1), errno.EALREADY),
    ],
)
def test_connect_errors(prepare: Callable[[SimWorld], object], number: int) -> None:
    world, kernel = make()

    async def main() -> None:
        prepare(world)
        with pytest.raises(ConnectError) as caught:
            await kernel.connect(parameters())
        assert caught.value.errno == number

    run(main())


def test_names_swap_on_reconnect_and_numbers_are_reused() -> None:
    swapped = False
    for seed in range(10):
        world, kernel = make(seed)

        async def main(world: SimWorld = world, kernel: SimKernel = kernel) -> bool:
            before = await connected(kernel, A1)
            world.disconnect(NQN)
            assert kernel.subsystem(NQN) is None
            after = await connected(kernel, A1)
            assert {n.number for n in before.namespaces} == {n.number for n in after.namespaces}
            assert max(n.diskseq for n in before.namespaces) < min(n.diskseq for n in after.namespaces)
            assert before.controllers[0].name == after.controllers[0].name
            assert before.controllers[0].instance != after.controllers[0].instance
            return namespace(before).name != namespace(after).name

        swapped = run(main()) or swapped
    assert swapped


@simulated
async def test_exclusive_claim(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    head = world.head(NQN, 1)
    # granted over a block bind and an open file
    world.bind_device(head, "/srv/file")
    opener = world.open(head)
    async with kernel.claim(subsystem.namespaces):
        with pytest.raises(OSError, match="busy"):
            world.mount(head, "/srv/a")
        with pytest.raises(CommandError, match="busy"):
            await kernel.mount(namespace(subsystem), "/srv/a", "ext4", ["_netdev"])
    world.close(opener)
    pid = world.unshare()
    world.mount(head, "/srv/a", space=pid)
    with pytest.raises(ClaimBusy):
        async with kernel.claim(subsystem.namespaces):
            pass
    assert kernel.claims == []
    assert b"/srv/a" not in b"".join(kernel.mount_lines())
    scan = await kernel.scan_processes([head.number], [head.name])
    assert [f.mount.mount_point for f in scan.foreign_mounts] == ["/srv/file", "/srv/a"]  # unshare copied the bind
    world.end_process(pid)
    holder = world.hold(head)
    assert kernel.holders(namespace(subsystem)) == ((head.name, "dm-0"),)
    with pytest.raises(ClaimBusy):
        async with kernel.claim(subsystem.namespaces):
            pass
    world.release(holder)
    world.swapon(head)
    with pytest.raises(ClaimBusy):
        async with kernel.claim(subsystem.namespaces):
            pass
    assert [s.number for s in kernel.swaps()] == [head.number]


@simulated
async def test_mountinfo(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    assert kernel.mounts_changed()
    assert not kernel.mounts_changed()
    world.files.add("/srv/with space\n")
    await kernel.mount(namespace(subsystem), "/srv/with space\n", "ext4", ["_netdev"])
    await kernel.bind_device(namespace(subsystem, 2), "/srv/file", read_only=True)
    assert kernel.mounts_changed()
    mounts = {m.mount_point: m for m in map(parse_mount, kernel.mount_lines())}
    assert mounts["/srv/with space\n"].number == namespace(subsystem).number
    block = mounts["/srv/file"]
    assert (block.fstype, block.root) == ("devtmpfs", f"/{namespace(subsystem, 2).name}")
    world.remove_namespace(NQN, 2)
    await asyncio.sleep(1)
    assert not kernel.mounts_changed()  # the line changes all the same
    mounts = {m.mount_point: m for m in map(parse_mount, kernel.mount_lines())}
    assert mounts["/srv/file"].root == f"/{namespace(subsystem, 2).name}//deleted"
    await kernel.unmount(mounts["/srv/with space\n"], "/srv/with space\n")
    assert not [m for m in map(parse_mount, kernel.mount_lines()) if m.mount_point.startswith("/srv/with")]


@simulated
async def test_delete_under_a_mount_is_a_violation(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    await kernel.mount(namespace(subsystem), "/srv/a", "ext4", ["_netdev"])
    kernel.subsystem(NQN)
    await kernel.delete_controller(subsystem.controllers[0])
    assert world.violations == []  # there is another path
    await kernel.delete_controller(subsystem.controllers[1])
    await kernel.delete_controller(subsystem.controllers[1])  # gone is fine
    assert any("in use: mount /srv/a" in v for v in world.violations)
    assert any("without a claim" in v for v in world.violations)
    assert kernel.subsystem(NQN) is None
    # the filesystem still has the old name and number
    again = await connected(kernel)
    assert {n.name for n in again.namespaces}.isdisjoint({namespace(subsystem).name})
    assert {n.number for n in again.namespaces}.isdisjoint({namespace(subsystem).number})


@simulated
async def test_delete_with_claims_is_fine(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    async with kernel.claim(subsystem.namespaces):
        again = kernel.subsystem(NQN)
        assert again is not None
        for controller in again.controllers:
            await kernel.delete_controller(controller)
        assert kernel.subsystem(NQN) is None
    assert world.violations == []
    assert world.fabric.subsystems == []


@simulated
async def test_ctrl_loss_timeout(world: SimWorld, kernel: SimKernel) -> None:
    await connected(kernel)
    world.path_down(A1)
    subsystem = kernel.subsystem(NQN)
    assert subsystem is not None
    assert [c.state for c in subsystem.controllers] == ["connecting", "live"]
    await asyncio.sleep(601)
    subsystem = kernel.subsystem(NQN)
    assert subsystem is not None
    assert [c.state for c in subsystem.controllers] == ["live"]


@simulated
async def test_io_waits_for_a_path(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    await kernel.mount(namespace(subsystem), "/srv/a", "ext4", ["_netdev"])
    world.path_down(A1)
    world.path_down(A2)
    asyncio.get_running_loop().call_later(20, world.path_up, A1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await kernel.unmount(world.mounts.at("/srv/a")[-1].snapshot(), "/srv/a")  # not even SIGKILL ends it
    assert asyncio.get_running_loop().time() == pytest.approx(21, abs=1)


@simulated
async def test_cancelled_connect_tells_what_happened(world: SimWorld, kernel: SimKernel) -> None:
    kernel.faults.delay("connect", 10)
    async with asyncio.timeout(1) as deadline:
        made = await kernel.connect(parameters())
    assert kernel.controllers() == {made}
    assert deadline.expired()
    assert asyncio.get_running_loop().time() == pytest.approx(10)


@simulated
async def test_cancelled_child_is_killed(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    kernel.faults.delay("mount", 10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await kernel.mount(namespace(subsystem), "/srv/a", "ext4", ["_netdev"])
    assert world.mounts.at("/srv/a") == []
    assert asyncio.get_running_loop().time() == pytest.approx(2)


@simulated
async def test_hang_holds_until_released(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    gate = kernel.faults.hang("delete_controller")
    asyncio.get_running_loop().call_later(50, gate.release)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await kernel.delete_controller(subsystem.controllers[0])
    assert asyncio.get_running_loop().time() == pytest.approx(51)
    assert gate.entered == 1
    assert len(world.fabric.controllers()) == 1  # the write was done in the end


@simulated
async def test_kill_ends_everything(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    entered = asyncio.Event()

    async def daemon() -> None:
        async with kernel.claim(subsystem.namespaces), kernel.watch(lambda _: None):
            entered.set()
            await kernel.mount(namespace(subsystem), "/srv/a", "ext4", ["_netdev"])

    kernel.faults.hang("mount")
    kernel.spawn(daemon())
    await entered.wait()
    await asyncio.sleep(1)
    kernel.kill()
    assert world.handles == []
    restarted = SimKernel(world)
    async with restarted.claim([n for n in subsystem.namespaces if not world.mounts.of(world.head(NQN, n.nsid))]):
        pass
    await asyncio.sleep(100)


@simulated
async def test_faults_and_hooks(world: SimWorld, kernel: SimKernel) -> None:
    seen: list[str] = []
    kernel.faults.fail("swaps", OSError(errno.EIO, "no"))
    kernel.faults.hook("settle", lambda: seen.append("before"))
    kernel.faults.hook("settle", lambda: seen.append("after"), after=True)
    with pytest.raises(OSError, match="no"):
        kernel.swaps()
    assert kernel.swaps() == ()
    await kernel.settle()
    assert seen == ["before", "after"]


@simulated
async def test_paths(world: SimWorld, kernel: SimKernel) -> None:
    world.files.add("/srv/link", Node.SYMLINK)
    world.files.add("/srv/full/x")
    assert await kernel.inspect_path("/srv/a") is PathKind.EMPTY_DIRECTORY
    assert await kernel.inspect_path("/srv/full") is PathKind.DIRECTORY
    assert await kernel.inspect_path("/srv/new") is PathKind.ABSENT
    assert await kernel.inspect_path("/srv/file") is PathKind.EMPTY_FILE
    for bad in ("/srv/link", "/srv/link/x", "/srv/no/x", "/srv/file/x"):
        with pytest.raises(StagingPathError):
            await kernel.inspect_path(bad)
    await kernel.create_path("/srv/new", VolumeType.FILESYSTEM)
    with pytest.raises(StagingPathError):
        await kernel.create_path("/srv/new", VolumeType.FILESYSTEM)
    await kernel.remove_path("/srv/new", VolumeType.FILESYSTEM)
    await kernel.remove_path("/srv/new", VolumeType.FILESYSTEM)
    with pytest.raises(OSError, match="not empty"):
        await kernel.remove_path("/srv/full", VolumeType.FILESYSTEM)


@simulated
async def test_device_changed(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    world.disconnect(NQN)
    await connected(kernel)
    old = namespace(subsystem)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: kernel.mount(old, "/srv/a", "ext4", ["_netdev"]),
        lambda: kernel.bind_device(old, "/srv/file", read_only=False),
        lambda: kernel.rescan(subsystem.controllers[0]),
        lambda: kernel.claim([old]).__aenter__(),
        lambda: kernel.lock_device(old, read_only=False).__aenter__(),
    ]
    for call in calls:
        with pytest.raises(DeviceChanged):
            await call()
    await kernel.delete_controller(subsystem.controllers[0])
    assert len(world.fabric.controllers()) == 2  # the new ones have nothing to do with it


@simulated
async def test_formatting(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    async with kernel.lock_device(namespace(subsystem, 2), read_only=False) as device:
        assert (await device.probe()).nothing_found
        assert await device.edges_are_zero()
        await device.make_filesystem("xfs", uuid="u", options=())
        assert (await device.probe()).fstype == "xfs"
        await device.verify()
        world.grow_namespace(NQN, 2, 1 << 40)
        await asyncio.sleep(1)
        with pytest.raises(DeviceChanged):
            await device.verify()
    assert world.violations == []
    async with kernel.lock_device(namespace(subsystem), read_only=False) as device:
        await device.make_filesystem("ext4", uuid="u", options=())
    assert len(world.violations) == 1


@simulated
async def test_events(world: SimWorld, kernel: SimKernel) -> None:
    events: list[Event] = []
    async with kernel.watch(events.append):
        await connected(kernel)
        world.disconnect(NQN)
        await asyncio.sleep(1)
    names = [(e.action, e.subsystem, e.name) for e in events]
    for expected in (("add", "nvme-subsystem", "nvme-subsys0"), ("add", "nvme", "nvme0"), ("add", "block", "nvme0n1")):
        assert expected in names
        assert ("remove", *expected[1:]) in names
    count = len(events)
    await connected(kernel)
    assert len(events) == count
    lossy = SimKernel(world, FaultPlan(1))
    lossy.faults.events.loss = 1.0
    got: list[Event] = []
    async with lossy.watch(got.append):
        world.disconnect(NQN)
        await asyncio.sleep(1)
    assert {e.kind for e in got} == {EventKind.OVERFLOW}


@simulated
async def test_udev_has_new_disks_open_for_a_moment(world: SimWorld, kernel: SimKernel) -> None:
    subsystem = await connected(kernel)
    world.udev_probes(world.head(NQN, 1))
    numbers = [n.number for n in subsystem.namespaces]
    assert [o.transient for o in (await kernel.scan_processes(numbers, [])).open_files] in ([True], [])
    await kernel.settle()
    assert (await kernel.scan_processes(numbers, [])).open_files == ()
