"""What clients, other programs, the target, the network and bad luck can do to a host."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nvmeofd.config import Config
from nvmeofd.errors import Failed, NvmeofdError
from nvmeofd.model import HostIdentity
from tests.simulation.faults import EventFaults, FaultPlan, Gate, errors_of
from tests.simulation.files import Node
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
    TARGET,
    TWO,
    XFS,
    make_world,
)
from tests.simulation.state import SimHead
from tests.simulation.target import Disk

NAMESPACES = ((ONE, EXT4, 1), (ONE, XFS, 2), (ONE, BLANK, 3), (ONE, BTRFS, 4), (TWO, OTHER, 1), (TWO, SPARE, 2))
NEW = "/srv/new"  # a path that is not there unless somebody makes it
HOME, AWAY = "/srv/home", "/srv/away"  # a directory of somebody who renames it
MOVING = f"{HOME}/volume"
STAGING = ("/srv/a", "/srv/b", NEW, FILE, MOVING)
OTHER_HOST = HostIdentity("nqn.2024-01.org.example:host", "99999999-2222-3333-4444-555555555555")
CALLS = (
    "connect",
    "delete_controller",
    "claim",
    "write_back",
    "scan_processes",
    "settle",
    "lock_device",
    "probe",
    "edges_are_zero",
    "make_filesystem",
    "finish_filesystem",
    "wipe",
    "check_filesystem",
    "set_read_only",
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
READS = (
    "subsystem",
    "subsystems",
    "controllers",
    "holders",
    "swaps",
    "mounts_changed",
    "mount_lines",
    "btrfs_siblings",
    "registry_owner",
    "registry_claim",
    "registry_release",
    "host_identity",
    "multipath",
)
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
    "cut",
    "force",
    "remove_namespace",
    "add_namespace",
    "exchange",
    "take_over",
    "make",
    "unmake",
    "rename",
    "unstage",
    "stage",
    "disconnect",
)


@dataclass(frozen=True, slots=True)
class Op:
    """One act: what, three small numbers that choose the details, and how long to wait after it."""

    kind: str
    a: int = 0
    b: int = 0
    c: int = 0
    wait: float = 0.0


class Acts:
    """All the kinds of acts, each a method ``do_<kind>``. ``nqns``: only these subsystems are meddled with."""

    def __init__(self, seed: int, nqns: Sequence[str] = (ONE, TWO)) -> None:
        self.rng = random.Random(seed)
        self.world = make_world(seed)
        self.world.files.add(HOME)
        self.nqns = nqns
        self.config = Config(
            timeout=self.rng.choice((60, 60, 20)),
            queue_limit=self.rng.choice((64, 64, 2)),
            total_limit=self.rng.choice((1024, 1024, 4)),
            disconnect_delay=self.rng.choice((0, 0, 0, 20)),
        )
        self.latency = self.rng.choice((0.0, 0.0, 0.02, 0.5))
        self.yields = self.rng.choice((0, 2, 2, 6))
        self.host = Host(self.world, self.config)
        self.complaints: list[str] = []
        self.trace: list[str] = []
        self.operations = 0
        self._gates: list[Gate] = []
        self._at_peace = False  # nobody meddles any more, not in a call that has begun either
        self._pids: list[int] = []
        self._removed: dict[tuple[str, int], Disk] = {}
        self._reads_fail = False
        self._last: Op | None = None  # what a client asked for last
        self._watchers: set[asyncio.Task[None]] = set()

    def note(self, text: str) -> None:
        self.trace.append(text)

    def plan(self) -> FaultPlan:
        """For a new life of the daemon."""
        only = "" if len(self.nqns) > 1 else self.nqns[0]
        return FaultPlan(self.rng.randrange(1 << 30), yields=self.yields, latency=self.latency, nqn=only)

    async def act(self, op: Op) -> None:
        method: Callable[[Op], Any] = getattr(self, f"do_{op.kind}")
        with contextlib.suppress(OSError, LookupError):
            result = method(op)
            if asyncio.iscoroutine(result):
                await result

    # ---- clients

    def job(self, what: str, task: asyncio.Task[Any], check: Callable[[Any], str] = lambda _: "") -> None:
        """Count and watch a call of a client. ``check`` says what is wrong with its result."""
        self.operations += 1

        async def watch() -> None:
            try:
                result = await self.host.answer(task)
            except Died:
                self.note(f"  {what}: died")
            except (NvmeofdError, OSError) as error:
                self.note(f"  {what}: {error!r}")
                if isinstance(error, Failed | OSError) and not self._reads_fail:
                    self.complaints.append(f"{what}: {error!r}")
            else:
                self.note(f"  {what}: {result}")
                if wrong := check(result):
                    self.complaints.append(f"{what}: {wrong}")

        # a context of its own: a client lives on when the daemon is killed
        watcher = asyncio.get_running_loop().create_task(watch(), context=contextvars.Context())
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    def _nqn(self, number: int) -> str:
        return self.nqns[number % len(self.nqns)]

    def _namespace(self, number: int) -> tuple[str, str, int]:
        known = [namespace for namespace in NAMESPACES if namespace[0] in self.nqns]
        return known[number % len(known)]

    def do_stage(self, op: Op) -> None:
        self._last = op
        nqn, wwid, nsid = self._namespace(op.a)
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
        if op.b & 48 == 48:
            options["min_paths"] = 2
        elif op.b & 56 == 32:
            options["ctrl_loss_tmo"] = 15
        addresses = (PATHS, [A1], [A2], [f"tcp://{TARGET}:4420"])[op.c % 4]
        name = wwid if op.c & 32 else f"nsid.{nsid}"
        with contextlib.suppress(NvmeofdError):
            self.job(f"stage {name} {path}", self.host.start_stage(nqn, name, addresses, path, **options))

    def do_unstage(self, op: Op) -> None:
        staged = list(self.host.engine.volumes)
        if not staged and op.c % 8:
            self.do_stage(op)
            return
        self._last = op
        path = self._staged(op)
        options = ({}, {"keep_connected": True}, {"force": True}, {"timeout": 5})[max(0, op.b % 16 - 12)]
        self.job(f"unstage {path}", self.host.start_unstage(path, **options))

    def _staged(self, op: Op) -> str:
        """Mostly what there is."""
        staged = list(self.host.engine.volumes)
        return staged[op.a % len(staged)] if staged and op.c % 4 else STAGING[op.a % len(STAGING)]

    def do_force(self, op: Op) -> None:
        """The paths die, mostly all of them, and a client forces what it has staged."""
        if op.b % 4:
            self.do_cut(op)
        path = self._staged(op)
        self.job(f"force {path}", self.host.start_unstage(path, force=True))

    def do_disconnect(self, op: Op) -> None:
        self._last = op
        nqn = self._nqn(op.a)
        self.job(f"disconnect {nqn}", self.host.start_disconnect(nqn))

    def do_again(self, op: Op) -> None:
        """A client asks for the same once more, perhaps before it was answered."""
        if self._last is not None:
            for _ in range(1 + op.a % 3):
                getattr(self, f"do_{self._last.kind}")(self._last)

    def do_users(self, op: Op) -> None:
        nqn = self._nqn(op.a)
        self.job(f"users {nqn}", self.host.submit(self.host.engine.list_users(nqn)))

    def do_cancel(self, op: Op) -> None:
        jobs = list(self.host.engine.jobs.values())
        if jobs:
            self.host.kernel.process.context.copy().run(jobs[op.a % len(jobs)].cancel)

    # ---- other programs

    def _head(self, op: Op) -> SimHead:
        nqn, _, nsid = self._namespace(op.a)
        return self.world.head(nqn, nsid)

    def do_foreign_mount(self, op: Op) -> None:
        self.world.mount(self._head(op), (*DIRECTORIES, NEW)[op.b % 6])

    def do_foreign_bind(self, op: Op) -> None:
        self.world.bind(STAGING[op.a % len(STAGING)], DIRECTORIES[op.b % len(DIRECTORIES)])

    def do_foreign_block(self, op: Op) -> None:
        self.world.bind_device(self._head(op), FILE)

    def do_foreign_unmount(self, op: Op) -> None:
        mounts = [m for m in self.world.mounts.mounts if m.head is not None and m.head.subsystem.nqn in self.nqns]
        if mounts:
            mount = mounts[op.a % len(mounts)]
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

    def do_busy(self, op: Op) -> None:
        """A process works in what is mounted there, so that it cannot be unmounted."""
        self.world.mounts.busy.add(STAGING[op.a % len(STAGING)])

    def do_idle(self, op: Op) -> None:
        self.world.mounts.busy.discard(STAGING[op.a % len(STAGING)])

    def do_hide(self, _: Op) -> None:
        """A process whose open files cannot be read."""
        self.world.hide()

    def do_show(self, _: Op) -> None:
        self.world.unreadable_pids = ()
        self.world.meddling["users"] += 1

    def do_make(self, op: Op) -> None:
        """Somebody makes the staging path that is not there."""
        if NEW not in self.world.files.nodes:
            self.world.meddling["files"] += 1
            # while the daemon is at it, nobody can tell whose an empty directory is
            theirs = NEW not in self.host.journal().volumes
            self.world.files.add(NEW, (Node.DIRECTORY, *Node)[op.a % 5], theirs=theirs)

    def do_rename(self, _: Op) -> None:
        if HOME in self.world.files.nodes:
            self.world.rename(HOME, AWAY)
        else:
            self.world.rename(AWAY, HOME)

    def do_unmake(self, _: Op) -> None:
        if NEW in self.world.files.nodes and not self.world.mounts.at(NEW) and not self.world.mounts.elsewhere(NEW):
            self.world.meddling["files"] += 1
            self.world.files.remove(NEW)

    def do_foreign_connect(self, op: Op) -> None:
        host = {"host": OTHER_HOST} if op.c % 16 == 7 else {}
        self.world.connect(self._nqn(op.a), PATHS[op.b % 2], owner="stas" if op.c % 4 == 0 else "", **host)

    def do_foreign_disconnect(self, op: Op) -> None:
        self.world.disconnect(self._nqn(op.a))

    def do_take_over(self, op: Op) -> None:
        """Another orchestrator puts its name on a controller, or gives it up."""
        controllers = [c for c in self.world.fabric.controllers() if c.subsystem.nqn in self.nqns]
        if controllers:
            controller = controllers[op.a % len(controllers)]
            self.world.meddling["paths"] += 1
            if self.world.registry.get(controller.name) == "stas":
                del self.world.registry[controller.name]
            else:
                self.world.register(controller.name, "stas")
                record = self.host.journal().subsystems.get(controller.subsystem.nqn)
                if record is None or all(one.instance != controller.instance for one in record.controllers):
                    # The daemon has not written down yet that it is its own, and may or may not get to it.
                    controller.by_daemon, controller.ambiguous = False, True

    # ---- target and network

    def do_path_down(self, op: Op) -> None:
        self.world.path_down(PATHS[op.a % 2])

    def do_cut(self, op: Op) -> None:
        """The network is gone, or all of it but one path."""
        for address in PATHS if op.c % 8 else PATHS[:1]:
            self.world.path_down(address)

    def do_path_up(self, op: Op) -> None:
        self.world.fabric.unreachable.pop(PATHS[op.a % 2], None)
        self.world.path_up(PATHS[op.a % 2])

    def do_flap(self, op: Op) -> None:
        for turn in range(1 + op.b % 5):
            self.world.later(turn * 0.02, lambda: self.world.path_down(PATHS[op.a % 2]))
            self.world.later(turn * 0.02 + 0.01, lambda: self.world.path_up(PATHS[op.a % 2]))

    def do_refuse(self, op: Op) -> None:
        numbers = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EIO, errno.ENOKEY, errno.EKEYREJECTED)
        self.world.fabric.unreachable[PATHS[op.a % 2]] = numbers[op.b % len(numbers)]
        self.world.meddling["paths"] += 1

    def do_remove_namespace(self, op: Op) -> None:
        nqn, _, nsid = self._namespace(op.a)
        self._removed[nqn, nsid] = self.world.remove_namespace(nqn, nsid)

    def do_add_namespace(self, op: Op) -> None:
        if self._removed:
            key = list(self._removed)[op.a % len(self._removed)]
            self.world.add_namespace(*key, self._removed.pop(key))

    def do_exchange(self, op: Op) -> None:
        """Two namespaces of the target change their numbers."""
        nqn, _, one = self._namespace(op.a)
        namespaces = self.world.fabric.targets[nqn].namespaces
        other = 1 + op.b % 4
        if one in namespaces and other in namespaces:
            namespaces[one], namespaces[other] = namespaces[other], namespaces[one]
            self.world.fabric.announce(nqn)

    def do_grow(self, op: Op) -> None:
        nqn, _, nsid = self._namespace(op.a)
        self.world.grow_namespace(nqn, nsid, self.world.fabric.targets[nqn].namespaces[nsid].size * 2)

    def do_mute(self, op: Op) -> None:
        """The target tells nobody of its namespaces any more, or does so again."""
        target = self.world.fabric.targets[self._nqn(op.a)]
        target.silent = not target.silent

    def do_spoil(self, op: Op) -> None:
        """Another host, or the storage, does something to a disk. Not while the daemon writes to it: both would."""
        nqn, _, nsid = self._namespace(op.a)
        disk = self.world.fabric.targets[nqn].namespaces[nsid]
        journal = self.host.journal()
        if any(job.nqn == nqn for job in self.host.engine.jobs.values()) or journal.formats:
            return
        self.world.meddling["disks"] += 1
        match op.b % 6:
            case 0:
                disk.garbage, disk.untouched = True, False
            case 1:
                disk.other, disk.untouched = "crypto_LUKS", False
            case 2:
                disk.ambivalent, disk.untouched = True, False
            case 3:
                disk.damaged = not disk.damaged
            case 4:
                disk.unreadable = not disk.unreadable
            case 5:
                disk.writable = not disk.writable

    # ---- bad luck

    def do_hook(self, op: Op) -> None:
        """Somebody meddles, or a client asks for something, at a certain moment of a call to come."""
        meddler = Op(MEDDLING[op.a % len(MEDDLING)], op.b, op.c, op.a)
        calls = (*CALLS, *READS, "journal_write", "journal_delete")

        def action() -> None:
            if self._at_peace:
                return
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
        errors = errors_of(call)
        self.host.kernel.faults.fail(call, errors[op.b % len(errors)], skip=op.b % 4, times=1 + op.c % 2)

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
            loss=(0.0, 0.3)[op.a % 2],
            silence=(0.0, 0.0, 0.3)[op.a % 3],
            duplicate=0.2,
            delay=(0.0, 0.5, 3.0)[op.b % 3],
        )

    # ---- the daemon's own ends

    def do_crash(self, _: Op) -> None:
        self.host.kill()

    def do_crash_soon(self, op: Op) -> None:
        faults = self.host.kernel.faults
        faults.at(faults.points + 1 + op.a % 40, crash=True)

    async def do_restart(self, op: Op) -> None:
        """An orderly end, as the service manager asks for it."""
        with contextlib.suppress(Died):
            if not await self.host.end((5.0, 15.0, None)[op.a % 3]):
                self.note("  left something behind")

    def do_reconfigure(self, op: Op) -> None:
        self.host.config = replace(self.config, timeout=(5, 20, 60)[op.a % 3], disconnect_delay=(0, 10)[op.b % 2])
        self.host.kernel.process.context.copy().run(self.host.engine.reconfigure, self.host.config)

    def do_wait(self, _: Op) -> None:
        pass
