"""The mount cache follows the mount table in turns with other work, and decisions meanwhile see the table itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from nvmeofd.cache import MountCache
from nvmeofd.kernel.interface import Kernel
from nvmeofd.model import DeviceNumber

ONE, TWO, THREE = (b"%d 28 0:50 / /srv/%d rw - tmpfs x rw" % (number, number) for number in (101, 102, 103))
NODE = b"104 28 0:6 /nvme0n1 /srv/block rw - devtmpfs udev rw"
GONE = b"104 28 0:6 /nvme0n1//deleted /srv/block rw - devtmpfs udev rw"
NONSENSE = b"nonsense"


class Table:
    """As much of a kernel as the cache needs. ``meanwhile`` is called once, when a reading in turns is half done."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines
        self._changed = True
        self.meanwhile: Callable[[], None] = lambda: None
        self.readings = 0
        self.broken = False

    def become(self, *lines: bytes) -> None:
        self._lines = lines
        self._changed = True

    def mounts_changed(self) -> bool:
        changed, self._changed = self._changed, False
        return changed

    def mount_lines(self) -> tuple[bytes, ...]:
        if self.broken:
            raise OSError
        self.readings += 1
        return self._lines

    async def mount_lines_in_turns(self) -> tuple[bytes, ...]:
        lines = self.mount_lines()
        await asyncio.sleep(0)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return lines

    def device_number(self, path: str) -> DeviceNumber | None:
        raise NotImplementedError


def paths(cache: MountCache) -> list[str]:
    return sorted(mount.mount_point for mount in cache._by_line.values())


def made(*lines: bytes) -> tuple[Table, MountCache]:
    table = Table(*lines)
    cache = MountCache(cast(Kernel, table))
    cache.refresh()
    return table, cache


def test_it_follows() -> None:
    table, cache = made(ONE, TWO)
    table.become(TWO, THREE)
    asyncio.run(cache.follow())
    assert paths(cache) == ["/srv/102", "/srv/103"]
    assert cache.version == 2
    readings = table.readings
    asyncio.run(cache.follow())
    assert not cache.refresh()
    assert table.readings == readings, "an unchanged table is not read"


def test_many_new_lines() -> None:
    table, cache = made(ONE)
    table.become(*(b"%d 28 0:50 / /srv/%d rw - tmpfs x rw" % (number, number) for number in range(1000, 3001)))
    asyncio.run(cache.follow())
    assert len(cache) == 2001


def test_a_decision_meanwhile_sees_the_table_and_its_picture_stays() -> None:
    table, cache = made(ONE)

    def decide() -> None:
        assert paths(cache) == ["/srv/101"]
        table.become(THREE)
        assert cache.refresh()
        assert paths(cache) == ["/srv/103"]

    table.become(ONE, TWO)
    table.meanwhile = decide
    asyncio.run(cache.follow())
    assert paths(cache) == ["/srv/103"]


def test_a_decision_reads_although_poll_has_told_already() -> None:
    table, cache = made(ONE)
    table.become(ONE, TWO)
    table.meanwhile = lambda: None if cache.refresh() and len(cache) == 2 else pytest.fail("it decided on old lines")
    asyncio.run(cache.follow())


def test_a_decision_that_could_not_read_leaves_it_to_be_read() -> None:
    table, cache = made(ONE)

    def decide() -> None:
        table.become(THREE)
        table.broken = True
        with pytest.raises(OSError, match=r"^$"):
            cache.refresh()
        table.broken = False

    table.become(ONE, TWO)
    table.meanwhile = decide
    asyncio.run(cache.follow())
    assert paths(cache) == ["/srv/103"]


@pytest.mark.parametrize("before", [(ONE, NODE), (ONE,)])
def test_a_node_that_goes_while_its_bind_is_read(before: tuple[bytes, ...]) -> None:
    """The line changes and poll says nothing of it."""
    table, cache = made(*before)

    def remove() -> None:
        table._lines = (GONE,)
        cache.invalidate()

    table.become(NODE)
    table.meanwhile = remove
    asyncio.run(cache.follow())
    assert cache.refresh()
    assert not cache._by_node


def test_forgotten_meanwhile() -> None:
    table, cache = made(ONE, TWO)
    table.become(ONE, TWO, THREE)
    table.meanwhile = cache.forget
    asyncio.run(cache.follow())
    assert paths(cache) == ["/srv/101", "/srv/102", "/srv/103"]
    assert cache.rebuilds == 1


def test_what_makes_no_sense_is_refused_until_it_does() -> None:
    table, cache = made(ONE)
    table.become(ONE, NONSENSE)
    with pytest.raises(OSError, match="nonsense"):
        asyncio.run(cache.follow())
    with pytest.raises(OSError, match="nonsense"):
        cache.refresh()
    table._lines = (TWO,)
    assert cache.refresh()
    assert paths(cache) == ["/srv/102"]
