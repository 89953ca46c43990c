"""The same few operations again and again, with one thing going wrong: at every point of them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable

import pytest

from nvmeofd.errors import InUse, NvmeofdError
from tests.simulation.clock import run
from tests.simulation.everywhere import (
    AWAITED,
    BOUND,
    FLOOD,
    FORCE,
    GARBAGE,
    LATE,
    NAMES,
    OTHER_NQN,
    SCENARIOS,
    USERS,
    Case,
    Scenario,
    as_it_is,
    blind,
    cancels,
    comers,
    crashes,
    delays,
    failing_reads,
    failures,
    hangs,
    leavers,
    makers,
    play,
    points_of,
    reads_of,
    stage_ext4,
    stage_xfs,
)
from tests.simulation.files import Node
from tests.simulation.harness import Host
from tests.simulation.setting import BLANK, EXT4, ONE, PATHS, make_world

pytestmark = pytest.mark.usefixtures("quiet")
all_scenarios = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=str)


def check(cases: Iterable[Case]) -> None:
    wrong = [text for case in cases for text in play(case)]
    assert not wrong, "\n".join(wrong)


@all_scenarios
@pytest.mark.parametrize("twice", [False, True], ids=["once", "and-at-start"])
def test_crash(scenario: Scenario, twice: bool) -> None:
    check(crashes(scenario, twice=twice))


@all_scenarios
def test_failure(scenario: Scenario) -> None:
    check(failures(scenario))


@all_scenarios
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "from-there-on"])
def test_failure_of_a_read(scenario: Scenario, times: int) -> None:
    """That is never taken for "not in use"."""
    check(failing_reads(scenario, times))


@all_scenarios
def test_cancel(scenario: Scenario) -> None:
    check(cancels(scenario))


@all_scenarios
def test_hang(scenario: Scenario) -> None:
    check(hangs(scenario))


@all_scenarios
@pytest.mark.parametrize("seconds", [35, 300])
def test_delay(scenario: Scenario, seconds: int) -> None:
    """Past the time when undoing begins, and past the deadline."""
    check(delays(scenario, seconds))


@pytest.mark.parametrize("scenario", [OTHER_NQN, LATE], ids=str)
@pytest.mark.parametrize("wrong", [failures, failing_reads, blind, cancels, hangs])
def test_not_a_path(scenario: Scenario, wrong: Callable[[Scenario], Iterable[Case]]) -> None:
    """The one thing that has to be known is what the kernel answered to the connect."""
    check(case for case in wrong(scenario) if not case.name.startswith("connect>"))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", ["rollback", "unstage", "disconnect"])
def test_somebody_comes(name: str, user: str) -> None:
    check(comers(SCENARIOS[name], user))


@pytest.mark.parametrize("name", ["unstage", "disconnect"])
def test_somebody_leaves(name: str) -> None:
    check(leavers(SCENARIOS[name]))


@pytest.mark.parametrize("node", Node)
@pytest.mark.parametrize(("name", "path"), [("stage", "/srv/new"), ("block", "/srv/disk")])
def test_somebody_makes_the_staging_path(name: str, path: str, node: Node) -> None:
    check(makers(SCENARIOS[name], path, node))


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
            "nameless-swap": "claim",
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


@pytest.mark.parametrize("scenario", [BOUND, SCENARIOS["unstage-one"], SCENARIOS["disconnect"]], ids=str)
def test_a_kind_of_thing_cannot_be_read(scenario: Scenario) -> None:
    check(blind(scenario))


def test_more_is_asked_for_than_is_taken() -> None:
    check(as_it_is(FLOOD))


def test_garbage_that_cannot_be_read_is_not_formatted() -> None:
    check(failures(GARBAGE))


def test_a_stage_waits() -> None:
    """The subsystem stays connected for it."""
    check(as_it_is(AWAITED))


def test_names_change_hands() -> None:
    check(as_it_is(NAMES))
    check(failures(NAMES))


def test_force_for_what_is_alive() -> None:
    check(as_it_is(FORCE))


def test_points_are_many() -> None:
    """The tests above would pass if there were no points."""
    assert len(points_of(SCENARIOS["stage"])) >= 30
    assert len(reads_of(SCENARIOS["unstage"])) >= 20
