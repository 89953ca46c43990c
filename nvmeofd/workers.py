"""One queue per subsystem.

Jobs of one subsystem run one after the other, jobs of different subsystems side by side. A queue is made with its
first job and gone after its last one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from nvmeofd.errors import Busy, NvmeofdError, ShuttingDown
from nvmeofd.jobs import Job
from nvmeofd.model import OperationKind

if TYPE_CHECKING:
    from nvmeofd.operations.observer import Observer


class _Queue:
    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.task: asyncio.Task[None] | None = None


class Workers:
    """All queues. Bounded: at most ``queue_limit`` jobs wait for one subsystem and ``total_limit`` for all."""

    def __init__(self, observer: Observer, *, queue_limit: int, total_limit: int) -> None:
        self._observer = observer
        self._queue_limit = queue_limit
        self._total_limit = total_limit
        self._queues: dict[str, _Queue] = {}
        self._jobs: dict[int, Job] = {}
        self._last_number = 0
        self._closing = False
        self._on_finished: list[Callable[[Job, NvmeofdError | None], None]] = []

    @property
    def jobs(self) -> Mapping[int, Job]:
        """All jobs queued or running, by number, those of the daemon itself included."""
        return MappingProxyType(self._jobs)

    def on_finished(self, callback: Callable[[Job, NvmeofdError | None], None]) -> None:
        """Call back after each job, before the observer is told and before the next job of the queue starts."""
        self._on_finished.append(callback)

    def pending(self, nqn: str) -> int:
        """How many jobs wait for this subsystem."""
        queue = self._queues.get(nqn)
        return len(queue.waiting) if queue else 0

    def idle(self, nqn: str) -> bool:
        """Whether nothing waits or runs for this subsystem."""
        return nqn not in self._queues

    def of(self, nqn: str) -> tuple[Job, ...]:
        """The jobs of one subsystem, the running one first."""
        queue = self._queues.get(nqn)
        if queue is None:
            return ()
        return (*((queue.running,) if queue.running else ()), *queue.waiting)

    def stage_waiting(self, nqn: str) -> bool:
        """Whether a Stage waits for this subsystem, so that disconnecting now would only be undone by it."""
        queue = self._queues.get(nqn)
        return queue is not None and any(job.operation is OperationKind.STAGE for job in queue.waiting)

    def submit(self, job: Job) -> None:
        """Admit a job. The bounds are for jobs of clients; the daemon's own are few and must not be lost.

        Raises:
            ShuttingDown: no new work is taken.
            Busy: the queue of the subsystem, or the daemon, has as much work as it may hold.
        """
        if self._closing:
            raise ShuttingDown("the daemon is stopping")
        queue = self._queues.get(job.nqn)
        if job.visible and queue is not None and len(queue.waiting) >= self._queue_limit:
            raise Busy(f"{len(queue.waiting)} jobs already wait for {job.nqn}")
        if job.visible and len(self._jobs) >= self._total_limit:
            raise Busy(f"{len(self._jobs)} jobs are already queued")
        if job.visible and job.sender != 0:
            self._leave_room(job.sender, queue.waiting if queue is not None else (), self._queue_limit)
            self._leave_room(job.sender, self._jobs.values(), self._total_limit)
        if queue is None:
            queue = self._queues[job.nqn] = _Queue()
        self._last_number += 1
        job.number = self._last_number
        self._jobs[job.number] = job
        queue.waiting.append(job)
        job.arm(self._stepped, self._dequeued)
        if job.visible:
            self._observer.job_added(job)
        if queue.task is None:
            queue.task = asyncio.ensure_future(self._work_off(job.nqn, queue))

    @staticmethod
    def _leave_room(user: int, jobs: Iterable[Job], limit: int) -> None:
        """Of the jobs that there may be, users other than root have a half, and one of them a quarter. Raises Busy.

        A job outlives its caller, so what bounds the calls of a user does not bound these.
        """
        others = [job.sender for job in jobs if job.visible and job.sender != 0]
        if len(others) >= max(limit // 2, 1) or others.count(user) >= max(limit // 4, 1):
            raise Busy(f"{len(others)} jobs of users other than root already wait")

    async def drain(self, timeout: float | None = None) -> tuple[Job, ...]:
        """Take no new jobs, end those that have not begun with ShuttingDown, wait until the others are answered.

        Returns the jobs that are answered (Timeout) but still held by the kernel, and those that were not answered
        within ``timeout`` seconds.
        """
        self._closing = True
        for job in list(self._jobs.values()):
            job.stop_if_queued(ShuttingDown("the daemon is stopping"))
        if open_results := [job.result for job in self._jobs.values() if not job.result.done()]:
            await asyncio.wait(open_results, timeout=timeout)
        return tuple(self._jobs.values())

    def limit(self, *, queue_limit: int, total_limit: int) -> None:
        """Change the bounds, for jobs to come."""
        self._queue_limit, self._total_limit = queue_limit, total_limit

    async def abandon(self) -> None:
        """Stop what runs, and wait for its end as long as the kernel takes."""
        self._closing = True
        tasks = [queue.task for queue in self._queues.values() if queue.task]
        for job in list(self._jobs.values()):
            job.stop_if_queued(ShuttingDown("the daemon is stopping"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work_off(self, nqn: str, queue: _Queue) -> None:
        try:
            while queue.waiting:
                job = queue.running = queue.waiting.popleft()
                error = await job.run()
                queue.running = None
                self._finish(job, error)
        finally:
            del self._queues[nqn]

    def _finish(self, job: Job, error: NvmeofdError | None) -> None:
        del self._jobs[job.number]
        for callback in self._on_finished:
            callback(job, error)
        if job.visible:
            self._observer.job_finished(job, error)

    def _stepped(self, job: Job) -> None:
        if job.visible:
            self._observer.job_changed(job)

    def _dequeued(self, job: Job, error: NvmeofdError) -> None:
        queue = self._queues.get(job.nqn)
        if queue is not None and job in queue.waiting:
            queue.waiting.remove(job)
        self._finish(job, error)
