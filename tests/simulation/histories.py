"""Random histories: what clients, other programs, the target, the network and bad luck do to a host.

A history is a list of plain :class:`Op` values, so that it can be drawn from a seed, shrunk, and replayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

from nvmeofd.errors import NvmeofdError
from tests.simulation.acts import AWAY, HOME, Acts, Op
from tests.simulation.clock import run
from tests.simulation.harness import Died
from tests.simulation.setting import PATHS
from tests.simulation.state import SimController

WAITS = (0.0, 0.0, 0.0001, 0.01, 0.06, 0.4, 3.0, 20.0)
# kind → how often it is drawn
KINDS = {
    "stage": 12,
    "unstage": 7,
    "force": 3,
    "disconnect": 3,
    "again": 2,
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
    "busy": 1,
    "idle": 1,
    "hide": 1,
    "show": 2,
    "make": 1,
    "unmake": 1,
    "rename": 2,
    "foreign_connect": 1,
    "foreign_disconnect": 1,
    "take_over": 1,
    "cut": 1,
    "path_down": 1,
    "path_up": 4,
    "flap": 1,
    "refuse": 1,
    "remove_namespace": 1,
    "add_namespace": 2,
    "exchange": 1,
    "grow": 1,
    "mute": 1,
    "spoil": 1,
    "hook": 5,
    "fail": 3,
    "fail_read": 1,
    "fail_journal": 1,
    "delay": 2,
    "hang": 1,
    "let_go": 2,
    "events": 1,
    "crash": 2,
    "crash_soon": 2,
    "restart": 1,
    "reconfigure": 1,
    "wait": 2,
}


def draw(rng: random.Random, length: int) -> list[Op]:
    """A history from a seed."""
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=length)
    return [Op(kind, rng.randrange(64), rng.randrange(64), rng.randrange(64), rng.choice(WAITS)) for kind in kinds]


class History(Acts):
    """Plays one history on one host."""

    async def play(self, ops: list[Op]) -> None:
        await self._play(ops)
        if self.complaints:
            self.host.kill()  # as it is: nothing more has to work
        await asyncio.gather(*self._watchers)

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

    async def boot(self) -> None:
        for _ in range(20):
            self.note("boot")
            with contextlib.suppress(Died, OSError):
                await self.host.boot(self.plan())
                return
            self.host.kill()
        self.complaints.append("the daemon does not start")

    async def end(self) -> None:
        """Everything works again; then, with and without the other users, all promises must hold."""
        self.let_everything_work()
        if self.host.kernel.killed:
            await self.boot()
            self.host.kernel.faults.clear()
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
            if not controller.by_daemon or self.is_taken(controller):
                self.world.fabric.remove(controller)
        for nqn in self.nqns:
            try:
                await self.host.disconnect(nqn)
            except NvmeofdError as error:
                self.complaints.append(f"disconnecting {nqn} in peace failed: {error!r}")
        await self.host.quiesce(1)
        self.complaints += self.host.complaints()
        if self.world.fabric.controllers():
            self.complaints.append(f"left in the end: {self.world.fabric.controllers()}")

    def is_taken(self, controller: SimController) -> bool:
        return self.world.registry.get(controller.name) == "stas"

    def let_everything_work(self) -> None:
        world = self.world
        self._at_peace = True
        for gate in self._gates:
            gate.release()
        self.host.kernel.faults.clear()
        world.fabric.unreachable.clear()
        world.mounts.busy.clear()
        world.unreadable_pids = ()
        for nqn, target in world.fabric.targets.items():
            for disk in target.namespaces.values():
                disk.unreadable, disk.writable = False, True
            if target.silent:
                target.silent = False
                world.fabric.announce(nqn)
        for address in PATHS:
            world.path_up(address)
        if AWAY in world.files.nodes:
            world.rename(AWAY, HOME)
        world.mounts.touch()  # nothing tells of renamed directories: they show with the next change
        # what was lost without a trace is made up for by whatever event comes next
        world.emit_device("change", "block", "sda")

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
        for mount in reversed(list(world.mounts.mounts)):
            if mount.head is not None and not mount.by_daemon:
                world.mounts.remove(mount)
        world.released()


def play(seed: int, ops: list[Op]) -> History:
    """Play a history in virtual time."""
    history = History(seed)
    run(history.play(ops))
    return history
