"""Which controllers this daemon connected: the journal's word, and the registry's for the neighbours.

Automatic disconnects touch only these. A controller is known by its instance, never by its name alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.journal import ConnectIntent, Journal, SubsystemRecord
from nvmeofd.log import about, log, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvmeofd.addresses import Address
    from nvmeofd.kernel.interface import Kernel
    from nvmeofd.model import Controller, ControllerId, Subsystem

OWNER = "nvmeofd"  # this daemon's name in the registry


class Ownership:
    """Records of owned controllers.

    What is about to be done is written down before, or it is an OSError. What is the case is known from then on, and
    written as soon as that is possible.
    """

    def __init__(self, kernel: Kernel, journal: Journal) -> None:
        self._kernel = kernel
        self._journal = journal

    @property
    def nqns(self) -> tuple[str, ...]:
        """The subsystems that this daemon has connected, or was connecting when it was last seen."""
        return tuple(nqn for nqn, record in self._journal.subsystems.items() if not record.empty)

    def owns(self, controller: Controller) -> bool:
        record = self._journal.subsystems.get(controller.nqn)
        return record is not None and controller.id in record.controllers

    def owned(self, subsystem: Subsystem) -> tuple[Controller, ...]:
        """Those controllers of the subsystem that are this daemon's, and that nobody else has taken over since.

        Raises:
            OSError: the registry cannot be read.
        """
        return tuple(
            controller
            for controller in subsystem.controllers
            if self.owns(controller) and self.other_owner(controller) is None
        )

    def keeps(self, nqn: str) -> bool:
        """Whether the subsystem is to stay connected although nothing uses it."""
        record = self._journal.subsystems.get(nqn)
        return record is not None and record.keep

    def set_keep(self, nqn: str, keep: bool) -> None:
        record = self._journal.subsystems.get(nqn)
        if record is not None and record.keep != keep:
            self._journal.put_subsystem(replace(record, keep=keep))

    def keep_as_before(self, nqn: str, keep: bool) -> None:
        """Take back what set_keep did, even if that cannot be written."""
        record = self._journal.subsystems.get(nqn)
        if record is not None and record.keep != keep:
            self._journal.remember(replace(record, keep=keep))

    @property
    def left(self) -> tuple[str, ...]:
        """The subsystems that a Disconnect is at work on, or was when the daemon was last seen."""
        return tuple(nqn for nqn, record in self._journal.subsystems.items() if record.leaving)

    def leave(self, nqn: str, controllers: Iterable[Controller]) -> None:
        """Write down that these controllers are about to be deleted, whoever connected them."""
        leaving = tuple(controller.id for controller in controllers)
        self._journal.put_subsystem(replace(self._record(nqn), leaving=leaving))

    def leaving(self, subsystem: Subsystem) -> tuple[Controller, ...]:
        """Those of `leave` that are still there, and that nobody has taken over since. Raises OSError."""
        leaving = self._record(subsystem.nqn).leaving
        return tuple(
            controller
            for controller in subsystem.controllers
            if controller.id in leaving and self.other_owner(controller) is None
        )

    def stay(self, nqn: str) -> None:
        """The Disconnect is over, whatever came of it."""
        record = self._journal.subsystems.get(nqn)
        if record is None or not record.leaving:
            return
        self._journal.remember(replace(record, leaving=()))

    def intend(self, nqn: str, address: Address, host_nqn: str, paths: Iterable[Controller]) -> None:
        """Write down that a connection is about to be made. ``paths``: those that there are by now. Raises OSError."""
        intent = ConnectIntent(address, host_nqn, tuple(sorted(one.instance for one in self._kernel.controllers())))
        record = self._record(nqn)
        # what was to be kept is what there was then, not what is about to come
        keep = record.keep and any(path.id in record.controllers for path in paths)
        self._journal.put_subsystem(replace(record, intent=intent, keep=keep))

    def not_connected(self, nqn: str) -> None:
        """The intended connection did not come about. Known from here on, even if that cannot be written."""
        record = self._journal.subsystems.get(nqn)
        if record is not None and record.intent is not None:
            keep = record.keep and bool(record.controllers)
            self._journal.remember(replace(record, intent=None, keep=keep))

    def connected(self, nqn: str, made: ControllerId) -> None:
        """The intended connection came about as this controller. Known from here on, even if that cannot be written."""
        record = self._record(nqn)
        self._journal.remember(replace(record, intent=None, controllers=(*record.controllers, made)))
        self._claim_registry(made)

    def reclaim(self, subsystem: Subsystem | None) -> None:
        """Put the name of this daemon on its controllers that have none: a crash can come before that is done."""
        for controller in subsystem.controllers if subsystem else ():
            if self.owns(controller):
                self._claim_registry(controller.id, unless_owned=True)

    def _claim_registry(self, controller: ControllerId, *, unless_owned: bool = False) -> None:
        name = controller.name
        try:
            if unless_owned and self._kernel.registry_owner(name) is not None:
                return
            # the registry knows names only, and this one may be another controller's by now
            if controller in self._kernel.controllers():
                self._kernel.registry_claim(name)
        except OSError as error:
            log.warning("cannot put the name of this daemon on %s in the registry: %s", name, error)

    def prune(self, nqn: str, subsystem: Subsystem | None) -> None:
        """Forget controllers that are gone. ``subsystem`` is what sysfs shows now.

        A controller that is there, but not in this subsystem, stays known: it has not come so far yet, or the target
        has told the kernel another NQN than the one that was asked for (nvme_init_subsystem, drivers/nvme/host/core.c).
        Then it is that subsystem's from here on.

        Raises:
            OSError: that cannot be told.
        """
        record = self._journal.subsystems.get(nqn)
        if record is None:
            return
        present = {controller.id for controller in subsystem.controllers} if subsystem else set()
        leaving = tuple(one for one in record.leaving if one in present)
        left = record.controllers
        if not present.issuperset(left):
            there = self._kernel.controllers()
            astray = self._moved(nqn, there.intersection(left) - present)
            left = tuple(owned for owned in left if owned in there and owned not in astray)
            for name in {owned.name for owned in record.controllers} - {one.name for one in there}:
                self.release_registry(name)
        # what was to be kept is what there was then
        keep = record.keep and not present.isdisjoint(left)
        now = replace(record, controllers=left, leaving=leaving, keep=keep)
        if now != record:
            self._journal.remember(now)

    def _moved(self, nqn: str, astray: frozenset[ControllerId]) -> frozenset[ControllerId]:
        """Note those of the controllers that are in another subsystem there, and return them. Raises OSError."""
        moved: frozenset[ControllerId] = frozenset()
        for other in self._kernel.subsystems() if astray else ():
            found = astray.intersection(controller.id for controller in other.controllers)
            if found and other.nqn != nqn:
                names = ", ".join(sorted(one.name for one in found))
                log.warning("%s, connected for %s, is a path of %s", names, quoted(nqn), quoted(other.nqn))
                record = self._record(other.nqn)
                controllers = tuple(dict.fromkeys((*record.controllers, *found)))
                self._journal.remember(replace(record, controllers=controllers))
                moved |= found
        return moved

    def release_registry(self, name: str) -> None:
        """Remove the registry entry of a controller that is gone. Its failure is only logged."""
        try:
            self._kernel.registry_release(name)
        except OSError as error:
            log.warning("cannot remove %s from the registry: %s", name, error)

    def adopt(self, nqn: str, subsystem: Subsystem | None) -> None:
        """Take over a controller that appeared under an intent whose outcome was never written down (a crash, a full
        disk).

        It is this daemon's when it serves the intended address for the intended host, was not there before, and
        nobody else has put his name on it.
        """
        record = self._journal.subsystems.get(nqn)
        if record is None or record.intent is None:
            return
        intent = record.intent
        for controller in subsystem.controllers if subsystem else ():
            if (
                controller.instance not in intent.known
                and controller.serves(intent.address)
                and controller.host_nqn == intent.host_nqn
                and not self.owns(controller)
                and self.other_owner(controller) is None
            ):
                what = controller.name, nqn
                log.info("taking over %s of %s: connected, but not written down then", *what, extra=about(nqn=nqn))
                self.connected(nqn, controller.id)
                return
        self.not_connected(nqn)

    def other_owner(self, controller: Controller) -> str | None:
        """The other orchestrator that owns the controller, None for nobody or this daemon. Raises OSError."""
        owner = self._kernel.registry_owner(controller.name)
        return None if owner == OWNER else owner

    def _record(self, nqn: str) -> SubsystemRecord:
        return self._journal.subsystems.get(nqn) or SubsystemRecord(nqn=nqn)
