"""How calls of a simulated kernel run: as threads and children do, with faults, cancellation and sudden death."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.clock import Process, ProcessKilled
from tests.simulation.faults import FaultPlan, Rule

if TYPE_CHECKING:
    from tests.simulation.world import SimWorld

T = TypeVar("T")


class _Operation:
    """One call under way."""

    def __init__(self, name: str, effect: Callable[[], Any], ready: Callable[[], bool] | None, *, child: bool) -> None:
        self.name = name
        self.effect = effect
        self.ready = ready
        self.child = child
        self.done = False
        self.stop = asyncio.get_running_loop().create_future()  # a child got its SIGKILL
        self.held = False
        self.context = contextvars.copy_context()

    def may_happen(self) -> bool:
        """Whether the kernel could do it now although nobody waits for it any more."""
        return not self.done and (self.ready is None or self.ready())

    def run(self) -> Any:
        self.done = True
        return self.effect()


class Calls:
    """One process lifetime: its calls, and its end."""

    def __init__(self, world: SimWorld, faults: FaultPlan) -> None:
        self.world = world
        self.faults = faults
        self.process = Process()
        self.killed = False
        self._running: list[_Operation] = []

    def check_alive(self) -> None:
        """Nothing that a dead process does reaches the world."""
        if self.killed:
            raise ProcessKilled

    def read(self, name: str, detail: str = "") -> None:
        """A plain call passes here. Raises OSError when the plan says so."""
        self.check_alive()
        self.apply_now(self.faults.reading(name, detail))

    def apply_now(self, rules: list[Rule]) -> None:
        """What goes wrong in a plain call."""
        for rule in rules:
            if rule.action is not None:
                rule.action()
            if rule.crash:
                self.kill()
                raise ProcessKilled
            if rule.error is not None:
                raise rule.error

    async def call(
        self,
        name: str,
        effect: Callable[[], T],
        *,
        detail: str = "",
        ready: Callable[[], bool] | None = None,
        child: bool = False,
        keeps_result: bool = False,
        undo: Callable[[], None] | None = None,
    ) -> T:
        """Run a call that takes time; ``effect`` happens at one instant of it, not before ``ready`` holds.

        Cancelled, it still ends only when the call behind it has ended (a ``child`` is killed first). With
        ``keeps_result`` a success is returned even then; otherwise ``undo`` takes back what must not stay.
        """
        self.check_alive()
        operation = _Operation(name, effect, ready, child=child)
        self._running.append(operation)
        task = asyncio.ensure_future(self._perform(operation, detail))
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                if self.killed:
                    raise
                cancelled = True
                if not operation.stop.done():
                    operation.stop.set_result(None)
        self._running.remove(operation)
        failure = None if task.cancelled() else task.exception()
        if not cancelled or (keeps_result and failure is None and not task.cancelled()):
            result: T = task.result()
            return result
        if failure is None and undo is not None and not task.cancelled():
            undo()
        raise asyncio.CancelledError from failure

    async def _perform(self, operation: _Operation, detail: str) -> Any:
        await self._point(operation, detail, after=False)
        if operation.ready is not None and not operation.ready():
            operation.held = True
            await self.world.until(operation.ready)
        if operation.child and operation.stop.done() and (not operation.held or self.faults.rng.random() < 0.5):
            raise asyncio.CancelledError  # it died before it did anything
        self.check_alive()
        result = operation.run()
        await self._point(operation, detail, after=True)
        return result

    async def _point(self, operation: _Operation, detail: str, *, after: bool) -> None:
        rules = self.faults.passing(operation.name, detail, after=after)
        for _ in range(self.faults.rng.randint(0, self.faults.yields)):
            await asyncio.sleep(0)
        if self.faults.latency:
            await self._take(self.faults.rng.choice((0.0, self.faults.latency)) * self.faults.rng.random(), operation)
        for rule in rules:
            await self._apply(rule, operation)
        if self.killed:
            # with a virtual clock nothing of this process runs again; elsewhere, wait for the end of the test
            await asyncio.get_running_loop().create_future()

    async def _apply(self, rule: Rule, operation: _Operation) -> None:
        if rule.action is not None:
            rule.action()
        if rule.crash:
            self.kill()
            return
        if rule.seconds:
            await self._take(rule.seconds, operation)
        if rule.gate is not None:
            operation.held = True
            await rule.gate.wait()
        if rule.error is not None:
            raise rule.error

    @staticmethod
    async def _take(seconds: float, operation: _Operation) -> None:
        """Time goes by. A child that is killed ends before."""
        if operation.child:
            await asyncio.wait([operation.stop], timeout=seconds)
        else:
            await asyncio.sleep(seconds)

    def kill(self) -> None:
        """``kill -9``: no call returns, none begins; what was under way in the kernel happens, or does not."""
        if self.killed:
            return
        self.killed = True
        for operation in self._running:
            if operation.may_happen() and self.faults.rng.random() < 0.5:
                with contextlib.suppress(Exception):  # nobody is left to be told
                    operation.context.run(operation.run)
        self._running.clear()
        self._died()
        self.process.kill()

    def _died(self) -> None:
        """The world takes back what the process held."""
