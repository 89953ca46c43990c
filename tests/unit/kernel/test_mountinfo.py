"""Parsing lines of mountinfo, and noticing changes of the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeofd.kernel.mountinfo import MountTable, escape, parse_mount, unescape
from nvmeofd.model import DeviceNumber

file_names = st.binary(min_size=1).filter(lambda name: b"\0" not in name).map(os.fsdecode)


@given(file_names)
def test_escaping_round_trips(name: str) -> None:
    escaped = escape(name)
    assert unescape(escaped) == name
    assert not set(escaped) & set(b" \t\n#")


def test_unescape_leaves_other_backslashes_alone() -> None:
    assert unescape(rb"a\040b\011c\012d\134e\043f") == "a b\tc\nd\\e#f"
    assert unescape(rb"\400\8\13") == r"\400\8\13"


def test_a_line_of_a_filesystem() -> None:
    mount = parse_mount(
        rb"36 35 259:3 /mnt1 /mnt/a\040b rw,noatime master:1 shared:2 - ext4 /dev/nvme0n1 rw,errors=continue"
    )
    assert mount.mount_id == 36
    assert mount.parent_id == 35
    assert mount.number == DeviceNumber(259, 3)
    assert mount.root == "/mnt1"
    assert mount.mount_point == "/mnt/a b"
    assert mount.options == ("rw", "noatime")
    assert (mount.fstype, mount.source) == ("ext4", "/dev/nvme0n1")
    assert mount.super_options == ("rw", "errors=continue")


def test_a_block_bind_without_optional_fields() -> None:
    mount = parse_mount(b"40 35 0:6 /nvme0n1//deleted /srv/vol rw - devtmpfs devtmpfs rw\n")
    assert mount.root == "/nvme0n1//deleted"
    assert mount.fstype == "devtmpfs"


def test_an_empty_source_and_a_hyphen_as_source() -> None:
    assert parse_mount(b"40 35 0:50 / /mnt rw - tmpfs  rw").source == ""
    assert parse_mount(b"40 35 0:50 / /mnt rw shared:1 - tmpfs - rw").source == "-"


def test_bytes_that_are_not_utf8_survive() -> None:
    mount = parse_mount(b"40 35 0:50 / /mnt/\xff\xfe rw - tmpfs x rw")
    assert os.fsencode(mount.mount_point) == b"/mnt/\xff\xfe"


@pytest.mark.parametrize(
    "line",
    [b"", b"40", b"x 35 0:50 / /mnt rw - tmpfs x rw", b"40 35 0 / /mnt rw - tmpfs x rw", b"1 2 3:4 / / rw tmpfs x rw"],
)
def test_malformed_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        parse_mount(line)


def test_the_table_of_this_host() -> None:
    table = MountTable("/proc")
    try:
        assert table.changed()
        lines = table.lines()
        assert not table.changed()
        assert [parse_mount(line).mount_id for line in lines]
        assert "/proc" in {parse_mount(line).mount_point for line in lines}
    finally:
        table.close()


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MountTable(str(tmp_path))


SCRIPT = """
import asyncio, os, subprocess, sys
from nvmeofd.kernel.interface import EventKind
from nvmeofd.kernel.mountinfo import MountTable, parse_mount
from nvmeofd.kernel.uevents import MountWatcher

target = sys.argv[1]
def mount(): subprocess.run(["mount", "-t", "tmpfs", "a source", target], check=True)
def umount(): subprocess.run(["umount", target], check=True)
def points(): return {parse_mount(line).mount_point for line in table.lines()}

table = MountTable("/proc")
assert table.changed() and not table.changed()
mount()
assert table.changed() and not table.changed()
assert target in points()
umount()
assert target not in points()
assert not table.changed(), "the reading has seen it"

async def main():
    events = []
    seen = asyncio.Event()
    def callback(event):
        events.append(event)
        seen.set()
    turns = 0
    watcher = MountWatcher(callback, "/proc")
    with watcher.attach():
        for change in (mount, umount, mount, umount):
            seen.clear()
            await asyncio.to_thread(change)
            await asyncio.wait_for(seen.wait(), 10)
        await asyncio.sleep(0.1)
        count = len(events)
        await asyncio.sleep(0.2)
        assert len(events) == count, "the loop spins"
    assert all(event.kind is EventKind.MOUNTS for event in events)
    assert 4 <= count <= 8, count
    # Two files, two memories: the watcher took nothing away from the table.
    assert table.changed()

before = len(os.listdir("/proc/self/fd"))
asyncio.run(main())
assert len(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_changes_are_noticed(tmp_path: Path) -> None:
    target = tmp_path / "mount me\n#1"
    target.mkdir()
    script = textwrap.dedent(SCRIPT)
    command = ["unshare", "--mount", sys.executable, "-c", script, str(target)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], timeout=60)
