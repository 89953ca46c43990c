"""How the daemon ends: nothing that the kernel or a file system holds is waited for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nvmeofd import daemon as module
from nvmeofd.config import Config
from nvmeofd.daemon import Daemon


class Left(Exception):
    pass


class Parts:
    """What the daemon is made of, as far as its end is concerned."""

    def __init__(self, *, held: tuple[str, ...], removed: bool, lost: bool) -> None:
        self.done: list[str] = []
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if lost:
            self.lost.set_result("gone")
        jobs = tuple(SimpleNamespace(step="mounting", name=name) for name in held)
        self.engine: Any = SimpleNamespace(drain=self._does("drain", jobs), close=self._does("engine", None))
        self.exporter: Any = SimpleNamespace(tick=lambda: None, close=self._does("exporter", removed))
        self.bus: Any = SimpleNamespace(lost=self.lost, close=self._does("bus", None))

    def _does(self, name: str, result: object) -> Any:
        async def act(*_: object) -> object:
            self.done.append(name)
            return result

        return act


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(
    ("held", "removed", "leaves"),
    [((), True, False), ((), False, True), (("job",), True, True), (("job",), False, True)],
)
def test_end(monkeypatch: pytest.MonkeyPatch, held: tuple[str, ...], removed: bool, leaves: bool, lost: bool) -> None:
    async def main() -> tuple[int, Parts]:
        parts = Parts(held=held, removed=removed, lost=lost)
        manager: Any = SimpleNamespace(watchdog_interval=None, stopping=lambda: None)
        running = Daemon(Config(), Config, manager)
        if not lost:
            vars(running)["_stop"].set()
        try:
            status = await vars(Daemon)["_serve"](running, parts.bus, parts.engine, parts.exporter)
        except Left as left:
            assert leaves
            status = left.args[0]
        else:
            assert not leaves
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return status, parts

    def leave(_: Daemon, status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(module.Daemon, "_leave", leave)
    status, parts = asyncio.run(main())
    assert status == int(lost)
    assert parts.done == ["drain", "bus", "exporter", *(() if held else ("engine",))]
