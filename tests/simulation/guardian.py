"""The judge: decides whether a deletion of a controller broke the promise.

Exclusive users (mounts, holders, swap, anybody's O_EXCL) cannot come while the daemon holds its claims, so one at the
moment of deletion is always a violation. Block binds and plain opens can come at any time; they count when they were
there before the daemon had its claims, or before its last look at what it would have seen them in.

Looks are kept in a context variable, so that each job answers for its own looks, not for those of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from tests.simulation.state import SimController, SimHead

if TYPE_CHECKING:
    from tests.simulation.kernel import SimKernel

MOUNTS = "mounts"
PROCESSES = "processes"
CLAIM = "claim"
_LOOKS: ContextVar[Mapping[str, int]] = ContextVar("looks", default={})  # noqa: B039 - never changed, only replaced


def looked(what: str, moment: int) -> None:
    """The current task has looked at something (a subsystem by NQN, mounts, processes) or made its claim."""
    _LOOKS.set({**_LOOKS.get(), what: moment})


class Guardian:
    """Judges the deletions of one daemon process."""

    def __init__(self, kernel: SimKernel) -> None:
        self._kernel = kernel

    def check_deletion(self, controller: SimController) -> None:
        """Write down what is wrong with deleting this controller now."""
        for head in controller.subsystem.heads:
            if head.paths == [controller]:
                self._check_head(controller, head)

    def _check_head(self, controller: SimController, head: SimHead) -> None:
        world, looks = self._kernel.world, _LOOKS.get()
        if head.seq > looks.get(head.subsystem.nqn, 0):
            return  # it came after the last look: nobody could know
        what = f"deleted {controller.name} of {head.subsystem.nqn}, the last path of {head.path}"
        if head not in self._kernel.claims:
            world.violation(f"{what}, without a claim")
        for use in world.uses(head, but=self._kernel):
            look = looks.get(PROCESSES if use.kind == "open" or "namespace" in use.detail else MOUNTS, 0)
            if use.exclusive or use.seq < max(looks.get(CLAIM, 0), look):
                world.violation(f"{what}, in use: {use.kind} {use.detail}")
