"""A core that does what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nvmeofd.errors import NvmeofdError
from nvmeofd.model import (
    Controller,
    DeviceNumber,
    HostIdentity,
    Namespace,
    OperationKind,
    Step,
    Subsystem,
    User,
    VolumeState,
    VolumeType,
)
from nvmeofd.operations.volumes import Volume
from nvmeofd.requests import DisconnectRequest, StageRequest, UnstageRequest, parse_stage

NQN = "nqn.2024-01.org.example:one"


def subsystem(nqn: str = NQN, number: int = 0, *, state: str = "live") -> Subsystem:
    controller = Controller(
        name=f"nvme{number}",
        instance=1,
        nqn=nqn,
        transport="tcp",
        traddr="127.0.0.1",
        trsvcid="4420",
        host_traddr="",
        host_iface="",
        state=state,
        host_nqn="nqn.2024-01.org.example:host",
        host_id="",
    )
    namespace = Namespace(
        name=f"nvme{number}n1",
        number=DeviceNumber(259, number),
        diskseq=7,
        nqn=nqn,
        nsid=1,
        wwid="uuid.6c5a4a4e-0000-4000-8000-000000000001",
        uuid="",
        nguid="",
        eui64="",
        size=1 << 30,
    )
    return Subsystem(nqn, f"nvme-subsys{number}", (controller,), (namespace,))


def volume(staging_path: str, nqn: str = NQN, *, size: int = 1 << 30) -> Volume:
    return Volume(
        nqn=nqn,
        wwid="uuid.6c5a4a4e-0000-4000-8000-000000000001",
        nsid=1,
        requested="nsid.1",
        device="/dev/nvme0n1",
        number=DeviceNumber(259, 0),
        diskseq=7,
        staging_path=staging_path,
        type=VolumeType.FILESYSTEM,
        fstype="ext4",
        mount_options=("noatime",),
        read_only=False,
        size=size,
        staged_at=1_700_000_000_000_000,
        addresses=(),
        created_path=True,
    )


class FakeJob:
    def __init__(self, number: int, *, sender: int = 0) -> None:
        self.number = number
        self.request: StageRequest | UnstageRequest | DisconnectRequest = parse_stage(
            NQN, "nsid.1", ["loop://"], "/srv/one", {}
        )
        self.operation = OperationKind.STAGE
        self.nqn = NQN
        self.staging_path = "/srv/one"
        self.step = Step.QUEUED
        self.queued_at = 1_700_000_000_000_000
        self.started_at = 0
        self.sender = sender
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeCore:
    """Operations answer at once, with success, unless ``work`` is set: it is awaited first and may raise."""

    def __init__(self) -> None:
        self.observer: Any = None
        self.volumes: dict[str, Volume] = {}
        self.jobs: dict[int, FakeJob] = {}
        self.counters: dict[str, int] = {"stage-succeeded": 2}
        self.connected: dict[str, Subsystem] = {}
        self.owned_nqns: set[str] = set()
        self.states: dict[str, VolumeState] = {}
        self.users: tuple[User, ...] = ()
        self.requests: list[tuple[StageRequest | UnstageRequest | DisconnectRequest, int]] = []
        self.refusals: list[tuple[OperationKind, str]] = []
        self.work: Callable[[], Awaitable[None]] | None = None
        self.scans = 0
        self.unreadable: set[str] = set()  # NQNs
        self.identity: HostIdentity | Exception = HostIdentity("nqn.2024-01.org.example:host", "an-id")

    async def _work(self) -> None:
        if self.work is not None:
            # As the real one: whoever waits may go away, the work does not.
            await asyncio.shield(asyncio.ensure_future(self.work()))

    async def stage(self, request: StageRequest, *, sender: int) -> Volume:
        self.requests.append((request, sender))
        await self._work()
        staged = volume(request.staging_path, request.nqn)
        self.add_volume(staged)
        return staged

    async def unstage(self, request: UnstageRequest, *, sender: int) -> bool:
        self.requests.append((request, sender))
        await self._work()
        gone = self.volumes.pop(request.staging_path, None)
        if gone is not None:
            self.observer.volume_removed(gone.staging_path)
        return True

    async def disconnect(self, request: DisconnectRequest, *, sender: int) -> tuple[str, ...]:
        self.requests.append((request, sender))
        await self._work()
        return ("nvme0", "nvme1")

    async def list_users(self, nqn: str) -> tuple[User, ...]:
        await self._work()
        return self.users

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        self.refusals.append((operation, type(error).__name__))

    def volume_state(self, staging_path: str) -> VolumeState:
        return self.states.get(staging_path, VolumeState.STAGED)

    def subsystems(self) -> tuple[Subsystem, ...]:
        self.scans += 1
        for nqn in self.connected:
            self._read(nqn)
        return tuple(self.connected.values())

    def subsystem(self, nqn: str) -> Subsystem | None:
        self._read(nqn)
        return self.connected.get(nqn)

    def _read(self, nqn: str) -> None:
        if nqn in self.unreadable:
            raise OSError(5, "Input/output error", nqn)

    def owned(self, nqn: str) -> bool:
        return nqn in self.owned_nqns

    def pending(self, nqn: str) -> int:
        return sum(job.nqn == nqn for job in self.jobs.values())

    def host_identity(self) -> HostIdentity:
        if isinstance(self.identity, Exception):
            raise self.identity
        return self.identity

    # What tests make happen

    def connect(self, one: Subsystem) -> None:
        self.connected[one.nqn] = one
        self.tell().subsystems_changed()

    def vanish(self, nqn: str) -> None:
        del self.connected[nqn]
        self.tell().subsystems_changed()

    def add_volume(self, one: Volume) -> None:
        self.volumes[one.staging_path] = one
        self.tell().volume_added(one)

    def add_job(self, number: int) -> FakeJob:
        job = self.jobs[number] = FakeJob(number)
        self.tell().job_added(job)
        return job

    def finish_job(self, number: int, error: NvmeofdError | None = None) -> None:
        self.tell().job_finished(self.jobs.pop(number), error)

    def tell(self) -> Any:
        """The observer, if there is one yet."""
        return self.observer if self.observer is not None else _Deaf()


class _Deaf:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None
