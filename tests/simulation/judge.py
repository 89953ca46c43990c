"""The judge of jobs: each is answered once and in time, and what it reports is what the host shows at that moment.

What others did while a job ran can make any answer right. So the world counts their acts by kind, and a job is held to
the letter where they kept still; the same goes for faults in the way of undoing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nvmeofd.errors import DisconnectFailed, InUse, NvmeofdError, Shared, Timeout
from nvmeofd.journal import Phase
from nvmeofd.model import OperationKind, VolumeState, VolumeType
from nvmeofd.operations.volumes import Volume
from nvmeofd.requests import StageRequest, UnstageRequest
from tests.simulation.faults import JOB, EventFaults

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.operations.core import Core
    from tests.simulation.files import Node
    from tests.simulation.kernel import SimKernel
    from tests.simulation.state import SimController, SimMount
    from tests.simulation.target import Disk

LATE = 0.001  # seconds that an answer may come after its deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """What a job may change, as it was when the job began; and how much others had done by then."""

    moment: int
    meddling: dict[str, int]
    hits: int
    unread: int
    controllers: tuple[SimController, ...]
    mounts: tuple[SimMount, ...]  # the daemon's own at the staging path
    node: Node | None
    contents: dict[Disk, tuple[object, ...]]
    read_only: frozenset[str]
    volume: Volume | None
    recorded: bool  # half-done work was left over at the staging path
    keep: bool


class Judge:
    """Judges the jobs of one daemon process. What is wrong is written down in the world."""

    def __init__(self, kernel: SimKernel, core: Core) -> None:
        self._kernel = kernel
        self._world = kernel.world
        self._core = core
        self._running: dict[str, Job] = {}
        self._begun: dict[str, int] = {}
        self._last_at_begin: dict[int, int] = {}  # number of a job → of the last one that was there when it began
        self.accepted = 0
        self.answered = 0
        submit = core.workers.submit

        def watched(job: Job) -> None:
            work: Callable[[Job], Awaitable[Any]] = vars(job)["_work"]
            vars(job)["_work"] = lambda job: self._watch(job, work)
            submit(job)
            self._accept(job)

        vars(core.workers)["submit"] = watched

    def _wrong(self, job: Job, text: str) -> None:
        self._world.violation(f"{job} {text}")

    # ---- each job once, in order, in time

    def _accept(self, job: Job) -> None:
        self.accepted += 1
        config = self._core.config
        waiting, all_jobs = self._core.workers.pending(job.nqn), len(self._core.workers.jobs)
        # one of them is about to begin
        if job.visible and (waiting > config.queue_limit + 1 or all_jobs > config.total_limit):
            self._wrong(job, f"was accepted as one of {waiting} that wait and {all_jobs} in all")

        def answer(_: object) -> None:
            if self._kernel.killed:
                return
            self.answered += 1
            late = asyncio.get_running_loop().time() - job.deadline
            if late > LATE:
                self._wrong(job, f"was answered {late:.3f} s after its deadline")

        job.result.add_done_callback(answer)

    async def _watch(self, job: Job, work: Callable[[Job], Awaitable[Any]]) -> Any:
        JOB.set(job)
        if (other := self._running.get(job.nqn)) is not None:
            self._wrong(job, f"runs together with {other}")
        if job.number <= self._begun.get(job.nqn, 0):
            self._wrong(job, "begins after one that came later")
        self._running[job.nqn], self._begun[job.nqn] = job, job.number
        self._last_at_begin[job.number] = max(self._core.workers.jobs)
        before = self._picture(job)
        kept = job.nqn in self._world.kept
        if job.operation is not OperationKind.TIDY:
            self._world.kept.discard(job.nqn)  # for good, should it be killed: nobody can tell how far it had come
        if isinstance(job.request, UnstageRequest) and job.request.keep_connected:
            self._world.asked_to_keep.add(job.nqn)
        try:
            result = await work(job)
        except BaseException as error:
            self._running.pop(job.nqn, None)
            if not self._kernel.killed:
                self._keep_on(job, before, kept)
                self._failed(job, before, error)
                self._give_up_disks(job, before)
            raise
        self._running.pop(job.nqn, None)
        if not self._kernel.killed:
            self._keep_on(job, before, kept)
            self._succeeded(job, before, result)
            self._give_up_disks(job, before)
        return result

    def _keep_on(self, job: Job, before: _Picture, kept: bool) -> None:
        """What a Stage does not change: whether the subsystem was to be kept connected before it."""
        if kept and job.operation is OperationKind.STAGE and self._calm(before, "paths"):
            self._world.kept.add(job.nqn)

    def finished(self, job: Job, error: NvmeofdError | None) -> None:
        """The daemon says that a job has ended. What its caller was told must be the same."""
        told = job.result.exception()
        if isinstance(told, Timeout) and "still running" in str(told):
            return
        if told is not error:
            self._wrong(job, f"ended with {error!r}, and its caller was told {told!r}")

    def stage_waits(self, job: Job) -> Job | None:
        """A Stage of the same subsystem that waits, and did so when the job began."""
        last = self._last_at_begin.get(job.number, 0)
        stages = (one for one in self._core.workers.of(job.nqn) if one.operation is OperationKind.STAGE)
        return next((one for one in stages if not one.started and one.number <= last), None)

    def is_forcing(self, path: str) -> bool:
        """Whether it is written down that the volume there is being let go by force."""
        record = self._core.journal.volumes.get(path)
        return record is not None and record.phase is Phase.FORCING

    # ---- pictures

    def _picture(self, job: Job) -> _Picture:
        world, path = self._world, job.staging_path
        subsystem = world.fabric.subsystem(job.nqn)
        target = world.fabric.targets.get(job.nqn)
        disks = target.namespaces.values() if target else ()
        record = self._core.journal.volumes.get(path)
        owned = self._core.journal.subsystems.get(job.nqn)
        return _Picture(
            moment=world.tick(),
            meddling=dict(world.meddling),
            hits=self._kernel.faults.hits,
            unread=self._kernel.faults.unread,
            controllers=tuple(subsystem.controllers) if subsystem else (),
            mounts=tuple(world.mounts.made_at(path)),
            node=world.files.nodes.get(path),
            contents={disk: (disk.fstype, disk.fs_uuid, disk.other, disk.ambivalent, disk.garbage) for disk in disks},
            read_only=frozenset(head.name for head in subsystem.heads if head.read_only) if subsystem else frozenset(),
            volume=self._core.volumes.get(path),
            recorded=record is not None and record.phase is not Phase.STAGED,
            keep=owned is not None and owned.keep,
        )

    def _calm(self, before: _Picture, *kinds: str) -> bool:
        """Whether others have done nothing of these kinds since."""
        return all(self._world.meddling[kind] == before.meddling.get(kind, 0) for kind in kinds)

    def _at_peace(self, before: _Picture) -> bool:
        """Whether others have done nothing at all since, and nothing went wrong."""
        calm = self._calm(before, "mounts", "paths", "disks", "users", "files")
        faults = self._kernel.faults
        return calm and faults.hits == before.hits and faults.events == EventFaults()

    def _used(self, nqn: str) -> bool:
        return bool(self._world.subsystem_uses(nqn, but=self._kernel) or self._world.unreadable_pids)

    def _controllers(self, nqn: str) -> tuple[SimController, ...]:
        subsystem = self._world.fabric.subsystem(nqn)
        return tuple(subsystem.controllers) if subsystem else ()

    # ---- what a job reports

    def _succeeded(self, job: Job, before: _Picture, result: Any) -> None:
        match job.operation:
            case OperationKind.STAGE:
                self._staged(job, before, result)
            case OperationKind.UNSTAGE:
                self._unstaged(job, before, result)
            case OperationKind.DISCONNECT:
                self._disconnected(job, before, result)

    def _failed(self, job: Job, before: _Picture, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and not job.stopping:
            return  # the end of the daemon
        match job.operation:
            case OperationKind.STAGE:
                self._not_staged(job, before)
            case OperationKind.UNSTAGE:
                if before.volume is not None and job.staging_path not in self._core.volumes:
                    self._wrong(job, f"failed, and has unstaged the volume: {error!r}")
                if not isinstance(error, OSError) or self._kernel.faults.unread == before.unread:
                    # otherwise, something could not be read, at any point of it
                    self._not_unstaged(job, before)
            case OperationKind.DISCONNECT:
                self._not_disconnected(job, before, error)

    def _staged(self, job: Job, before: _Picture, volume: Volume) -> None:
        request = job.request
        assert isinstance(request, StageRequest)
        forced = self._world.forced.get(request.staging_path, 0) > before.moment
        if not forced and not any(_forces(later, request.staging_path) for later in self._core.workers.of(job.nqn)):
            self._world.forced.pop(request.staging_path, None)
        if before.volume is None:
            self._world.kept.discard(request.nqn)
        if volume != self._core.volumes.get(request.staging_path):
            self._wrong(job, f"says {volume}, and keeps {self._core.volumes.get(request.staging_path)}")
        record = self._core.journal.volumes.get(request.staging_path)
        if record is None or record.phase is not Phase.STAGED or record.volume is None:
            self._wrong(job, f"succeeded, and the journal has {record}")
        if not self._calm(before, "mounts", "paths", "disks"):
            return
        mounts = self._world.mounts.at(request.staging_path)
        head = mounts[-1].head if mounts else None
        if head is None or head.gone:
            self._wrong(job, f"says {volume}, and there is {head}")
            return
        namespace = head.snapshot()
        if not head.is_meant_by(request.namespace) or namespace.nqn != request.nqn:
            self._wrong(job, f"says success, and there is {namespace.wwid} of {namespace.nqn}")
        shown = (namespace.wwid, namespace.number, namespace.diskseq, namespace.nsid)
        if shown != (volume.wwid, volume.number, volume.diskseq, volume.nsid):
            self._wrong(job, f"says {volume}, and there is {shown}")
        if before.volume is None and volume.mount_id != mounts[-1].mount_id:
            self._wrong(job, f"says mount {volume.mount_id}, and there is {mounts[-1]}")
        if request.type is VolumeType.FILESYSTEM and volume.fstype != mounts[-1].fstype:
            self._wrong(job, f"says {volume.fstype}, and there is {mounts[-1].fstype}")
        live = [c for c in self._controllers(request.nqn) if c.state == "live"]
        if before.volume is None and len(live) < request.min_paths:
            self._wrong(job, f"succeeded with {len(live)} paths, {request.min_paths} were asked for")

    def _unstaged(self, job: Job, before: _Picture, disconnected: bool) -> None:
        request, path = job.request, job.staging_path
        assert isinstance(request, UnstageRequest)
        if path in self._core.volumes:
            self._wrong(job, "succeeded, and keeps the volume")
        if self._calm(before, "mounts") and self._world.mounts.made_at(path):
            self._wrong(job, "succeeded, and the volume is mounted")
        left = self._controllers(job.nqn)
        if request.keep_connected and before.volume is not None and path not in self._world.forced:
            if any(map(self._world.owned_by_daemon, left)):
                self._world.kept.add(job.nqn)
            if self._calm(before, "paths") and left != before.controllers:
                self._wrong(job, f"was to keep {before.controllers}, and there is {left}")
        # it says no when it cannot tell
        unclear = not disconnected and self._kernel.faults.hits != before.hits
        if self._calm(before, "paths") and disconnected is bool(left) and not unclear:
            self._wrong(job, f"says disconnected: {disconnected}, and there is {left}")
        if not self._at_peace(before) or job.stopping:
            return
        volume = before.volume
        if path in self._world.files.made and not self._world.mounts.at(path):
            self._wrong(job, "succeeded, and its staging path is left over")
        wanted = not request.keep_connected and not self._core.config.disconnect_delay
        own = any(map(self._world.owned_by_daemon, left))
        if volume is not None and wanted and own and not self._excused(job):
            self._wrong(job, f"leaves {left} connected for no reason")

    def _excused(self, job: Job) -> bool:
        """Whether there is a reason not to disconnect."""
        return self._used(job.nqn) or self._core.workers.stage_waiting(job.nqn)

    def _disconnected(self, job: Job, before: _Picture, names: tuple[str, ...]) -> None:
        # what finishes one of an earlier life has its own mind about which they are
        if not self._calm(before, "paths") or not job.visible:
            return
        if left := self._controllers(job.nqn):
            self._wrong(job, f"says {names} are deleted, and there is {left}")
        if sorted(names) != sorted(c.name for c in before.controllers):
            self._wrong(job, f"says {names} are deleted, and there were {before.controllers}")

    # ---- what a job leaves behind when it fails

    def _not_staged(self, job: Job, before: _Picture) -> None:
        """Exactly what it did is undone, but for what it names."""
        if job.leftovers:
            for what in job.leftovers:
                if what.startswith("remove "):
                    self._world.files.made.discard(job.staging_path)  # its caller was told
            return
        if self._calm(before, "disks"):
            self._check_disks(job, before)
        if before.recorded:
            return  # it had to clear what was half done before
        if self._calm(before, "mounts"):
            self._check_place(job, before)
        now = self._core.volumes.get(job.staging_path)
        if _but_state(now) != _but_state(before.volume):
            self._wrong(job, f"failed, and has made of {before.volume}: {now}")
        left = self._controllers(job.nqn)
        new = [c for c in left if self._world.owned_by_daemon(c) and c not in before.controllers]
        if new and self._at_peace(before) and not self._excused(job):
            self._wrong(job, f"failed, and has left {new} connected for no reason")

    def _give_up_disks(self, job: Job, before: _Picture) -> None:
        """What a mkfs has left, and a fault or others kept from being wiped off, is for people to deal with. They are
        told; and mkfs itself sees to it that what it did not finish is not mounted."""
        if self._kernel.faults.hits != before.hits or not self._calm(before, "paths", "disks", "users", "mounts"):
            for disk in before.contents:
                disk.unfinished = False

    def _check_disks(self, job: Job, before: _Picture) -> None:
        now = self._picture(job)
        for disk, content in before.contents.items():
            # A filesystem that was finished stays: the next Stage finds it.
            made = disk.fstype in disk.formatted and not disk.unfinished
            if disk in now.contents and now.contents[disk] != content and not made:
                self._wrong(job, f"failed, and has made of {content}: {now.contents[disk]}")
        if self._calm(before, "paths") and now.read_only - before.read_only:
            self._wrong(job, f"failed, and has left {now.read_only} read-only")

    def _check_place(self, job: Job, before: _Picture) -> None:
        world, path = self._world, job.staging_path
        mounts = world.mounts.made_at(path)
        if mounts != list(before.mounts):
            self._wrong(job, f"failed, and has left {mounts}, where {before.mounts} was")
        if self._calm(before, "files") and world.files.nodes.get(path) is not before.node:
            self._wrong(job, f"failed, and has left {path} as {world.files.nodes.get(path)}")

    def _not_unstaged(self, job: Job, before: _Picture) -> None:
        """Everything is as it was."""
        path = job.staging_path
        if path in self._world.forced:
            return  # once its subsystem is disconnected there is no way back
        if before.volume is None or not self._calm(before, "mounts", "paths", "disks"):
            return
        if self._world.mounts.made_at(path) != list(before.mounts):
            self._wrong(job, f"failed, and has unmounted {path}")
        if _but_state(self._core.volumes.get(path)) != _but_state(before.volume):
            self._wrong(job, "failed, and has changed the volume")
        record = self._core.journal.volumes.get(path)
        written = self._kernel.faults.hits == before.hits and not before.recorded
        if written and (record is None or record.phase is not Phase.STAGED):
            self._wrong(job, f"failed, and the journal has {record}")
        owned = self._core.journal.subsystems.get(job.nqn)
        if self._kernel.faults.hits == before.hits and owned is not None and owned.keep is not before.keep:
            self._wrong(job, "failed, and has changed what is kept connected")

    def _not_disconnected(self, job: Job, before: _Picture, error: BaseException) -> None:
        left = self._controllers(job.nqn)
        if isinstance(error, InUse | Shared) and self._calm(before, "paths") and left != before.controllers:
            self._wrong(job, f"was refused, and has deleted some of {before.controllers}: {left}")
        if isinstance(error, InUse) and self._at_peace(before) and not self._used(job.nqn):
            self._wrong(job, f"says it is in use, and it is not: {error}")
        if isinstance(error, DisconnectFailed) and str(error).startswith("not deleted"):
            unnamed = [c for c in left if c in before.controllers and f"{c.name}:" not in str(error)]
            if unnamed and self._calm(before, "paths"):
                self._wrong(job, f"does not say that {unnamed} are left: {error}")


def _forces(job: Job, path: str) -> bool:
    return isinstance(job.request, UnstageRequest) and job.request.force and job.staging_path == path


def _but_state(volume: Volume | None) -> Volume | None:
    """The volume without what changes by itself."""
    return None if volume is None else replace(volume, state=VolumeState.STAGED, mount_id=0, size=0)
