"""A few operations, with one thing going wrong: at every point of them, one after the other.

A point is the beginning or the end of any call of the kernel that takes time, or of any write of the journal. Plain
reads are counted apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from nvmeofd.config import Config
from nvmeofd.errors import Failed, NvmeofdError
from tests.simulation.acts import READS
from tests.simulation.clock import run
from tests.simulation.faults import FaultPlan, Gate, errors_of
from tests.simulation.files import Node
from tests.simulation.harness import Died, Host
from tests.simulation.setting import BLANK, EXT4, ONE, OTHER, PATHS, TWO, XFS, make_world
from tests.simulation.world import SimWorld

TIMEOUT = 40  # seconds


async def nothing(_: Host) -> None:
    pass


async def stage_ext4(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, "/srv/new")


async def stage_xfs(host: Host) -> None:
    await host.stage(ONE, XFS, PATHS, "/srv/b")


async def stage_both(host: Host) -> None:
    await stage_ext4(host)
    await stage_xfs(host)


async def stage_and_keep(host: Host) -> None:
    await stage_ext4(host)
    await host.unstage("/srv/new", keep_connected=True)


async def stage_beside_a_bind(host: Host) -> None:
    """A bind of a device node is what no claim finds."""
    await stage_ext4(host)
    host.world.bind_device(host.world.head(ONE, 2), "/srv/file")


async def with_garbage(host: Host) -> None:
    host.world.fabric.targets[ONE].namespaces[3].garbage = True


async def unstage_before_a_stage(host: Host) -> None:
    await asyncio.gather(
        host.answer(host.start_unstage("/srv/new")), host.answer(host.start_stage(ONE, XFS, PATHS, "/srv/b"))
    )


async def lose_name(host: Host) -> None:
    """What was staged is lost, and its device's name has passed to another device, which somebody has mounted there."""
    await host.stage(ONE, EXT4, PATHS, "/srv/new")
    name = host.engine.volumes["/srv/new"].device
    host.world.unmount("/srv/new")
    await host.quiesce(1)
    while host.world.head(ONE, 2).path != name:
        host.world.disconnect(ONE)
        host.world.connect(ONE, PATHS[0])
        await host.quiesce(1)
    host.world.mount(host.world.head(ONE, 2), "/srv/new")


async def ask_for_much(host: Host) -> None:
    tasks = [host.start_stage(ONE, f"nsid.{10 + number}", PATHS, f"/srv/{number}") for number in range(100)]
    await asyncio.gather(*map(host.answer, tasks), return_exceptions=True)


async def give_another_nqn(host: Host) -> None:
    host.world.fabric.targets[ONE].says = TWO


async def connect_late(host: Host) -> None:
    host.world.fabric.targets[ONE].late = 30.0


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


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("stage", stage_ext4),
        Scenario("stage-second", stage_ext4, stage_xfs),
        Scenario("stage-kept", stage_xfs, stage_and_keep),
        Scenario("format", lambda h: h.stage(ONE, BLANK, PATHS, "/srv/a", format="if-empty", fstype="xfs")),
        Scenario("block", lambda h: h.stage(ONE, BLANK, PATHS, "/srv/disk", type="block")),
        Scenario("read-only", lambda h: h.stage(ONE, EXT4, PATHS, "/srv/a", read_only=True)),
        Scenario("rollback", lambda h: h.stage(ONE, EXT4, PATHS, "/srv/a", fstype="xfs"), again=False),
        Scenario("unstage", lambda h: h.unstage("/srv/new"), stage_ext4),
        Scenario("unstage-one", lambda h: h.unstage("/srv/new"), stage_both),
        Scenario("keep", lambda h: h.unstage("/srv/new", keep_connected=True), stage_ext4),
        Scenario("disconnect", lambda h: h.disconnect(ONE), connect_by_hand),
    )
}
# For one thing each, see test_everywhere.
BOUND = Scenario("unstage-beside-a-bind", lambda h: h.unstage("/srv/new"), stage_beside_a_bind)
GARBAGE = Scenario("format-garbage", SCENARIOS["format"].act, with_garbage, again=False)
AWAITED = Scenario("unstage-before-a-stage", unstage_before_a_stage, stage_ext4)
NAMES = Scenario("names-change-hands", lambda h: h.unstage("/srv/new"), lose_name, again=False)
# What is connected is not a path of the subsystem that was asked for, or not for a long time.
OTHER_NQN = Scenario("stage-with-another-nqn", stage_ext4, give_another_nqn, again=False)
LATE = Scenario("stage-with-paths-that-come-late", stage_ext4, connect_late, again=False)
FLOOD = Scenario("flood", ask_for_much, again=False)
FORCE = Scenario("force", lambda h: h.unstage("/srv/new", force=True), stage_ext4)


async def new_host(scenario: Scenario) -> Host:
    host = Host(make_world(7), Config(timeout=TIMEOUT))
    await host.boot(FaultPlan(11))
    await scenario.prepare(host)
    await host.quiesce(5)
    return host


