"""Which controllers this daemon connected: the journal's word, and the registry's for the neighbours.

Automatic disconnects touch only these. A controller is known by its instance, never by its name alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nvmeofd.journal import ConnectIntent, Journal, OwnedController, SubsystemRecord
from nvmeofd.log import about, log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvmeofd.addresses import Address
    from nvmeofd.kernel.interface import Kernel
    from nvmeofd.model import Controller, Subsystem

OWNER = "nvmeofd"  # this daemon's name in the registry


class Ownership:
    """Records of owned controllers. All methods raise OSError when the journal cannot be written."""

    def __init__(self, kernel: Kernel, journal: Journal) -> None:
        self._kernel = kernel
        self._journal = journal

    @property
    def nqns(self) -> tuple[str, ...]:
        """The subsystems that this daemon has connected, or was connecting when it was last seen."""
        return tuple(self._journal.subsystems)

    def owns(self, controller: Controller) -> bool:
        record = self._journal.subsystems.get(controller.nqn)
        return record is not None and any(
            (owned.name, owned.instance) == (controller.name, controller.instance) for owned in record.controllers
        )

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
        leaving = tuple(OwnedController(controller.name, controller.instance) for controller in controllers)
        self._journal.put_subsystem(replace(self._record(nqn), leaving=leaving))

    def leaving(self, subsystem: Subsystem) -> tuple[Controller, ...]:
        """Those of `leave` that are still there, and that nobody has taken over since. Raises OSError."""
        leaving = self._record(subsystem.nqn).leaving
        return tuple(
            controller
            for controller in subsystem.controllers
            if OwnedController(controller.name, controller.instance) in leaving and self.other_owner(controller) is None
        )

    def stay(self, nqn: str) -> None:
        """The Disconnect is over, whatever came of it."""
        record = self._journal.subsystems.get(nqn)
        if record is None or not record.leaving:
            return
        try:
            self._journal.put_subsystem(replace(record, leaving=()))
        except OSError as error:
            # what is gone is forgotten with the next look at the host
            log.warning("cannot write down that a Disconnect of %s is over: %s", nqn, error, extra=about(nqn=nqn))

    def intend(self, nqn: str, address: Address, host_nqn: str, known: Iterable[Controller]) -> None:
        """Write down that a connection is about to be made."""
        intent = ConnectIntent(address, host_nqn, tuple(controller.instance for controller in known))
        self._journal.put_subsystem(replace(self._record(nqn), intent=intent))

    def not_connected(self, nqn: str) -> None:
        """The intended connection did not come about."""
        self._journal.put_subsystem(replace(self._record(nqn), intent=None))

    def connected(self, controller: Controller) -> None:
        """The intended connection came about as this controller."""
        record = self._record(controller.nqn)
        owned = OwnedController(controller.name, controller.instance)
        self._journal.put_subsystem(replace(record, intent=None, controllers=(*record.controllers, owned)))
        self._claim_registry(controller.name)

    def reclaim(self, subsystem: Subsystem | None) -> None:
        """Put the name of this daemon on its controllers that have none: a crash can come before that is done."""
        for controller in subsystem.controllers if subsystem else ():
            if self.owns(controller):
                self._claim_registry(controller.name, unless_owned=True)

    def _claim_registry(self, name: str, *, unless_owned: bool = False) -> None:
        try:
            if not unless_owned or self._kernel.registry_owner(name) is None:
                self._kernel.registry_claim(name)
        except OSError as error:
            log.warning("cannot write the owner of %s to the registry: %s", name, error)

    def prune(self, nqn: str, subsystem: Subsystem | None) -> None:
        """Forget controllers that are gone. ``subsystem`` is what sysfs shows now."""
        record = self._journal.subsystems.get(nqn)
        if record is None:
            return
        present = {(c.name, c.instance) for c in subsystem.controllers} if subsystem else set()
        left = tuple(owned for owned in record.controllers if (owned.name, owned.instance) in present)
        leaving = tuple(one for one in record.leaving if (one.name, one.instance) in present)
        if (left, leaving) == (record.controllers, record.leaving) and not (record.keep and not left):
            return
        for owned in record.controllers:
            if owned not in left and not (self._kernel_has(owned.name)):
                self.release_registry(owned.name)
        self._journal.put_subsystem(replace(record, controllers=left, leaving=leaving))

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
                self.connected(controller)
                return
        self.not_connected(nqn)

    def other_owner(self, controller: Controller) -> str | None:
        """The other orchestrator that owns the controller, None for nobody or this daemon. Raises OSError."""
        owner = self._kernel.registry_owner(controller.name)
        return None if owner == OWNER else owner

    def _kernel_has(self, name: str) -> bool:
        return any(controller.name == name for found in self._kernel.subsystems() for controller in found.controllers)

    def _record(self, nqn: str) -> SubsystemRecord:
        return self._journal.subsystems.get(nqn) or SubsystemRecord(nqn=nqn)
