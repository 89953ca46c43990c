"""What the core tells the shell around it. The core knows no D-Bus; the bus implements this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nvmeofd.errors import NvmeofdError
    from nvmeofd.jobs import Job
    from nvmeofd.model import OperationKind
    from nvmeofd.operations.volumes import Volume


class Observer(Protocol):
    """Notifications, delivered on the event loop, after the fact, in order. Implementations must not raise."""

    def volume_added(self, volume: Volume) -> None: ...

    def volume_changed(self, volume: Volume) -> None: ...

    def volume_removed(self, staging_path: str) -> None: ...

    def subsystems_changed(self) -> None:
        """The set of connected subsystems, or what one consists of, may have changed: look again."""

    def job_added(self, job: Job) -> None: ...

    def job_changed(self, job: Job) -> None:
        """The job took another step."""

    def job_finished(self, job: Job, error: NvmeofdError | None) -> None: ...

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        """A request was refused, and there is no job for it."""
