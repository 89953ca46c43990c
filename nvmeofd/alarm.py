"""A timer that several times are asked of: it goes off at the soonest of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls back on the running loop, once each time it is set.

    What asks for a later time than is set already changes nothing.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._timer: asyncio.TimerHandle | None = None

    def is_set(self) -> bool:
        return self._timer is not None

    def at(self, when: float) -> None:
        """Go off at this time of the loop, or sooner if that was asked for."""
        if self._timer is not None and self._timer.when() > when:
            self.cancel()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(when, self._go_off)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_off(self) -> None:
        self._timer = None
        self._callback()
