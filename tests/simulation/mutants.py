"""Mutants: the core with one safeguard taken out, to see that the simulation would notice.

Each is a change of the source text of one function or more. A change whose text is not there any more is an error: then
the mutant is to be written anew, or to go.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import random
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.simulation import everywhere, histories, test_force, test_misfortunes, test_renamed, test_same_volume
from tests.simulation.everywhere import AWAITED, BOUND, FLOOD, GARBAGE, LATE, NAMES, OTHER_NQN, SCENARIOS, Case


class DoesNotApply(Exception):
    """The source is not what the mutant was written for."""


@dataclass(frozen=True)
class Edit:
    """One change: in ``function`` (``module:name`` below nvmeofd), the text ``old`` becomes ``new``."""

    function: str
    old: str
    new: str

    def target(self) -> FunctionType:
        module, _, name = self.function.partition(":")
        found: Any = importlib.import_module(f"nvmeofd.{module}")
        try:
            for part in name.split("."):
                found = inspect.getattr_static(found, part)
        except AttributeError as error:
            raise DoesNotApply(f"{self.function} is not there") from error
        if isinstance(found, property):
            found = found.fget
        assert isinstance(found, FunctionType)
        return found


def mutated(function: FunctionType, edits: Iterable[Edit]) -> CodeType:
    """The code of a function with these changes. Raises DoesNotApply."""
    source = textwrap.dedent(inspect.getsource(function))
    for edit in edits:
        if source.count(edit.old) != 1:
            raise DoesNotApply(f"{edit.function} has {edit.old!r} {source.count(edit.old)} times")
        source = source.replace(edit.old, edit.new)
    namespace: dict[str, Any] = {}
    code = compile(source, function.__code__.co_filename, "exec")
    exec(code, {**function.__globals__, "property": lambda getter: getter}, namespace)
    new = namespace[function.__name__]
    if new.__code__.co_freevars != function.__code__.co_freevars:
        raise DoesNotApply(f"{function.__qualname__} has other free variables")
    return new.__code__  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mutant:
    """``breaks``: what the daemon then does; ``catcher``: what notices."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    catcher: Catcher

    def __str__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Raises DoesNotApply."""
        targets = {edit.function: edit.target() for edit in self.edits}
        new = {
            name: mutated(function, [edit for edit in self.edits if edit.function == name])
            for name, function in targets.items()
        }
        old = {name: function.__code__ for name, function in targets.items()}
        try:
            for name, function in targets.items():
                function.__code__ = new[name]
            yield
        finally:
            for name, function in targets.items():
                function.__code__ = old[name]


@dataclass(frozen=True)
class Catcher:
    """A tool of the simulation: what it plays one after the other, and how many of these are enough."""

    name: str
    plays: Callable[[], Iterator[list[str]]]
    enough: int

    def __str__(self) -> str:
        return self.name

    def catch(self) -> tuple[int, str] | None:
        """How many were played until something was wrong, and what."""
        for number, found in enumerate(islice(self.plays(), self.enough), 1):
            if found:
                return number, found[0]
        return None


def drawn(first: int = 0, *, enough: int = 400) -> Catcher:
    """Histories of the seeds from ``first`` on."""

    def plays() -> Iterator[list[str]]:
        for seed in range(first, first + enough):
            try:
                yield histories.play(seed, histories.draw(random.Random(seed), 40)).complaints
            except Exception as error:  # noqa: BLE001 - a deadlock, a leaked task
                yield [repr(error)]

    return Catcher("histories", plays, enough)


def points(
    kind: Callable[..., Iterator[Case]], scenario: everywhere.Scenario, *more: Any, enough: int = 400
) -> Catcher:
    """The points of one scenario, with one thing going wrong."""

    def plays() -> Iterator[list[str]]:
        try:
            for case in kind(scenario, *more):
                yield everywhere.play(case)
        except Exception as error:  # noqa: BLE001 - it does not even get through without a fault
            yield [repr(error)]

    return Catcher(" ".join([kind.__name__, "of", scenario.name, *map(str, more)]), plays, enough)


def suite(test: Callable[..., None], **arguments: Any) -> Catcher:
    """One test of the directed ones."""

    def plays() -> Iterator[list[str]]:
        try:
            test(**arguments)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it is, it was noticed
            yield [f"{type(error).__name__}: {error}"]

    return Catcher(test.__name__, plays, 1)


TOLD = "self._observer.job_finished(job, error)"
GUARD = "operations.guard:disconnect_unused"
STAGE, UNSTAGE, DISCONNECT = SCENARIOS["stage"], SCENARIOS["unstage"], SCENARIOS["disconnect"]

MUTANTS = (
    Mutant(
        "no-second-look",
        "the guard looks at mounts, holders and swap once only",
        (Edit(GUARD, "                    stop_if_used(visible_users(core, again.namespaces))\n", ""),),
        points(everywhere.comers, UNSTAGE, "block-bind"),
    ),
    Mutant(
        "no-claim",
        "nothing is claimed",
        (
            Edit(GUARD, "async with core.kernel.claim(subsystem.namespaces) as claimed:", "if claimed := job:"),
            Edit("operations.guard:_look_and_write", "        await claimed.write_back()\n", ""),
        ),
        points(everywhere.as_it_is, UNSTAGE),
    ),
    Mutant(
        "claim-given-back-early",
        "the claims are given back before the controllers are deleted",
        (
            Edit(GUARD, "                    await deletion.run()\n", ""),
            Edit(
                GUARD,
                "            return deletion.outcome()",
                "            await deletion.run()\n            return deletion.outcome()",
            ),
        ),
        points(everywhere.as_it_is, UNSTAGE),
    ),
    Mutant(
        "no-verification",
        "what was to be deleted counts as deleted",
        (
            Edit(
                "operations.guard:Deletion.outcome",
                "{controller.instance for controller in left.controllers} if left else set()",
                "set()",
            ),
        ),
        points(everywhere.failures, DISCONNECT),
    ),
    Mutant(
        "open-files-ignored",
        "the guard does not look at who has a device open",
        (
            Edit(
                "operations.guard:_look_and_write",
                "        stop_if_used(openers(subsystem, scan, transient=False))\n",
                "",
            ),
            Edit(GUARD, "not scan.open_files and ", ""),
        ),
        points(everywhere.comers, UNSTAGE, "open"),
    ),
    Mutant(
        "nothing-written-back",
        "what somebody wrote who closed the device after it was claimed goes with it",
        (Edit("operations.guard:_look_and_write", "        await claimed.write_back()\n", ""),),
        points(everywhere.leavers, DISCONNECT),
    ),
    Mutant(
        "hidden-processes-ignored",
        "a process whose open files cannot be read counts as one that has none",
        (Edit("operations.guard:openers", "for pid in scan.unreadable", "for pid in ()"),),
        drawn(),
    ),
    Mutant(
        "unreadable-is-unused",
        "mounts, holders and swap that cannot be read count as none",
        (
            Edit(
                "operations.guard:visible_users",
                'users.append(unreadable("the mount table, holders or swap", error))',
                "error",
            ),
        ),
        points(everywhere.blind, BOUND),
    ),
    Mutant(
        "stale-mounts",
        "the mount table is not read again before a decision",
        (Edit("operations.guard:visible_users", "        core.cache.refresh()\n", ""),),
        points(everywhere.comers, UNSTAGE, "block-bind"),
    ),
    Mutant(
        "other-owner-ignored",
        "a controller that another orchestrator has taken over is deleted",
        (Edit("operations.ownership:Ownership.owned", " and self.other_owner(controller) is None", ""),),
        drawn(),
    ),
    Mutant(
        "controllers-of-others",
        "an automatic disconnect deletes what others have connected",
        (Edit("operations.ownership:Ownership.owned", "if self.owns(controller) and self", "if self"),),
        drawn(),
    ),
    Mutant(
        "keep-ignored",
        "what is to be kept connected is disconnected by itself",
        (Edit("operations.tidy:Tidier._needed", "self._core.ownership.keeps(nqn) or ", ""),),
        points(everywhere.as_it_is, SCENARIOS["keep"]),
    ),
    Mutant(
        "waiting-stage-ignored",
        "an Unstage disconnects although a Stage waits",
        (Edit("operations.disconnect:disconnect_owned", "if core.workers.stage_waiting(nqn):", "if False:"),),
        points(everywhere.as_it_is, AWAITED),
    ),
    Mutant(
        "nothing-deferred",
        "what could not be disconnected at once is forgotten",
        (Edit("operations.tidy:Tidier.look", "if self._left_behind(nqn)]", "if False]"),),
        points(everywhere.comers, UNSTAGE, "mount"),
    ),
    Mutant(
        "matched-by-name",
        "a volume is found again by the name of its device",
        (
            Edit(
                "operations.volumes:Volume.is_on",
                "(self.wwid, self.number, self.diskseq) == (namespace.wwid, namespace.number, namespace.diskseq)",
                "self.device == namespace.path",
            ),
        ),
        points(everywhere.as_it_is, NAMES),
    ),
    Mutant(
        "not-blank-is-formatted",
        "a device without a filesystem is formatted, whatever is on it",
        (Edit("operations.filesystem:prepare", "await _require_blank(core, device, namespace, content)", "pass"),),
        points(everywhere.as_it_is, GARBAGE),
    ),
    Mutant(
        "read-error-is-blank",
        "a device that cannot be read counts as blank",
        (
            Edit(
                "operations.filesystem:_require_blank",
                '        raise NotBlank(f"{namespace.path} cannot be read, so it is not formatted: {error}")'
                " from error\n",
                "        zero = error is not None\n",
            ),
        ),
        points(everywhere.failures, GARBAGE),
    ),
    Mutant(
        "half-made-is-left",
        "a mkfs that a crash cut short is not undone",
        (Edit("operations.filesystem:undo_format", "if namespace is None or ", "if True or "),),
        points(everywhere.crashes, SCENARIOS["format"]),
    ),
    Mutant(
        "connect-before-intent",
        "a connection is written down only after it was made",
        (
            Edit(
                "operations.connect:_connect_one",
                "    core.ownership.intend(request.nqn, address, host.nqn, known)\n",
                "",
            ),
            Edit(
                "operations.connect:_connect_one",
                "        made = await core.kernel.connect(parameters)\n",
                "        made = await core.kernel.connect(parameters)\n"
                "        core.ownership.intend(request.nqn, address, host.nqn, known)\n",
            ),
        ),
        points(everywhere.crashes, STAGE),
    ),
    Mutant(
        "not-a-path-is-forgotten",
        "a connection that is no path of its subsystem yet is nobody's once it is",
        (
            Edit(
                "operations.ownership:Ownership.prune",
                "if owned in there and owned not in astray",
                "if owned in present",
            ),
        ),
        points(everywhere.as_it_is, LATE),
    ),
    Mutant(
        "path-of-another-is-forgotten",
        "a connection to a target that gives another NQN is never undone",
        (Edit("operations.ownership:Ownership._moved", "if found and other.nqn != nqn:", "if False:"),),
        points(everywhere.as_it_is, OTHER_NQN),
    ),
    Mutant(
        "mount-before-intent",
        "a mount is written down only after it was made",
        (Edit("operations.stage:_mount", "    core.journal.put_volume(record)\n\n    async def", "    async def"),),
        points(everywhere.crashes, STAGE),
    ),
    Mutant(
        "no-undo",
        "a Stage that fails leaves what it has done",
        (Edit("operations.transaction:Transaction.__aexit__", "if error is None or not self._undos:", "if True:"),),
        points(everywhere.failures, STAGE),
    ),
    Mutant(
        "undo-in-wrong-order",
        "a Stage that fails is undone first step first",
        (Edit("operations.transaction:Transaction.__aexit__", "reversed(self._undos)", "self._undos"),),
        points(everywhere.failures, STAGE),
    ),
    Mutant(
        "connect-not-undone",
        "a Stage that fails stays connected",
        (
            Edit(
                "operations.connect:connect_paths",
                '    transaction.on_failure(f"disconnect {request.nqn}", '
                "lambda: _disconnect_new(core, job, request.nqn, known))\n",
                "    (lambda: (_disconnect_new, job, known), transaction)\n",
            ),
        ),
        points(everywhere.as_it_is, SCENARIOS["rollback"]),
    ),
    Mutant(
        "success-on-failure",
        "a job that failed is reported as done",
        (
            Edit(
                "jobs:Job.run",
                "            self.result.set_exception(error)\n    elif",
                "            self.result.set_result(value)\n    elif",
            ),
        ),
        points(everywhere.as_it_is, SCENARIOS["rollback"]),
    ),
    Mutant(
        "finished-twice",
        "the end of a job is told twice",
        (Edit("workers:Workers._finish", "job_finished(job, error)", "job_finished(job, error); " + TOLD),),
        points(everywhere.as_it_is, STAGE),
    ),
    Mutant(
        "no-deadline",
        "the caller of what hangs is told nothing at the deadline",
        (Edit("jobs:Job._hard_timeout", "elif not self.result.done():", "elif False:"),),
        points(everywhere.hangs, STAGE),
    ),
    Mutant(
        "one-queue",
        "jobs of different subsystems wait for each other",
        (
            Edit(
                "workers:Workers._work_off",
                "            job = queue.running =",
                "            while any(other.running for other in self._queues.values()):\n"
                "                await asyncio.sleep(0.1)\n"
                "            job = queue.running =",
            ),
        ),
        points(everywhere.hangs, STAGE),
    ),
    Mutant(
        "paths-not-reserved",
        "two subsystems may be staged at one path at the same time",
        (Edit("operations.admission:Admission._last_job", "self._jobs_at(path)", "()"),),
        drawn(150),
    ),
    Mutant(
        "queue-without-bound",
        "a subsystem takes any number of jobs",
        (Edit("workers:Workers.submit", "len(queue.waiting) >= self._queue_limit", "False"),),
        points(everywhere.as_it_is, FLOOD),
    ),
    Mutant(
        "alive-is-forced",
        "force disconnects what has a live path",
        (Edit("operations.force:_look_if_dead", " or subsystem.live_controllers", ""),),
        points(everywhere.as_it_is, everywhere.FORCE),
    ),
    Mutant(
        "forced-without-second-look",
        "force does not look again whether the volume still is mounted",
        (
            Edit(
                "operations.force:_decide", "if mounted and find_mount(core.cache, again, volume) is None:", "if False:"
            ),
        ),
        suite(test_force.test_unmounted_by_somebody_who_goes_on_to_use_the_device, call="claim"),
    ),
    Mutant(
        "mount-of-somebody-else",
        "what was mounted while a Stage had not come to it counts as its own",
        (
            Edit(
                "journal:VolumeRecord.to_unmount",
                "None if self.phase in (Phase.STAGING, Phase.UNMOUNTED) else self.volume",
                "self.volume",
            ),
        ),
        suite(test_same_volume.test_what_a_stage_did_not_get_to_mount_is_somebody_elses),
    ),
    Mutant(
        "moved-is-gone",
        "a mount that is not at its path counts as unmounted",
        (Edit("operations.volumes:refuse_moved", "moved = find_moved(core, volume)", "moved = None"),),
        suite(test_renamed.test_across_a_restart, back=True),
    ),
    Mutant(
        "renames-not-noticed",
        "force takes the mount table for exact because poll says so",
        (Edit("operations.force:_look_if_dead", "core.cache.doubt()", "pass"),),
        suite(test_renamed.test_forced_and_moved_in_the_middle_of_it),
    ),
    Mutant(
        "loss-not-written-down",
        "that a mount is gone for good is known to one life of the daemon only",
        (
            Edit(
                "operations.picture:Picture._update_volumes", "self._write_down(volume.staging_path, mount_id)", "pass"
            ),
        ),
        suite(test_misfortunes.test_lost_for_good_across_a_restart),
    ),
    Mutant(
        "one-of-two-names",
        "of a device with two names, one is looked at before what a mkfs left is wiped off",
        (
            Edit(
                "operations.recovery:_spare_what_is_used",
                "subsystem.identified(record.wwid)",
                "subsystem.identified(record.wwid)[:1]",
            ),
        ),
        suite(test_misfortunes.test_what_mkfs_left_is_in_use_by_another_name, nsid=5),
    ),
)
