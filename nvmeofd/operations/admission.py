"""Which requests become jobs: what is refused at once, and what another job is at already.

A job reserves its staging path and its namespace from its admission to its end. Identical requests share one job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nvmeofd.errors import AlreadyStaged, Busy, ShuttingDown
from nvmeofd.jobs import Job
from nvmeofd.log import log
from nvmeofd.model import OperationKind
from nvmeofd.operations.clearing import clean_up
from nvmeofd.operations.disconnect import disconnect
from nvmeofd.operations.filesystem import undo_format
from nvmeofd.operations.stage import stage
from nvmeofd.operations.unstage import not_staged_here, unstage
from nvmeofd.requests import DisconnectRequest, StageRequest, UnstageRequest

if TYPE_CHECKING:
    from nvmeofd.journal import FormatRecord, VolumeRecord
    from nvmeofd.operations.core import Core

Request = StageRequest | UnstageRequest | DisconnectRequest


class Admission:
    """The way to the queues, for clients and for the daemon's own work."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._closed = False

    def close(self) -> None:
        """From here on clients are refused."""
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    # ---- clients

    def stage(self, request: StageRequest, sender: int) -> Job:
        """The job for this request: a new one, or the one that is at it already.

        Raises AlreadyStaged, Busy, ShuttingDown.
        """
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

    def unstage(self, request: UnstageRequest, sender: int) -> Job | None:
        """The same. None: there is nothing to be done. Raises NotStaged, Busy, ShuttingDown; OSError."""
        self._refuse_when_closing()
        path = request.staging_path
        before, record = self._last_job(path), self._core.journal.volumes.get(path)
        if request.force:
            for running in self._jobs_at(path):
                running.force()  # whatever it is: should it have to unmount, that is not to wait for the target
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

    def disconnect(self, request: DisconnectRequest, sender: int) -> Job:
        """The same. Raises Busy, ShuttingDown."""
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

    # ---- the daemon itself

    def look(self, nqn: str, work: Callable[[Job], Awaitable[Any]]) -> Job:
        """A question whose answer has to wait for its turn. Raises Busy."""
        return self._admit(OperationKind.TIDY, nqn, work, visible=False)

    def undo_format(self, record: FormatRecord) -> None:
        self._admit(OperationKind.TIDY, record.nqn, lambda job: undo_format(self._core, job, record), visible=False)

    def clean_up(self, record: VolumeRecord) -> None:
        self._admit(
            OperationKind.TIDY,
            record.nqn,
            lambda job: clean_up(self._core, job, record),
            path=record.staging_path,
            visible=False,
        )

    # ---- jobs

    def _refuse_when_closing(self) -> None:
        if self._closed:
            raise ShuttingDown("the daemon is stopping")

    def _admit(
        self,
        operation: OperationKind,
        nqn: str,
        work: Callable[[Job], Awaitable[Any]],
        *,
        request: Request | None = None,
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

    def _last_job(self, path: str) -> Job | None:
        """The last job admitted for a staging path that has not ended: it reserves the path."""
        return max(self._jobs_at(path), key=lambda job: job.number, default=None)

    def _jobs_at(self, path: str) -> list[Job]:
        return [job for job in self._core.workers.jobs.values() if job.staging_path == path]


def _same_request(one: object, other: Request) -> bool:
    """Whether both ask for the same; how long they would wait does not matter."""
    return type(one) is type(other) and replace(one, timeout=None) == replace(other, timeout=None)


def _joins(job: Job, request: Request, sender: int) -> bool:
    """Whether the job's answer is also the answer to this request. Nobody sets the deadline of another user."""
    if not _same_request(job.request, request):
        return False
    return job.sender == sender or job.request == request


def _same_namespace(one: object, other: StageRequest) -> bool:
    return isinstance(one, StageRequest) and one.namespace == other.namespace
