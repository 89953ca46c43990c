"""Running tools: output, statuses, environment, cancellation."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmeofd.kernel.commands import Commands, Output, StandIn
from nvmeofd.kernel.interface import CommandError


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


def tool(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def commands(directory: Path) -> Commands:
    return Commands(f"{directory}:/usr/bin:/bin")


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_output_and_environment(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    tool(bin_dir, "show", 'env | grep -v "^_=\\|^PWD=\\|SHLVL="; pwd; cat; ps -o pid=,pgid=,sid= -p $$ >&2')
    output = asyncio.run(commands(bin_dir).run("show"))
    lines = output.stdout.decode().splitlines()
    assert sorted(lines[:-1]) == ["LC_ALL=C", "LIBMOUNT_FORCE_MOUNT2=always", f"PATH={bin_dir}:/usr/bin:/bin"]
    assert lines[-1] == "/"
    assert len(set(output.stderr.split())) == 1, "leads its own process group and session"


def test_arguments_arrive_as_they_are(bin_dir: Path) -> None:
    tool(bin_dir, "show", 'for a; do printf "%s\\0" "$a"; done')
    arguments = ["-x", "a b", "new\nline", os.fsdecode(b"/mnt/\xff\xfe"), "ü", "$(id)"]
    output = asyncio.run(commands(bin_dir).run("show", *arguments))
    assert output.stdout.split(b"\0")[:-1] == [os.fsencode(argument) for argument in arguments]


def test_failure_has_status_and_reason(bin_dir: Path) -> None:
    tool(bin_dir, "fail", 'echo "mount: /x: wrong" >&2; printf "  second\\033[m line\\n\\n" >&2; exit 32')
    with pytest.raises(CommandError) as caught:
        asyncio.run(commands(bin_dir).run("fail"))
    assert caught.value.status == 32
    assert caught.value.reason == "mount: /x: wrong; second?[m line (exit status 32)"
    assert asyncio.run(commands(bin_dir).run("fail", good=(0, 32))).status == 32


def test_missing_and_broken_tools(bin_dir: Path) -> None:
    with pytest.raises(CommandError, match="not installed") as caught:
        asyncio.run(commands(bin_dir).run("nvmeofd-no-such-tool"))
    assert caught.value.status == 127
    broken = bin_dir / "broken"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(CommandError, match="cannot be run"):
        asyncio.run(commands(bin_dir).run("broken"))
    assert not commands(bin_dir).available("nvmeofd-no-such-tool")
    assert commands(bin_dir).available("broken")


def test_output_is_bounded_and_drained(bin_dir: Path) -> None:
    tool(bin_dir, "talk", "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo done >&2; exit 1")
    with pytest.raises(CommandError) as caught:
        asyncio.run(commands(bin_dir).run("talk"))
    assert caught.value.status == 1
    output = asyncio.run(commands(bin_dir).run("talk", good=(1,)))
    assert (len(output.stdout), len(output.stderr)) == (65536, 65536)


def test_a_background_process_does_not_hold_up_the_end(bin_dir: Path) -> None:
    tool(bin_dir, "leave", "echo started; sleep 30 & echo $!")
    started = time.monotonic()
    output = asyncio.run(commands(bin_dir).run("leave"))
    assert time.monotonic() - started < 10
    os.kill(int(output.stdout.split()[1]), signal.SIGKILL)


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancelling_ends_the_group_and_reaps(bin_dir: Path, stubborn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeofd.kernel.commands._GRACE", 0.2)
    pids = bin_dir / "pids"
    trap = 'trap "" TERM; ' if stubborn else ""
    tool(bin_dir, "hang", f"{trap}sleep 60 & echo $$ $! > {pids}; wait; wait; sleep 60")

    async def main() -> None:
        task = asyncio.create_task(commands(bin_dir).run("hang"))
        parent, child = map(int, (await asyncio.to_thread(wait_for, pids)).split())
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone(parent)
        deadline = time.monotonic() + 5
        while not gone(child) and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    before = os.listdir("/proc/self/fd")
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_cancelling_at_once_leaves_no_child(bin_dir: Path) -> None:
    mark = bin_dir / "mark"
    tool(bin_dir, "slow", f"sleep 1; touch {mark}")

    async def main() -> None:
        for turns in range(4):
            task = asyncio.create_task(commands(bin_dir).run("slow"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    time.sleep(1.2)
    assert not mark.exists()


def ended(pid: int) -> bool:
    return gone(pid) or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_ended(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_tool_dies_with_the_daemon(bin_dir: Path) -> None:
    pid = bin_dir / "pid"
    tool(bin_dir, "hang", f"echo $$ > {pid}; exec sleep 60")
    run = f"asyncio.run(Commands('{bin_dir}:/bin').run('hang'))"
    code = f"import asyncio; from nvmeofd.kernel.commands import Commands; {run}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3]) as daemon:
        child = int(wait_for(pid))
        assert not ended(child)
        daemon.kill()
    wait_ended(child)


def test_stand_in_is_no_child_and_ends_when_it_is_told_to() -> None:
    stand_in = StandIn(3)
    status = Path(f"/proc/{stand_in.pid}/stat").read_text().rpartition(")")[2].split()
    assert status[1] != str(os.getpid())
    assert not ended(stand_in.pid)
    stand_in.end()
    wait_ended(stand_in.pid)


def test_a_signal_is_named_in_the_reason() -> None:
    assert Output(-9, b"", b"").reason() == "killed by signal 9"
    assert Output(1, b"", b"x" * 1000).reason().startswith("x" * 500 + "… (")
