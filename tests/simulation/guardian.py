"""The judge of single acts: decides whether a call of the daemon broke a promise, at the moment of its effect.

Exclusive users (mounts, holders, swap, anybody's O_EXCL) cannot come while the daemon holds its claims, so one at the
moment of a deletion is always a violation. Block binds and plain opens can come at any time; they count when they were
there before the daemon had its claims, or before its last look at what it would have seen them in.

Looks are kept in a context variable, so that each job answers for its own looks, not for those of its neighbours.
What only a job may do is held against the request of the job that the call is made for, if it is made for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from nvmeofd.model import FormatPolicy, OperationKind, VolumeType
from nvmeofd.requests import DEFAULT_FSTYPE, StageRequest
from tests.simulation.faults import JOB
from tests.simulation.state import SimController, SimHead

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from tests.simulation.kernel import SimKernel

OWNER = "nvmeofd"
MOUNTS = "mounts"
PROCESSES = "processes"
CLAIM = "claim"
REGISTRY = "registry of "
REFUSED = "claim of "  # refused, as it is while the kernel writes what an umount left
_LOOKS: ContextVar[Mapping[str, int]] = ContextVar("looks", default={})  # noqa: B039 - never changed, only replaced


def looked(what: str, moment: int) -> None:
    """The current task has looked at something (a subsystem by NQN, mounts, processes) or made its claim."""
    _LOOKS.set({**_LOOKS.get(), what: moment})


class Guardian:
    """Judges the acts of one daemon process."""

    def __init__(self, kernel: SimKernel) -> None:
        self._kernel = kernel
        self.letting_go: Callable[[str], bool] = lambda _: False  # whether the volume at a path is noted as forced
        self.stage_waits: Callable[[Job], Job | None] = lambda _: None  # a Stage that waited when the job began

    def _wrong(self, text: str) -> None:
        self._kernel.world.violation(text)

    # ---- deleting

    def check_deletion(self, controller: SimController) -> None:
        """Write down what is wrong with deleting this controller now."""
        self._check_ownership(controller)
        self._check_time(controller)
        for head in controller.subsystem.heads:
            if head.paths == [controller]:
                self._check_head(controller, head)

    def _check_ownership(self, controller: SimController) -> None:
        world, looks, job = self._kernel.world, _LOOKS.get(), JOB.get()
        owner = world.registry.get(controller.name, OWNER)
        # somebody may put his name on it after the last look
        if owner != OWNER and world.registered.get(controller.name, 0) < looks.get(REGISTRY + controller.name, 0):
            self._wrong(f"deleted {controller.name}, which belongs to {owner}")
        if job is None:
            return
        if job.nqn != controller.subsystem.nqn:
            self._wrong(f"{job} deleted {controller.name} of {controller.subsystem.nqn}")
        own = controller.by_daemon or controller.ambiguous
        asked = job.operation is OperationKind.DISCONNECT or self._is_forced(job)
        if not own and not asked:
            self._wrong(f"{job} deleted {controller.name}, which somebody else connected")
        if job.operation is OperationKind.TIDY and job.nqn in world.kept:
            self._wrong(f"{job} deleted {controller.name}, which was to be kept")

    def _check_time(self, controller: SimController) -> None:
        world, looks, job = self._kernel.world, _LOOKS.get(), JOB.get()
        if world.unreadable_pids and world.unreadable_since < looks.get(PROCESSES, 0):
            self._wrong(f"deleted {controller.name}, and what process {world.unreadable_pids} uses cannot be told")
        by_itself = job is not None and job.operation is not OperationKind.DISCONNECT and not self._is_forced(job)
        if job is not None and by_itself and (waiting := self.stage_waits(job)):
            self._wrong(f"{job} deleted {controller.name}, and {waiting} waited for it already")

    def _check_head(self, controller: SimController, head: SimHead) -> None:
        world, looks = self._kernel.world, _LOOKS.get()
        if head.seq > looks.get(head.subsystem.nqn, 0):
            return  # it came after the last look: nobody could know
        let_go = self._is_let_go(head)
        what = f"deleted {controller.name} of {head.subsystem.nqn}, the last path of {head.path}"
        if head not in self._kernel.claims and not let_go:
            self._wrong(f"{what}, without a claim")
        forced = (job := JOB.get()) is not None and self._is_forced(job)
        if 0 < head.unwritten < looks.get(PROCESSES, 0) and not (forced and head.stuck):
            self._wrong(f"{what}, and what somebody wrote, and closed before the last look, is lost")
        for use in world.uses(head, but=self._kernel):
            if use.kind == "mount" and let_go:
                continue
            look = looks.get(PROCESSES if use.kind == "open" or "namespace" in use.detail else MOUNTS, 0)
            if use.exclusive or use.seq < max(looks.get(CLAIM, 0), look):
                self._wrong(f"{what}, in use: {use.kind} {use.detail}")

    def _is_let_go(self, head: SimHead) -> bool:
        """Whether it is a dead disk, and its volume is being unstaged by force, as somebody asked for."""
        job, world, looks = JOB.get(), self._kernel.world, _LOOKS.get()
        if job is None or job.operation is OperationKind.DISCONNECT:
            return False
        seen = looks.get(head.subsystem.nqn, 0)
        if any(one.state == "live" and one.live_since < seen for one in head.subsystem.controllers):
            return False
        path = job.staging_path
        # the same volume, mounted at its path by somebody anew, counts as its own
        own = world.mounts.staged.get(path) is head and any(m.head is head for m in world.mounts.at(path))
        # after the last look somebody may have taken the mount away, or the umount that waited have come to its end
        left = world.mounts.staged.get(path) is head and world.mounts.removed.get(path, 0) > looks.get(MOUNTS, 0)
        return (own or left or REFUSED + head.path in looks) and self._is_forced(job)

    def _is_forced(self, job: Job) -> bool:
        """Whether it lets go of a dead volume, as somebody asked for."""
        return job.staging_path in self._kernel.world.forced and self.letting_go(job.staging_path)

    # ---- mounting

    def check_mount(self, head: SimHead, path: str, kind: VolumeType, options: Sequence[str]) -> None:
        """A mount of the daemon is one that somebody asked for: this disk, at this path, in this way."""
        if kind is VolumeType.FILESYSTEM and "_netdev" not in options:
            self._wrong(f"mounted {path} without _netdev")
        if kind is VolumeType.FILESYSTEM and head.disk.unfinished:
            self._wrong(f"mounted {head.path}, where mkfs did not end")
        request = self._stage_of(head, f"mounted {head} at {path}")
        if request is None:
            return
        if (request.staging_path, request.type) != (path, kind):
            self._wrong(f"mounted {head} at {path} as {kind}; asked for: {request}")
        if request.read_only is not ("ro" in options):
            self._wrong(f"mounted {head} at {path} with {options}; asked for: {request}")
        if request.read_only and not head.read_only:
            self._wrong(f"mounted {head} at {path}, and it can be written to")

    def check_unmount(self, path: str) -> None:
        """What the daemon unmounts is its own, as far as it could know."""
        job = JOB.get()
        mounts = self._kernel.world.mounts.at(path)
        if job is None or not mounts:
            return
        top = mounts[-1]
        if (
            job.staging_path != path
            or (top.by_daemon and top.made_at != path)
            or job.operation is OperationKind.DISCONNECT
        ):
            self._wrong(f"{job} unmounted {path}")
        # the same volume, mounted by somebody once more or anew, counts as its own
        own = top.head is not None and self._kernel.world.mounts.staged.get(path) is top.head
        # somebody may have mounted it, or taken away what was on top of it, after the last look
        shown = max(top.seq, self._kernel.world.mounts.uncovered.get(path, 0))
        if not own and shown < _LOOKS.get().get(MOUNTS, 0):
            self._wrong(f"{job} unmounted {path}, where {top.source} was mounted by somebody else")

    # ---- writing to a disk

    def check_format(self, head: SimHead, fstype: str) -> None:
        disk = head.disk
        if not disk.blank and not disk.untouched:
            self._wrong(f"formatted {head.path} ({disk.wwid(head.nsid)}), which is not blank")
        request = self._stage_of(head, f"formatted {head}")
        if request is None:
            return
        asked = request.format is FormatPolicy.IF_EMPTY and request.type is VolumeType.FILESYSTEM
        if not asked or request.read_only or fstype != (request.fstype or DEFAULT_FSTYPE):
            self._wrong(f"made {fstype} on {head}; asked for: {request}")

    def check_wipe(self, head: SimHead) -> None:
        disk = head.disk
        if not disk.blank and not disk.untouched:
            self._wrong(f"wiped {head.path} ({disk.wwid(head.nsid)}), which somebody used since")

    def check_writable(self, head: SimHead) -> None:
        """What is mounted read-only by the daemon stays so as long as it is staged."""
        job = JOB.get()
        path = job.staging_path if job is not None else ""
        for mount in self._kernel.world.mounts.of(head):
            if mount.by_daemon and mount.options[0] == "ro" and mount.mount_point != path:
                self._wrong(f"{job} made {head} writable, which is staged read-only at {mount.mount_point}")

    def check_check(self, head: SimHead) -> None:
        """A checker may write to the disk."""
        request = self._stage_of(head, f"checked {head}")
        if request is not None and (request.read_only or not request.fsck):
            self._wrong(f"checked {head}; asked for: {request}")

    def _stage_of(self, head: SimHead, what: str) -> StageRequest | None:
        """The request that the current job works on, which must be for this disk. None outside of jobs."""
        job = JOB.get()
        if job is None:
            return None
        request = job.request
        if not isinstance(request, StageRequest):
            self._wrong(f"{job} {what}")
            return None
        if request.nqn != head.subsystem.nqn or not head.is_meant_by(request.namespace):
            self._wrong(f"{what}, which is {head.disk.wwid(head.nsid)} of {head.subsystem.nqn}; asked for: {request}")
        return request
