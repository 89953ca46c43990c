"""The core behind the bus: admits requests, runs them on the queues, and keeps the picture of the host current."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from nvmeofd.cache import MountCache
from nvmeofd.errors import NvmeofdError
from nvmeofd.jobs import Job
from nvmeofd.log import about, log
from nvmeofd.model import Controller, HostIdentity, OperationKind, Subsystem, User, UserKind, VolumeState
from nvmeofd.operations.admission import Admission
from nvmeofd.operations.core import Core
from nvmeofd.operations.guard import all_users
from nvmeofd.operations.ownership import Ownership
from nvmeofd.operations.picture import Picture
from nvmeofd.operations.recovery import recover
from nvmeofd.operations.tidy import Tidier
from nvmeofd.operations.volumes import Volume, current_state
from nvmeofd.workers import Workers

if TYPE_CHECKING:
    from nvmeofd.config import Config
    from nvmeofd.journal import Journal
    from nvmeofd.kernel.interface import Kernel
    from nvmeofd.operations.observer import Observer
    from nvmeofd.requests import DisconnectRequest, StageRequest, UnstageRequest


class Engine:
    """One per daemon. Everything is called on the event loop that :meth:`start` ran on."""

    def __init__(self, *, kernel: Kernel, journal: Journal, config: Config, observer: Observer) -> None:
        cache = MountCache(kernel)
        workers = Workers(observer, queue_limit=config.queue_limit, total_limit=config.total_limit)
        self._core = Core(kernel, cache, journal, Ownership(kernel, journal), workers, observer, config)
        self._admission = Admission(self._core)
        self._tidier = Tidier(self._core, self._admission.clean_up)
        self._picture = Picture(self._core, self._tidier)
        self._stack = AsyncExitStack()
        workers.on_finished(self._finished)

    # ---- life

    async def start(self) -> None:
        """Watch events, scan completely, take over what an earlier life left.

        Raises:
            OSError: something needed cannot be read; the daemon must not start on half a picture.
        """
        await self._stack.enter_async_context(self._core.kernel.watch(self._picture.on_event))
        self._core.cache.rebuild()
        self._core.kernel.subsystems()
        for record in recover(self._core):
            self._admission.clean_up(record)
        for unfinished in list(self._core.journal.formats.values()):
            self._admission.undo_format(unfinished)
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
        self._stop()
        held = await self._core.workers.drain(timeout)
        self._core.journal.write_again()  # nobody will after this
        return held

    async def close(self) -> None:
        """End everything that runs on the loop. Mounts and connections stay."""
        self._stop()
        await self._picture.close()
        await self._core.workers.abandon()
        self._core.journal.write_again()
        await self._stack.aclose()

    def _stop(self) -> None:
        self._admission.close()
        self._tidier.stop()
        self._picture.stop()

    # ---- verbs

    async def stage(self, request: StageRequest, *, sender: int = 0) -> Volume:
        """Stage a volume. Raises NvmeofdError."""
        with self._refusals(OperationKind.STAGE):
            job = self._admission.stage(request, sender)
        # shielded, as below: a client that goes away does not cancel its job
        volume: Volume = await asyncio.shield(job.result)
        return volume

    async def unstage(self, request: UnstageRequest, *, sender: int = 0) -> bool:
        """Unstage a volume; returns whether its subsystem is no longer connected. Raises NvmeofdError."""
        with self._refusals(OperationKind.UNSTAGE):
            job = self._admission.unstage(request, sender)
        done: bool = await asyncio.shield(job.result) if job is not None else False
        return done

    async def disconnect(self, request: DisconnectRequest, *, sender: int = 0) -> tuple[str, ...]:
        """Disconnect a subsystem that nothing uses; returns the controllers deleted. Raises NvmeofdError."""
        with self._refusals(OperationKind.DISCONNECT):
            job = self._admission.disconnect(request, sender)
        names: tuple[str, ...] = await asyncio.shield(job.result)
        return names

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
        if jobs or self._admission.closed:
            return (*await all_users(self._core, subsystem, claim=False, settle=True), *users)
        # on the queue, so that the claim does not get in the way of a mount of ours
        job = self._admission.look(nqn, lambda _: all_users(self._core, subsystem, claim=True, settle=True))
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
        self._picture.schedule(devices=True)
