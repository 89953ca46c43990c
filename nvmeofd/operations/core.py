"""What all operations share: the kernel, what is known of it, and the books."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvmeofd.cache import MountCache
    from nvmeofd.config import Config
    from nvmeofd.journal import Journal
    from nvmeofd.kernel.interface import Kernel
    from nvmeofd.operations.observer import Observer
    from nvmeofd.operations.ownership import Ownership
    from nvmeofd.operations.volumes import Volume
    from nvmeofd.workers import Workers


class Changes:
    """Tells whoever waits for a device that something about devices changed."""

    def __init__(self) -> None:
        self._flags: dict[asyncio.Event, None] = {}  # in the order in which they came

    def announce(self) -> None:
        for flag in self._flags:
            flag.set()

    @contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """A flag that is set with every change. Clear it before looking, so that no change falls in between."""
        flag = asyncio.Event()
        self._flags[flag] = None
        try:
            yield flag
        finally:
            del self._flags[flag]


@dataclass(slots=True)
class Core:
    """The parts that operations work with. All of it lives on one event loop."""

    kernel: Kernel
    cache: MountCache
    journal: Journal
    ownership: Ownership
    workers: Workers
    observer: Observer
    config: Config
    volumes: dict[str, Volume] = field(default_factory=dict)  # by staging path
    changes: Changes = field(default_factory=Changes)
    counters: Counter[str] = field(default_factory=Counter)

    def count(self, what: str) -> None:
        """Count an event for the Counters property."""
        self.counters[what] += 1

    def add_volume(self, volume: Volume) -> None:
        """A volume is staged, perhaps anew at the path where it was lost."""
        known = volume.staging_path in self.volumes
        self.volumes[volume.staging_path] = volume
        if known:
            self.observer.volume_changed(volume)
        else:
            self.observer.volume_added(volume)

    def remove_volume(self, staging_path: str) -> None:
        if self.volumes.pop(staging_path, None) is not None:
            self.observer.volume_removed(staging_path)

    def change_volume(self, volume: Volume) -> None:
        self.volumes[volume.staging_path] = volume
        self.observer.volume_changed(volume)
