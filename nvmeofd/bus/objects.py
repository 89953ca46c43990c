"""The objects on the bus. Members are named and typed as in the XML file, by which they are found and served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from nvmeofd import __version__
from nvmeofd.bus.authorization import Need, Request, needed, reading, restricted
from nvmeofd.bus.callers import current_caller
from nvmeofd.bus.core import Core, Job
from nvmeofd.bus.introspection import INTERFACES, Interface
from nvmeofd.bus.messages import UNKNOWN_OBJECT, DBusError
from nvmeofd.bus.paths import ROOT, job_path, subsystem_path, volume_path
from nvmeofd.errors import NvmeofdError
from nvmeofd.log import log
from nvmeofd.model import HostIdentity, OperationKind, Subsystem
from nvmeofd.operations.volumes import Volume
from nvmeofd.requests import StageRequest, parse_disconnect, parse_stage, parse_unstage
from nvmeofd.typed import Typed

Options = Mapping[str, Typed]


class Exported:
    """One object with one interface of ours. Every property of that interface is an attribute, every method a method.

    A method takes the arguments of the call and returns those of the reply.
    """

    interface: ClassVar[Interface]
    # Methods that may take long. They have bounds of their own, so that any number of them leaves room for the others.
    waiting: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, path: str) -> None:
        self.path = path
        self.published: Mapping[str, Any] = {}

    def need(self, member: str, _arguments: Sequence[Any]) -> Need:
        """What a caller other than root needs to call a method of ours. Raises NvmeofdError: bad arguments."""
        return reading(member)

    def refresh(self) -> None:
        """Look up what the live properties show. Raises DBusError or OSError."""

    def refresh_listed(self) -> None:
        """The same where many objects are shown: no object is a reason to show none. Raises nothing."""

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


def _stage_request(*arguments: Any) -> StageRequest:
    request = parse_stage(*arguments)
    return request if current_caller.get().uid == 0 else restricted(request)


_PARSERS: Mapping[str, Callable[..., Request]] = {
    "Stage": _stage_request,
    "Unstage": parse_unstage,
    "Disconnect": parse_disconnect,
}


class ManagerObject(Exported):
    interface = INTERFACES["org.nvmeofd1.Manager"]
    waiting = frozenset(_PARSERS)

    def __init__(self, core: Core) -> None:
        super().__init__(ROOT)
        self._core = core

    def need(self, member: str, arguments: Sequence[Any]) -> Need:
        parse = _PARSERS.get(member)
        return reading(member) if parse is None else needed(parse(*arguments))

    async def Stage(
        self, nqn: str, namespace: str, addresses: list[str], staging_path: str, options: Options
    ) -> tuple[str, str]:
        with self._refusals(OperationKind.STAGE):
            request = _stage_request(nqn, namespace, addresses, staging_path, options)
        volume = await self._core.stage(request, sender=current_caller.get().uid)
        return volume_path(volume.staging_path), volume.device

    async def Unstage(self, staging_path: str, options: Options) -> tuple[bool]:
        with self._refusals(OperationKind.UNSTAGE):
            request = parse_unstage(staging_path, options)
        return (await self._core.unstage(request, sender=current_caller.get().uid),)

    async def Disconnect(self, nqn: str, options: Options) -> tuple[list[str]]:
        with self._refusals(OperationKind.DISCONNECT):
            request = parse_disconnect(nqn, options)
        return (list(await self._core.disconnect(request, sender=current_caller.get().uid)),)

    @contextmanager
    def _refusals(self, operation: OperationKind) -> Iterator[None]:
        """A malformed request never gets to the core, which is told of it."""
        try:
            yield
        except NvmeofdError as error:
            self._core.refused(operation, error)
            raise

    @property
    def Version(self) -> str:
        return __version__

    @property
    def HostNQN(self) -> str:
        return self._identity.nqn

    @property
    def HostID(self) -> str:
        return self._identity.id

    @property
    def Counters(self) -> dict[str, int]:
        return dict(self._core.counters)

    @property
    def _identity(self) -> HostIdentity:
        try:
            return self._core.host_identity()
        except (OSError, ValueError):
            return HostIdentity("", "")


class SubsystemObject(Exported):
    """``known`` is what sysfs said last; it is looked up again before a live property is shown."""

    interface = INTERFACES["org.nvmeofd1.Subsystem"]
    waiting = frozenset({"ListUsers"})

    def __init__(self, core: Core, known: Subsystem, vanished: Callable[[], None]) -> None:
        super().__init__(subsystem_path(known.nqn))
        self.known = known
        self._core = core
        self._vanished = vanished

    def refresh(self) -> None:
        now = self._core.subsystem(self.known.nqn)
        if now is None:
            self._vanished()
            raise DBusError(UNKNOWN_OBJECT, f"{self.known.nqn} is not connected any more")
        self.known = now

    async def ListUsers(self) -> tuple[list[list[str]]]:
        users = await self._core.list_users(self.known.nqn)
        return ([[str(user.kind), user.device, user.detail] for user in users],)

    @property
    def NQN(self) -> str:
        return self.known.nqn

    @property
    def Name(self) -> str:
        return self.known.name

    @property
    def Owned(self) -> bool:
        return self._core.owned(self.known.nqn)

    @property
    def Controllers(self) -> list[list[str]]:
        return [[one.name, one.transport, one.address, one.state] for one in self.known.controllers]

    @property
    def Namespaces(self) -> list[list[str | int]]:
        return [[one.path, one.wwid, one.size] for one in self.known.namespaces]

    @property
    def Pending(self) -> int:
        return self._core.pending(self.known.nqn)


class VolumeObject(Exported):
    interface = INTERFACES["org.nvmeofd1.Volume"]

    def __init__(self, core: Core, volume: Volume) -> None:
        super().__init__(volume_path(volume.staging_path))
        self.volume = volume
        self._core = core
        self._state = volume.state

    def update(self, volume: Volume) -> None:
        self.volume = volume
        self._state = volume.state

    def refresh(self) -> None:
        if self.volume.staging_path not in self._core.volumes:
            raise DBusError(UNKNOWN_OBJECT, f"{self.volume.staging_path} is not staged any more")
        self._state = self._core.volume_state(self.volume.staging_path)

    def refresh_listed(self) -> None:
        with suppress(DBusError, OSError):
            self.refresh()

    @property
    def NQN(self) -> str:
        return self.volume.nqn

    @property
    def Namespace(self) -> str:
        return self.volume.wwid

    @property
    def Device(self) -> str:
        return self.volume.device

    @property
    def StagingPath(self) -> str:
        return self.volume.staging_path

    @property
    def Type(self) -> str:
        return str(self.volume.type)

    @property
    def Filesystem(self) -> str:
        return self.volume.fstype

    @property
    def MountOptions(self) -> list[str]:
        return list(self.volume.mount_options)

    @property
    def ReadOnly(self) -> bool:
        return self.volume.read_only

    @property
    def Size(self) -> int:
        return self.volume.size

    @property
    def StagedAt(self) -> int:
        return self.volume.staged_at

    @property
    def State(self) -> str:
        return str(self._state)


class JobObject(Exported):
    interface = INTERFACES["org.nvmeofd1.Job"]

    def __init__(self, job: Job) -> None:
        super().__init__(job_path(job.number))
        self._job = job

    def need(self, member: str, arguments: Sequence[Any]) -> Need:
        """Who may not do what the job does may not stop it, even one of their own: others may wait for it, too."""
        return needed(self._job.request, cancel=True) if member == "Cancel" else super().need(member, arguments)

    def Cancel(self) -> tuple[()]:
        log.info("%s: to be cancelled, says uid %d", self._job, current_caller.get().uid)
        self._job.cancel()
        return ()

    @property
    def Operation(self) -> str:
        return str(self._job.operation)

    @property
    def NQN(self) -> str:
        return self._job.nqn

    @property
    def StagingPath(self) -> str:
        return self._job.staging_path

    @property
    def Step(self) -> str:
        return str(self._job.step)

    @property
    def QueuedAt(self) -> int:
        return self._job.queued_at

    @property
    def StartedAt(self) -> int:
        return self._job.started_at

    @property
    def Sender(self) -> int:
        return self._job.sender
