"""One's own job among those of others, and how its steps are shown."""

from __future__ import annotations

import io
from typing import Any

import pytest

from nvmeofd.ctl.client import JOB, Event, reply_timeout
from nvmeofd.ctl.progress import OwnJob, Progress

NQN = "nqn.2024-01.org.example:one"


def added(number: int, **changes: Any) -> Event:
    values = {"Operation": "stage", "NQN": NQN, "StagingPath": "/srv/one", "Step": "queued", "Sender": 0, **changes}
    return Event("added", f"/org/nvmeofd1/job/{number}", JOB, values)


def step(number: int, name: str) -> Event:
    return Event("changed", f"/org/nvmeofd1/job/{number}", JOB, {"Step": name})


def completed(number: int) -> Event:
    return Event("completed", f"/org/nvmeofd1/job/{number}", JOB, {"Success": True, "Error": "", "Message": ""})


@pytest.fixture
def own() -> OwnJob:
    return OwnJob("stage", path="/srv/one", nqn=NQN, uid=0)


def test_it_is_found_and_followed(own: OwnJob) -> None:
    assert (own.numbers, own.step) == ([], "")
    assert own.take(added(7))
    assert (own.numbers, own.step, own.nqn) == ([7], "queued", NQN)
    assert own.take(step(7, "mounting"))
    assert own.step == "mounting"
    assert own.take(completed(7))
    assert (own.numbers, own.step, own.nqn) == ([], "", NQN)


@pytest.mark.parametrize(
    "other",
    [
        {"Operation": "unstage"},
        {"StagingPath": "/srv/two"},
        {"NQN": f"{NQN}2"},
        {"Sender": 1000},
    ],
)
def test_others(own: OwnJob, other: dict[str, Any]) -> None:
    assert not own.take(added(7, **other))
    assert not own.take(step(7, "mounting"))
    assert own.numbers == []


def test_the_same_call_by_somebody_else(own: OwnJob) -> None:
    """Which one is ours shows when one of them ends while we still wait."""
    own.take(added(8))
    own.take(added(10))
    own.take(step(8, "mounting"))
    assert (own.numbers, own.step) == ([8, 10], "mounting")
    own.take(completed(8))
    assert (own.numbers, own.step) == ([10], "queued")


def test_other_signals(own: OwnJob) -> None:
    assert not own.take(Event("added", "/org/nvmeofd1/volume/x", "org.nvmeofd1.Volume", {"StagingPath": "/srv/one"}))
    own.take(added(7))
    assert own.take(Event("daemon", "/org/nvmeofd1", "", {"Running": False}))
    assert own.numbers == []


def test_an_unstage_does_not_know_its_subsystem() -> None:
    own = OwnJob("unstage", path="/srv/one", uid=0)
    assert own.take(added(7, Operation="unstage"))
    assert own.nqn == NQN


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream, "stage /srv/one", quiet=False)
    for name in ("queued", "queued", "mounting\x1b"):
        progress.show(name, [7])
    progress.clear()
    assert stream.getvalue() == "nvmeofctl: job 7: queued\nnvmeofctl: job 7: mounting\\x1b\n"


def test_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, "stage /srv/one", quiet=False, clock=clock)
    clock.now += 65
    progress.show("formatting", [7, 8])
    progress.clear()
    assert stream.getvalue() == "\r\x1b[Kstage /srv/one: formatting (1 min 5 s; job 7 or 8)\r\x1b[K"


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps could not be taken away."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(stream, "stage /srv/" + "漢" * 50, quiet=False).show("formatting", [7])
    assert stream.getvalue() == "\r\x1b[Kstage /srv/漢漢漢…"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet(stream: io.StringIO) -> None:
    progress = Progress(stream, "stage /srv/one", quiet=True)
    progress.show("formatting", [7])
    progress.clear()
    assert stream.getvalue() == ""


def test_the_reply_outlasts_the_operation() -> None:
    """With no timeout the daemon's configuration decides, of which a client knows nothing."""
    assert reply_timeout(None) is None
    wait = reply_timeout(86_400)
    assert wait is not None
    assert wait > 86_400
