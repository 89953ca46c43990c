"""The guard: nothing is disconnected unless it is proven that nothing uses it.

Used alike by Unstage, by undoing and by Disconnect. What cannot be read counts as in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from nvmeofd.errors import DisconnectFailed
from nvmeofd.kernel.interface import Claim, ClaimBusy, CommandError, DeviceChanged, ForeignMount, ProcessScan
from nvmeofd.kernel.threads import outlast
from nvmeofd.log import log, quoted
from nvmeofd.model import Controller, DeviceNumber, Namespace, Step, Subsystem, User, UserKind

if TYPE_CHECKING:
    from nvmeofd.jobs import Job
    from nvmeofd.operations.core import Core

# How often the guard starts again because namespaces came and went or udev had a device open. Each round waits for
# what disturbed the one before, so this many in a row means that something is wrong, and then nothing is disconnected.
ROUNDS = 5
# How often it looks at the processes again because what was to be written took longer than so many seconds.
LOOKS = 3
STALE = 0.1


class StillUsed(Exception):
    """Something uses the subsystem, or may do so."""

    def __init__(self, users: Iterable[User]) -> None:
        self.users = tuple(users)
        super().__init__("; ".join(map(str, self.users)))


async def disconnect_unused(
    core: Core, job: Job, nqn: str, choose: Callable[[Subsystem], Sequence[Controller]]
) -> tuple[Controller, ...]:
    """Delete the chosen controllers of a subsystem if nothing uses any of its namespaces.

    ``choose`` is asked again each time the subsystem is looked at. Returns what was deleted.

    Raises:
        StillUsed: nothing was deleted.
        DisconnectFailed: a controller could not be deleted, or the namespaces keep changing.
    """
    for _ in range(ROUNDS):
        job.enter(Step.VERIFYING)
        subsystem = look(core, nqn)
        if subsystem is None or not _chosen(choose, subsystem):
            return ()
        stop_if_used(visible_users(core, subsystem.namespaces))
        deletion: Deletion | None = None
        try:
            async with core.kernel.claim(subsystem.namespaces) as claimed:
                scan = await _look_and_write(core, job, subsystem, claimed)
                # From here to the deletion nothing is awaited: what is decided on is what is there.
                again = look(core, nqn)
                if again is not None and not scan.open_files and same_namespaces(subsystem, again):
                    stop_if_used(visible_users(core, again.namespaces))
                    deletion = Deletion(core, job, nqn, tuple(choose(again)))
                    await deletion.run()
        except ClaimBusy as busy:
            stop_if_used(visible_users(core, subsystem.namespaces))
            raise StillUsed([await explain_claim(core, subsystem, busy.device)]) from None
        except DeviceChanged as change:
            log.info("%s: looking again: %s", job, change)
        except OSError as error:
            if deletion is None:
                raise StillUsed([unreadable(nqn, error)]) from error
            log.warning("%s: cannot give back the claim: %s", job, error)
        if deletion is not None:
            return deletion.outcome()
        try:
            # a udev worker probes a device, or a namespace just came: both end by themselves
            await core.kernel.settle()
        except CommandError as error:
            raise StillUsed([unreadable(nqn, error)]) from error
    subsystem = look(core, nqn)
    if subsystem is not None:
        try:
            stop_if_used(openers(subsystem, await scan_processes(core, subsystem), transient=True))
        except OSError as error:
            raise StillUsed([unreadable(nqn, error)]) from error
    raise DisconnectFailed(f"the namespaces of {nqn} keep changing, try again later")


async def _look_and_write(core: Core, job: Job, subsystem: Subsystem, claimed: Claim) -> ProcessScan:
    """The processes as they are now, after what others wrote and closed was written.

    Raises StillUsed, DeviceChanged, OSError.

    Whoever closed a device since it was claimed was not the last one, and whoever is closing one, with the kernel still
    writing, has no file open any more: neither is to be seen, and what they wrote is to be waited for.
    """
    loop, looks = asyncio.get_running_loop(), 0
    while True:
        looks += 1
        scan = await scan_processes(core, subsystem)
        stop_if_used(openers(subsystem, scan, transient=False))
        looked = loop.time()
        job.enter(Step.VERIFYING, "writing back")
        await claimed.write_back()
        if looks == LOOKS or loop.time() - looked < STALE:
            return scan


class Deletion:
    """Deleting controllers: once begun, it is seen to its end, and what it reports is what sysfs shows."""

    def __init__(self, core: Core, job: Job, nqn: str, chosen: tuple[Controller, ...]) -> None:
        self._core = core
        self._nqn = nqn
        self._job = job
        self._chosen = chosen
        self._reasons: dict[int, BaseException] = {}
        self._cancelled: asyncio.CancelledError | None = None

    async def run(self) -> None:
        """Delete them all. A cancellation waits for the kernel, and is raised only if something is left."""
        names = ", ".join(controller.name for controller in self._chosen)
        self._job.enter(Step.DISCONNECTING, names)
        log.info("%s: deleting %s of %s", self._job, names, quoted(self._nqn))
        # every one is tried, and all are waited for: half a disconnect is worse to explain than a slow one
        tasks = [asyncio.ensure_future(self._core.kernel.delete_controller(one)) for one in self._chosen]
        self._cancelled = await outlast(asyncio.gather(*tasks, return_exceptions=True))
        for controller, task in zip(self._chosen, tasks, strict=True):
            if task.cancelled():
                self._reasons[controller.instance] = asyncio.CancelledError()
            elif (error := task.exception()) is not None:
                self._reasons[controller.instance] = error

    def outcome(self) -> tuple[Controller, ...]:
        """What was deleted. Raises DisconnectFailed; CancelledError when the work was stopped and something is left."""
        core = self._core
        try:
            left = core.kernel.subsystem(self._nqn)
        except OSError as error:
            raise DisconnectFailed(f"deleted, but sysfs cannot be read to verify it: {error}") from error
        present = {controller.instance for controller in left.controllers} if left else set()
        try:
            core.ownership.prune(self._nqn, left)
        except OSError as error:
            # the next look at the host prunes it
            log.warning("%s: cannot tell whose paths are left: %s", self._job, error)
        failed = [
            f"{controller.name}: {self._reasons.get(controller.instance, 'still there')}"
            for controller in self._chosen
            if controller.instance in present
        ]
        if failed and self._cancelled is not None:
            raise self._cancelled
        if failed:
            raise DisconnectFailed(f"not deleted: {'; '.join(failed)}")
        core.count("disconnects-done")
        return self._chosen


def visible_users(core: Core, namespaces: Iterable[Namespace]) -> tuple[User, ...]:
    """Mounts, block binds, holders and swap: users that can be read without opening anything.

    O(users of these namespaces). What cannot be read is a user of kind claim.
    """
    users: list[User] = []
    try:
        core.cache.refresh()
        swaps = core.kernel.swaps()
        for namespace in namespaces:
            for name, mount in core.cache.mounts_of(namespace):
                users.append(User(UserKind.MOUNT, f"/dev/{name}", mount.mount_point))
            for name, mount in core.cache.block_mounts_of(namespace):
                users.append(User(UserKind.BLOCK_MOUNT, f"/dev/{name}", mount.mount_point))
            for name, holder in core.kernel.holders(namespace):
                users.append(User(UserKind.HOLDER, f"/dev/{name}", holder))
            for device in namespace.devices:
                users += [
                    User(UserKind.SWAP, f"/dev/{device.name}", swap.name)
                    for swap in swaps
                    if swap.number == device.number
                ]
    except OSError as error:
        users.append(unreadable("the mount table, holders or swap", error))
    return tuple(users)


async def all_users(core: Core, subsystem: Subsystem, *, claim: bool, settle: bool = False) -> tuple[User, ...]:
    """Everybody who uses the subsystem right now, for people to read.

    ``claim``: whether to try the exclusive claim too, which a job of the same subsystem would find in its way.
    ``settle``: whether to wait for udev when it is looking at a device, which it does for a moment now and then.
    """
    users = list(visible_users(core, subsystem.namespaces))
    try:
        scan = await scan_processes(core, subsystem)
        if settle and any(found.transient for found in scan.open_files):
            with suppress(CommandError):
                await core.kernel.settle()
                scan = await scan_processes(core, subsystem)
        users += openers(subsystem, scan, transient=True)
        if claim:
            explained = {user.device for user in users if user.kind is not UserKind.OPEN}
            for namespace in subsystem.namespaces:
                if explained.isdisjoint(f"/dev/{device.name}" for device in namespace.devices):
                    try:
                        async with core.kernel.claim([namespace]):
                            pass
                    except ClaimBusy as busy:
                        users.append(_claimed(subsystem, busy.device, scan))
    except (OSError, DeviceChanged) as error:
        users.append(unreadable(subsystem.nqn, error))
    return tuple(users)


def look(core: Core, nqn: str) -> Subsystem | None:
    try:
        return core.kernel.subsystem(nqn)
    except OSError as error:
        raise StillUsed([unreadable(nqn, error)]) from error


def _chosen(choose: Callable[[Subsystem], Sequence[Controller]], subsystem: Subsystem) -> Sequence[Controller]:
    try:
        return choose(subsystem)
    except OSError as error:
        raise StillUsed([unreadable(subsystem.nqn, error)]) from error


def stop_if_used(users: Sequence[User]) -> None:
    if users:
        raise StillUsed(users)


def same_namespaces(before: Subsystem, now: Subsystem) -> bool:
    if len(before.namespaces) != len(now.namespaces):
        return False
    return all(
        any(old.same_incarnation(new) and old.devices == new.devices for new in now.namespaces)
        for old in before.namespaces
    )


async def scan_processes(core: Core, subsystem: Subsystem) -> ProcessScan:
    return await core.kernel.scan_processes(_numbers(subsystem), _nodes(subsystem))


def _nodes(subsystem: Subsystem) -> list[str]:
    """The names of all device nodes of the subsystem's namespaces."""
    return [name for namespace in subsystem.namespaces for name in namespace.nodes]


