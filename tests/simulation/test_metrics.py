"""The metrics of a daemon at work: what happens moves its own series, once."""

from __future__ import annotations

import asyncio

import pytest

from nvmeofd.errors import AlreadyStaged, Cancelled, ConnectFailed, InUse, NotStaged, ShuttingDown, Timeout
from nvmeofd.exporter import EngineSource
from nvmeofd.metrics import PATH_STATES, render
from tests.exposition import Metrics, parse
from tests.simulation.harness import Host
from tests.simulation.setting import A1, EXT4, ONE, PATHS, XFS, simulated

OUTCOMES = "nvmeofd_operations_total"
ERRORS = "nvmeofd_operation_errors_total"
DISCONNECTS = "nvmeofd_disconnects_total"
DURATION = "nvmeofd_operation_duration_seconds"
# what the act of another, not of a client, may move, or the time that passes
ASIDE = ("nvmeofd_events_total", "nvmeofd_cache_rebuilds_total", "nvmeofd_start_timestamp_seconds", DURATION)


class Scraper:
    """Reads the metrics, and what changed since it did so before."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = self.read()

    def read(self) -> Metrics:
        source = EngineSource(self._host.engine, self._host.observer.operations)
        return parse(render(source.snapshot(), source.subsystems()).encode())

    def moved(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Changes by metric and label values (sorted by label), and how many durations were observed."""
        before, self._before = self._before, self.read()
        changed = {name: before.changes(self._before, name) for name in before if name not in ASIDE}
        observed = {
            (operation,): self._before.value(f"{DURATION}_count", operation=operation)
            - before.value(f"{DURATION}_count", operation=operation)
            for operation in ("stage", "unstage", "disconnect")
        }
        changed[DURATION] = {key: count for key, count in observed.items() if count}
        return {name: moved for name, moved in changed.items() if moved}


@simulated()
async def test_a_life_of_a_volume(host: Host) -> None:
    scraper = Scraper(host)
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    await host.quiesce(1)
    found = scraper.read()
    assert {state: found.value("nvmeofd_subsystem_paths", nqn=ONE, state=state) for state in PATH_STATES} == {
        state: 2 if state == "live" else 0 for state in PATH_STATES
    }
    assert scraper.moved() == {
        OUTCOMES: {("stage", "succeeded"): 1},
        DURATION: {("stage",): 1},
        "nvmeofd_volumes": {("staged",): 1},
        "nvmeofd_subsystems": {(): 1},
        "nvmeofd_subsystem_paths": {(ONE, "live"): 2},
    }
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    assert scraper.moved() == {OUTCOMES: {("stage", "succeeded"): 1}, DURATION: {("stage",): 1}}
    with pytest.raises(InUse):
        await host.disconnect(ONE)
    assert scraper.moved() == {
        OUTCOMES: {("disconnect", "refused"): 1},
        ERRORS: {("InUse", "disconnect"): 1},
        DURATION: {("disconnect",): 1},
        DISCONNECTS: {("refused",): 1},
    }
    host.world.path_down(A1)
    await host.quiesce(1)
    assert scraper.moved() == {
        "nvmeofd_subsystem_paths": {(ONE, "live"): -1, (ONE, "connecting"): 1},
        "nvmeofd_volumes": {("staged",): -1, ("degraded",): 1},
    }
    assert await host.unstage("/srv/a")
    await host.quiesce(1)
    assert scraper.moved() == {
        OUTCOMES: {("unstage", "succeeded"): 1},
        DURATION: {("unstage",): 1},
        "nvmeofd_volumes": {("degraded",): -1},
        "nvmeofd_subsystems": {(): -1},
        DISCONNECTS: {("done",): 1},
    }
    assert scraper.read()["nvmeofd_subsystem_paths"].samples == {}
    assert not await host.unstage("/srv/a")
    assert scraper.moved() == {}, "there was nothing to be done"


