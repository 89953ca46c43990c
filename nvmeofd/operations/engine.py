"""The core behind the bus: admits requests, runs them on the queues, and keeps the picture of the host current."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nvmeofd.cache import MountCache
from nvmeofd.errors import AlreadyStaged, Busy, NvmeofdError, ShuttingDown
from nvmeofd.kernel.interface import Event, EventKind
from nvmeofd.log import about, log
from nvmeofd.model import Controller, HostIdentity, OperationKind, Subsystem, User, UserKind, VolumeState
from nvmeofd.operations.core import Core
from nvmeofd.operations.disconnect import disconnect
from nvmeofd.operations.filesystem import undo_format
from nvmeofd.operations.force import force_running
from nvmeofd.operations.guard import all_users
from nvmeofd.operations.ownership import Ownership
from nvmeofd.operations.recovery import recover
from nvmeofd.operations.stage import stage
from nvmeofd.operations.tidy import Tidier
from nvmeofd.operations.unstage import clean_up, not_staged_here, unstage
from nvmeofd.operations.volumes import (
    NO_MOUNT,
    Volume,
    current_state,
    find_mount,
    find_moved,
    find_namespace,
    stale_mounts,
)
from nvmeofd.requests import StageRequest
from nvmeofd.workers import Job, Workers

if TYPE_CHECKING:
    from nvmeofd.config import Config
    from nvmeofd.journal import FormatRecord, Journal, VolumeRecord
    from nvmeofd.kernel.interface import Kernel
    from nvmeofd.operations.observer import Observer
    from nvmeofd.requests import DisconnectRequest, UnstageRequest

# Bursts of events are worked off together, this many seconds after the first one.
COALESCE = 0.05
# After this many seconds the picture is brought up to date again when that failed.
RETRY = 1.0


class Engine:
    """One per daemon. Everything is called on the event loop that :meth:`start` ran on."""

    def __init__(self, *, kernel: Kernel, journal: Journal, config: Config, observer: Observer) -> None:
        cache = MountCache(kernel)
        workers = Workers(observer, queue_limit=config.queue_limit, total_limit=config.total_limit)
        self._core = Core(kernel, cache, journal, Ownership(kernel, journal), workers, observer, config)
        self._tidier = Tidier(self._core, self._clean_up)
        self._stack = AsyncExitStack()
        self._update_timer: asyncio.TimerHandle | None = None
        self._updating: asyncio.Task[None] | None = None
        self._devices_changed = False
        self._seen_version = -1  # of the mount cache: any decision may be the one that finds a change
        self._closing = False
        workers.on_finished(self._finished)

    # ---- life

    async def start(self) -> None:
        """Watch events, scan completely, take over what an earlier life left.

        Raises:
            OSError: something needed cannot be read; the daemon must not start on half a picture.
        """
        await self._stack.enter_async_context(self._core.kernel.watch(self._on_event))
        self._core.cache.rebuild()
        self._core.kernel.subsystems()
        for record in recover(self._core):
            self._clean_up(record)
        for unfinished in list(self._core.journal.formats.values()):
            self._undo_format(unfinished)
        self._tidier.look()
        await self._introduce()

    async def _introduce(self) -> None:
        """Have an identity of the host before the first connection, so that targets can be told to let it in."""
        try:
            host = await self._core.kernel.establish_identity()
        except (OSError, ValueError) as error:
            log.error("this host has no identity for targets, so nothing can be connected: %s", error)
        else:
            if host.mismatch:
                log.warning("%s", host.mismatch)

    def reconfigure(self, config: Config) -> None:
        """Use another configuration from the next request on."""
        self._core.config = config
        self._core.workers.limit(queue_limit=config.queue_limit, total_limit=config.total_limit)

    async def drain(self, timeout: float | None = None) -> tuple[Job, ...]:
        """Take no new work, and wait until every accepted job is answered. Mounts and connections stay.

        Returns the jobs that the kernel still holds although their time, or ``timeout``, is over; :meth:`close` would
        wait for them.
        """
        self._closing = True
        self._tidier.stop()
        return await self._core.workers.drain(timeout)

    async def close(self) -> None:
        """End everything that runs on the loop. Mounts and connections stay."""
        self._closing = True
        self._tidier.stop()
        if self._update_timer is not None:
            self._update_timer.cancel()
        if self._updating is not None:
            self._updating.cancel()
            await asyncio.wait({self._updating})
        await self._core.workers.abandon()
        await self._stack.aclose()

    # ---- verbs

    async def stage(self, request: StageRequest, *, sender: int = 0) -> Volume:
        """Stage a volume. Raises NvmeofdError."""
        with self._refusals(OperationKind.STAGE):
            job = self._admit_stage(request, sender)
        # shielded, as below: a client that goes away does not cancel its job
        volume: Volume = await asyncio.shield(job.result)
        return volume

    def _admit_stage(self, request: StageRequest, sender: int) -> Job:
        """The job for this request: a new one, or the one that is at it already."""
        self._refuse_when_closing()
        path = request.staging_path
        before = self._last_job(path)
        if before is not None and before.operation is OperationKind.STAGE and not before.result.done():
            if _joins(before, request, sender):
                return before
            if not _same_request(before.request, request):
                raise AlreadyStaged(f"{path} is being staged with another request ({before})")
        if before is not None and before.nqn != request.nqn:
            raise Busy(f"{path} is still being unstaged from {before.nqn}")
        record = self._core.journal.volumes.get(path)
        if record is not None and record.nqn != request.nqn and path not in self._core.volumes:
            raise Busy(f"{path} is still to be cleared of what was half done for {record.nqn}")
        staged = self._core.volumes.get(path)
        if staged is not None and staged.nqn != request.nqn and before is None:
            raise AlreadyStaged(f"{path} holds {staged.wwid} of {staged.nqn}; unstage it first")
        for other in self._core.workers.of(request.nqn):
            elsewhere = other.staging_path != path
            if elsewhere and not other.result.done() and _same_namespace(other.request, request):
                raise AlreadyStaged(f"{request.namespace} of {request.nqn} is being staged at {other.staging_path}")
        return self._admit(
            OperationKind.STAGE,
            request.nqn,
            lambda job: stage(self._core, job, request),
            request=request,
            path=path,
            sender=sender,
        )

    async def unstage(self, request: UnstageRequest, *, sender: int = 0) -> bool:
        """Unstage a volume; returns whether its subsystem is no longer connected. Raises NvmeofdError."""
        with self._refusals(OperationKind.UNSTAGE):
            job = self._admit_unstage(request, sender)
        done: bool = await asyncio.shield(job.result) if job is not None else False
        return done

    def _admit_unstage(self, request: UnstageRequest, sender: int) -> Job | None:
        """None: there is nothing to be done."""
        self._refuse_when_closing()
        path = request.staging_path
        before, record = self._last_job(path), self._core.journal.volumes.get(path)
        if request.force:
            for running in self._jobs_at(path):
                force_running(running)
        if before is not None and not before.result.done() and _joins(before, request, sender):
            return before
        if before is not None:
            nqn = before.nqn
        elif record is not None:
            nqn = record.nqn
        else:
            self._core.cache.refresh()
            not_staged_here(self._core, path)
            return None
        return self._admit(
            OperationKind.UNSTAGE,
            nqn,
            lambda job: unstage(self._core, job, request),
            request=request,
            path=path,
            sender=sender,
        )

    async def disconnect(self, request: DisconnectRequest, *, sender: int = 0) -> tuple[str, ...]:
        """Disconnect a subsystem that nothing uses; returns the controllers deleted. Raises NvmeofdError."""
        with self._refusals(OperationKind.DISCONNECT):
            job = self._admit_disconnect(request, sender)
        names: tuple[str, ...] = await asyncio.shield(job.result)
        return names

    def _admit_disconnect(self, request: DisconnectRequest, sender: int) -> Job:
        self._refuse_when_closing()
        for other in self._core.workers.of(request.nqn)[-1:]:
            if not other.result.done() and _joins(other, request, sender):
                return other
        return self._admit(
            OperationKind.DISCONNECT,
            request.nqn,
            lambda job: disconnect(self._core, job, request.nqn),
            request=request,
            sender=sender,
        )

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        """A request was refused before there was a job: here, or because it is malformed."""
        self._core.observer.refused(operation, error)

    @contextmanager
    def _refusals(self, operation: OperationKind) -> Iterator[None]:
        try:
            yield
        except NvmeofdError as error:
            self.refused(operation, error)
            raise

    # ---- questions

    async def list_users(self, nqn: str) -> tuple[User, ...]:
        """Who uses the subsystem right now. Raises OSError; NvmeofdError when that takes too long."""
        jobs = [job for job in self._core.workers.of(nqn) if job.visible]
        users = [User(UserKind.JOB, job.staging_path or nqn, f"job {job.number} {job.operation}") for job in jobs]
        subsystem = self._core.kernel.subsystem(nqn)
        if subsystem is None:
            return tuple(users)
        if jobs or self._closing:
            return (*await all_users(self._core, subsystem, claim=False, settle=True), *users)
        # on the queue, so that the claim does not get in the way of a mount of ours
        job = self._admit(
            OperationKind.TIDY, nqn, lambda _: all_users(self._core, subsystem, claim=True, settle=True), visible=False
        )
        found: tuple[User, ...] = await asyncio.shield(job.result)
        return (*found, *users)

    @property
    def volumes(self) -> Mapping[str, Volume]:
        """The staged volumes by staging path."""
        return MappingProxyType(self._core.volumes)

    def volume_state(self, staging_path: str) -> VolumeState:
        """How a staged volume is doing right now. Raises KeyError, OSError."""
        volume = self._core.volumes[staging_path]
        self._core.cache.refresh()
        return current_state(self._core.cache, self._core.kernel.subsystem(volume.nqn), volume)

    def subsystems(self) -> tuple[Subsystem, ...]:
        """Every NVMe-oF subsystem connected on the host. Raises OSError."""
        return self._core.kernel.subsystems()

    def subsystem(self, nqn: str) -> Subsystem | None:
        """One of them. Raises OSError."""
        return self._core.kernel.subsystem(nqn)

    def owned(self, nqn: str) -> bool:
        """Whether this daemon connected any controller of the subsystem."""
        return nqn in self._core.ownership.nqns

    def own_controllers(self) -> tuple[Controller, ...]:
        """The controllers that this daemon connected. Raises OSError."""
        subsystems = map(self._core.kernel.subsystem, self._core.ownership.nqns)
        return tuple(controller for one in subsystems if one for controller in self._core.ownership.owned(one))

    def pending(self, nqn: str) -> int:
        """How many jobs wait for the subsystem."""
        return self._core.workers.pending(nqn)

    @property
    def jobs(self) -> Mapping[int, Job]:
        """The jobs of clients that are queued or running, by number."""
        return {number: job for number, job in self._core.workers.jobs.items() if job.visible}

    @property
    def all_jobs(self) -> Mapping[int, Job]:
        """The same, and those of the daemon itself."""
        return self._core.workers.jobs

    @property
    def counters(self) -> Mapping[str, int]:
        """Monotonic counters by name."""
        return {**self._core.counters, "cache-rebuilds": self._core.cache.rebuilds}

    def host_identity(self) -> HostIdentity:
        """Raises OSError, ValueError."""
        return self._core.kernel.host_identity()

    # ---- jobs

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the daemon is stopping")

    def _admit(
        self,
        operation: OperationKind,
        nqn: str,
        work: Callable[[Job], Awaitable[Any]],
        *,
        request: StageRequest | UnstageRequest | DisconnectRequest | None = None,
        path: str = "",
        sender: int = 0,
        visible: bool = True,
    ) -> Job:
        timeout = request.timeout if request is not None and request.timeout else self._core.config.timeout
        if sender != 0:  # others wait behind it
            timeout = min(timeout, self._core.config.timeout)
        job = Job(
            operation, nqn, work, timeout=timeout, staging_path=path, sender=sender, request=request, visible=visible
        )
        self._core.workers.submit(job)
        if visible:
            log.info("%s: accepted from uid %d", job, sender)
        return job

    def _finished(self, job: Job, error: NvmeofdError | None) -> None:
        if job.visible:
            outcome = "succeeded" if error is None else "failed"
            self._core.count(f"{job.operation}-{outcome}")
            if error is not None:
                log.warning("%s: %s: %s", job, type(error).__name__, error, extra=about(step=job.failed_step))
            else:
                log.info("%s: done", job)
        if job.operation is not OperationKind.TIDY:
            self._tidier.note_job(job.nqn)
        self._schedule_update(devices=True)

    def _last_job(self, path: str) -> Job | None:
        """The last job admitted for a staging path that has not ended: it reserves the path."""
        return max(self._jobs_at(path), key=lambda job: job.number, default=None)

    def _jobs_at(self, path: str) -> list[Job]:
        return [job for job in self._core.workers.jobs.values() if job.staging_path == path]

    def _undo_format(self, record: FormatRecord) -> None:
        job = Job(
            OperationKind.TIDY,
            record.nqn,
            lambda job: undo_format(self._core, job, record),
            timeout=self._core.config.timeout,
            visible=False,
        )
        self._core.workers.submit(job)

    def _clean_up(self, record: VolumeRecord) -> None:
        job = Job(
            OperationKind.TIDY,
            record.nqn,
            lambda job: clean_up(self._core, job, record),
            timeout=self._core.config.timeout,
            staging_path=record.staging_path,
            visible=False,
        )
        self._core.workers.submit(job)

    # ---- events

    def _on_event(self, event: Event) -> None:
        self._core.count("events")
        self._tidier.note_change()
        if event.kind is EventKind.OVERFLOW:
            log.warning("events were lost, rebuilding from the kernel")
            self._core.counters["overflows"] += 1
            self._core.cache.forget()
        if event.kind is not EventKind.MOUNTS:
            # a bind of a device node that is removed shows so, without the mount table counting as changed
            self._core.cache.invalidate()
            self._core.changes.announce()
        self._schedule_update(devices=event.kind is not EventKind.MOUNTS)

    def _schedule_update(self, *, devices: bool, delay: float = COALESCE) -> None:
        self._devices_changed = self._devices_changed or devices
        if self._update_timer is None and not self._closing:
            self._update_timer = asyncio.get_running_loop().call_later(delay, self._start_update)

    def _start_update(self) -> None:
        self._update_timer = None
        if self._updating is not None and not self._updating.done():
            self._schedule_update(devices=False)
            return
        self._updating = asyncio.create_task(self._update(), name="update")

    async def _update(self) -> None:
        """Bring the picture up to date after a burst of events."""
        devices, self._devices_changed = self._devices_changed, False
        try:
            await self._core.cache.follow()
            mounts = self._core.cache.version != self._seen_version
            if devices:
                for nqn in self._core.ownership.nqns:
                    if self._core.workers.idle(nqn):
                        self._core.ownership.prune(nqn, self._core.kernel.subsystem(nqn))
            if devices or mounts:
                self._update_volumes()
            self._seen_version = self._core.cache.version
        except OSError as error:
            # not lost: every decision reads again, and refuses what it cannot read
            log.error("cannot bring the picture of the host up to date: %s", error)
            self._schedule_update(devices=True, delay=RETRY)
        if devices:
            self._core.observer.subsystems_changed()
        self._tidier.look()

    def _update_volumes(self) -> None:
        subsystems: dict[str, Subsystem | None] = {}
        # A volume whose Unstage has taken the mount away is not lost. There is another look when the job ends.
        leaving = {
            job.staging_path
            for job in self._core.workers.jobs.values()
            if job.started and job.operation is OperationKind.UNSTAGE
        }
        for volume in list(self._core.volumes.values()):
            if volume.staging_path in leaving:
                continue
            if volume.nqn not in subsystems:
                subsystems[volume.nqn] = self._core.kernel.subsystem(volume.nqn)
            cache, subsystem = self._core.cache, subsystems[volume.nqn]
            state = current_state(cache, subsystem, volume)
            mount_id = volume.mount_id
            there = find_moved(self._core, volume) or stale_mounts(cache, volume)
            if state is VolumeState.LOST and not there:
                mount_id = NO_MOUNT  # the kernel gives the number to another mount
            if state is not volume.state:
                what = (volume.wwid, volume.nqn, volume.staging_path, state)
                log.info("volume %s of %s at %s is %s", *what, extra=volume.log_extra)
            if mount_id == NO_MOUNT and (mount := find_mount(cache, subsystem, volume)) is not None:
                mount_id = mount.mount_id  # mounted again at its path
            namespace = find_namespace(subsystem, volume)
            size = namespace.size if namespace else volume.size
            now = replace(volume, state=state, mount_id=mount_id, size=size)
            if now != volume:
                self._core.change_volume(now)


def _same_request(one: object, other: StageRequest | UnstageRequest | DisconnectRequest) -> bool:
    """Whether both ask for the same; how long they would wait does not matter."""
    return type(one) is type(other) and replace(one, timeout=None) == replace(other, timeout=None)


def _joins(job: Job, request: StageRequest | UnstageRequest | DisconnectRequest, sender: int) -> bool:
    """Whether the job's answer is also the answer to this request. Nobody sets the deadline of another user."""
    if not _same_request(job.request, request):
        return False
    return job.sender == sender or job.request == request


def _same_namespace(one: object, other: StageRequest) -> bool:
    return isinstance(one, StageRequest) and one.namespace == other.namespace
