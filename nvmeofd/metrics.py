"""Metrics: what is counted, and how that reads in Prometheus' text format, version 0.0.4.

See https://prometheus.io/docs/instrumenting/exposition_formats. Everything here is bounded: labels come from fixed
sets, but for NQNs, of which there are at most ``MAX_SUBSYSTEMS``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from nvmeofd import __version__, errors
from nvmeofd.errors import NvmeofdError
from nvmeofd.model import OperationKind, VolumeState

if TYPE_CHECKING:
    from nvmeofd.model import Subsystem

MAX_SUBSYSTEMS = 1000
# seconds; what a healthy host needs is below 1, the default timeout of an operation is 60
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# nvme_sysfs_show_state() in drivers/nvme/host/sysfs.c, "deleting (no IO)" being one of the deleting. What a kernel to
# come may add is "other".
PATH_STATES = ("live", "connecting", "new", "resetting", "deleting", "dead", "other")
OPERATIONS = tuple(kind for kind in OperationKind if kind is not OperationKind.TIDY)
ERRORS = tuple(
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, NvmeofdError) and value is not NvmeofdError
)
# What was asked for is not possible as things are. The others went wrong.
_REFUSALS = (
    errors.InvalidArgument,
    errors.InUse,
    errors.Shared,
    errors.AlreadyStaged,
    errors.NotStaged,
    errors.PathNotEmpty,
    errors.NoFilesystem,
    errors.WrongFilesystem,
    errors.NotBlank,
    errors.Busy,
    errors.ShuttingDown,
)
_DISCONNECTS = ("done", "refused", "deferred", "failed")  # counters disconnects-…


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    OVERDUE = "overdue"


class Family(NamedTuple):
    """One metric: all series of a name."""

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ()


BUILD = Family("nvmeofd_build_info", "gauge", "Always 1; which version runs.", ("version",))
START = Family("nvmeofd_start_timestamp_seconds", "gauge", "When the daemon started, in seconds since the epoch.")
UPDATE = Family(
    "nvmeofd_last_update_timestamp_seconds", "gauge", "When this file was written, in seconds since the epoch."
)
CONFIG = Family(
    "nvmeofd_config_last_reload_successful", "gauge", "0 if the last reload found an error in the configuration."
)
OPERATION = Family(
    "nvmeofd_operations_total", "counter", "Operations that clients asked for, by outcome.", ("operation", "outcome")
)
ERROR = Family(
    "nvmeofd_operation_errors_total",
    "counter",
    "Operations that did not succeed, by the name of the error.",
    ("operation", "error"),
)
DURATION = Family(
    "nvmeofd_operation_duration_seconds",
    "histogram",
    "Time from accepting an operation to its end, waiting for others included.",
    ("operation",),
)
JOBS = Family(
    "nvmeofd_jobs",
    "gauge",
    "Operations now; overdue: past the deadline, its caller was told, and the kernel still holds it.",
    ("state",),
)
VOLUMES = Family("nvmeofd_volumes", "gauge", "Staged volumes by state.", ("state",))
SUBSYSTEMS = Family("nvmeofd_subsystems", "gauge", "Connected subsystems, whoever connected them.")
PATHS = Family(
    "nvmeofd_subsystem_paths",
    "gauge",
    "Paths (controllers) of a subsystem by the state that the kernel gives them.",
    ("nqn", "state"),
)
WAITING = Family("nvmeofd_subsystem_waiting_jobs", "gauge", "Operations that wait for a subsystem.", ("nqn",))
OMITTED = Family(
    "nvmeofd_subsystems_omitted", "gauge", f"Subsystems left out of this file, which has at most {MAX_SUBSYSTEMS}."
)
READABLE = Family(
    "nvmeofd_subsystems_readable", "gauge", "0 if sysfs could not be read; then no subsystem is shown as connected."
)
DISCONNECT = Family(
    "nvmeofd_disconnects_total",
    "counter",
    "Decisions on disconnecting a subsystem; deferred: to be made up for when its last user goes.",
    ("outcome",),
)
FORCED = Family(
    "nvmeofd_forced_disconnects_total", "counter", "Filesystems without a live path that were let go with force."
)
EVENTS = Family("nvmeofd_events_total", "counter", "Events of the kernel: mounts and devices.")
OVERFLOWS = Family("nvmeofd_event_overflows_total", "counter", "Times that events were lost.")
REBUILDS = Family("nvmeofd_cache_rebuilds_total", "counter", "Times that the whole mount table was read.")

FAMILIES = (
    *(BUILD, START, UPDATE, CONFIG, OPERATION, ERROR, DURATION, JOBS, VOLUMES, DISCONNECT, FORCED, EVENTS, OVERFLOWS),
    *(REBUILDS, READABLE, SUBSYSTEMS, OMITTED, PATHS, WAITING),
)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by bucket (the last one is for what is above all bounds), and their sum in seconds."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    sum: float = 0.0

    def plus(self, seconds: float) -> Histogram:
        index = bisect_left(BUCKETS, seconds)
        counts = (*self.counts[:index], self.counts[index] + 1, *self.counts[index + 1 :])
        return Histogram(counts, self.sum + seconds)


class Operations:
    """Counts what clients asked for and what came of it. Lives on the event loop."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[OperationKind, Outcome]] = Counter()
        self.errors: Counter[tuple[OperationKind, str]] = Counter()
        self.durations: dict[OperationKind, Histogram] = {}

    def finished(self, operation: OperationKind, error: NvmeofdError | None, seconds: float) -> None:
        """A job has ended, so many seconds after it was accepted."""
        self._count(operation, error)
        self.durations[operation] = self.durations.get(operation, Histogram()).plus(seconds)

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        """A request did not become a job."""
        self._count(operation, error)

    def _count(self, operation: OperationKind, error: NvmeofdError | None) -> None:
        self.outcomes[operation, outcome_of(error)] += 1
        if error is not None:
            self.errors[operation, type(error).__name__] += 1


