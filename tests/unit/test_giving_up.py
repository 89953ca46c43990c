"""SIGUSR1 says that the host may be shutting down: only if it is, paths are given up."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from nvmeofd.config import Config
from nvmeofd.daemon import SHUTDOWN_LOSS_SECONDS, Daemon
from nvmeofd.kernel.interface import CommandError
from nvmeofd.notify import ServiceManager


class Path:
    def __init__(self, name: str, state: str) -> None:
        self.nqn, self.name, self.state, self.live = "nqn.2024-01.org.example:one", name, state, state == "live"


class Host:
    """In place of the engine and of the kernel."""

    def __init__(self, answer: bool | CommandError) -> None:
        self.answer = answer
        self.limited: list[tuple[str, int]] = []

    def own_controllers(self) -> tuple[Path, ...]:
        return (Path("nvme0", "live"), Path("nvme1", "connecting"))

    async def host_is_stopping(self) -> bool:
        if isinstance(self.answer, CommandError):
            raise self.answer
        return self.answer

    def limit_loss(self, controller: Path, seconds: int) -> None:
        self.limited.append((controller.name, seconds))


@pytest.mark.parametrize(
    ("answer", "limited"),
    [
        (True, [("nvme0", SHUTDOWN_LOSS_SECONDS), ("nvme1", SHUTDOWN_LOSS_SECONDS)]),
        (False, []),
        (CommandError("systemctl", 1, "no answer"), []),
    ],
    ids=["stops", "goes on", "cannot be told"],
)
def test_paths_are_given_up_only_when_the_host_stops(
    answer: bool | CommandError, limited: list[tuple[str, int]]
) -> None:
    host = Host(answer)

    async def main() -> None:
        daemon = Daemon(Config(), Config, cast(ServiceManager, None))
        daemon._engine = daemon._kernel = cast(Any, host)
        daemon._host_stops()
        assert daemon._giving_up is not None
        await daemon._giving_up

    asyncio.run(main())
    assert host.limited == limited
