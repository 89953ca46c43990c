"""The completions of bash, zsh and fish, in the shells themselves: words are typed, with Tab, and run.

In place of nvmeofctl stands a program that shows the words it is run with; asked for completions it is nvmeofctl.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.ctl import SCRIPT, environment
from tests.bus.fake import NQN, FakeCore, subsystem, volume
from tests.bus.harness import REPOSITORY, PrivateBus, service

COMPLETIONS = REPOSITORY / "completions"
SECONDS = 60.0  # reached only when something hangs
WWID = "uuid.6c5a4a4e-0000-4000-8000-000000000001"
SHELLS = ("bash", "zsh", "fish")

_STAND_IN = """#!/bin/sh
if [ "$1" = __complete ]; then
    exec {python} {script} "$@"
fi
exec {python} -c 'import json, sys; print("<run" + json.dumps(sys.argv[1:]) + ">")' "$@"
"""


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return str(request.param)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[PrivateBus]:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvmeofctl"
    program.write_text(_STAND_IN.format(python=sys.executable, script=SCRIPT))
    program.chmod(0o755)
    with PrivateBus() as bus:
        yield bus


def command(shell: str, folder: Path) -> list[str]:
    """How to start a shell that has read its completions, and nothing of the user's."""
    match shell:
        case "bash":
            (folder / "rc").write_text(f"PS1='ready> '\nbind 'set bell-style none'\n. {COMPLETIONS}/nvmeofctl.bash\n")
            return ["bash", "--noprofile", "--rcfile", str(folder / "rc"), "-i"]
        case "zsh":
            functions = folder / "functions"
            functions.mkdir(exist_ok=True)
            (functions / "_nvmeofctl").write_text((COMPLETIONS / "nvmeofctl.zsh").read_text())
            (folder / ".zshrc").write_text(
                f"PS1='ready> '\nfpath=({functions} $fpath)\nautoload -U compinit\ncompinit -u -d {folder}/dump\n"
            )
            return ["zsh", "-d", "-i"]
        case _:
            start = f"function fish_prompt; echo -n 'ready> '; end; source {COMPLETIONS}/nvmeofctl.fish"
            return ["fish", "--private", "--no-config", "--init-command", start]


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, shell: str, folder: Path, bus: PrivateBus) -> None:
        variables = environment(bus.address, TERM="dumb", ZDOTDIR=str(folder), HOME=str(folder))
        variables["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
        argv = command(shell, folder)
        pid, self._terminal = os.forkpty()
        if pid == 0:  # pragma: no cover - the child
            os.chdir(folder)
            os.execvpe(argv[0], argv, variables)
        self._pid = pid
        self._seen = ""

    def words(self, typed: str) -> list[str]:
        """What nvmeofctl is run with when this is typed, ``\\t`` for Tab."""
        self._until("ready> ")
        os.write(self._terminal, f"nvmeofctl {typed}\r".encode())
        found: list[str] = json.loads(self._until(r"<run(\[.*?\])>"))
        return found

    def _until(self, pattern: str) -> str:
        deadline = time.monotonic() + SECONDS
        while True:
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()=>][B0]?|\r", "", self._seen)
            match = re.search(pattern, plain, re.DOTALL)
            if match is not None:
                self._seen = plain[match.end() :]
                return match[match.lastindex or 0]
            ready, _, _ = select.select([self._terminal], [], [], deadline - time.monotonic())
            assert ready, f"{pattern} did not come: {plain}"
            self._seen += os.read(self._terminal, 65536).decode(errors="replace")

    def close(self) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


def host() -> FakeCore:
    core = FakeCore()
    core.connect(subsystem())
    core.add_volume(volume("/srv/plain"))
    core.add_volume(volume("/mnt/it's a path"))
    core.add_volume(volume("/mnt2/new\nline"))
    core.add_job(4711)
    return core


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("mon\t", ["monitor"]),
        ("--json jo\t", ["--json", "jobs"]),
        ("unstage /srv/pl\t", ["unstage", "/srv/plain"]),
        ("unstage /srv/pl\t --for\t", ["unstage", "/srv/plain", "--force"]),
        ("unstage /mnt/\t", ["unstage", "/mnt/it's a path"]),
        ("unstage /mnt2/\t", ["unstage", "/mnt2/"]),
        ("disconnect nqn.2024-01.org.ex\t", ["disconnect", NQN]),
        ("disconnect nqn.2024-01.org.example:o\t", ["disconnect", NQN]),
        ("show 4\t", ["show", "4711"]),
        ("cancel \t", ["cancel", "4711"]),
        ("stage --form\tif\t", ["stage", "--format=if-empty"]),
        ("stage --format if\t", ["stage", "--format", "if-empty"]),
        (f"stage {NQN} uu\t tcp://127\t", ["stage", NQN, WWID, "tcp://127.0.0.1:4420"]),
        (f"stage {NQN} nsid.1 tcp://a fold\tinn\tx", ["stage", NQN, "nsid.1", "tcp://a", "folder/inner/x"]),
    ],
)  # fmt: skip
async def test_words(shell: str, private: PrivateBus, tmp_path: Path, typed: str, words: list[str]) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    async with service(private, host()):
        interactive = Shell(shell, tmp_path, private)
        try:
            found = await asyncio.to_thread(interactive.words, typed)
        finally:
            interactive.close()
    assert found == words


async def test_no_daemon(shell: str, private: PrivateBus, tmp_path: Path) -> None:
    """Nothing is completed, and nothing disturbs."""
    interactive = Shell(shell, tmp_path, private)
    try:
        assert await asyncio.to_thread(interactive.words, "unstage /srv/pl\t") == ["unstage", "/srv/pl"]
    finally:
        interactive.close()


async def test_inside_quotes(private: PrivateBus, tmp_path: Path) -> None:
    async with service(private, host()):
        interactive = Shell("bash", tmp_path, private)
        try:
            typed = "disconnect 'nqn.2024-01.org.example:o\t"
            assert await asyncio.to_thread(interactive.words, typed) == ["disconnect", NQN]
        finally:
            interactive.close()
