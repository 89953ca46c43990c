"""The daemon's core on a simulated host: boot it, call it, kill it, and hold it to its promises."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Coroutine, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from nvmeofd.config import Config
from nvmeofd.errors import NvmeofdError
from nvmeofd.jobs import Job
from nvmeofd.journal import ConnectIntent, Journal, Phase, SubsystemRecord
from nvmeofd.metrics import Operations
from nvmeofd.model import OperationKind, VolumeState
from nvmeofd.operations.engine import Engine
from nvmeofd.operations.volumes import Volume
from nvmeofd.requests import parse_disconnect, parse_stage, parse_unstage
from nvmeofd.typed import Typed
from tests.simulation.bounds import excess
from tests.simulation.faults import FaultPlan
from tests.simulation.judge import Judge
from tests.simulation.kernel import SimKernel
from tests.simulation.state import SimController
from tests.simulation.world import SimWorld

_UNSIGNED = {
    "timeout",
    "min_paths",
    "reconnect_delay",
    "keep_alive_tmo",
    "nr_io_queues",
    "queue_size",
}


def typed(options: Mapping[str, Any]) -> dict[str, Typed]:
    """Options as the bus hands them over, from keyword arguments."""
    found = {}
    for name, value in options.items():
        if isinstance(value, bool):
            signature = "b"
        elif isinstance(value, int):
            signature = "u" if name in _UNSIGNED else "i"
        elif isinstance(value, str):
            signature = "s"
        else:
            signature = "as"
        found[name.replace("_", "-")] = Typed(signature, value)
    return found


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Nobody is left to be told."""
    if not task.cancelled():
        task.exception()


class Died(Exception):
    """The daemon was killed before it answered."""


class MemoryStore:
    """The journal's files, which outlive the daemon."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}


class StoreOfProcess:
    """The journal's files as one daemon process reaches them: each write is a point where it may fail or die."""

    def __init__(self, store: MemoryStore, kernel: SimKernel) -> None:
        self._files = store.files
        self._kernel = kernel

    def _point(self, name: str, detail: str, *, after: bool) -> None:
        self._kernel.check_alive()
        self._kernel.apply_now(self._kernel.faults.passing(name, detail, after=after))

    def load(self) -> Mapping[str, bytes]:
        self._kernel.read("journal_load")
        return dict(self._files)

    def write(self, name: str, content: bytes) -> None:
        self._point("journal_write", name, after=False)
        self._files[name] = content
        self._note_mount(content)
        self._point("journal_write", name, after=True)

    def delete(self, name: str) -> None:
        self._point("journal_delete", name, after=False)
        content = self._files.pop(name, None)
        if content is not None and name.startswith("volume"):
            self._kernel.world.mounts.staged.pop(json.loads(content)["record"]["staging_path"], None)
        self._point("journal_delete", name, after=True)

    def _note_mount(self, content: bytes) -> None:
        """What is written down to be mounted counts as the daemon's: should it be killed then, nobody can tell."""
        record = json.loads(content)["record"]
        if record.get("phase") == Phase.MOUNTING:
            wanted = (record["volume"]["wwid"], record["volume"]["diskseq"])
            for head in self._kernel.world.fabric.heads():
                if (head.disk.wwid(head.nsid), head.diskseq) == wanted:
                    self._kernel.world.mounts.staged[record["staging_path"]] = head


