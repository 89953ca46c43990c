"""The same few operations again and again, with one thing going wrong: at every point of them, one after the other.

A point is the beginning or the end of any call of the kernel that takes time, or of any write of the journal.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from nvmeofd.config import Config
from nvmeofd.errors import Failed, InUse, NvmeofdError
from tests.simulation.clock import run
from tests.simulation.faults import FaultPlan, Gate, errors_of
from tests.simulation.files import Node
from tests.simulation.harness import Died, Host
from tests.simulation.setting import BLANK, EXT4, ONE, OTHER, PATHS, TWO, XFS, make_world
from tests.simulation.world import SimWorld

pytestmark = pytest.mark.usefixtures("quiet")
TIMEOUT = 40


async def nothing(_: Host) -> None:
    pass


async def stage_ext4(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, "/srv/new")


async def stage_xfs(host: Host) -> None:
    await host.stage(ONE, XFS, PATHS, "/srv/b")


async def stage_both(host: Host) -> None:
    await stage_ext4(host)
    await stage_xfs(host)


async def connect_by_hand(host: Host) -> None:
    for address in PATHS:
        host.world.connect(ONE, address)
    await host.quiesce(5)


@dataclass(frozen=True)
class Scenario:
    """``again`` says whether to repeat the act after it went wrong, when everything works, and expect success."""

    name: str
    act: Callable[[Host], Awaitable[object]]
    prepare: Callable[[Host], Awaitable[object]] = nothing
    again: bool = True

    def __str__(self) -> str:
        return self.name


SCENARIOS = [
    Scenario("stage", stage_ext4),
    Scenario("stage-second", stage_ext4, stage_xfs),
    Scenario("format", lambda h: h.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty", fstype="xfs")),
    Scenario("block", lambda h: h.stage(ONE, BLANK, PATHS, "/srv/disk", type="block")),
    Scenario("read-only", lambda h: h.stage(ONE, EXT4, PATHS, "/srv/a", read_only=True)),
    Scenario("rollback", lambda h: h.stage(ONE, EXT4, PATHS, "/srv/a", fstype="xfs"), again=False),
    Scenario("unstage", lambda h: h.unstage("/srv/new"), stage_ext4),
    Scenario("unstage-one", lambda h: h.unstage("/srv/new"), stage_both),
    Scenario("keep", lambda h: h.unstage("/srv/new", keep_connected=True), stage_ext4),
    Scenario("disconnect", lambda h: h.disconnect(ONE), connect_by_hand),
]
all_scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=str)


async def new_host(scenario: Scenario) -> Host:
    host = Host(make_world(7), Config(timeout=TIMEOUT))
    await host.boot(FaultPlan(11))
    await scenario.prepare(host)
    await host.quiesce(5)
    return host


def points_of(scenario: Scenario) -> tuple[range, list[str]]:
    """The points that the act of a scenario passes, and what they are."""

    async def main() -> tuple[range, list[str]]:
        host = await new_host(scenario)
        first = host.kernel.faults.points + 1
        with contextlib.suppress(NvmeofdError):
            await scenario.act(host)
        last = host.kernel.faults.points
        trace = host.kernel.faults.trace
        await host.stop()
        return range(first, last + 1), trace

    return run(main())


async def settle_up(host: Host, scenario: Scenario) -> list[str]:
    """Everything works again: nothing may be wrong, the act succeeds, and all of it can be taken down."""
    host.kernel.faults.clear()
    await host.quiesce(70)
    found = host.complaints()
    if found:
        return found
    if scenario.again:
        await scenario.act(host)
    await host.quiesce(70)
    found = host.complaints()
    for path in list(host.engine.volumes):
        await host.unstage(path)
    await host.disconnect(ONE)
    found += host.complaints()
    if host.world.fabric.controllers():
        found.append(f"left: {host.world.fabric.controllers()}")
    await host.stop()
    return found


Try = Callable[[Host, int], Coroutine[Any, Any, list[str]]]
Case = Callable[[Host], Coroutine[Any, Any, list[str]]]


def run_all(scenario: Scenario, cases: Iterable[tuple[str, Case]]) -> None:
    """Run each case on a host of its own, and report all that found something wrong."""

    async def main(case: Case) -> list[str]:
        host = await new_host(scenario)
        found = [*await case(host), *host.world.violations]
        if found:
            host.kill()  # as it is
            return found
        return await settle_up(host, scenario)

    wrong = []
    for name, case in cases:
        try:
            found = run(main(case))
        except Exception as error:  # noqa: BLE001 - reported with its case
            found = [repr(error)]
        wrong += [f"{name}: {text}" for text in found]
    assert not wrong, "\n".join(wrong)


def everywhere(scenario: Scenario, attempt: Try) -> None:
    """Run ``attempt`` for each point of the scenario."""
    points, trace = points_of(scenario)
    run_all(scenario, [(f"{trace[p - 1]} (point {p})", partial(attempt, point=p)) for p in points])  # type: ignore[call-arg]


@all_scenarios
@pytest.mark.parametrize("twice", [False, True], ids=["once", "and-at-start"])
def test_crash(scenario: Scenario, twice: bool) -> None:
    async def attempt(host: Host, point: int) -> list[str]:
        host.kernel.faults.at(point, crash=True)
        with contextlib.suppress(Died, NvmeofdError):
            await scenario.act(host)
        if not host.kernel.killed:
            host.kill()
        if twice:
            faults = FaultPlan(point)
            faults.at(1 + point % 7, crash=True)
            with contextlib.suppress(Died):
                await host.boot(faults)
                await host.quiesce(20)
            host.kill()
        await host.boot()
        return []

    everywhere(scenario, attempt)


def failing(scenario: Scenario) -> Iterator[tuple[str, Case]]:
    """Each call with each of its errors, before its effect and, where that can be, after it."""
    points, trace = points_of(scenario)

    def case(point: int, number: int, call: str, *, after: bool) -> Case:
        async def attempt(host: Host) -> list[str]:
            host.kernel.faults.at(point, error=errors_of(call, after=after)[number])
            try:
                await scenario.act(host)
            except Failed as failed:
                if "journal" not in call:
                    return [repr(failed)]
            except NvmeofdError:
                pass
            return []

        return attempt

    for point in points:
        call, after = trace[point - 1].partition(" ")[0][:-1], ">" in trace[point - 1]
        for number, error in enumerate(errors_of(call, after=after)):
            yield f"{trace[point - 1]} (point {point}) with {error!r}", case(point, number, call, after=after)


@all_scenarios
def test_failure(scenario: Scenario) -> None:
    run_all(scenario, failing(scenario))


@all_scenarios
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "from-there-on"])
def test_failure_of_a_read(scenario: Scenario, times: int) -> None:
    """Something in sysfs, /proc or the registry cannot be read: that is never taken for "not in use"."""

    async def reads() -> tuple[range, list[str]]:
        host = await new_host(scenario)
        first = len(host.kernel.faults.reads)
        with contextlib.suppress(NvmeofdError):
            await scenario.act(host)
        names = host.kernel.faults.reads
        last = len(names)
        await host.stop()
        return range(first + 1, last + 1), names

    def case(number: int) -> Case:
        async def attempt(host: Host) -> list[str]:
            host.kernel.faults.nothing_readable(range(number, number + times))
            with contextlib.suppress(NvmeofdError, OSError):
                await scenario.act(host)
            await host.quiesce(1)
            return []

        return attempt

    numbers, names = run(reads())
    run_all(scenario, [(f"{names[number - 1]} (read {number})", case(number)) for number in numbers])


@all_scenarios
def test_cancel(scenario: Scenario) -> None:
    async def attempt(host: Host, point: int) -> list[str]:
        def cancel() -> None:
            for job in host.engine.jobs.values():
                host.kernel.process.context.copy().run(job.cancel)

        host.kernel.faults.at(point, action=cancel)
        with contextlib.suppress(NvmeofdError):
            await scenario.act(host)
        return []

    everywhere(scenario, attempt)


@all_scenarios
def test_hang(scenario: Scenario) -> None:
    """The caller hears in time, another subsystem goes on, and when the kernel comes back everything is whole."""

    async def attempt(host: Host, point: int) -> list[str]:
        gate = Gate()
        host.kernel.faults.at(point, gate=gate)
        found = []
        started = host.now()
        task = host.submit(act_of(host, scenario))
        await host.quiesce(1)
        other = host.now()
        await host.stage(TWO, OTHER, PATHS, "/mnt/x")
        await host.unstage("/mnt/x")
        if host.now() - other > 5:
            found.append(f"the other subsystem took {host.now() - other} s")
        with contextlib.suppress(NvmeofdError):
            await host.answer(task)
        if host.now() - started > TIMEOUT + 1:
            found.append(f"the answer took {host.now() - started} s")
        gate.release()
        return found

    everywhere(scenario, attempt)


def act_of(host: Host, scenario: Scenario) -> Coroutine[Any, Any, object]:
    async def act() -> object:
        return await scenario.act(host)

    return act()


def use_head(world: SimWorld, use: Callable[[SimWorld, Any], object]) -> None:
    # somebody else is refused as well when the device is gone, or claimed
    with contextlib.suppress(OSError, LookupError):
        use(world, world.head(ONE, 2))


USERS: dict[str, Callable[[SimWorld, Any], object]] = {
    "mount": lambda w, h: w.mount(h, "/mnt/y"),
    "private-mount": lambda w, h: w.mount(h, "/mnt/y", space=w.new_pid()),
    "block-bind": lambda w, h: w.bind_device(h, "/srv/file"),
    "private-block-bind": lambda w, h: w.bind_device(h, "/srv/file", space=w.new_pid()),
    "container": lambda w, _: w.unshare(),
    "holder": lambda w, h: w.hold(h),
    "swap": lambda w, h: w.swapon(h),
    "open": lambda w, h: w.open(h),
    "open-exclusive": lambda w, h: w.open(h, exclusive=True),
    "open-generic": lambda w, h: w.open(h, generic=True),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in ("rollback", "unstage", "disconnect")], ids=str)
def test_somebody_comes(scenario: Scenario, user: str) -> None:
    """A user that comes at any moment keeps the subsystem, or is refused; when it has gone, so has the subsystem."""
    points, trace = points_of(scenario)

    async def main(point: int) -> list[str]:
        host = await new_host(scenario)
        world = host.world
        host.kernel.faults.at(point, action=lambda: use_head(world, USERS[user]))
        with contextlib.suppress(NvmeofdError):
            await scenario.act(host)
        await host.quiesce(70)
        found = host.complaints()
        used = bool(world.subsystem_uses(ONE))
        for mount in [m for m in world.mounts.mounts if m.head and not m.by_daemon]:
            world.mounts.remove(mount)
        for opener in list(world.openers):
            world.close(opener)
        for holder in list(world.holders):
            world.release(holder)
        world.swaps.clear()
        world.released()
        await host.quiesce(70)
        found += host.complaints()
        if used and scenario.name == "disconnect":
            await host.disconnect(ONE)  # not the daemon's own: not by itself
        if world.connected(ONE) and scenario.name != "disconnect":
            found.append("still connected")
        await host.stop()
        return found

    wrong = []
    for point in points:
        wrong += [f"{trace[point - 1]} (point {point}): {text}" for text in run(main(point))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("node", Node)
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in ("stage", "block")], ids=str)
def test_somebody_makes_the_staging_path(scenario: Scenario, node: Node) -> None:
    """Whenever that is, what others made is not removed, and the daemon comes to an end with it."""

    def case(point: int, path: str) -> Case:
        async def attempt(host: Host) -> list[str]:
            files = host.world.files

            def make() -> None:
                if path not in files.nodes:
                    host.world.meddling["files"] += 1
                    files.add(path, node)

            host.kernel.faults.at(point, action=make)
            with contextlib.suppress(NvmeofdError):
                await scenario.act(host)
            await host.quiesce(70)
            found = host.complaints()
            for staged in list(host.engine.volumes):
                await host.unstage(staged)
            if path in files.theirs:
                files.remove(path)
            return found

        return attempt

    points, trace = points_of(scenario)
    path = "/srv/new" if scenario.name == "stage" else "/srv/disk"
    run_all(scenario, [(f"{trace[point - 1]} (point {point})", case(point, path)) for point in points])


@pytest.mark.parametrize("node", Node)
def test_somebody_replaces_the_staging_path(node: Node) -> None:
    """The mount was taken away, and then the path: the volume can be unstaged, and nothing is left to be done."""

    async def main(kind: str) -> None:
        host = Host(make_world(5))
        await host.boot()
        await host.stage(ONE, BLANK if kind == "block" else EXT4, PATHS, "/srv/new", type=kind)
        host.world.unmount("/srv/new")
        host.world.files.remove("/srv/new")
        # one empty directory is like another
        theirs = node is not (Node.EMPTY_FILE if kind == "block" else Node.DIRECTORY)
        host.world.files.add("/srv/new", node, theirs=theirs)
        await host.unstage("/srv/new")
        await host.quiesce(70)
        assert host.complaints() == []
        assert not theirs or host.world.files.nodes["/srv/new"] is node
        await host.stop()

    for kind in ("filesystem", "block"):
        run(main(kind))


def test_a_filesystem_in_use_is_not_wiped_off_because_of_an_old_note() -> None:
    """The note of a mkfs could not be removed, the filesystem is used since, and the daemon starts again."""

    async def main() -> None:
        host = Host(make_world(5))
        await host.boot()
        await stage_xfs(host)  # so that it stays connected
        host.kernel.faults.fail("journal_delete", OSError(errno.EIO, "simulated"), detail="format", times=3)
        for _ in range(5):
            with contextlib.suppress(NvmeofdError):
                await host.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty")
                await host.unstage("/srv/a", keep_connected=True)
        host.kill()
        await host.boot()
        await host.quiesce(70)
        assert host.complaints() == []
        assert host.world.fabric.targets[ONE].namespaces[3].fstype == "ext4"
        await host.stop()

    run(main())


@pytest.mark.parametrize("user", sorted(USERS.keys() - {"container"}))
def test_somebody_is_there(user: str) -> None:
    """With any user, Disconnect is refused and names it, ListUsers shows it, and Unstage leaves the subsystem."""

    async def main() -> None:
        host = Host(make_world(3))
        await host.boot()
        await stage_ext4(host)
        await host.quiesce(5)
        USERS[user](host.world, host.world.head(ONE, 2))
        head = host.world.head(ONE, 2)
        assert not await host.unstage("/srv/new")
        with pytest.raises(InUse) as caught:
            await host.disconnect(ONE)
        users = await host.call(host.engine.list_users(ONE))
        kind = {
            "private-mount": "claim",
            "block-bind": "block-mount",
            "private-block-bind": "block-mount",
            "open-exclusive": "open",
            "open-generic": "open",
        }.get(user, user)
        assert (kind, head.path) in [(str(u.kind), u.device) for u in users]
        assert head.path in str(caught.value)
        if user != "open-exclusive":  # the claim finds that one first
            assert kind in str(caught.value)
        assert host.complaints() == []
        await host.stop()

    run(main())


def test_points_are_many() -> None:
    """The tests above would pass if there were no points."""
    assert len(points_of(SCENARIOS[0])[0]) >= 30
