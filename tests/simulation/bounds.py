"""What the daemon may still hold when nothing is going on: memory, tasks and timers are bounded by what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nvmeofd.cache import MountCache

if TYPE_CHECKING:
    from nvmeofd.operations.core import Core
    from nvmeofd.operations.engine import Engine
    from tests.simulation.kernel import SimKernel

TIMERS = 4  # one update, one look of the tidier, and a doubt


def excess(kernel: SimKernel, engine: Engine) -> list[str]:
    """What is held beyond that."""
    core: Core = vars(engine)["_core"]
    return [*_of_core(core, kernel), *_of_tidier(core, engine), *_of_cache(core, kernel), *_of_loop(kernel, core)]


def _of_core(core: Core, kernel: SimKernel) -> Iterator[str]:
    busy = {job.nqn for job in core.workers.jobs.values()}
    if left := set(vars(core.workers)["_queues"]) - busy:
        yield f"queues without a job are left over: {left}"
    if not busy and (flags := vars(core.changes)["_flags"]):
        yield f"{len(flags)} waits for a change are left over"
    connected = {subsystem.nqn for subsystem in kernel.world.fabric.subsystems if subsystem.controllers}
    if not busy and (left := set(core.journal.subsystems) - connected):
        yield f"the journal has subsystems that are not connected: {left}"
    if not busy and core.journal.formats:
        yield f"filesystems in the making are left over: {core.journal.formats}"


def _of_tidier(core: Core, engine: Engine) -> Iterator[str]:
    known = {**core.journal.subsystems, **core.journal.volumes}
    for name, value in vars(vars(engine)["_tidier"]).items():
        # what is gone is forgotten with the next look
        if isinstance(value, dict) and len(left := value.keys() - known.keys()) > 1:
            yield f"the tidier remembers in {name}: {left}"


def _of_cache(core: Core, kernel: SimKernel) -> Iterator[str]:
    """It is the same as one made from scratch: what events tell is enough to keep it so."""
    other = type(kernel)(kernel.world)
    kernel.world.handles.remove(other)
    fresh = MountCache(other)
    fresh.rebuild()
    for name, value in vars(fresh).items():
        ours = vars(core.cache)[name]
        if isinstance(value, dict) and name != "_sources" and _entries(ours) != _entries(value):
            yield f"the mount cache has {name}: {_entries(ours)}; the kernel: {_entries(value)}"


def _entries(index: dict[Any, Any]) -> dict[Any, set[int]]:
    """An index of mounts by their ids. A btrfs stays filed under the device that it was mounted from, even if gone."""
    found: dict[Any, set[int]] = {}
    for key, mounts in index.items():
        for mount in mounts.values() if isinstance(mounts, dict) else (mounts,):
            if mount.fstype != "btrfs":
                found.setdefault(key, set()).add(mount.mount_id)
    return found


def _of_loop(kernel: SimKernel, core: Core) -> Iterator[str]:
    insides: Any = asyncio.get_running_loop()
    timers = [
        handle
        for handle in insides._scheduled
        if not handle.cancelled() and kernel.process.owns(handle._context) and handle._callback != kernel.deliver
    ]
    jobs = len(core.workers.jobs)
    if len(timers) > TIMERS + 3 * jobs:
        yield f"{len(timers)} timers are set: {timers}"
    tasks = [task for task in kernel.process.tasks if not task.done()]
    if not jobs and tasks:
        yield f"{len(tasks)} tasks are left over: {tasks}"
