"""What could come next on a command line."""

from __future__ import annotations

import pytest

from nvmeofd.ctl import complete as module
from nvmeofd.ctl.complete import candidates, complete
from nvmeofd.ctl.snapshot import Snapshot
from nvmeofd.ctl.verbs import VERBS

ONE, TWO = "nqn.2024-01.org.example:one", "nqn.2024-01.org.example:two"
HOST = Snapshot.of(
    {
        "/s/1": {
            "org.nvmeofd1.Subsystem": {
                "NQN": ONE,
                "Controllers": [
                    ["nvme0", "tcp", "tcp://127.0.0.1:4420", "live"],
                    ["nvme1", "tcp", "tcp://[::1]:4420", "live"],
                ],
                "Namespaces": [["/dev/nvme0n1", "uuid.1", 1]],
            }
        },
        "/v/1": {"org.nvmeofd1.Volume": {"NQN": TWO, "StagingPath": "/srv/one", "Device": "/dev/nvme1n1"}},
        "/v/2": {"org.nvmeofd1.Volume": {"NQN": TWO, "StagingPath": "/srv/new\nline", "Device": "/dev/nvme1n1"}},
        "/j/7": {"org.nvmeofd1.Job": {"NQN": ONE, "StagingPath": "", "Operation": "disconnect"}},
    }
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A host to complete from; grows with each question to the daemon."""
    questions: list[None] = []

    def answer() -> Snapshot:
        questions.append(None)
        return HOST

    monkeypatch.setattr(module, "_snapshot", answer)
    return questions


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], set(VERBS)),
        (["--json", ""], set(VERBS)),
        (["unstage", ""], {"/srv/one"}),  # the other one cannot be typed
        (["unstage", "--timeout", "5", ""], {"/srv/one"}),
        (["unstage", "--force", ""], {"/srv/one"}),
        (["unstage", "/srv/one", ""], set()),
        (["disconnect", ""], {ONE, TWO}),
        (["status", ""], {ONE, TWO, "/srv/one"}),
        (["status", ONE, ""], {TWO, "/srv/one"}),
        (["show", ""], {ONE, TWO, "/srv/one", "7", "manager"}),
        (["show", "7", ""], set()),
        (["cancel", ""], {"7"}),
        (["list", ""], set()),
        (["stage", ""], {ONE, TWO}),
        (["stage", ONE, ""], {"uuid.1"}),
        (["stage", ONE, "uuid.1", ""], {"tcp://127.0.0.1:4420", "tcp://[::1]:4420"}),
        (["stage", ONE, "uuid.1", "tcp://127.0.0.1:4420", ""], {"tcp://[::1]:4420", ":directories"}),
        (["stage", "--format", ""], {"never", "if-empty"}),
        (["stage", "--format=i"], {"--format=never", "--format=if-empty"}),
        (["stage", ONE, "--min-paths", ""], set()),
        (["nonsense", ""], set()),
        (["disconnect", "-"], {"--timeout=", "--json", "--no-legend", "--quiet", "--no-ask-password", "--help"}),
    ],
)
def test_candidates(asked: list[None], words: list[str], expected: set[str]) -> None:
    assert {value for value, _ in candidates(words)} == expected


@pytest.mark.parametrize("words", [[""], ["st"], ["stage", "--"], ["--"], ["stage", "--format", ""], ["monitor", ""]])
def test_the_daemon_is_not_asked_for_what_is_known(asked: list[None], words: list[str]) -> None:
    candidates(words)
    assert asked == []


def test_options_of_stage(asked: list[None]) -> None:
    found = {value for value, _ in candidates(["stage", "--"])}
    assert {"--format=", "--read-only", "--no-fsck", "--dhchap-secret", "--timeout="} <= found
    assert "--fsck" not in found


def test_no_daemon(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/socket")
    assert complete(["--", "unstage", ""]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [[], ["--"], ["--", "--"], ["--", "\udcff", ""], ["--", "unstage", "--timeout"]])
def test_rubbish(words: list[str], asked: list[None]) -> None:
    assert complete(words) == 0


def test_lines(capsys: pytest.CaptureFixture[str], asked: list[None]) -> None:
    assert complete(["--", "unstage", "/"]) == 0
    assert capsys.readouterr().out == "/srv/one\t/dev/nvme1n1\n"