class Recorder:
    """Implements nvmeofd.operations.observer.Observer and checks that what it is told adds up."""

    judge: Judge

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.jobs: dict[int, Job] = {}
        self.finished: list[tuple[Job, NvmeofdError | None]] = []
        self.operations = Operations()
        self.steps: list[str] = []
        self.wrong: list[str] = []

    def _expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.wrong.append(text)

    def volume_added(self, volume: Volume) -> None:
        self._expect(volume.staging_path not in self.volumes, f"{volume.staging_path} was added twice")
        self.volumes[volume.staging_path] = volume

    def volume_changed(self, volume: Volume) -> None:
        self._expect(volume.staging_path in self.volumes, f"{volume.staging_path} changed, but was not there")
        self.volumes[volume.staging_path] = volume

    def volume_removed(self, staging_path: str) -> None:
        self._expect(staging_path in self.volumes, f"{staging_path} was removed, but was not there")
        self.volumes.pop(staging_path, None)

    def subsystems_changed(self) -> None:
        pass

    def job_added(self, job: Job) -> None:
        self._expect(job.number not in self.jobs, f"job {job.number} was added twice")
        self.jobs[job.number] = job

    def job_changed(self, job: Job) -> None:
        self._expect(job.number in self.jobs, f"job {job.number} changed, but was not there")
        self.steps.append(str(job.step))

    def job_finished(self, job: Job, error: NvmeofdError | None) -> None:
        self._expect(job.number in self.jobs, f"job {job.number} finished, but was not there")
        self._expect(job.result.done(), f"job {job.number} finished without an answer")
        self.jobs.pop(job.number, None)
        self.finished.append((job, error))
        self.operations.finished(job.operation, error, asyncio.get_running_loop().time() - job.accepted)
        self.judge.finished(job, error)

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        self.operations.refused(operation, error)