@simulated()
async def test_refused_without_a_job(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    host.world.mount(host.world.head(ONE, 2), "/mnt/y")
    await host.quiesce(1)
    scraper = Scraper(host)
    first = host.start_stage(ONE, XFS, PATHS, "/srv/b")
    await asyncio.sleep(0)
    with pytest.raises(AlreadyStaged):
        await host.stage(ONE, XFS, PATHS, "/srv/c")
    with pytest.raises(NotStaged):
        await host.unstage("/mnt/y")
    await asyncio.gather(first, return_exceptions=True)
    moved = scraper.moved()
    assert moved[ERRORS][("AlreadyStaged", "stage")] == 1
    assert moved[ERRORS][("NotStaged", "unstage")] == 1
    assert moved[DURATION] == {("stage",): 1}
    host.world.unmount("/mnt/y")


@simulated()
async def test_failed(host: Host) -> None:
    for address in PATHS:
        host.world.path_down(address)
    scraper = Scraper(host)
    with pytest.raises(ConnectFailed):
        await host.stage(ONE, EXT4, PATHS, "/srv/a")
    assert scraper.moved() == {
        OUTCOMES: {("stage", "failed"): 1},
        ERRORS: {("ConnectFailed", "stage"): 1},
        DURATION: {("stage",): 1},
    }


@simulated()
async def test_the_same_request_twice_is_one_operation(host: Host) -> None:
    scraper = Scraper(host)
    both = [host.start_stage(ONE, EXT4, PATHS, "/srv/a") for _ in range(2)]
    for task in both:
        await host.answer(task)
    assert scraper.moved()[OUTCOMES] == {("stage", "succeeded"): 1}


@simulated()
async def test_waiting_running_overdue(host: Host) -> None:
    """The kernel holds an operation, and others wait behind it."""
    scraper = Scraper(host)
    gate = host.kernel.faults.hang("connect")
    first = host.start_stage(ONE, EXT4, [A1], "/srv/a", timeout=10)
    others = [host.start_stage(ONE, XFS, [A1], "/srv/b", timeout=300), host.start_unstage("/srv/b", timeout=300)]
    await host.quiesce(1)
    found = scraper.read()
    assert found.value("nvmeofd_subsystem_waiting_jobs", nqn=ONE) == 2
    assert {state: found.value("nvmeofd_jobs", state=state) for state in ("waiting", "running", "overdue")} == {
        "waiting": 2,
        "running": 1,
        "overdue": 0,
    }
    with pytest.raises(Timeout):
        await host.answer(first)
    found = scraper.read()
    assert found.value("nvmeofd_jobs", state="overdue") == 1
    assert found.value("nvmeofd_jobs", state="running") == 0
    assert found.value(OUTCOMES, operation="stage", outcome="failed") == 0, "it has not ended"
    waiting = [job for job in host.engine.jobs.values() if not job.started]
    for job in waiting:
        job.cancel()
    for task in others:
        with pytest.raises(Cancelled):
            await host.answer(task)
    await host.quiesce(100)
    gate.release()
    await host.quiesce(60)
    moved = scraper.moved()
    assert moved[OUTCOMES] == {("stage", "failed"): 1, ("stage", "cancelled"): 1, ("unstage", "cancelled"): 1}
    assert moved[ERRORS] == {("Timeout", "stage"): 1, ("Cancelled", "stage"): 1, ("Cancelled", "unstage"): 1}
    assert moved[DURATION] == {("stage",): 2, ("unstage",): 1}
    found = scraper.read()
    assert sum(found["nvmeofd_jobs"].samples.values()) == 0
    assert found.value(f"{DURATION}_bucket", operation="stage", le="60") == 1, "the cancelled one"


@simulated()
async def test_a_lost_volume_has_no_path(host: Host) -> None:
    await host.stage(ONE, EXT4, PATHS, "/srv/a")
    scraper = Scraper(host)
    for controller in list(host.world.fabric.controllers()):
        host.world.fabric.remove(controller)
    await host.quiesce(1)
    found = scraper.read()
    assert found.value("nvmeofd_volumes", state="lost") == 1
    assert found.value("nvmeofd_subsystem_paths", nqn=ONE, state="live") == 0
    assert found.value("nvmeofd_subsystems") == 0
    await host.unstage("/srv/a")


@simulated(seeds=1)
async def test_refused_at_the_end(host: Host) -> None:
    await host.call(host.engine.drain())
    with pytest.raises(ShuttingDown):
        await host.disconnect(ONE)
    assert Scraper(host).read().value(ERRORS, operation="disconnect", error="ShuttingDown") == 1
