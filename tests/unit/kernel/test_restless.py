"""A mount table that changes during every reading of it."""

from __future__ import annotations

import pytest

from nvmeofd.kernel import mountinfo
from nvmeofd.kernel.mountinfo import MountTable


@pytest.mark.parametrize(("seconds", "readings"), [(0.001, 5), (0.05, 1)])
def test_it_is_read_again_while_that_is_quick(monkeypatch: pytest.MonkeyPatch, seconds: float, readings: int) -> None:
    """With 10,000 mounts one reading takes long enough for the loop to stand still."""
    read: list[int] = []

    def reading(fd: int) -> bytes:
        read.append(fd)
        return b"a line\n"

    monkeypatch.setattr(mountinfo, "read_table", reading)
    monkeypatch.setattr("time.monotonic", lambda: len(read) * seconds)
    table = MountTable("/proc")
    try:
        monkeypatch.setattr(table, "_polled", lambda: True)
        assert table.changed()
        assert table.lines() == (b"a line",)
        assert len(read) == readings
        monkeypatch.setattr(table, "_polled", lambda: False)
        assert table.changed(), "what was read may be of two minds"
        assert not table.changed()
    finally:
        table.close()