class Host:
    """A simulated host with the daemon on it. ``kernel``, ``engine`` and ``observer`` are those of its present life."""

    kernel: SimKernel
    engine: Engine
    observer: Recorder
    judge: Judge

    def __init__(self, world: SimWorld, config: Config | None = None) -> None:
        self.world = world
        self.config = config or Config()
        self.store = MemoryStore()
        self._kernels: WeakKeyDictionary[asyncio.Task[Any], SimKernel] = WeakKeyDictionary()
        self._core: Any = None
        self._orderly = False  # how the last life ended
        world.on_connect.append(self._doubt)

    async def boot(self, faults: FaultPlan | None = None) -> None:
        """Start the daemon. Raises what its start raises, and Died."""
        for controller in self.world.fabric.controllers():
            self._doubt(controller)
        self._orderly = False
        for mount in self.world.mounts.mounts:
            record = self.journal().volumes.get(mount.made_at)
            known = record is not None and record.volume is not None and record.volume.mount_id == mount.mount_id
            if mount.mount_point != mount.made_at and not known:
                mount.by_daemon = False  # moved before it was written down: nobody can tell any more whose it is
        self.kernel = SimKernel(self.world, faults)
        self.observer = Recorder()
        journal = Journal(StoreOfProcess(self.store, self.kernel))
        self.engine = Engine(kernel=self.kernel, journal=journal, config=self.config, observer=self.observer)
        self._core = vars(self.engine)["_core"]
        self.judge = self.observer.judge = Judge(self.kernel, self._core)
        self.kernel.guardian.letting_go = self.judge.is_forcing
        self.kernel.guardian.stage_waits = self.judge.stage_waits
        await self.call(self.engine.start())

    def _doubt(self, controller: SimController) -> None:
        """Whether somebody's controller may be taken for what the daemon was about to connect, or is once it starts."""
        intent = self._intent(controller.subsystem.nqn)
        if (
            intent is not None
            and not controller.by_daemon
            and controller.instance not in intent.known
            and (controller.address, controller.host.nqn) == (intent.address, intent.host_nqn)
        ):
            controller.ambiguous = True

    def _intent(self, nqn: str) -> ConnectIntent | None:
        """The daemon's, alive or dead. What an orderly end leaves behind is what the daemon knew then."""
        if self._core is None:
            return None
        nothing = SubsystemRecord(nqn=nqn)
        known: ConnectIntent | None = self._core.journal.subsystems.get(nqn, nothing).intent
        if self.kernel.killed and (known is not None or not self._orderly):
            known = self.journal().subsystems.get(nqn, nothing).intent
        return known

    def kill(self) -> None:
        """kill -9."""
        self.kernel.kill()

    async def stop(self) -> None:
        """An orderly end."""
        await self.call(self.engine.drain())
        await self.call(self.engine.close())
        self.world.handles.remove(self.kernel)
        self._orderly = True

    async def end(self, timeout: float | None) -> bool:
        """An orderly end in the middle of work, as the daemon does it. Returns False if the kernel held something.

        Raises Died.
        """
        started, kernel = self.now(), self.kernel
        held = await self.call(self.engine.drain(timeout))
        # the longest that a job may take, should there be no limit
        limit = timeout if timeout is not None else max(self.config.timeout, 60)
        if self.now() - started > limit + 0.001:
            self.world.violation(f"draining took {self.now() - started} s")
        if not held:
            await self.call(self.engine.close())
            left = [task for task in kernel.process.tasks if not task.done()]
            # questions of clients are the bus's to end
            if left and not any(task in self._kernels for task in left):
                self.world.violation(f"tasks are left over at the end: {left}")
        self.kill()
        self._orderly = True
        return not held

    def submit(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as part of the daemon and return at once."""
        task: asyncio.Task[Any] = self.kernel.spawn(coro)
        self._kernels[task] = self.kernel
        task.add_done_callback(lambda _: self.world.changed(), context=contextvars.Context())
        return task

    async def answer(self, task: asyncio.Task[Any]) -> Any:
        """Wait for what :meth:`submit` started. Raises Died when the daemon is killed first."""
        kernel = self._kernels[task]
        await self.world.until(lambda: task.done() or kernel.killed)
        if not task.done() or kernel.killed:
            task.add_done_callback(_retrieve, context=contextvars.Context())
            raise Died
        return task.result()

    async def call(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine as part of the daemon and wait for it."""
        return await self.answer(self.submit(coro))

    # ---- the verbs, with options as keyword arguments

    def start_stage(
        self, nqn: str, namespace: str, addresses: list[str], path: str, **options: Any
    ) -> asyncio.Task[Any]:
        return self.submit(self.engine.stage(parse_stage(nqn, namespace, addresses, path, typed(options))))

    def start_unstage(self, path: str, **options: Any) -> asyncio.Task[Any]:
        if options.get("force"):
            self.world.forced[path] = self.world.tick()
        return self.submit(self.engine.unstage(parse_unstage(path, typed(options))))

    def start_disconnect(self, nqn: str, **options: Any) -> asyncio.Task[Any]:
        return self.submit(self.engine.disconnect(parse_disconnect(nqn, typed(options))))

    async def stage(self, nqn: str, namespace: str, addresses: list[str], path: str, **options: Any) -> Volume:
        volume: Volume = await self.answer(self.start_stage(nqn, namespace, addresses, path, **options))
        return volume

    async def unstage(self, path: str, **options: Any) -> bool:
        disconnected: bool = await self.answer(self.start_unstage(path, **options))
        return disconnected

    async def disconnect(self, nqn: str, **options: Any) -> tuple[str, ...]:
        names: tuple[str, ...] = await self.answer(self.start_disconnect(nqn, **options))
        return names

    # ---- the promises

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    async def quiesce(self, seconds: float = 60.0) -> None:
        """Let everything settle: events delivered, jobs done, deferred work tried again."""
        await asyncio.sleep(seconds)

    def journal(self) -> Journal:
        """What is written down right now."""
        kernel = SimKernel(self.world)
        self.world.handles.remove(kernel)
        journal = Journal(StoreOfProcess(self.store, kernel))
        journal.load()
        return journal

    def complaints(self) -> list[str]:
        """Everything that must not be so at quiescence."""
        found = [*self.world.violations, *self.observer.wrong]
        found += [f"still running: {job}" for job in self.engine.jobs.values()]
        open_results = sum(not job.result.done() for job in self._core.workers.jobs.values())
        if self.judge.accepted != self.judge.answered + open_results:
            found.append(f"{self.judge.accepted} jobs were accepted, {self.judge.answered} answered")
        if self.kernel.claims or self.kernel.opened:
            found.append("devices are still held open")
        found += self._left_connected()
        found += self._volumes()
        found += self._leftovers()
        found += excess(self.kernel, self.engine)
        return found

    def _left_connected(self) -> list[str]:
        found = []
        records = self.journal().subsystems
        for subsystem in self.world.fabric.subsystems:
            own = [c for c in subsystem.controllers if self.world.owned_by_daemon(c)]
            wanted = subsystem.nqn in self.world.asked_to_keep
            keep = wanted and subsystem.nqn in records and records[subsystem.nqn].keep
            used = self.world.subsystem_uses(subsystem.nqn, but=self.kernel)
            if own and not keep and not used:
                names = ", ".join(c.name for c in own)
                found.append(f"{subsystem.nqn} is left connected ({names}), and nothing uses it")
        return found

    def _volumes(self) -> list[str]:
        found = []
        if dict(self.engine.volumes) != self.observer.volumes:
            found.append("the observer was told of other volumes than there are")
        for path, volume in self.engine.volumes.items():
            mounts = self.world.mounts.at(path)  # also one that somebody else put back
            heads = [m.head for m in mounts if m.head and not m.head.gone]
            there = any(h.disk.wwid(h.nsid) == volume.wwid and h.diskseq == volume.diskseq for h in heads)
            if volume.state is VolumeState.LOST and there:
                found.append(f"{path} is called lost, but is mounted")
            if volume.state is not VolumeState.LOST and not there:
                found.append(f"{path} is called {volume.state}, but is not mounted")
        for mount in self.world.mounts.mounts:
            there = mount.by_daemon and mount.space == 0 and mount.made_at not in self.engine.volumes
            if there and not self._covered(mount.mount_point):
                found.append(f"the daemon's mount at {mount.mount_point} is left over")
        return found

    def _covered(self, path: str) -> bool:
        """Whether somebody mounted something over what is to be unmounted."""
        mounts = self.world.mounts.at(path)
        return bool(mounts) and not mounts[-1].by_daemon

    def _passed_on(self, volume: Volume) -> bool:
        """Whether somebody has mounted the same device, and got the identifier of the mount: as if that was moved."""
        return any(
            mount.mount_id == volume.mount_id and mount.head is not None and volume.is_on(mount.head.snapshot())
            for mount in self.world.mounts.mounts
        )

    def _leftovers(self) -> list[str]:
        found = []
        journal = self.journal()
        held = {path for path in journal.volumes if self.world.mounts.elsewhere(path) or self._covered(path)}
        held |= {
            path for path, record in journal.volumes.items() if record.to_unmount and self._passed_on(record.to_unmount)
        }
        held -= set(self.engine.volumes)
        if set(journal.volumes) - held != set(self.engine.volumes):
            found.append(f"journal has volumes {sorted(journal.volumes)}, the daemon {sorted(self.engine.volumes)}")
        for path, volume in journal.volumes.items():
            if volume.phase is not Phase.STAGED and path not in held:
                found.append(f"{volume.staging_path} is in phase {volume.phase}")
        for path in self.world.files.made:
            used = path in self.engine.volumes or self.world.mounts.at(path) or self.world.files.occupied(path)
            if not used and path not in held:
                found.append(f"{path}, made by the daemon, is left over")
        own = {c.instance for c in self.world.fabric.controllers() if c.by_daemon or c.ambiguous}
        for record in journal.subsystems.values():
            if record.intent is not None:
                found.append(f"an intent to connect {record.nqn} is left over")
            found += [f"journal has {c.name}, which is gone" for c in record.controllers if c.instance not in own]
        names = {c.name for c in self.world.fabric.controllers()}
        found += [f"registry has {name}, which is gone" for name in self.world.registry if name not in names]
        return found