def _numbers(subsystem: Subsystem) -> dict[DeviceNumber, str]:
    numbers = {}
    for namespace in subsystem.namespaces:
        for device in namespace.devices:
            numbers[device.number] = f"/dev/{device.name}"
        if namespace.generic is not None:
            numbers[namespace.generic] = namespace.path
    return numbers


def openers(subsystem: Subsystem, scan: ProcessScan, *, transient: bool) -> list[User]:
    """Users found among the processes. With ``transient`` false, those that end by themselves are left out."""
    names = _numbers(subsystem)
    users = [
        User(UserKind.OPEN, names[found.number], f"pid {found.pid} {quoted(found.command)}")
        for found in scan.open_files
        if transient or not found.transient
    ]
    users += [
        User(UserKind.OPEN, subsystem.name, f"pid {pid}: its open files cannot be read") for pid in scan.unreadable
    ]
    # a device node bound in another mount namespace: the claim does not see it, unlike a filesystem mounted there
    nodes = _nodes(subsystem)
    for foreign in scan.foreign_mounts:
        node = foreign.mount.root.removeprefix("/")
        if foreign.mount.fstype == "devtmpfs" and node in nodes:
            users.append(User(UserKind.BLOCK_MOUNT, f"/dev/{node}", _elsewhere(foreign)))
    return users


async def explain_claim(core: Core, subsystem: Subsystem, device: str) -> User:
    try:
        return _claimed(subsystem, device, await scan_processes(core, subsystem))
    except OSError:
        return User(UserKind.CLAIM, device, "in exclusive use")


def _claimed(subsystem: Subsystem, device: str, scan: ProcessScan) -> User:
    namespace = next((ns for ns in subsystem.namespaces if device in (ns.path, ns.name)), None)
    for foreign in scan.foreign_mounts:
        if namespace is not None and _is_on(foreign.mount.number, foreign.mount.source, namespace):
            return User(UserKind.CLAIM, device, f"mounted at {_elsewhere(foreign)}")
    return User(UserKind.CLAIM, device, "in exclusive use, perhaps mounted in another mount namespace")


def _elsewhere(foreign: ForeignMount) -> str:
    return f"{foreign.mount.mount_point} in the mount namespace of pid {foreign.pid} {quoted(foreign.command)}"


def _is_on(number: DeviceNumber, source: str, namespace: Namespace) -> bool:
    return any(number == device.number or source == f"/dev/{device.name}" for device in namespace.devices)


def unreadable(what: str, error: Exception) -> User:
    return User(UserKind.CLAIM, what, f"cannot tell, so it counts as in use: {error}")
