"""Calls on the bus, as the daemon's own observer counts them."""

from __future__ import annotations

import pytest

from nvmeofd.bus.dbusnext import variant
from nvmeofd.bus.messages import DBusError
from nvmeofd.bus.service import BusService
from nvmeofd.daemon import DaemonObserver
from nvmeofd.exporter import EngineSource
from nvmeofd.metrics import Operations, render
from tests.bus.harness import PrivateBus
from tests.bus.test_engine import NQN, Running, running
from tests.exposition import Metrics, parse

OUTCOMES = "nvmeofd_operations_total"
ERRORS = "nvmeofd_operation_errors_total"


async def test_counts(bus: PrivateBus) -> None:
    operations = Operations()
    news: list[None] = []

    def observe(service: BusService) -> DaemonObserver:
        return DaemonObserver(service, operations, lambda: news.append(None))

    def scrape(host: Running) -> Metrics:
        source = EngineSource(host.engine, operations)
        return parse(render(source.snapshot(), source.subsystems()).encode())

    async with running(bus, observe) as host:
        before = scrape(host)

        def moved(name: str) -> dict[tuple[str, ...], float]:
            return before.changes(scrape(host), name)

        await host.stage(0, "/srv/one")
        assert moved(OUTCOMES) == {("stage", "succeeded"): 1}
        assert moved(ERRORS) == {}
        assert news

        news.clear()
        before = scrape(host)
        with pytest.raises(DBusError, match=r"Error\.InUse"):
            await host.client.manager("Disconnect", "sa{sv}", NQN, {})
        assert moved(OUTCOMES) == {("disconnect", "refused"): 1}
        assert moved(ERRORS) == {("InUse", "disconnect"): 1}
        assert news

        news.clear()
        before = scrape(host)
        for call, signature, arguments in (
            ("Stage", "ssassa{sv}", (NQN, "nsid.1", ["tcp://127.0.0.1"], "srv", {})),
            ("Unstage", "sa{sv}", ("/srv/one", {"colour": variant("s", "red")})),
            ("Disconnect", "sa{sv}", ("no-nqn", {})),
        ):
            with pytest.raises(DBusError, match=r"Error\.InvalidArgument"):
                await host.client.manager(call, signature, *arguments)
        assert moved(OUTCOMES) == {(name, "refused"): 1 for name in ("stage", "unstage", "disconnect")}
        assert moved(ERRORS) == {("InvalidArgument", name): 1 for name in ("stage", "unstage", "disconnect")}
        assert news

        before = scrape(host)
        assert await host.unstage("/srv/one") is True
        assert moved(OUTCOMES) == {("unstage", "succeeded"): 1}
        assert moved(ERRORS) == {}
