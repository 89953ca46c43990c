"""Random histories: what clients, other programs, the target, the network and bad luck do to a host.

A history is a list of plain :class:`Op` values, so that it can be drawn from a seed, shrunk, and replayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvmeofd.config import Config
from nvmeofd.errors import Failed, NvmeofdError
from tests.simulation.clock import run
from tests.simulation.faults import EventFaults, FaultPlan, Gate, errors_of
from tests.simulation.harness import Died, Host
from tests.simulation.setting import (
    A1,
    A2,
    BLANK,
    BTRFS,
    DIRECTORIES,
    EXT4,
    FILE,
    ONE,
    OTHER,
    PATHS,
    SPARE,
    TWO,
    XFS,
    make_world,
)
from tests.simulation.state import SimHead

NAMESPACES = ((ONE, EXT4, 1), (ONE, XFS, 2), (ONE, BLANK, 3), (ONE, BTRFS, 4), (TWO, OTHER, 1), (TWO, SPARE, 2))
STAGING = ("/srv/a", "/srv/b", "/srv/new", FILE)
CALLS = (
    "connect",
    "delete_controller",
    "claim",
    "scan_processes",
    "settle",
    "lock_device",
    "probe",
    "make_filesystem",
    "finish_filesystem",
    "wipe",
    "check_filesystem",
    "mount",
    "bind_device",
    "unmount",
    "inspect_path",
    "create_path",
    "remove_path",
    "verify",
    "rescan",
    "resolve",
)
READS = ("subsystem", "subsystems", "holders", "swaps", "mounts_changed", "mount_lines", "registry_owner")
WAITS = (0.0, 0.0, 0.0001, 0.01, 0.06, 0.4, 3.0, 20.0)
# kind → how often it is drawn
KINDS = {
    "stage": 10,
    "unstage": 7,
    "disconnect": 3,
    "users": 1,
    "cancel": 1,
    "foreign_mount": 3,
    "foreign_bind": 1,
    "foreign_block": 1,
    "foreign_unmount": 4,
    "unshare": 1,
    "end_process": 2,
    "private_mount": 1,
    "hold": 1,
    "release": 2,
    "open": 2,
    "close": 3,
    "swap": 1,
    "unswap": 1,
    "foreign_connect": 1,
    "foreign_disconnect": 1,
    "path_down": 1,
    "path_up": 2,
    "remove_namespace": 1,
    "add_namespace": 2,
    "grow": 1,
    "hook": 4,
    "fail": 3,
    "fail_read": 1,
    "fail_journal": 1,
    "delay": 2,
    "hang": 1,
    "let_go": 2,
    "events": 1,
    "crash": 2,
    "crash_soon": 2,
    "wait": 2,
}
MEDDLING = (
    "foreign_mount",
    "foreign_block",
    "foreign_unmount",
    "private_mount",
    "hold",
    "release",
    "open",
    "close",
    "swap",
    "foreign_connect",
    "foreign_disconnect",
    "path_down",
    "path_up",
    "remove_namespace",
    "add_namespace",
)


@dataclass(frozen=True, slots=True)
class Op:
    """One act: what, three small numbers that choose the details, and how long to wait after it."""

    kind: str
    a: int = 0
    b: int = 0
    c: int = 0
    wait: float = 0.0


def draw(rng: random.Random, length: int) -> list[Op]:
    """A history from a seed."""
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=length)
    return [Op(kind, rng.randrange(64), rng.randrange(64), rng.randrange(64), rng.choice(WAITS)) for kind in kinds]


class History:
    """Plays one history on one host."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = make_world(seed)
        self.host = Host(self.world, Config())
        self.complaints: list[str] = []
        self.trace: list[str] = []
        self.operations = 0
        self._gates: list[Gate] = []
        self._pids: list[int] = []
        self._removed: dict[tuple[str, int], Any] = {}
        self._disks = {wwid: self.world.fabric.targets[nqn].namespaces[nsid] for nqn, wwid, nsid in NAMESPACES}
        self._tasks: list[asyncio.Task[Any]] = []
        self._reads_fail = False
        self._meddled = 0  # how often others changed mounts or connections
        self._jobs: set[asyncio.Task[None]] = set()

    # ---- playing

    async def play(self, ops: list[Op]) -> None:
        await self._play(ops)
        if self.complaints:
            self.host.kill()  # as it is: nothing more has to work
        await asyncio.gather(*self._jobs)

    async def _play(self, ops: list[Op]) -> None:
        await self.boot()
        for op in ops:
            self.note(f"{asyncio.get_running_loop().time():.4f} {op}")
            if self.host.kernel.killed:
                await self.boot()
            await self.act(op)
            self.complaints += self.world.violations
            if self.complaints:
                return
            if op.wait:
                await asyncio.sleep(op.wait)
        await self.end()

    async def act(self, op: Op) -> None:
        method: Callable[[Op], Any] = getattr(self, f"do_{op.kind}")
        with contextlib.suppress(OSError, LookupError):
            result = method(op)
            if asyncio.iscoroutine(result):
                await result

    async def boot(self) -> None:
        for _ in range(20):
            self.note("boot")
            with contextlib.suppress(Died, OSError):
                await self.host.boot(FaultPlan(self.rng.randrange(1 << 30)))
                return
            self.host.kill()
        self.complaints.append("the daemon does not start")

    async def end(self) -> None:
        """Everything works again; then, with and without the other users, all promises must hold."""
        self.let_everything_work()
        if self.host.kernel.killed:
            await self.boot()
        await self.host.quiesce(200)
        self.note(f"{asyncio.get_running_loop().time():.4f} quiet, others still there")
        self.complaints += self.host.complaints()
        if self.complaints:
            return
        self.others_leave()
        await self.host.quiesce(65)
        self.note(f"{asyncio.get_running_loop().time():.4f} quiet, others gone")
        self.complaints += self.host.complaints()
        if self.complaints:
            return
        await self.leave_nothing()
        await self.host.stop()

    async def leave_nothing(self) -> None:
        for path in list(self.host.engine.volumes):
            try:
                await self.host.unstage(path)
            except NvmeofdError as error:
                self.complaints.append(f"unstaging {path} in peace failed: {error!r}")
        for controller in self.world.fabric.controllers():
            if not controller.by_daemon:
                self.world.fabric.remove(controller)
        for nqn in (ONE, TWO):
            try:
                await self.host.disconnect(nqn)
            except NvmeofdError as error:
                self.complaints.append(f"disconnecting {nqn} in peace failed: {error!r}")
        await self.host.quiesce(1)
        self.complaints += self.host.complaints()
        if self.world.fabric.controllers():
            self.complaints.append(f"left in the end: {self.world.fabric.controllers()}")

    def let_everything_work(self) -> None:
        for gate in self._gates:
            gate.release()
        self.host.kernel.faults.clear()
        for address in PATHS:
            self.world.path_up(address)

    def others_leave(self) -> None:
        world = self.world
        for pid in self._pids:
            world.end_process(pid)
        for opener in list(world.openers):
            world.close(opener)
        for holder in list(world.holders):
            world.release(holder)
        for swap in list(world.swaps):
            world.swapoff(swap.head)
        own = set(self.host.engine.volumes)
        for mount in reversed(list(world.mounts.mounts)):
            if mount.head is not None and (not mount.by_daemon or mount.mount_point not in own):
                world.mounts.remove(mount)
        world.released()

    def note(self, text: str) -> None:
        self.trace.append(text)

    # ---- clients

    def job(self, what: str, task: asyncio.Task[Any], check: Callable[[Any], str]) -> None:
        self.operations += 1
        self._tasks.append(task)
        meddled = self._meddled

        async def watch() -> None:
            kernel = self.host.kernel
            try:
                result = await self.host.answer(task)
            except Died:
                self.note(f"  {what}: died")
            except NvmeofdError as error:
                self.note(f"  {what}: {error!r}")
                if isinstance(error, Failed) and not self._reads_fail:
                    self.complaints.append(f"{what}: {error!r}")
            except OSError as error:
                self.note(f"  {what}: {error!r}")
                if not self._reads_fail:
                    self.complaints.append(f"{what}: {error!r}")
            else:
                self.note(f"  {what}: {result}")
                wrong = check(result)
                if wrong and meddled == self._meddled and not kernel.killed:
                    self.complaints.append(f"{what}: {wrong}")

        watcher = asyncio.ensure_future(watch())
        self._jobs.add(watcher)
        watcher.add_done_callback(self._jobs.discard)

    def do_stage(self, op: Op) -> None:
        nqn, wwid, nsid = NAMESPACES[op.a % len(NAMESPACES)]
        path = STAGING[op.b % len(STAGING)]
        options: dict[str, Any] = {}
        if path == FILE or op.c % 16 == 1:
            options["type"] = "block"
        elif op.c & 1:
            options["format"] = "if-empty"
            if op.c & 2:
                options["fstype"] = ("ext4", "xfs", "btrfs")[op.c % 3]
        if op.c & 12 == 12:
            options["read_only"] = True
        if op.c & 48 == 48:
            options["timeout"] = 5
        addresses = (PATHS, [A1], [A2], PATHS)[op.c % 4]
        name = wwid if op.c & 32 else f"nsid.{nsid}"
        disk = self._disks[wwid]

        def check(volume: Any) -> str:
            heads = [m.head for m in self.world.mounts.at(path) if m.head]
            if not heads or heads[-1].disk is not disk:
                return f"said {volume.wwid} is staged at {path}, but there is {heads}"
            return ""

        with contextlib.suppress(NvmeofdError):
            self.job(f"stage {name} {path}", self.host.start_stage(nqn, name, addresses, path, **options), check)

    def do_unstage(self, op: Op) -> None:
        path = STAGING[op.a % len(STAGING)]
        self._meddled += 1  # for a Stage of the same path that is under way
        options: dict[str, Any] = {"keep_connected": True} if op.b % 8 == 7 else {}

        def check(_: Any) -> str:
            own = [m for m in self.world.mounts.at(path) if m.by_daemon]
            return f"said that {path} is unstaged, but there is {own}" if own else ""

        self.job(f"unstage {path}", self.host.start_unstage(path, **options), check)

    def do_disconnect(self, op: Op) -> None:
        nqn = (ONE, TWO)[op.a % 2]
        self.job(f"disconnect {nqn}", self.host.start_disconnect(nqn), lambda _: "")

    def do_users(self, op: Op) -> None:
        nqn = (ONE, TWO)[op.a % 2]
        self.job(f"users {nqn}", self.host.submit(self.host.engine.list_users(nqn)), lambda _: "")

    def do_cancel(self, op: Op) -> None:
        jobs = list(self.host.engine.jobs.values())
        if jobs:
            self.host.kernel.process.context.copy().run(jobs[op.a % len(jobs)].cancel)

    # ---- others

    def _head(self, op: Op) -> SimHead:
        nqn, _, nsid = NAMESPACES[op.a % len(NAMESPACES)]
        return self.world.head(nqn, nsid)

    def do_foreign_mount(self, op: Op) -> None:
        self._meddled += 1
        self.world.mount(self._head(op), (*DIRECTORIES, "/srv/new")[op.b % 6])

    def do_foreign_bind(self, op: Op) -> None:
        self._meddled += 1
        self.world.bind(STAGING[op.a % len(STAGING)], DIRECTORIES[op.b % len(DIRECTORIES)])

    def do_foreign_block(self, op: Op) -> None:
        self._meddled += 1
        self.world.bind_device(self._head(op), FILE)

    def do_foreign_unmount(self, op: Op) -> None:
        mounts = [m for m in self.world.mounts.mounts if m.head is not None]
        mount = mounts[op.a % len(mounts)] if mounts else None
        if mount is not None:
            self._meddled += 1
            self.world.unmount(mount.mount_point, space=mount.space, lazy=op.b % 4 == 0)

    def do_unshare(self, _: Op) -> None:
        self._pids.append(self.world.unshare())

    def do_private_mount(self, op: Op) -> None:
        if not self._pids:
            self._pids.append(self.world.unshare())
        self.world.mount(self._head(op), "/mnt/x", space=self._pids[op.b % len(self._pids)])

    def do_end_process(self, op: Op) -> None:
        if self._pids:
            self.world.end_process(self._pids.pop(op.a % len(self._pids)))

    def do_hold(self, op: Op) -> None:
        self.world.hold(self._head(op))

    def do_release(self, op: Op) -> None:
        if self.world.holders:
            self.world.release(self.world.holders[op.a % len(self.world.holders)])

    def do_open(self, op: Op) -> None:
        self.world.open(self._head(op), exclusive=op.b % 4 == 0, generic=op.b % 4 == 1)

    def do_close(self, op: Op) -> None:
        openers = [opener for opener in self.world.openers if not opener.transient]
        if openers:
            self.world.close(openers[op.a % len(openers)])

    def do_swap(self, op: Op) -> None:
        self.world.swapon(self._head(op))

    def do_unswap(self, op: Op) -> None:
        self.world.swapoff(self._head(op))

    def do_foreign_connect(self, op: Op) -> None:
        self._meddled += 1
        self.world.connect((ONE, TWO)[op.a % 2], PATHS[op.b % 2], owner="stas" if op.c % 4 == 0 else "")

    def do_foreign_disconnect(self, op: Op) -> None:
        self._meddled += 1
        self.world.disconnect((ONE, TWO)[op.a % 2])

    # ---- target and network

    def do_path_down(self, op: Op) -> None:
        self.world.path_down(PATHS[op.a % 2])

    def do_path_up(self, op: Op) -> None:
        self.world.path_up(PATHS[op.a % 2])

    def do_remove_namespace(self, op: Op) -> None:
        self._meddled += 1
        nqn, _, nsid = NAMESPACES[op.a % len(NAMESPACES)]
        self._removed[nqn, nsid] = self.world.remove_namespace(nqn, nsid)

    def do_add_namespace(self, op: Op) -> None:
        self._meddled += 1
        if self._removed:
            key = list(self._removed)[op.a % len(self._removed)]
            self.world.add_namespace(*key, self._removed.pop(key))

    def do_grow(self, op: Op) -> None:
        nqn, _, nsid = NAMESPACES[op.a % len(NAMESPACES)]
        self.world.grow_namespace(nqn, nsid, self.world.fabric.targets[nqn].namespaces[nsid].size * 2)

    # ---- bad luck

    def do_hook(self, op: Op) -> None:
        """Somebody meddles at a certain moment of a call to come."""
        meddler = Op(MEDDLING[op.a % len(MEDDLING)], op.b, op.c, op.a)
        calls = (*CALLS, *READS, "journal_write", "journal_delete")

        def action() -> None:
            self.note(f"  meddling: {meddler}")
            with contextlib.suppress(OSError, LookupError):
                getattr(self, f"do_{meddler.kind}")(meddler)

        self.host.kernel.faults.hook(calls[op.b % len(calls)], action, after=op.c % 2 == 1, skip=op.c % 3)

    def do_fail(self, op: Op) -> None:
        call = CALLS[op.a % len(CALLS)]
        after = op.c % 3 == 0
        errors = errors_of(call, after=after)
        self.host.kernel.faults.fail(call, errors[op.b % len(errors)], after=after, skip=op.c % 2)

    def do_fail_read(self, op: Op) -> None:
        self._reads_fail = True
        call = READS[op.a % len(READS)]
        self.host.kernel.faults.fail(call, OSError(errno.EIO, "simulated"), skip=op.b % 8, times=1 + op.c % 3)

    def do_fail_journal(self, op: Op) -> None:
        self._reads_fail = True
        call = ("journal_write", "journal_delete")[op.a % 2]
        self.host.kernel.faults.fail(call, OSError(errno.ENOSPC, "simulated"), skip=op.b % 4, times=1 + op.c % 2)

    def do_delay(self, op: Op) -> None:
        seconds = (0.01, 1.0, 10.0, 70.0)[op.b % 4]
        self.host.kernel.faults.delay(CALLS[op.a % len(CALLS)], seconds, after=op.c % 2 == 1)

    def do_hang(self, op: Op) -> None:
        self._gates.append(self.host.kernel.faults.hang(CALLS[op.a % len(CALLS)], after=op.c % 2 == 1))

    def do_let_go(self, op: Op) -> None:
        if self._gates:
            self._gates.pop(op.a % len(self._gates)).release()

    def do_events(self, op: Op) -> None:
        self.host.kernel.faults.events = EventFaults(
            loss=(0.0, 0.3)[op.a % 2], duplicate=0.2, delay=(0.0, 0.5, 3.0)[op.b % 3]
        )

    async def do_crash(self, _: Op) -> None:
        self.host.kill()

    def do_crash_soon(self, op: Op) -> None:
        faults = self.host.kernel.faults
        faults.at(faults.points + 1 + op.a % 40, crash=True)

    def do_wait(self, _: Op) -> None:
        pass


def play(seed: int, ops: list[Op]) -> History:
    """Play a history in virtual time."""
    history = History(seed)
    run(history.play(ops))
    return history
