"""The metrics as text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nvmeofd
from nvmeofd import errors
from nvmeofd.errors import NvmeofdError
from nvmeofd.metrics import (
    BUCKETS,
    ERRORS,
    FAMILIES,
    MAX_SUBSYSTEMS,
    OPERATIONS,
    PATH_STATES,
    Histogram,
    JobState,
    Operations,
    Outcome,
    Snapshot,
    outcome_of,
    render,
    update_time,
)
from nvmeofd.model import Controller, OperationKind, Subsystem, VolumeState
from tests.exposition import Malformed, Metrics, parse, unescape

NQN = "nqn.2024-01.org.example:one"
STAGE, UNSTAGE, DISCONNECT = OPERATIONS


def subsystem(nqn: str, *states: str) -> Subsystem:
    return Subsystem(nqn, "nvme-subsys0", tuple(controller(nqn, state) for state in states))


def controller(nqn: str, state: str) -> Controller:
    return Controller(
        name="nvme0",
        instance=1,
        nqn=nqn,
        transport="tcp",
        traddr="127.0.0.1",
        trsvcid="4420",
        host_traddr="",
        host_iface="",
        state=state,
        host_nqn="",
        host_id="",
    )


def read(snapshot: Snapshot, *subsystems: Subsystem) -> Metrics:
    return parse((render(snapshot, subsystems) + update_time(1.5)).encode())


def test_nothing_has_happened() -> None:
    """Every series that has no NQN is there from the start: what appears with 1 has not increased for Prometheus."""
    found = read(Snapshot(started=1_700_000_000.25))
    assert {(one.name, one.type, one.help) for one in found.values()} == {
        (family.name, family.type, family.help) for family in FAMILIES
    }
    assert set(found) == {family.name for family in FAMILIES}
    assert found.value("nvmeofd_build_info", version=nvmeofd.__version__) == 1
    assert found.value("nvmeofd_start_timestamp_seconds") == 1_700_000_000.25
    assert found.value("nvmeofd_last_update_timestamp_seconds") == 1.5
    assert found.value("nvmeofd_config_last_reload_successful") == 1
    assert found.value("nvmeofd_subsystems_readable") == 1
    per_nqn = ("nvmeofd_subsystem_paths", "nvmeofd_subsystem_waiting_jobs")
    sizes = {name: len(metric.samples) for name, metric in found.items()}
    assert [name for name, size in sizes.items() if not size] == list(per_nqn)
    assert sizes["nvmeofd_operations_total"] == 3 * len(Outcome)
    assert sizes["nvmeofd_operation_errors_total"] == 3 * len(ERRORS)
    ones = ("build", "start", "last_update", "config", "subsystems_readable")
    for name, metric in found.items():
        if not name.removeprefix("nvmeofd_").startswith(ones):
            assert set(metric.samples.values()) <= {0}, name


def test_families_have_the_labels_they_say() -> None:
    found = read(Snapshot(started=0, waiting={NQN: 1}), subsystem(NQN, "live"))
    for family in FAMILIES:
        for _, labels in found[family.name].samples:
            assert {key for key, _ in labels} - {"le"} == set(family.labels)


def test_everything_moves_its_own_series() -> None:
    snapshot = Snapshot(
        started=0,
        config_valid=False,
        outcomes={(STAGE, Outcome.FAILED): 2},
        errors={(UNSTAGE, "Timeout"): 3},
        durations={STAGE: Histogram().plus(0.3)},
        jobs={JobState.WAITING: 4, JobState.OVERDUE: 5},
        waiting={NQN: 4},
        volumes={VolumeState.LOST: 6},
        counters={
            "disconnects-done": 7,
            "disconnects-deferred": 8,
            "forced": 9,
            "events": 10,
            "overflows": 11,
            "cache-rebuilds": 12,
            "stage-succeeded": 99,
        },
    )
    found = read(snapshot, subsystem(NQN, "live", "live", "connecting"), subsystem("other"))
    before = read(Snapshot(started=0), subsystem(NQN), subsystem("other"))
    changed = {name: before.changes(found, name) for name in found if name != "nvmeofd_operation_duration_seconds"}
    assert {name: grown for name, grown in changed.items() if grown} == {
        "nvmeofd_config_last_reload_successful": {(): -1},
        "nvmeofd_operations_total": {("stage", "failed"): 2},
        "nvmeofd_operation_errors_total": {("Timeout", "unstage"): 3},
        "nvmeofd_jobs": {("waiting",): 4, ("overdue",): 5},
        "nvmeofd_subsystem_waiting_jobs": {(NQN,): 4},
        "nvmeofd_volumes": {("lost",): 6},
        "nvmeofd_disconnects_total": {("done",): 7, ("deferred",): 8},
        "nvmeofd_forced_disconnects_total": {(): 9},
        "nvmeofd_events_total": {(): 10},
        "nvmeofd_event_overflows_total": {(): 11},
        "nvmeofd_cache_rebuilds_total": {(): 12},
        "nvmeofd_subsystem_paths": {(NQN, "live"): 2, (NQN, "connecting"): 1},
    }
    assert found.value("nvmeofd_subsystems") == 2


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        *((state, state) for state in PATH_STATES),
        ("deleting (no IO)", "deleting"),
        ("unknown state", "other"),
        ("", "other"),
        ("something\nnew", "other"),
    ],
)
def test_state_of_a_path(state: str, shown: str) -> None:
    found = read(Snapshot(started=0), subsystem(NQN, state))
    assert {s: found.value("nvmeofd_subsystem_paths", nqn=NQN, state=s) for s in PATH_STATES} == {
        s: float(s == shown) for s in PATH_STATES
    }


def test_a_subsystem_that_is_gone_under_a_volume_has_no_path() -> None:
    found = read(Snapshot(started=0, volume_nqns=frozenset({NQN})))
    assert found.value("nvmeofd_subsystem_paths", nqn=NQN, state="live") == 0
    assert found.value("nvmeofd_subsystems") == 0


def test_unreadable_is_not_disconnected() -> None:
    found = parse(render(Snapshot(started=0, volume_nqns=frozenset({NQN})), None).encode())
    assert found.value("nvmeofd_subsystems_readable") == 0
    assert found["nvmeofd_subsystems"].samples == {}
    assert "nvmeofd_subsystem_paths" not in found


def test_bounded() -> None:
    waiting = {f"nqn.2024-01.org.example:{number}": 1 for number in range(MAX_SUBSYSTEMS * 2)}
    found = read(Snapshot(started=0, waiting=waiting), subsystem(NQN, "live"))
    assert len(found["nvmeofd_subsystem_waiting_jobs"].samples) == MAX_SUBSYSTEMS
    assert len(found["nvmeofd_subsystem_paths"].samples) == MAX_SUBSYSTEMS * len(PATH_STATES)
    assert found.value("nvmeofd_subsystem_paths", nqn=NQN, state="live") == 1, "what is connected comes first"
    assert found.value("nvmeofd_subsystems_omitted") == MAX_SUBSYSTEMS + 1


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.characters(), max_size=60), unique=True, max_size=5))
def test_any_name(names: list[str]) -> None:
    """Line ends, quotes, backslashes, bytes that are no UTF-8: it comes back, or as near as UTF-8 gets."""
    waiting = {name: number + 1 for number, name in enumerate(names)}
    found = read(Snapshot(started=0, waiting=waiting), *(subsystem(name, "live") for name in names))
    shown = {name.encode("utf-8", "backslashreplace").decode() for name in names}
    assert found.labels("nvmeofd_subsystem_waiting_jobs", "nqn") == shown
    assert found.labels("nvmeofd_subsystem_paths", "nqn") == shown


def test_names_that_look_alike_are_one() -> None:
    found = read(Snapshot(started=0), subsystem("a\udc80", "live"), subsystem("a\\udc80", "live"))
    assert found.labels("nvmeofd_subsystem_paths", "nqn") == {"a\\udc80"}


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_durations(observations: list[float]) -> None:
    counted = Operations()
    for seconds in observations:
        counted.finished(STAGE, None, seconds)
    found = read(Snapshot(started=0, durations=counted.durations))
    name = "nvmeofd_operation_duration_seconds"
    for bound in BUCKETS:
        at_most = found.value(f"{name}_bucket", operation="stage", le=str(bound).removesuffix(".0"))
        assert at_most == sum(seconds <= bound for seconds in observations)
    assert found.value(f"{name}_count", operation="stage") == len(observations)
    assert found.value(f"{name}_sum", operation="stage") == pytest.approx(sum(observations))
    assert found.value(f"{name}_count", operation="unstage") == 0


def test_operations_are_counted_once_each() -> None:
    counted = Operations()
    counted.finished(STAGE, None, 1.0)
    counted.finished(STAGE, errors.MountFailed(""), 1.0)
    counted.finished(DISCONNECT, errors.InUse(""), 1.0)
    counted.refused(UNSTAGE, errors.NotStaged(""))
    counted.finished(UNSTAGE, errors.Cancelled(""), 1.0)
    assert counted.outcomes == Counter(
        {
            (STAGE, Outcome.SUCCEEDED): 1,
            (STAGE, Outcome.FAILED): 1,
            (DISCONNECT, Outcome.REFUSED): 1,
            (UNSTAGE, Outcome.REFUSED): 1,
            (UNSTAGE, Outcome.CANCELLED): 1,
        }
    )
    assert counted.errors == Counter(
        {(STAGE, "MountFailed"): 1, (DISCONNECT, "InUse"): 1, (UNSTAGE, "NotStaged"): 1, (UNSTAGE, "Cancelled"): 1}
    )
    assert {operation: sum(one.counts) for operation, one in counted.durations.items()} == {
        STAGE: 2,
        DISCONNECT: 1,
        UNSTAGE: 1,
    }


def test_every_error_has_an_outcome() -> None:
    """By name: a new one is to be thought about."""
    outcomes: dict[Outcome, list[str]] = {}
    for name in ERRORS:
        kind: type[NvmeofdError] = getattr(errors, name)
        outcomes.setdefault(outcome_of(kind("")), []).append(name)
    assert outcomes == {
        Outcome.REFUSED: [
            *("InvalidArgument", "InUse", "Shared", "AlreadyStaged", "NotStaged", "PathNotEmpty"),
            *("NoFilesystem", "WrongFilesystem", "NotBlank", "Busy", "ShuttingDown"),
        ],
        Outcome.FAILED: [
            *("ConnectFailed", "AuthenticationFailed", "NamespaceNotFound", "FormatFailed", "CheckFailed"),
            *("MountFailed", "UnmountFailed", "DisconnectFailed", "Timeout", "Failed"),
        ],
        Outcome.CANCELLED: ["Cancelled"],
    }


def test_own_jobs_of_the_daemon_have_no_series() -> None:
    assert {str(kind) for kind in OPERATIONS} == {kind.value for kind in OperationKind} - {"tidy"}


class TestReader:
    """The reader of these tests finds what is wrong."""

    @pytest.mark.parametrize(
        "text",
        [
            "a 1\n",
            "# HELP a b\n# TYPE a gauge\na 1",
            "# HELP a b\n# TYPE a gauge\na 1\na 2\n",
            "# HELP a b\n# TYPE a gauge\nb 1\n",
            "# HELP a b\na 1\n",
            "# HELP a b\n",
            "# TYPE a gauge\n",
            "# HELP a b\n# TYPE a counter\na 1\n",
            "# HELP a \\t\n# TYPE a gauge\n",
            '# HELP a b\n# TYPE a gauge\na{b="\\t"} 1\n',
            '# HELP a b\n# TYPE a gauge\na{b="c} 1\n',
            '# HELP a b\n# TYPE a gauge\na{b="c"}1\n',
            '# HELP a b\n# TYPE a gauge\na{b="c",b="c"} 1\n',
            '# HELP a b\n# TYPE a gauge\na{b="c\n"} 1\n',
            "# HELP a b\n# TYPE a gauge\na 0x1\n",
            "# HELP a b\n# TYPE a gauge\n\na 1\n",
            '# HELP a b\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
        ],
    )
    def test_malformed(self, text: str) -> None:
        with pytest.raises(Malformed):
            parse(text.encode())

    def test_not_utf8(self) -> None:
        with pytest.raises(Malformed):
            parse(b"# HELP a \xff\n")

    def test_escapes(self) -> None:
        assert unescape(r"a\\n\n\"") == 'a\\n\n"'