def _passed(scenario: Scenario, passed: Callable[[FaultPlan], list[str]]) -> dict[int, str]:
    """What the act of a scenario passes, by number."""

    async def main() -> dict[int, str]:
        host = await new_host(scenario)
        first = len(passed(host.kernel.faults))
        with contextlib.suppress(NvmeofdError):
            await scenario.act(host)
        names = passed(host.kernel.faults)[first:]
        await host.stop()
        return dict(enumerate(names, first + 1))

    return run(main())


def points_of(scenario: Scenario) -> dict[int, str]:
    return _passed(scenario, lambda faults: list(faults.trace))


def reads_of(scenario: Scenario) -> dict[int, str]:
    return _passed(scenario, lambda faults: list(faults.reads))


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
    everybody_leaves(host.world)
    for path in list(host.engine.volumes):
        await host.unstage(path)
    await host.disconnect(ONE)
    found += host.complaints()
    if host.world.fabric.controllers():
        found.append(f"left: {host.world.fabric.controllers()}")
    await host.stop()
    return found


# What is done to a host of its own; returns what was wrong meanwhile.
Act = Callable[[Host], Coroutine[Any, Any, list[str]]]


@dataclass(frozen=True)
class Case:
    scenario: Scenario
    name: str
    act: Act


async def _play(case: Case) -> list[str]:
    host = await new_host(case.scenario)
    found = [*await case.act(host), *host.world.violations]
    if found:
        host.kill()  # as it is
        return found
    return await settle_up(host, case.scenario)


def play(case: Case) -> list[str]:
    """Run it in virtual time, and return what is wrong."""
    try:
        found = run(_play(case))
    except Exception as error:  # noqa: BLE001 - reported with its case
        found = [repr(error)]
    return [f"{case.scenario}: {case.name}: {text}" for text in found]


# ---- what goes wrong


def as_it_is(scenario: Scenario) -> Iterator[Case]:
    """Nothing goes wrong."""

    async def act(host: Host) -> list[str]:
        with contextlib.suppress(NvmeofdError):
            await scenario.act(host)
        await host.quiesce(1)
        return []

    yield Case(scenario, "as it is", act)


def _at_each_point(scenario: Scenario, act: Callable[[int], Act]) -> Iterator[Case]:
    for point, what in points_of(scenario).items():
        yield Case(scenario, f"{what} (point {point})", act(point))


def crashes(scenario: Scenario, *, twice: bool = False) -> Iterator[Case]:
    """kill -9, and with ``twice`` once more soon after the next start."""

    def act(point: int) -> Act:
        async def crash(host: Host) -> list[str]:
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

        return crash

    return _at_each_point(scenario, act)


def failures(scenario: Scenario) -> Iterator[Case]:
    """Each call with each of its errors, before its effect and, where that can be, after it."""

    def act(point: int, call: str, number: int, *, after: bool) -> Act:
        async def fail(host: Host) -> list[str]:
            host.kernel.faults.at(point, error=errors_of(call, after=after)[number])
            try:
                await scenario.act(host)
            except Failed as failed:
                if "journal" not in call:
                    return [repr(failed)]
            except NvmeofdError as error:
                if scenario.again and "not undone" in str(error):
                    return [repr(error)]  # nothing was in the way of undoing
            return []

        return fail

    for point, what in points_of(scenario).items():
        call, after = what.partition(" ")[0][:-1], ">" in what
        for number, error in enumerate(errors_of(call, after=after)):
            yield Case(scenario, f"{what} (point {point}): {error!r}", act(point, call, number, after=after))


def failing_reads(scenario: Scenario, times: int = 1) -> Iterator[Case]:
    """Something in sysfs, /proc or the registry cannot be read."""

    def act(number: int) -> Act:
        async def fail(host: Host) -> list[str]:
            host.kernel.faults.nothing_readable(range(number, number + times))
            with contextlib.suppress(NvmeofdError, OSError):
                await scenario.act(host)
            await host.quiesce(1)
            return []

        return fail

    for number, what in reads_of(scenario).items():
        yield Case(scenario, f"{what} (read {number})", act(number))


def blind(scenario: Scenario) -> Iterator[Case]:
    """One kind of thing cannot be read at all."""

    def act(call: str) -> Act:
        async def fail(host: Host) -> list[str]:
            host.kernel.faults.fail(call, OSError(errno.EIO, "simulated"), times=10_000)
            with contextlib.suppress(NvmeofdError, OSError):
                await scenario.act(host)
            await host.quiesce(70)
            return []

        return fail

    for call in READS:
        yield Case(scenario, f"no {call}", act(call))


def cancels(scenario: Scenario) -> Iterator[Case]:
    def act(point: int) -> Act:
        async def stop(host: Host) -> list[str]:
            def cancel() -> None:
                for job in host.engine.jobs.values():
                    host.kernel.process.context.copy().run(job.cancel)

            host.kernel.faults.at(point, action=cancel)
            with contextlib.suppress(NvmeofdError):
                await scenario.act(host)
            return []

        return stop

    return _at_each_point(scenario, act)


