"""The programs in docs/clients.md do what is said of them, on a bus of their own with a service that answers."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from nvmeofd import errors
from nvmeofd.bus.paths import job_path
from nvmeofd.model import Step
from nvmeofd.requests import StageRequest, UnstageRequest
from tests.bus.fake import NQN, FakeCore, FakeJob, subsystem, volume
from tests.bus.harness import REPOSITORY, PrivateBus, service

DOCUMENT = REPOSITORY / "docs" / "clients.md"
PROGRAMS = {
    name: (language, text)
    for language, name, text in re.findall(r"(?ms)^```(\w+) (\S+)\n(.*?)^```$", DOCUMENT.read_text())
}
STAGE = (NQN, "nsid.1", "/srv/one", "tcp://192.0.2.1", "tcp://192.0.2.2")


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as private:
        yield private


class Program:
    """A program of the document that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def end(self) -> tuple[int, str, str]:
        """Exit status, what is left of its output, its errors."""
        out, err = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def started(bus: PrivateBus, directory: Path, name: str, *arguments: str) -> AsyncIterator[Program]:
    language, text = PROGRAMS[name]
    file = directory / name
    file.write_text(text)
    process = await asyncio.create_subprocess_exec(
        # -W: what dbus-next warns of at import on later Pythons is not the program's fault.
        *([sys.executable, "-W", "ignore::DeprecationWarning"] if language == "python" else ["sh"]),
        str(file),
        *arguments,
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def run(bus: PrivateBus, directory: Path, name: str, *arguments: str) -> tuple[int, str, str]:
    async with started(bus, directory, name, *arguments) as program:
        return await program.end()


def failing(*failures: errors.NvmeofdError) -> Callable[[], Awaitable[None]]:
    """Work that fails as often as there are errors, and then succeeds."""
    left = list(failures)

    async def work() -> None:
        if left:
            raise left.pop(0)

    return work


def staged(core: FakeCore) -> StageRequest:
    (request, _), *_ = core.requests
    assert isinstance(request, StageRequest)
    assert (request.nqn, request.staging_path, len(request.addresses)) == (NQN, "/srv/one", 2)
    return request


def unstaged(core: FakeCore) -> list[float | None]:
    """The timeouts that Unstage was called with."""
    assert all(isinstance(one, UnstageRequest) and one.staging_path == "/srv/it's one" for one, _ in core.requests)
    return [one.timeout for one, _ in core.requests]


async def test_stage_with_busctl(bus: PrivateBus, tmp_path: Path) -> None:
    core = FakeCore()
    async with service(bus, core):
        assert await run(bus, tmp_path, "stage.sh", *STAGE) == (0, "/dev/nvme0n1\n", "")
        request = staged(core)
        assert (request.format, request.timeout, request.connect.ctrl_loss_tmo) == ("if-empty", 120, -1)
        core.work = failing(errors.NotBlank("the disk has something on it"))
        status, out, err = await run(bus, tmp_path, "stage.sh", *STAGE)
        assert (status != 0, out) == (True, "")
        # As the document says: the text, without the name.
        assert "the disk has something on it" in err
        assert "NotBlank" not in err


async def test_list_with_busctl(bus: PrivateBus, tmp_path: Path) -> None:
    core = FakeCore()
    core.connect(subsystem())
    async with service(bus, core):
        assert await run(bus, tmp_path, "list.sh") == (0, "", "")
        core.add_volume(volume("/srv/one"))
        core.add_volume(volume("/srv/two words"))
        status, out, err = await run(bus, tmp_path, "list.sh")
        assert (status, err) == (0, "")
        assert sorted(out.splitlines()) == ["/srv/one\t/dev/nvme0n1\tstaged", "/srv/two words\t/dev/nvme0n1\tstaged"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (None, 0),
        (errors.Timeout("later"), 75),
        (errors.Busy("later"), 75),
        (errors.ShuttingDown("later"), 75),
        # The text of an error is not its name.
        (errors.UnmountFailed("org.nvmeofd1.Error.Timeout: target is busy"), 1),
    ],
)
async def test_unstage_with_gdbus(
    bus: PrivateBus, tmp_path: Path, failure: errors.NvmeofdError | None, expected: int
) -> None:
    core = FakeCore()
    if failure is not None:
        core.work = failing(failure)
    async with service(bus, core):
        status, _, err = await run(bus, tmp_path, "unstage.sh", "/srv/it's one")
        assert status == expected
        assert (str(failure) in err) == (failure is not None)
        assert unstaged(core) == [60]


async def test_stage_with_dbus_next(bus: PrivateBus, tmp_path: Path) -> None:
    core = FakeCore()

    async def work() -> None:
        job = FakeJob(7)
        core.jobs[7] = job
        core.tell().job_added(job)
        for job.step in (Step.CONNECTING, Step.MOUNTING):
            core.tell().job_changed(job)
        core.finish_job(7)

    core.work = work
    async with service(bus, core):
        status, out, err = await run(bus, tmp_path, "stage.py", *STAGE)
        assert (status, out, err.split()) == (0, "/dev/nvme0n1\n", ["connecting", "mounting"])
        request = staged(core)
        assert (request.format, request.timeout) == ("if-empty", 120)
        core.work = failing(errors.AlreadyStaged("that is there already"))
        assert await run(bus, tmp_path, "stage.py", *STAGE) == (
            1,
            "",
            "org.nvmeofd1.Error.AlreadyStaged: that is there already\n",
        )


async def test_watch_with_dbus_next(bus: PrivateBus, tmp_path: Path) -> None:
    core = FakeCore()
    core.add_volume(volume("/srv/one"))
    async with AsyncExitStack() as life:
        running = await life.enter_async_context(service(bus, core))
        async with started(bus, tmp_path, "watch.py") as program:
            assert await program.line() == "staged /srv/one"
            core.add_volume(volume("/srv/two"))
            assert await program.line() == "staged /srv/two"
            del core.volumes["/srv/one"]
            running.volume_removed("/srv/one")
            assert await program.line() == "unstaged /srv/one"
            core.add_job(1)
            core.add_job(2)
            core.finish_job(1)
            core.finish_job(2, errors.Timeout("too late"))
            assert await program.line() == f"job {job_path(1)} succeeded"
            assert await program.line() == f"job {job_path(2)} failed: org.nvmeofd1.Error.Timeout: too late"
            await life.aclose()
            assert await program.end() == (0, "", "")


async def test_unstage_with_dbus_python(bus: PrivateBus, tmp_path: Path) -> None:
    core = FakeCore()
    core.work = failing(errors.Timeout("still running: unmounting"))
    async with service(bus, core):
        status, out, err = await run(bus, tmp_path, "unstage.py", "/srv/it's one")
        assert (status, out, err) == (0, "disconnected\n", "still running: unmounting; trying again\n")
        assert unstaged(core) == [60, 60]
        core.work = failing(errors.UnmountFailed("target is busy"))
        assert await run(bus, tmp_path, "unstage.py", "/srv/it's one") == (
            1,
            "",
            "org.nvmeofd1.Error.UnmountFailed: target is busy\n",
        )


def test_every_program_is_run() -> None:
    tests = Path(__file__).read_text()
    assert PROGRAMS
    assert [name for name in PROGRAMS if f'bus, tmp_path, "{name}"' not in tests] == []