def outcome_of(error: NvmeofdError | None) -> Outcome:
    if error is None:
        return Outcome.SUCCEEDED
    if isinstance(error, errors.Cancelled):
        return Outcome.CANCELLED
    return Outcome.REFUSED if isinstance(error, _REFUSALS) else Outcome.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that the event loop knows, at one moment. The state of the paths is the kernel's."""

    started: float  # seconds since the epoch
    config_valid: bool = True
    outcomes: Mapping[tuple[OperationKind, Outcome], int] = field(default_factory=dict)
    errors: Mapping[tuple[OperationKind, str], int] = field(default_factory=dict)
    durations: Mapping[OperationKind, Histogram] = field(default_factory=dict)
    jobs: Mapping[JobState, int] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)  # by NQN
    volumes: Mapping[VolumeState, int] = field(default_factory=dict)
    volume_nqns: frozenset[str] = frozenset()
    counters: Mapping[str, int] = field(default_factory=dict)


Sample = tuple[str, tuple[tuple[str, str], ...], float]  # suffix of the name, labels, value


def render(snapshot: Snapshot, subsystems: tuple[Subsystem, ...] | None) -> str:
    """The metrics, without the time of the update.

    Args:
        snapshot: what the daemon knows.
        subsystems: what is connected, None when that cannot be read.
    """
    return "".join(_lines(family, samples) for family, samples in _families(snapshot, subsystems))


def update_time(now: float) -> str:
    """The metric to be added to the others when they are written."""
    return _lines(UPDATE, _one(now))


def _families(
    snapshot: Snapshot, subsystems: tuple[Subsystem, ...] | None
) -> Iterator[tuple[Family, Iterable[Sample]]]:
    counters = snapshot.counters
    yield BUILD, _each(BUILD, {(__version__,): 1})
    yield START, _one(snapshot.started)
    yield CONFIG, _one(snapshot.config_valid)
    yield OPERATION, _each(OPERATION, {(o, r): snapshot.outcomes.get((o, r), 0) for o in OPERATIONS for r in Outcome})
    yield ERROR, _each(ERROR, {(o, e): snapshot.errors.get((o, e), 0) for o in OPERATIONS for e in ERRORS})
    yield DURATION, _histograms({o: snapshot.durations.get(o, Histogram()) for o in OPERATIONS})
    yield JOBS, _each(JOBS, {(state,): snapshot.jobs.get(state, 0) for state in JobState})
    yield VOLUMES, _each(VOLUMES, {(state,): snapshot.volumes.get(state, 0) for state in VolumeState})
    yield DISCONNECT, _each(DISCONNECT, {(how,): counters.get(f"disconnects-{how}", 0) for how in _DISCONNECTS})
    yield FORCED, _one(counters.get("forced", 0))
    yield EVENTS, _one(counters.get("events", 0))
    yield OVERFLOWS, _one(counters.get("overflows", 0))
    yield REBUILDS, _one(counters.get("cache-rebuilds", 0))
    yield READABLE, _one(subsystems is not None)
    yield SUBSYSTEMS, _one(len(subsystems)) if subsystems is not None else ()
    paths = {one.nqn: _path_states(one) for one in subsystems or ()}
    # a subsystem that a volume is on and that is gone has no path, which is to be seen
    known = list(dict.fromkeys([*paths, *sorted(snapshot.volume_nqns), *snapshot.waiting]))
    shown = {nqn: valid(nqn) for nqn in known[:MAX_SUBSYSTEMS]}
    yield OMITTED, _one(len(known) - len(shown))
    if subsystems is not None:
        none: Counter[str] = Counter()
        yield PATHS, _each(PATHS, {(shown[nqn], s): paths.get(nqn, none)[s] for nqn in shown for s in PATH_STATES})
    yield WAITING, _each(WAITING, {(name,): snapshot.waiting.get(nqn, 0) for nqn, name in shown.items()})


def _path_states(subsystem: Subsystem) -> Counter[str]:
    words = (controller.state.split(" ")[0] for controller in subsystem.controllers)
    return Counter(word if word in PATH_STATES else "other" for word in words)


def _one(value: float) -> tuple[Sample]:
    return (("", (), value),)


def _each(family: Family, values: Mapping[tuple[str, ...], float]) -> Iterator[Sample]:
    for labels, value in values.items():
        yield "", tuple(zip(family.labels, labels, strict=True)), value


def _histograms(values: Mapping[OperationKind, Histogram]) -> Iterator[Sample]:
    for operation, histogram in values.items():
        labels = (("operation", str(operation)),)
        total = 0
        for bound, count in zip((*map(_number, BUCKETS), "+Inf"), histogram.counts, strict=True):
            total += count
            yield "_bucket", (*labels, ("le", bound)), total
        yield "_sum", labels, histogram.sum
        yield "_count", labels, total


def _lines(family: Family, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.type}"]
    for suffix, labels, value in samples:
        shown = ",".join(f'{name}="{_quotable(text)}"' for name, text in labels)
        lines.append(f"{family.name}{suffix}{f'{{{shown}}}' if shown else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def valid(text: str) -> str:
    """``text`` as UTF-8 can have it: what is none of a name is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _quotable(text: str) -> str:
    return _escaped(valid(text)).replace('"', '\\"')


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