def hangs(scenario: Scenario) -> Iterator[Case]:
    """The caller hears in time, another subsystem goes on, and when the kernel comes back everything is whole."""

    def act(point: int) -> Act:
        async def hang(host: Host) -> list[str]:
            gate = Gate()
            host.kernel.faults.at(point, gate=gate)
            found = []
            started = host.now()
            task = host.submit(_call(host, scenario))
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

        return hang

    return _at_each_point(scenario, act)


async def _call(host: Host, scenario: Scenario) -> object:
    return await scenario.act(host)


def delays(scenario: Scenario, seconds: float) -> Iterator[Case]:
    """Each call takes that long."""

    def act(point: int) -> Act:
        async def delay(host: Host) -> list[str]:
            host.kernel.faults.at(point, seconds=seconds)
            with contextlib.suppress(NvmeofdError):
                await scenario.act(host)
            await host.quiesce(seconds)
            return []

        return delay

    return _at_each_point(scenario, act)


USERS: dict[str, Callable[[SimWorld, Any], object]] = {
    "mount": lambda w, h: w.mount(h, "/mnt/y"),
    "private-mount": lambda w, h: w.mount(h, "/mnt/y", space=w.new_pid()),
    "block-bind": lambda w, h: w.bind_device(h, "/srv/file"),
    "private-block-bind": lambda w, h: w.bind_device(h, "/srv/file", space=w.new_pid()),
    "container": lambda w, _: w.unshare(),
    "holder": lambda w, h: w.hold(h),
    "swap": lambda w, h: w.swapon(h),
    "nameless-swap": lambda w, h: w.swapon(h, nameless=True),
    "open": lambda w, h: w.open(h),
    "open-exclusive": lambda w, h: w.open(h, exclusive=True),
    "open-generic": lambda w, h: w.open(h, generic=True),
}


def use_head(world: SimWorld, user: str) -> None:
    # somebody else is refused as well when the device is gone, or claimed
    with contextlib.suppress(OSError, LookupError):
        USERS[user](world, world.head(ONE, 2))


def everybody_leaves(world: SimWorld) -> None:
    for mount in [m for m in world.mounts.mounts if m.head and not m.by_daemon]:
        world.mounts.remove(mount)
    for opener in list(world.openers):
        world.close(opener)
    for holder in list(world.holders):
        world.release(holder)
    world.swaps.clear()
    world.released()


def comers(scenario: Scenario, user: str) -> Iterator[Case]:
    """A user that comes at any moment keeps the subsystem, or is refused; when it has gone, so has the subsystem."""

    def act(place: Callable[[FaultPlan, Callable[[], None]], None]) -> Act:
        async def come(host: Host) -> list[str]:
            world = host.world
            place(host.kernel.faults, lambda: use_head(world, user))
            with contextlib.suppress(NvmeofdError):
                await scenario.act(host)
            await host.quiesce(70)
            found = host.complaints()
            used = bool(world.subsystem_uses(ONE))
            everybody_leaves(world)
            await host.quiesce(70)
            found += host.complaints()
            if used and scenario.name == "disconnect":
                await host.disconnect(ONE)  # not the daemon's own: not by itself
            if world.connected(ONE) and scenario.name in ("rollback", "unstage"):
                found.append("still connected")
            return found

        return come

    for point, what in points_of(scenario).items():
        yield Case(
            scenario,
            f"{what} (point {point}): {user}",
            act(lambda faults, action, point=point: faults.at(point, action=action)),  # type: ignore[misc]
        )
    for number, what in reads_of(scenario).items():
        yield Case(
            scenario,
            f"{what} (read {number}): {user}",
            act(lambda faults, action, number=number: faults.at_read(number, action=action)),  # type: ignore[misc]
        )


def leavers(scenario: Scenario) -> Iterator[Case]:
    """A user that is there before goes at any moment: what he wrote is written, and the subsystem goes in the end."""

    def act(point: int) -> Act:
        async def leave(host: Host) -> list[str]:
            opener = host.world.open(host.world.head(ONE, 2))
            host.kernel.faults.at(point, action=lambda: host.world.close(opener))
            with contextlib.suppress(NvmeofdError):
                await scenario.act(host)
            host.world.close(opener)
            await host.quiesce(70)
            if scenario.name == "disconnect":
                await host.disconnect(ONE)  # not the daemon's own: not by itself
            found = host.complaints()
            if host.world.connected(ONE):
                found.append("still connected")
            return found

        return leave

    return _at_each_point(scenario, act)


def makers(scenario: Scenario, path: str, node: Node) -> Iterator[Case]:
    """Somebody makes the staging path: that is not removed, and the daemon comes to an end with it."""

    def act(point: int) -> Act:
        async def make_it(host: Host) -> list[str]:
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

        return make_it

    return _at_each_point(scenario, act)
